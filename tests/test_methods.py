"""Motion Inversion, MotionDirector and the presets as full methods: trained, saved, resumed and read by the
commands.
"""

import json
from pathlib import Path

import pytest
import torch

import train
from configs.errors import UserError
from configs.schema import load
from models import methods
from models.backbones.unet3d import PRESETS
from models.files.checkpoint import load_checkpoint
from models.outline import skeleton
from scripts.authors.weights import build_unet

from conftest import ROOT

LOSSES = {
    "base": {"loss_temporal"},
    "debiased": {"loss_temporal", "loss_debiased"},
    "hybrid": {"loss_temporal", "loss_debiased", "loss_spatial"},
}
METHOD_FILES = sorted((ROOT / "configs" / "methods").glob("*.yaml"))
SIZE = (4, 8, 8)


def inversion(loss="base", **settings):
    return {"method": "motion_inversion", "spatial_path_probability": 1.0, "embeddings": {"loss": loss, **settings}}


def tensors(checkpoint):
    return [*checkpoint.motion.values(), *(t for state in checkpoint.appearance for t in state.values())]


@pytest.fixture(scope="module")
def unet(tiny_pipeline):
    return build_unet(json.loads((tiny_pipeline / "unet" / "config.json").read_text()))


@pytest.fixture(scope="module")
def inputs():
    draw = torch.Generator().manual_seed(0)
    return torch.randn(1, 4, *SIZE, generator=draw), torch.tensor(500), torch.randn(1, 5, 32, generator=draw)


@torch.no_grad()
def outcome(unet, inputs):
    return unet.eval()(*inputs).sample


@pytest.mark.parametrize("loss", LOSSES)
def test_each_loss_of_motion_inversion_trains_what_it_says(trained, loss):
    run = trained(**inversion(loss))
    logged = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert {key for line in logged for key in line if key.startswith("loss_")} == LOSSES[loss]
    checkpoint = load_checkpoint(run)
    assert checkpoint.kind == "embeddings" and all(t.abs().sum() > 0 for t in checkpoint.motion.values())
    assert len(checkpoint.appearance) == (loss == "hybrid")
    assert (checkpoint.info["frames"], checkpoint.info["latent_width"]) == ("4", "8")


def test_hybrid_training_resumes_to_the_bit(tiny_config, tmp_path):
    settings = inversion("hybrid") | {"max_train_steps": 4, "checkpointing_steps": 2, "validation_steps": 100}
    whole = train.run(tiny_config(**settings, output_dir=str(tmp_path / "whole")))
    expected = tensors(load_checkpoint(whole, 4))
    resumed = train.run(tiny_config(**settings, resume_from_checkpoint=str(whole / "checkpoint-2")))
    again = tensors(load_checkpoint(resumed, 4))
    assert resumed != whole, "an earlier checkpoint starts a folder of its own"
    assert len(again) == len(expected) and all(torch.equal(a, b) for a, b in zip(again, expected))


def test_resuming_another_loss_says_what_differs(trained, tiny_config):
    run = trained(**inversion("hybrid"))
    with pytest.raises(UserError, match="embeddings.loss hybrid .asked for: base"):
        train.run(tiny_config(**inversion("base"), resume_from_checkpoint=str(run)))


def test_gradients_stay_on_their_path(tiny_config, unet, inputs):
    method = methods.attach(unet, tiny_config(**inversion("hybrid")), clips=1, latent_size=SIZE)
    for parameter in (*method.motion_parameters, *method.appearance_parameters):
        torch.nn.init.normal_(parameter.data, std=0.1)
    try:
        with method.temporal_pass(0, with_appearance=True):
            unet(*inputs).sample.square().mean().backward()
        assert all(p.grad.abs().sum() > 0 for p in method.motion_parameters)
        assert all(p.grad is None for p in method.appearance_parameters)
        before = [p.grad.clone() for p in method.motion_parameters]
        with method.spatial_pass(0):
            unet(*inputs).sample.square().mean().backward()
        assert all(torch.equal(p.grad, g) for p, g in zip(method.motion_parameters, before))
        assert all(p.grad is not None for p in method.appearance_parameters)
        assert all(p.grad is None for n, p in unet.named_parameters() if "lora_" not in n)
    finally:
        method.motion.remove()
        method.appearance[0].remove()


