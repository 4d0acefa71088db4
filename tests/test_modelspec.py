"""What other programs read of our files: headers in their words, and a card that a hub takes."""

import base64
import hashlib
import io
import json
import re
import struct

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image

import train
from configs.errors import UserError
from infer.pictures import thumbnail
from infer.video import write_video
from models.files.card import escaped, fenced, write_card
from models.files.checkpoint import load_checkpoint, save_checkpoint
from models.files.modelspec import HASH, SPEC, THUMBNAIL, date_of, model_spec
from scripts.conversion.inspection import inspect
from scripts.conversion.writing import convert

from conftest import config_of

INFO = {"preset": "tap", "rank": 4, "alpha": 4, "architecture": "channels 320/640/1280/1280, 2 layers a block"}


def parsed(file):
    """(header, bytes after it), read as the format is defined, without its library."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


@pytest.fixture(scope="module")
def run(trained):
    """A run of two steps with everything that is shown of it."""
    shown = {"sample_at_first": True, "side_by_side": True, "prompt": ["a horse is *running*"]}
    return trained(license="apache-2.0", checkpointing_steps=1, validation_data=shown)


def test_the_header_says_what_the_file_is_in_other_programs_words(run):
    header, content = parsed(run / "checkpoint-2" / "temporal" / "adapter_model.safetensors")
    texts = header["__metadata__"]
    assert {k: v for k, v in texts.items() if k.startswith("modelspec.") and k not in (HASH, THUMBNAIL)} == {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "unet3d-32-64-96-96/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": "train (tap)",
        "modelspec.description": 'A motion for pipeline, learned from a clip that shows "a car is running".',
        "modelspec.date": re.sub(r"train_(.*)T(\d\d)-(\d\d)-(\d\d)(-\d+)?$", r"\1T\2:\3:\4", run.name),
        "modelspec.license": "apache-2.0",
        "modelspec.resolution": "64x64",
        "modelspec.trigger_phrase": "a car is running",
        "modelspec.usage_hint": "Say what the new video shows; the motion needs no words.",
        "modelspec.timestep_range": "0,999",
    }
    assert texts[HASH] == "0x" + hashlib.sha256(content).hexdigest()
    wanted = {"network_module": "peft.tuners.lora", "network_dim": "4", "network_alpha": "4.0", "steps": "2"}
    wanted |= {"output_name": "train", "sd_model_name": "pipeline", "learning_rate": "0.0005", "seed": "0"}
    assert wanted.items() <= {k.removeprefix("ss_"): v for k, v in texts.items() if k.startswith("ss_")}.items()
    assert all(isinstance(value, str) for value in texts.values())
    kind, picture = texts[THUMBNAIL].split(",")
    image = Image.open(io.BytesIO(base64.b64decode(picture)))
    assert kind == "data:image/jpeg;base64" and image.format == "JPEG" and image.size == (64, 64)


def test_a_thumbnail_is_of_the_latest_preview_and_there_is_none_before_one(run):
    first, _ = parsed(run / "checkpoint-1" / "temporal" / "adapter_model.safetensors")
    assert THUMBNAIL not in first["__metadata__"], "the base model's videos say nothing of the adapter"
    appearance, _ = parsed(run / "checkpoint-2" / "spatial" / "0" / "adapter_model.safetensors")
    assert not any(key.startswith(("modelspec.", "ss_")) for key in appearance["__metadata__"])


def test_thumbnails_stay_small():
    noise = torch.randint(0, 256, (3, 3, 600, 900), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    url = thumbnail(noise)
    image = Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))
    assert len(url) < 32 << 10 and image.size == (256, 171)
    assert thumbnail(noise, most=100) is None


def test_our_own_reader_is_not_disturbed_and_inspect_shows_everything_escaped(run, tmp_path):
    found = load_checkpoint(run)
    assert found.preset == "tap" and found.config["license"] == "apache-2.0"
    lines = inspect(run, None)
    assert "modelspec.title: train (tap)" in lines and "ss_network_dim: 4" in lines
    assert any(re.fullmatch(r"modelspec.thumbnail: image/jpeg, [\d,]+ letters", line) for line in lines)
    texts = {"modelspec.title": "\x1b[2J\u202etitle", THUMBNAIL: "\x07" + "x" * 100_000, "ss_output_name": "y" * 5000}
    motion = {name: tensor.clone() for name, tensor in found.motion.items()}
    info = {"preset": "tap", "rank": 4, **texts}
    save_checkpoint(tmp_path, 1, motion=motion, appearance=[], kind="lora", config_yaml=None, info=info)
    shown = inspect(tmp_path, None)
    assert "modelspec.thumbnail: no data URL, 100,001 letters" in shown
    assert all(line.isprintable() and len(line) <= 203 for line in shown)
    assert any(line.startswith(r"modelspec.title: \x1b[2J\u202etitle") for line in shown)


def test_every_kind_of_file_carries_the_spec_with_a_hash_of_its_own(run, tmp_path):
    for kind, name in (("peft", "adapter_model.safetensors"), ("diffusers", "pytorch_lora_weights.safetensors")):
        convert(kind, run, tmp_path / kind, None, None, None)
        header, content = parsed(tmp_path / kind / name)
        texts = header["__metadata__"]
        assert texts[SPEC] == "1.0.1" and texts[HASH] == "0x" + hashlib.sha256(content).hexdigest()
        inner, _ = parsed(tmp_path / kind / "spatial" / "0" / name)
        assert SPEC not in inner["__metadata__"]


@pytest.mark.parametrize("kind", ["diffusers", "comfyui", "musubi"])
def test_a_transformers_file_for_another_program_carries_the_spec(kind, tiny_wan, clip_file, tmp_path):
    """Two of these programs store alpha as a number beside its matrices."""
    quick = {"max_train_steps": 1, "validation_data": {"sample_preview": False}, "train_data": {"n_sample_frames": 5}}
    run = train.run(config_of(tiny_wan, clip_file, tmp_path, quick))
    (file,) = convert(kind, run, tmp_path / kind, None, None, None).glob("*.safetensors")
    header, content = parsed(file)
    assert header["__metadata__"][SPEC] and header["__metadata__"][HASH] == "0x" + hashlib.sha256(content).hexdigest()


def test_the_same_training_writes_the_same_bytes(tiny_config, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    quick = dict(max_train_steps=1, validation_steps=1)
    first, second = (train.run(tiny_config(**quick)) / "checkpoint-1" for _ in range(2))
    files = [path.relative_to(first) for path in first.rglob("*.safetensors")]
    assert len(files) == 2
    for name in files:
        assert (first / name).read_bytes() == (second / name).read_bytes()
    header, _ = parsed(first / "temporal" / "adapter_model.safetensors")
    assert header["__metadata__"]["modelspec.date"] == "2023-11-14T22:13:20Z" and THUMBNAIL in header["__metadata__"]


def test_dates_come_from_the_run_or_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    assert date_of(tmp_path / "train_2026-11-24T20-54-52-2").isoformat() == "2026-11-24T20:54:52"
    assert date_of(tmp_path / "mine") is None and date_of(tmp_path / "train_2026-99-99T20-54-52") is None
    for wrong in ("yesterday", "9" * 30):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", wrong)
        with pytest.raises(UserError, match="SOURCE_DATE_EPOCH"):
            date_of(tmp_path)


def test_embeddings_and_families(tiny_config, tmp_path, monkeypatch):
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    texts = model_spec(tiny_config(), INFO, tmp_path, 3, caption="a car")
    assert texts["modelspec.architecture"] == "text-to-video-ms-1.7b/lora" and "modelspec.date" not in texts
    wan = {"architecture": "diffusion transformer of 30 layers, 12 heads of 128, feed-forward 8960, text 4096"}
    texts = model_spec(tiny_config(), INFO | wan, tmp_path, 3, caption="a car")
    assert texts["modelspec.architecture"] == "wan-1536/lora", "another width's LoRA does not fit"
    texts = model_spec(tiny_config(method="motion_inversion"), {}, tmp_path, 3, caption="a car")
    assert texts["modelspec.architecture"] == "unet3d/motion-embeddings"
    assert texts["ss_learning_rate"] == "0.02" and "ss_network_dim" not in texts
    names = {
        "AdamW": {},
        "AdamW8bit": {"use_8bit_adam": True},
        "Prodigy": {"optimizer": "prodigy", "learning_rate": 1.0},
    }
    for name, keys in names.items():
        assert model_spec(tiny_config(**keys), INFO, tmp_path, 3, caption="a car")["ss_optimizer"] == name
    texts = model_spec(tiny_config(), INFO, tmp_path, 3, caption="a car", clips=3)
    told = 'A motion for pipeline, learned from 3 clips, such as one that shows "a car".'
    assert texts["modelspec.description"] == told


def test_the_resolution_is_that_of_the_clip_as_it_was_cut(tiny_config, tmp_path):
    cfg = tiny_config()
    spec = model_spec(cfg, INFO, tmp_path, 1, caption="a car", size=(384, 256))
    assert (spec["modelspec.resolution"], spec["ss_resolution"]) == ("384x256", "(384, 256)")
    spec = model_spec(cfg, INFO, tmp_path, 1, caption="a car")
    assert spec["modelspec.resolution"] == f"{cfg.train_data.width}x{cfg.train_data.height}"


def test_the_card_says_of_the_run_what_is_so(tiny_config, tmp_path):
    cfg = tiny_config()
    text = write_card(tmp_path, cfg, {}, "a car", {}, clips=3).read_text()
    assert "The motion of 3 clips (such as: a car), learned as `motion embeddings`" in text
    assert "convert.py" not in text, "motion embeddings are no LoRA"
    assert "It was tried with" not in text, "there is no preview"
    write_video(tmp_path / "previews" / "step-2" / "a.mp4", torch.zeros(2, 3, 16, 16, dtype=torch.uint8), fps=8)
    text = write_card(tmp_path, cfg, INFO, "a car", {}).read_text()
    assert "The motion of one clip (a car), learned as `tap`" in text and "convert.py diffusers RUN OUT" in text
    assert "It was tried with:\n\n- a horse is running" in text


def test_the_card_is_what_a_hub_takes(run):
    card = ModelCard.load(run / "README.md")
    facts = card.data.to_dict()
    assert facts["license"] == "apache-2.0" and facts["pipeline_tag"] == "text-to-video"
    assert (
        facts["library_name"] == "peft" and facts["instance_prompt"] == "a car is running" and "lora" in facts["tags"]
    )
    for file in re.findall(r"\]\((side_by_side.\w+)\)", card.text):
        assert (run / file).is_file()
    assert card.text.count("(side_by_side.") == 2 and "- a horse is \\*running\\*" in card.text
    assert (
        re.search(r"\| temporal loss, last tenth \| \d\.\d{4} \|", card.text)
        and "learned as `tap` in 2 steps" in card.text
    )
    config = re.search(r"```yaml\n(.*)\n```", card.text, re.DOTALL)[1]
    assert yaml.safe_load(config) == yaml.safe_load((run / "config.yaml").read_text())


def test_nothing_in_a_caption_gets_out_of_its_place(tiny_config, tmp_path):
    evil = "---\nlicense: mit\n# <script>alert(1)</script> [x](javascript:y) ```\n````"
    cfg = tiny_config(train_data={"single_video_prompt": evil}, validation_data={"prompt": [evil]})
    (tmp_path / "previews" / "step-2").mkdir(parents=True)
    (tmp_path / "previews" / "step-2" / "a.mp4").touch()
    card = ModelCard.load(write_card(tmp_path, cfg, {}, evil, {}))
    assert card.data.license == "unknown" and card.data.instance_prompt == evil and "Not named yet" in card.text
    outside = re.sub(r"`{5,}yaml\n.*\n`{5,}", "", card.text, flags=re.DOTALL)
    assert not re.search(r"(?<!\\)<script|(?<!\\)\[x\]\(|^license: mit", outside, re.MULTILINE)
    assert escaped("a\nb*") == r"a b\*" and fenced("`````", "").startswith("``````\n")
    assert "(side_by_side" not in card.text, "no picture was made"


def test_the_base_model_is_named_where_the_hub_knows_it(tiny_config, tmp_path):
    cfg = tiny_config()
    assert "base_model" not in ModelCard.load(write_card(tmp_path, cfg, INFO, "a", {})).data.to_dict()
    cfg.pretrained_model_path = "./weights/zeroscope_v2_576w"
    assert ModelCard.load(write_card(tmp_path, cfg, INFO, "a", {})).data.base_model == "cerspense/zeroscope_v2_576w"
    cfg.pretrained_model_path = "somebody/else"
    card = ModelCard.load(write_card(tmp_path, cfg, INFO, "a", {}))
    assert card.data.base_model == "somebody/else"
    assert "--checkpoint_folder RUN --model somebody/else --prompt" in card.text, "no file decides what is fetched"
    cfg.pretrained_model_path = "./Wan2.1-T2V-1.3B-Diffusers"
    card = ModelCard.load(write_card(tmp_path, cfg, INFO, "a", {}))
    assert card.data.base_model == "Wan-AI/Wan2.1-T2V-1.3B-Diffusers" and "RUN --prompt" in card.text


def test_a_license_is_a_short_name(tiny_config):
    with pytest.raises(UserError, match="license: .* is no license's short name"):
        tiny_config(license="do: whatever you like")
