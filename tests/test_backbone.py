import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from configs.errors import UserError
from models import backbone as backbone_module
from models.backbone import Backbone, choose_device, choose_dtype
from models.backbones import unet3d


@pytest.fixture(scope="module")
def backbone(tiny_pipeline):
    return Backbone.load(tiny_pipeline)


def test_sizes_are_read_from_the_model(backbone):
    assert (backbone.vae_factor, backbone.snap) == (8, 64)


def test_frames_and_latents_keep_their_layout(backbone):
    frames = torch.randint(0, 256, (5, 3, 64, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    latents = backbone.encode_video(frames)
    assert latents.shape == (1, 4, 5, 8, 16) and latents.dtype == torch.float32
    decoded = backbone.decode_video(latents)
    both = backbone.decode_videos(torch.cat([latents, latents.flip(0)]))
    assert torch.equal(both[0], decoded) and len(both) == 2
    assert decoded.shape == frames.shape and decoded.dtype == torch.uint8
    one_by_one = torch.cat([backbone.encode_video(frame[None]) for frame in frames], dim=2)
    assert torch.allclose(latents, one_by_one, atol=1e-5), "frames are encoded independently, in order"


def test_a_too_long_prompt_says_what_is_cut(backbone, capsys):
    embedding = backbone.encode_text(["car " * 100 + "horse"])
    assert embedding.shape[1] == backbone.tokenizer.model_max_length
    assert "horse" in capsys.readouterr().err
    backbone.encode_text(["a car"])
    assert capsys.readouterr().err == ""


def test_many_prompts_are_one_visit_and_each_embedding_is_its_own(backbone, monkeypatch):
    visits, real = [], backbone_module._visiting
    monkeypatch.setattr(backbone_module, "_visiting", lambda *given: visits.append(given) or real(*given))
    together = backbone.encode_text(["a car", "", "a horse is running"])
    assert len(visits) == 1
    alone = [backbone.encode_text([prompt]) for prompt in ("a car", "", "a horse is running")]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize(("free", "stays"), [(20e9, True), (4e9, False)])
def test_encoders_stay_on_a_gpu_with_room_and_leave_a_small_one(monkeypatch, free, stays):
    places, emptied = [], []
    module = SimpleNamespace(to=lambda place: places.append(str(place)))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 24e9))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    with backbone_module._visiting(module, torch.device("cuda")):
        pass
    assert (places, len(emptied)) == ((["cuda"], 0) if stays else (["cuda", "cpu"], 1))


def test_the_fingerprint_follows_the_weights(backbone, tiny_pipeline):
    assert Backbone.load(tiny_pipeline).fingerprint() == backbone.fingerprint()
    other = Backbone.load(tiny_pipeline)
    other.vae.decoder.conv_out.bias.data += 1e-3
    assert other.fingerprint() != backbone.fingerprint()


def test_half_precision_and_bin_weights_load(tiny_pipeline, tmp_path, caplog, capfd):
    """A folder of 2023: .bin weights in half precision, no safetensors anywhere."""
    old = tmp_path / "old"
    shutil.copytree(tiny_pipeline, old)
    half = Backbone.load(tiny_pipeline, torch.float16)
    for name, part in (("unet", half.network), ("vae", half.vae), ("text_encoder", half.text_encoder)):
        for file in (old / name).glob("*.safetensors"):
            file.unlink()
        file = "pytorch_model.bin" if name == "text_encoder" else "diffusion_pytorch_model.bin"
        torch.save(part.state_dict(), old / name / file)
    capfd.readouterr()
    loaded = Backbone.load(old, torch.float16)
    note = f"note: loaded {old}: unet, vae, text_encoder from .bin files, as of 2023, in which nothing is executed\n"
    assert capfd.readouterr().err == note and not caplog.records, "one line, and no library's warnings"
    assert loaded.dtype == torch.float16
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.network.state_dict().values(), half.network.state_dict().values())
    )


@pytest.mark.parametrize("part", ["vae", "scheduler", "tokenizer"])
def test_a_missing_part_is_named(tiny_pipeline, tmp_path, part):
    broken = tmp_path / "broken"
    shutil.copytree(tiny_pipeline, broken)
    shutil.rmtree(broken / part)
    with pytest.raises(UserError, match=f"{part} missing"):
        Backbone.load(broken)