@pytest.mark.parametrize(
    "settings", [inversion("hybrid"), {"temporal_preset": "motiondirector"}], ids=["embeddings", "lora"]
)
def test_a_preview_leaves_the_model_as_it_was_even_when_it_is_interrupted(tiny_config, unet, inputs, settings):
    method = methods.attach(unet, tiny_config(**settings), clips=1, latent_size=SIZE)
    for parameter in (*method.motion_parameters, *method.appearance_parameters):
        torch.nn.init.normal_(parameter.data, std=0.1)
    try:
        base = outcome(unet, inputs)
        with pytest.raises(KeyboardInterrupt), method.sampling(appearance_scale=0.5):
            assert not torch.equal(outcome(unet, inputs), base)
            raise KeyboardInterrupt
        assert torch.equal(outcome(unet, inputs), base)
    finally:
        method.motion.remove()
        method.appearance[0].remove()
    assert not [name for name, _ in unet.named_modules() if "lora" in name]


PASSES = {
    "spatial": lambda method: method.spatial_pass(0),
    "temporal": lambda method: method.temporal_pass(0, with_appearance=True),
    "sampling": lambda method: method.sampling(),
}


@pytest.mark.parametrize("use, where", [("off", set()), ("sampling", {"sampling"}), ("training", set(PASSES))])
def test_the_highway_stands_only_inside_the_passes_that_it_belongs_to(tiny_config, unet, inputs, use, where):
    """Fresh adapters change nothing, so every difference is the highway's."""
    base = outcome(unet, inputs)
    method = methods.attach(unet, tiny_config(appearance_highway={"use": use}), clips=1, latent_size=SIZE)
    try:
        inside = set()
        for name, enter in PASSES.items():
            with enter(method):
                inside |= set() if torch.equal(outcome(unet, inputs), base) else {name}
            assert torch.equal(outcome(unet, inputs), base), f"nothing stands after the {name} pass"
        assert inside == where
        for parameter in method.motion_parameters:
            torch.nn.init.normal_(parameter.data, std=0.1)
        with method.sampling() as patch:
            assert not torch.equal(outcome(unet, inputs), base)
            patch.remove()  # phased LoRA integration
            assert torch.equal(outcome(unet, inputs), base), "the plain model, without the highway"
    finally:
        method.motion.remove()
        method.appearance[0].remove()


def test_the_highway_in_training_teaches_other_weights(trained):
    quick = {"spatial_path_probability": 1.0, "validation_steps": 100}
    runs = [trained(appearance_highway={"use": use}, **quick) for use in ("off", "sampling", "training")]
    off, sampling, training = (tensors(load_checkpoint(run)) for run in runs)
    assert all(torch.equal(a, b) for a, b in zip(off, sampling))
    assert not all(torch.equal(a, b) for a, b in zip(sampling, training))


@pytest.mark.parametrize("file", METHOD_FILES, ids=[file.stem for file in METHOD_FILES])
def test_each_method_file_runs_as_its_name_says(file, tiny_pipeline, clip_file):
    words = [f"pretrained_model_path={tiny_pipeline}", f"train_data.single_video_path={clip_file}"]
    cfg, _ = load(["--config", str(file), *words], description="")
    method = methods.attach(skeleton(tiny_pipeline), cfg, clips=1, latent_size=SIZE)
    assert method.kind == ("embeddings" if file.stem.startswith("motion_inversion") else "lora")
    if file.stem in PRESETS:
        assert method.motion.preset == file.stem
    if file.stem.startswith("motion_inversion"):
        assert bool(method.appearance) == file.stem.endswith("hybrid")
        assert (method.extra_loss == "debiased") == (not file.stem.endswith("inversion"))
    assert f"--config configs/methods/{file.name}" in file.read_text(), "a file starts with the command that runs it"


