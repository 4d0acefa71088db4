"""scripts/convert.py: bit-exact round trips between all formats, stock libraries that open them, and bad input."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import diffusers
import pytest
import torch
from diffusers.loaders import PeftAdapterMixin
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from configs.errors import UserError
from configs.signals import Terminated
from data.cache import CachedClip, export_clips, read_cached
from models.backbones import architecture
from models.files import release, tensors
from models.files.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from models.files.diffusers_lora import DIFFUSERS_FILE, read_peft
from models.merge import merge
from models.outline import skeleton
from models.targets import targets
from scripts.conversion import writing
from scripts.conversion.inspection import inspect
from scripts.conversion.reading import read
from scripts.conversion.writing import convert
from scripts.pocket import architecture as blueprint

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    parts = blueprint.build(["a", "cat"])
    for name, parameter in parts["unet"].named_parameters():
        if "temp_attentions" in name and name.endswith("proj_out.weight"):  # starts at zero: no motion would show
            torch.nn.init.normal_(parameter, std=0.1)
    diffusers.TextToVideoSDPipeline(**parts).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def unet(model):
    return skeleton(model)


def lora_state(unet, preset, seed=0, rank=4):
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, (out, width) in release.layer_shapes(unet, preset).items():
        state[f"{name}.lora_A.weight"] = torch.randn(rank, width, generator=generator) / rank
        state[f"{name}.lora_B.weight"] = torch.randn(out, rank, generator=generator) / rank
    return state


@pytest.fixture(scope="module")
def run(unet, tmp_path_factory):
    """A run folder of ours with two reference clips and their cache."""
    folder = tmp_path_factory.mktemp("run")
    save_checkpoint(
        folder,
        7,
        motion=lora_state(unet, "tap"),
        appearance=[lora_state(unet, "appearance", seed=clip) for clip in (1, 2)],
        kind="lora",
        config_yaml="seed: 3\n",
        info={"preset": "tap", "rank": 4, "architecture": architecture(unet)},
    )
    clip = CachedClip(torch.randn(1, 4, 2, 8, 8), torch.randn(1, 24, 64), torch.randn(1, 4, 2, 8, 8), "a cat", "clip")
    export_clips([clip], folder)
    return folder


def same(one: Checkpoint, other: Checkpoint) -> bool:
    pairs = zip([one.motion, *one.appearance], [other.motion, *other.appearance], strict=True)
    return all(a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in pairs)


def change(kind, source, out, model=None, preset=None, index=None):
    return convert(kind, source, out, index, model, preset)


@pytest.mark.parametrize("kind", ["peft", "diffusers"])
def test_a_file_for_another_program_is_told_from_a_checkpoint(run, tmp_path, kind):
    there = convert(kind, run, tmp_path / "there", None, None, None)
    (tmp_path / "elsewhere").mkdir()
    file = shutil.copy(next(there.glob("*.safetensors")), tmp_path / "elsewhere" / "what people call it.safetensors")
    for path, named in ((there, next(there.glob("*.safetensors"))), (file.parent, file), (file, file)):
        with pytest.raises(UserError) as told:
            load_checkpoint(path)
        assert str(told.value).endswith(f"`python scripts/convert.py ours {named} OUT` makes it a checkpoint")
    assert load_checkpoint(
        convert("ours", next(there.glob("*.safetensors")), tmp_path / "back", None, None, None).parent
    )


def test_other_tensors_are_no_file_for_another_program(run, model, tmp_path, monkeypatch):
    def opened(path, **given):
        assert path.is_file(), "to open a pipe would wait for ever"
        return safe_open(path, **given)

    monkeypatch.setattr(tensors, "safe_open", opened)
    unet = Path(model) / "unet"
    (tmp_path / "damaged.safetensors").write_bytes(b"lora")
    os.mkfifo(tmp_path / "pipe.safetensors")
    for path in (run / "cached_latents", unet, next(unet.glob("*.safetensors")), tmp_path):
        with pytest.raises(UserError) as told:
            load_checkpoint(path)
        assert "convert.py" not in str(told.value)


@pytest.mark.parametrize("kind", ["peft", "diffusers", "release"])
def test_there_and_back_every_bit_survives(run, model, tmp_path, kind):
    preset = "tap" if kind == "release" else None
    change(kind, run, tmp_path / "theirs", model)
    back = load_checkpoint(change("ours", tmp_path / "theirs", tmp_path / "back", model, preset))
    original = load_checkpoint(run)
    assert same(original, back) and (back.preset, back.rank, back.scale, back.index) == ("tap", 4, 1.0, 7)
    if kind != "release":
        assert back.config == {"seed": 3} and back.info == original.info | {"alpha": "4.0"}


def test_the_authors_layout_is_written_whole(run, model, tmp_path, capsys):
    change("release", run, tmp_path, model)
    assert "would put the tap layers of this file elsewhere" in capsys.readouterr().err
    temporal = torch.load(tmp_path / "checkpoint-7/temporal/lora/7_unet.pt", weights_only=True)
    spatial = torch.load(tmp_path / "checkpoint-7/spatial/lora/7_unet.pt", weights_only=True)
    assert len(spatial) == 2 * 2 * len(targets(skeleton(model), "appearance"))
    assert all(isinstance(tensor, torch.nn.Parameter) for tensor in temporal + spatial)
    cached = torch.load(tmp_path / "cached_latents/cached_0.pt", weights_only=True)
    ours = read_cached(run / "cached_latents/cached_0.safetensors")
    assert torch.equal(cached["latents"], ours.latents[0]) and torch.equal(cached["inversion_noise"], ours.inversion[0])
    assert cached["text_prompt"] == "a cat" and cached["prompt_ids"].shape == (blueprint.TEXT_LENGTH,)


def test_a_scale_that_the_release_does_not_know_goes_into_the_up_matrices(unet, model, tmp_path):
    motion = lora_state(unet, "release")
    info = {"preset": "release", "rank": 4, "alpha": 2}
    save_checkpoint(tmp_path / "run", 1, motion=motion, appearance=[], kind="lora", config_yaml=None, info=info)
    change("release", tmp_path / "run", tmp_path / "theirs", model)
    theirs = load_checkpoint(tmp_path / "theirs", network=unet)
    for name, tensor in motion.items():
        assert torch.equal(theirs.motion[name], tensor * 0.5 if "lora_B" in name else tensor)


def test_a_stock_pipeline_loads_the_diffusers_file(run, model, tmp_path):
    change("diffusers", run, tmp_path / "out")
    pipe = diffusers.TextToVideoSDPipeline.from_pretrained(model)
    sample, text = torch.randn(1, 4, 2, 8, 8), torch.randn(1, 3, blueprint.TEXT_WIDTH)
    with torch.no_grad():
        checkpoint = load_checkpoint(run)
        with merge(pipe.unet, checkpoint.motion, 1.0, checkpoint.scale):
            merged = pipe.unet(sample, 3, text).sample
        base = pipe.unet(sample, 3, text).sample
        pipe.unet.__class__ = type("UNet3DConditionModel", (diffusers.UNet3DConditionModel, PeftAdapterMixin), {})
        pipe.load_lora_weights(tmp_path / "out")
        loaded = pipe.unet(sample, 3, text).sample
    assert torch.allclose(loaded, merged, atol=1e-5) and not torch.allclose(loaded, base, atol=1e-3)


def test_a_model_that_the_checkpoint_names_from_the_repository_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    noted = lambda path: writing._model_of(SimpleNamespace(config={"pretrained_model_path": path}), None)
    assert noted("./models/pocketscope") == str(ROOT / "models" / "pocketscope")
    assert noted("./models/nowhere") is None and noted(None) is None


def test_a_merged_folder_is_a_plain_pipeline_with_the_motion_in_it(run, model, tmp_path):
    change("merged", run, tmp_path / "out", model)
    merged = diffusers.UNet3DConditionModel.from_pretrained(tmp_path / "out", subfolder="unet")
    plain = diffusers.UNet3DConditionModel.from_pretrained(model, subfolder="unet")
    checkpoint = load_checkpoint(run)
    merge(plain, checkpoint.motion, 1.0, checkpoint.scale)
    state = plain.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in merged.state_dict().items())
    assert {p.name for p in (tmp_path / "out").iterdir()} == {p.name for p in Path(model).iterdir()}
    assert inspect(tmp_path / "out", None)[0] == "pipeline folder"


def test_somebody_elses_peft_folder_keeps_its_effect(unet, model, tmp_path):
    state = lora_state(unet, "motiondirector")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_rslora": True}
    layer = targets(unet, "motiondirector")[0]
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"alpha_pattern": {layer: 16}}))
    save_file({f"base_model.model.{n}": t for n, t in state.items()}, tmp_path / "adapter_model.safetensors")
    checkpoint = read_peft(tmp_path)
    assert (checkpoint.preset, checkpoint.rank, checkpoint.scale) == ("motiondirector", 4, 4.0)
    assert torch.equal(checkpoint.motion[f"{layer}.lora_B.weight"], 2 * state[f"{layer}.lora_B.weight"])
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(UserError, match="no plain LoRA"):
        read_peft(tmp_path)


def test_patterns_match_the_ends_of_names_and_as_expressions_like_pefts(unet, tmp_path):
    state = lora_state(unet, "motiondirector")
    save_file({f"base_model.model.{n}": t for n, t in state.items()}, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "alpha_pattern": {"attn1.to_q": 8, r"down_.*\.to_v": 12}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    motion = read_peft(tmp_path).motion
    for name in (name for name in state if "lora_B" in name):
        gain = 2 if ".attn1.to_q." in name else 3 if name.startswith("down_") and ".to_v." in name else 1
        assert torch.equal(motion[name], gain * state[name])


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"r": "x", "lora_alpha": 4},
        {"r": 0, "lora_alpha": 4},
        {"r": 4},
        [1],
        None,
        {"r": 4, "lora_alpha": 4, "alpha_pattern": {"(": 1}},
        {"r": 4, "lora_alpha": 4, "alpha_pattern": 3},
    ],
)
def test_an_adapter_configuration_without_what_it_must_say_is_one_sentence(unet, tmp_path, config):
    state = lora_state(unet, "tap")
    save_file({f"base_model.model.{n}": t for n, t in state.items()}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="adapter configuration|alpha_pattern"):
        read_peft(tmp_path)
    metadata = {"lora_adapter_metadata": json.dumps(config)}
    save_file({f"unet.{n}": t for n, t in state.items()}, tmp_path / DIFFUSERS_FILE, metadata)
    with pytest.raises(UserError, match="configuration|alpha_pattern|metadata"):
        read(tmp_path / DIFFUSERS_FILE)


def test_a_run_that_is_there_is_left_alone(run, tmp_path):
    out = tmp_path / "out"
    change("ours", run, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    with pytest.raises(UserError, match="exists already"):
        change("ours", run, out)
    (out / "checkpoint-7").rename(out / "checkpoint-8")
    with pytest.raises(UserError, match="exists already"):
        change("ours", run, out)
    cached = out / "cached_latents" / "cached_0.safetensors"
    assert cached.stat().st_mtime_ns == before[cached]


def test_what_we_write_is_a_peft_folder(run, model, tmp_path):
    change("peft", run, tmp_path / "out")
    unet = diffusers.UNet3DConditionModel.from_pretrained(model, subfolder="unet")
    loaded = PeftModel.from_pretrained(unet, str(tmp_path / "out")).state_dict()
    for name, tensor in load_checkpoint(run).motion.items():
        assert torch.equal(loaded[f"base_model.model.{name.replace('.weight', '.default.weight')}"], tensor)


def test_a_diffusers_file_without_metadata_has_scale_one(unet, tmp_path):
    save_file({f"unet.{n}": t for n, t in lora_state(unet, "out").items()}, tmp_path / DIFFUSERS_FILE)
    checkpoint = read(tmp_path / DIFFUSERS_FILE)
    assert (checkpoint.preset, checkpoint.rank, checkpoint.scale, checkpoint.index) == ("out", 4, 1.0, 0)


def test_motion_inversions_file_is_converted_both_ways(tmp_path):
    block = "down_blocks.2.temp_attentions.0.transformer_blocks.0"
    motion = {f"{block}.query_key": torch.randn(1, 32, 128), f"{block}.attn1.value": torch.randn(4, 32, 128)}
    save_checkpoint(tmp_path, 3, motion=motion, appearance=[], kind="embeddings", config_yaml=None, info={})
    folder = change("release", tmp_path, tmp_path / "theirs")
    back = load_checkpoint(change("ours", folder / "motion_embed.pt", tmp_path / "back"))
    assert back.kind == "embeddings" and all(torch.equal(back.motion[name], motion[name]) for name in motion)
    with pytest.raises(UserError, match="Motion Inversion"):
        change("peft", tmp_path, tmp_path / "peft")


def test_inspect_says_what_a_file_is(run, unet, model, tmp_path):
    assert "preset: tap, 44 layers, rank 4, scale 1" in inspect(run, None)
    change("release", run, tmp_path / "theirs", model)
    text = "\n".join(inspect(tmp_path / "theirs", model))
    assert "fits tap or release" in text and "fits appearance (2 clips)" in text
    assert "fits no preset" in "\n".join(inspect(tmp_path / "theirs/checkpoint-7/temporal/lora/7_unet.pt", None))
    assert "text_prompt: 'a cat'" in inspect(tmp_path / "theirs/cached_latents/cached_0.pt", None)
    full = skeleton()
    names = targets(full, "tap_key")
    torch.save(release.list_tensors([lora_state(full, "tap_key", rank=1)], names), tmp_path / "1_unet.pt")
    assert (
        "fits tap_key or query or value or out on U-Net of channels 320/640/1280/1280"
        in inspect(tmp_path / "1_unet.pt", None)[1]
    )


class Malicious:
    """Unpickled the ordinary way, this writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_bad_input_ends_in_one_sentence_code_two_and_nothing_written(tmp_path):
    proof = tmp_path / "executed"
    (tmp_path / "1_unet.pt").write_bytes(pickle.dumps([Malicious(proof)], protocol=2))
    before = sorted(tmp_path.rglob("*"))
    command = [sys.executable, "scripts/convert.py", "ours", str(tmp_path / "1_unet.pt"), str(tmp_path / "out")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert "nothing in it was executed" in result.stderr and sorted(tmp_path.rglob("*")) == before


def test_a_conversion_that_can_not_be_done_writes_nothing(run, unet, model, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError, match="--preset release"):
        change("release", run, tmp_path / "theirs", model) and change("ours", tmp_path / "theirs", out, model)
    with pytest.raises(UserError, match="is not the preset tap on this model"):
        change("release", run, out)  # ZeroScope's layout is assumed
    with pytest.raises(UserError, match="give it with --model"):
        change("merged", run, out)
    with pytest.raises(UserError, match="no such file"):
        change("ours", tmp_path / "nowhere", out)
    (tmp_path / "theirs/cached_latents/cached_0.pt").write_bytes(b"half")
    with pytest.raises(UserError, match="cached_0.pt"):
        change("ours", tmp_path / "theirs", out, model, "tap")
    assert not out.exists()
    with pytest.raises(UserError, match="exists already"):
        change("peft", run, tmp_path)


PATTERN = {"peft_type": "LORA", "r": 4, "lora_alpha": 4}


@pytest.mark.parametrize("config", [
    {"r": 1e999}, {"r": "4"}, {"r": True}, {"r": 10**12}, {"lora_alpha": float("nan")}, {"lora_alpha": 1e300},
    {"use_rslora": "yes"}, {"peft_type": "LOHA"}, {"peft_type": 5}, {"alpha_pattern": {"(a+)+$": 1}},
    {"alpha_pattern": {".*.*.*x": 1}}, {"alpha_pattern": {"a" * 5000 + "*": 1}}, {"alpha_pattern": {"to_q": "x"}},
    {"alpha_pattern": {f"x{i}.*": 1 for i in range(100)}}, {"alpha_pattern": {"(?=a)": 1}}, {"alpha_pattern": [1]},
    {"alpha_pattern": {"[": 1}},
])  # fmt: skip
def test_an_adapter_configuration_that_would_hang_or_break_is_one_sentence(unet, tmp_path, config):
    state = lora_state(unet, "tap")
    save_file({f"base_model.model.{n}": t for n, t in state.items()}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(PATTERN | config))
    began = time.process_time()
    with pytest.raises(UserError) as error:
        read_peft(tmp_path)
    assert "\n" not in str(error.value) and time.process_time() - began < 2


def test_ten_thousand_layer_names_are_looked_up_quickly_and_the_first_that_fits_counts(unet, tmp_path):
    state = lora_state(unet, "tap")
    save_file({f"base_model.model.{n}": t for n, t in state.items()}, tmp_path / "adapter_model.safetensors")
    patterns = {"to_k": 8, "attn1.to_k": 16} | {f"x.{i}": 1 for i in range(10_000)}
    (tmp_path / "adapter_config.json").write_text(json.dumps(PATTERN | {"alpha_pattern": patterns}))
    began = time.process_time()
    motion = read_peft(tmp_path).motion
    assert time.process_time() - began < 2
    for name in (name for name in state if "lora_B" in name):
        assert torch.equal(motion[name], (2 if ".to_k." in name else 1) * state[name])


def test_inspect_prints_no_control_characters_and_no_endless_texts(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    file = tmp_path / "run/checkpoint-7/temporal/adapter_model.safetensors"
    with safe_open(file, "pt") as opened:
        tensors, header = {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata()
    save_file(tensors, file, metadata=header | {"architecture": "\x1b[31mred", "note": "x" * 10**6})
    lines = inspect(tmp_path / "run", None)
    assert all(line.isprintable() and len(line) < 300 for line in lines) and any("x1b[31mred" in line for line in lines)


@pytest.mark.parametrize("name, content", [
    ("unet/diffusion_pytorch_model.safetensors", b"half"), ("unet/config.json", b"[]"),
    ("tokenizer/tokenizer_config.json", b"{"), ("tokenizer/vocab.json", b"[["), ("vae/config.json", b"5"),
])  # fmt: skip
@pytest.mark.parametrize("kind", ["merged", "release"])
def test_a_damaged_model_folder_is_one_sentence_and_nothing_is_written(run, model, tmp_path, kind, name, content):
    shutil.copytree(model, tmp_path / "model")
    (tmp_path / "model" / name).write_bytes(content)
    try:
        change(kind, run, tmp_path / "out", str(tmp_path / "model"))
    except UserError as error:
        assert "\n" not in str(error) and not (tmp_path / "out").exists()
    else:
        assert kind == "release" and "unet" in name  # whose weights nobody reads


def test_an_appearance_folder_with_an_odd_name_is_not_taken_for_a_clip(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run/checkpoint-7/spatial/0abc").mkdir()
    assert len(read(tmp_path / "run").appearance) == 2


def test_a_run_is_converted_whole_or_not_at_all(run, model, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "_write_cache", lambda *_: (_ for _ in ()).throw(Terminated))
    for kind in ("ours", "release"):
        with pytest.raises(Terminated):
            change(kind, run, tmp_path / "out", model)
        assert list(tmp_path.iterdir()) == []


def test_help_and_a_wrong_word_answer_without_torch():
    script = (
        "import sys; sys.argv[1:] = {}; import runpy\ntry: runpy.run_path('scripts/convert.py', run_name='__main__')"
    )
    script += "\nfinally: assert 'torch' not in sys.modules"
    for words, code in ((["--help"], 0), (["ours"], 2)):
        done = subprocess.run([sys.executable, "-c", script.format(words)], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == code and "Traceback" not in done.stderr


def test_a_merged_model_keeps_the_type_of_its_plain_weights(tmp_path):
    """Where a variant lies beside them, in whatever order the folder lists both."""
    half = {"weight": torch.zeros(2, dtype=torch.float16)}
    save_file(half, tmp_path / "diffusion_pytorch_model.fp16.safetensors")
    assert writing._stored_dtype(tmp_path) == torch.float16
    save_file({"weight": torch.zeros(2)}, tmp_path / "diffusion_pytorch_model.safetensors")
    assert writing._stored_dtype(tmp_path) == torch.float32


@pytest.mark.parametrize(("kind", "file"), [("diffusers", DIFFUSERS_FILE), ("peft", "adapter_model.safetensors")])
def test_a_file_that_is_passed_on_without_its_appearance_is_the_motion_alone(run, kind, file, tmp_path, capsys):
    change(kind, run, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "alone", ignore=shutil.ignore_patterns("spatial"))
    alone, whole = read(tmp_path / "alone" / file), read(tmp_path / "whole" / file)
    assert len(whole.appearance) == 2 and not alone.appearance
    assert alone.motion.keys() == whole.motion.keys() and alone.scale == whole.scale
    assert "its 2 appearance adapters are not beside it; the motion is read alone" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "whole" / "spatial" / "1")
    with pytest.raises(UserError):
        read(tmp_path / "whole" / file)


def test_appearance_beside_a_file_that_says_nothing_of_it_is_read(run, tmp_path):
    """As where PEFT has saved a folder of ours again: its header holds a format and no more."""
    change("peft", run, tmp_path / "out")
    weights = tmp_path / "out" / "adapter_model.safetensors"
    save_file(load_file(weights), weights, {"format": "pt"})
    assert len(read(tmp_path / "out").appearance) == 2


def test_layers_of_no_preset_are_a_checkpoint_that_can_be_sampled(unet, tmp_path):
    state = lora_state(unet, "out")
    state = {name.replace("attn1.to_out.0", "attn2.to_q"): tensor for name, tensor in state.items()}
    save_file({f"unet.{name}": tensor for name, tensor in state.items()}, tmp_path / DIFFUSERS_FILE)
    assert read(tmp_path / DIFFUSERS_FILE).preset is None
    found = load_checkpoint(change("ours", tmp_path / DIFFUSERS_FILE, tmp_path / "out").parent, network=unet)
    assert found.preset is None and found.info["preset"] == "custom"
    assert found.motion.keys() == state.keys() and all(torch.equal(found.motion[name], state[name]) for name in state)
    for name, preset in (("conv_in", None), ("time_embedding.linear_1", "appearance")):
        outs, ins = unet.get_submodule(name).weight.shape[:2]
        other = {f"{name}.lora_A.weight": torch.zeros(2, ins), f"{name}.lora_B.weight": torch.zeros(outs, 2)}
        parts = (
            {"motion": other, "appearance": []} if preset is None else {"motion": found.motion, "appearance": [other]}
        )
        info, folder = {"preset": "custom", "rank": max(2, found.rank)}, tmp_path / name
        save_checkpoint(folder, 1, **parts, kind="lora", config_yaml=None, info=info)
        with pytest.raises(UserError, match="does not fit this model"):
            load_checkpoint(folder, network=unet)
    assert load_checkpoint(tmp_path / "out", preset="custom").shape == "custom"
    with pytest.raises(UserError, match="has the temporal preset custom, tap was asked"):
        load_checkpoint(tmp_path / "out", preset="tap")
    with pytest.raises(UserError, match="adapts no preset's layers, so it has no place in a positional file"):
        change("release", tmp_path / DIFFUSERS_FILE, tmp_path / "positional")
    damaged = {name: tensor[..., :-1] if name.endswith("lora_A.weight") else tensor for name, tensor in state.items()}
    save_file({f"unet.{name}": tensor.contiguous() for name, tensor in damaged.items()}, tmp_path / DIFFUSERS_FILE)
    with pytest.raises(UserError, match="does not fit this model"):
        load_checkpoint(change("ours", tmp_path / DIFFUSERS_FILE, tmp_path / "other").parent, network=unet)


def test_the_folder_one_stands_in_may_be_written_into(tmp_path, monkeypatch, run):
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    convert("peft", run, Path("."), None, None, None)
    assert {path.name for path in empty.iterdir()} == {path.name for path in tmp_path.glob("empty/*")} != set()