@pytest.mark.parametrize(("part", "start"), [("unet", b""), ("vae", b"\x10" + bytes(7)), ("text_encoder", b"")])
def test_a_file_of_weights_is_checked_before_a_library_reads_it_whole(
    tiny_pipeline, tmp_path, part, start, monkeypatch
):
    broken = tmp_path / "broken"
    shutil.copytree(tiny_pipeline, broken)
    (file,) = (broken / part).glob("*.safetensors")
    with open(file, "wb") as damaged:
        damaged.write(start)
        damaged.truncate(20 << 30)  # of which the disk holds nothing
    monkeypatch.setattr(unet3d.PARTS[part], "from_pretrained", lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises(UserError, match=file.name):
        Backbone.load(broken)


def test_a_truncated_weight_file_is_one_sentence(tiny_pipeline, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(tiny_pipeline, broken)
    file = broken / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match="unet of .* cannot be loaded|truncated"):
        Backbone.load(broken)


@pytest.mark.parametrize(("part", "change"), [
    ("unet", lambda tensor: None),
    ("text_encoder", lambda tensor: None),
    ("vae", lambda tensor: None),
    ("text_encoder", lambda tensor: tensor[:1].contiguous()),
    ("unet", lambda tensor: tensor[:1].contiguous()),
])  # fmt: skip
def test_a_weight_that_is_missing_or_of_another_shape_is_never_made_up(tiny_pipeline, tmp_path, part, change, capfd):
    broken = tmp_path / "broken"
    shutil.copytree(tiny_pipeline, broken)
    (file,) = (broken / part).glob("*.safetensors")
    state = load_file(file)
    name = sorted(state)[0]
    tensor = change(state.pop(name))
    save_file(state if tensor is None else {**state, name: tensor}, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"{part} of .* (lacks 1 of its weights|cannot be loaded)"):
        Backbone.load(broken)
    assert capfd.readouterr().err == "", "no library's own report"


@pytest.mark.parametrize(("file", "change", "words"), [
    ("text_encoder/config.json", {"hidden_act": 5}, "text_encoder of .* cannot be loaded"),
    ("tokenizer/tokenizer_config.json", {"pad_token": None}, "has no padding token"),
])  # fmt: skip
def test_a_setting_that_transformers_refuses_is_one_sentence(tiny_pipeline, tmp_path, file, change, words):
    broken = tmp_path / "broken"
    shutil.copytree(tiny_pipeline, broken)
    (broken / file).write_text(json.dumps(json.loads((broken / file).read_text()) | change))
    with pytest.raises(UserError, match=words):
        Backbone.load(broken)


def test_a_missing_folder_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="no folder .* models/pocketscope"):
        Backbone.load(tmp_path / "nowhere")


def test_device_and_precision_are_chosen():
    assert choose_device("cpu").type == "cpu"
    assert choose_dtype("fp16", torch.device("cpu")) == torch.float32
    chosen = {"fp16": torch.float16, "bf16": torch.bfloat16, "no": torch.float32}
    assert {precision: choose_dtype(precision, torch.device("cuda")) for precision in chosen} == chosen
    with pytest.raises(UserError, match="no torch device"):
        choose_device("gpu")
    for missing in ("cuda:63", "meta", "xpu"):
        with pytest.raises(UserError, match="asked for"):
            choose_device(missing)


def test_a_tokenizer_that_names_no_length_pads_to_what_the_text_encoder_takes(tiny_pipeline, tmp_path):
    folder = shutil.copytree(tiny_pipeline, tmp_path / "model")
    settings = folder / "tokenizer" / "tokenizer_config.json"
    kept = json.loads(settings.read_text())
    del kept["model_max_length"]
    settings.write_text(json.dumps(kept))
    backbone = Backbone.load(str(folder))
    assert backbone.encode_text(["a car"]).shape[1] == backbone.text_encoder.config.max_position_embeddings


def test_a_part_that_visited_an_mps_device_leaves_its_memory(monkeypatch):
    """Its allocator keeps what was freed, in the memory that the CPU has too."""
    moves, part = [], torch.nn.Linear(1, 1)
    monkeypatch.setattr(part, "to", lambda place: moves.append(str(place)))
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: moves.append("emptied"))
    with backbone_module._visiting(part, torch.device("mps")):
        moves.append("work")
    assert moves == ["mps", "work", "cpu", "emptied"]