FILES = [str(file.relative_to(ROOT / "configs/methods")) for file in sorted((ROOT / "configs/methods").rglob("*.yaml"))]
REFUSED = {  # the model's fixture and the file: what the one sentence says
    ("tiny_wan", "tap_highway_in_training.yaml"): "has no skip connections to move; what there is in its place",
    **{
        ("tiny_wan", f"motion_inversion{variant}.yaml"): "sampling: difference .* is the same in every frame"
        for variant in ("", "_debiased", "_hybrid")
    },
    **{
        ("tiny_pipeline", f"transformer/{name}.yaml"): "no preset of a U-Net is called"
        for name in ("tap_temporal", "tap_pure", "effivmt")
    },
}


@pytest.mark.parametrize("model", ["tiny_pipeline", "tiny_wan"])
@pytest.mark.parametrize("file", FILES)
def test_each_method_file_is_planned_on_either_kind_of_model(file, model, clip_file, request, monkeypatch):
    monkeypatch.setattr("models.training.memory.training_bytes", lambda *_: "not counted, which takes seconds")
    words = [f"pretrained_model_path={request.getfixturevalue(model)}", f"train_data.single_video_path={clip_file}"]
    words += ["train_data.single_video_prompt=a car", "train_data.width=64", "train_data.height=64"]
    cfg, _ = load(["--config", f"configs/methods/{file}", *words, "train_data.n_sample_frames=9"], description="")
    if sentence := REFUSED.get((model, file)):
        with pytest.raises(UserError, match=sentence):
            train.dry_run(cfg)
        return
    text = train.dry_run(cfg)
    if model == "tiny_wan":
        assert "\nhighway     off" in text and "use: 'off'" in text
    else:
        assert ("\nhighway     in" in text) == file.startswith(("tap", "release"))


def test_every_preset_has_its_file():
    assert {file.stem for file in METHOD_FILES} >= set(PRESETS) - {"appearance"}


def test_a_width_that_does_not_exist_lists_those_that_do(unet, tiny_config):
    with pytest.raises(UserError, match="no temporal transformer of width 1280 in down, up; there are 32, 64, 96"):
        methods.attach(unet, tiny_config(**inversion(widths=[1280])), clips=1, latent_size=SIZE)
    with pytest.raises(UserError, match="embeddings.blocks: 'sideways' is unknown; there are down, mid, up"):
        tiny_config(**inversion(blocks=["sideways"]))


def test_images_alone_teach_no_motion(unet, tiny_config):
    with pytest.raises(UserError, match="learns motion alone and every clip is an image"):
        methods.attach(unet, tiny_config(**inversion("debiased")), clips=1, latent_size=(1, 8, 8))
    with pytest.raises(UserError, match="learns motion alone and train_temporal_lora is off"):
        methods.attach(unet, tiny_config(**inversion(), train_temporal_lora=False), clips=1, latent_size=SIZE)


def test_clips_longer_than_the_embeddings_are_refused(unet, tiny_config):
    with pytest.raises(UserError, match="3 frames are too few for clips of 4"):
        methods.attach(unet, tiny_config(**inversion(max_frames=3)), clips=1, latent_size=SIZE)


def test_every_reference_clip_gets_its_own_appearance_and_they_share_one_motion(trained, two_clips):
    run = trained(
        dataset_types=["folder"],
        temporal_preset="motiondirector",
        max_train_steps=4,
        validation_steps=100,
        spatial_path_probability=1.0,
        train_data={"path": str(two_clips), "fallback_prompt": "a car"},
    )
    checkpoint = load_checkpoint(run)
    assert checkpoint.preset == "motiondirector" and len(checkpoint.appearance) == 2
    # a single token attends to itself in the middle block, so Query and Key have no gradient there
    still = {f"mid_block.attentions.0.transformer_blocks.0.attn1.to_{one}.lora_B.weight" for one in "qk"}
    ups = [
        [t for name, t in state.items() if "lora_B" in name and name not in still] for state in checkpoint.appearance
    ]
    assert all(up.any() for state in ups for up in state), "both clips were seen"
    assert not any(torch.equal(a, b) for a, b in zip(*ups))


@pytest.fixture(scope="session")
def two_clips(clip_file, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for name in ("one.mp4", "two.mp4"):
        (folder / name).write_bytes(clip_file.read_bytes())
    return folder
