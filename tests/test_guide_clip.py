"""`infer/infer.py --guide`: through the command, from a file and from a run, at its cost, and what it refuses."""

import json
from types import SimpleNamespace
from unittest.mock import Mock

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from configs.errors import UserError
from data.clips import TooShort
from infer import guide_clip, options
from infer.generate import generate, load_backbone
from infer.guidance import GuidanceSettings, MotionGuidance
from infer.sampler import classifier_free_guidance
from infer.settings import RUN_REFERENCE, resolve
from infer.video import read_frames
from models.backbone import predictor
from models.outline import skeleton
from models.training.memory import PeakBytes

from conftest import ROOT


@pytest.fixture(scope="module")
def model(tiny_pipeline):
    return load_backbone(options.parse(["--model", str(tiny_pipeline), "--device", "cpu"]))


@pytest.fixture
def sampled(model, tiny_pipeline, tmp_path):
    """A function of words giving (videos, sidecar of the first) of a sampling of 64 x 64 pixels in five steps."""

    def make(*words: str, prompts=("a horse",)):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        base = [
            "--model",
            str(tiny_pipeline),
            "--device",
            "cpu",
            "-W",
            "64",
            "-H",
            "64",
            "-T",
            "4",
            "-s",
            "5",
            "-g",
            "3",
        ]
        base += ["-p", *prompts, "-r", "5", "-o", str(folder), "--quality", "10"]
        paths = list(generate(options.parse([*base, *words]), model))
        return [read_frames(path) for path in paths], json.loads(paths[0].with_suffix(".json").read_text())

    return make


def test_rate_zero_is_plain_sampling_bit_for_bit(sampled, clip_file):
    (plain,), notes = sampled()
    (guided,), _ = sampled("--guide", str(clip_file), "--guide_rate", "0")
    assert torch.equal(plain, guided)
    assert not any(name.startswith("guide") for name in notes["settings"])


def test_a_clip_changes_the_video_and_the_sidecar_holds_how(sampled, clip_file):
    words = ("--guide", str(clip_file), "--guide_rate", "0.3")
    (plain,), _ = sampled()
    (guided,), notes = sampled(*words)
    (again,), _ = sampled(*words)
    (own,), _ = sampled(*words, "--guide_target", "clean_latent")
    (motion,), _ = sampled(*words, "--guide_weights", "0", "5")
    assert torch.equal(guided, again) and notes["settings"]["guide"] == str(clip_file)
    assert {"guide_steps": 1, "guide_rate": 0.3, "guide_target": "predicted"}.items() <= notes["settings"].items()
    for one, other in ((plain, guided), (guided, own), (guided, motion)):
        assert not torch.equal(one, other)


@pytest.mark.parametrize("solver", ["ddim", "unipc", "dpm"])
def test_every_solver_can_be_guided(sampled, clip_file, solver):
    (plain,), _ = sampled("--solver", solver)
    (guided,), _ = sampled("--solver", solver, "--guide", str(clip_file), "--guide_rate", "0.3")
    assert not torch.equal(plain, guided)


def test_a_run_guides_by_its_own_reference_with_and_without_its_adapter(trained, sampled, tiny_pipeline):
    run = ("-cf", str(trained()), "--noise_prior", "0")
    (alone,), notes = sampled(*run, "--lora_scale", "0", "--guide", "--guide_rate", "0.3")
    (both,), _ = sampled(*run, "--guide", "--guide_rate", "0.3")
    (adapter,), _ = sampled(*run)
    assert notes["settings"]["guide"] == RUN_REFERENCE
    assert not torch.equal(alone, adapter) and not torch.equal(both, adapter)


def test_no_more_forwards_than_promised(model, sampled, clip_file, request):
    seen = []
    hook = model.network.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    request.addfinalizer(hook.remove)
    sampled()
    assert sum(seen) == 10
    seen.clear()
    sampled("--guide", str(clip_file))
    assert sum(seen) == 10 + 1 + 2 * 2 <= 1.6 * 10  # one of five steps: the clip's forward and two more updates


def test_the_sidecar_holds_what_a_video_cost(sampled, clip_file):
    plain, guided = (sampled(*words)[1] for words in ((), ("--guide", str(clip_file))))
    assert (plain["forwards"], guided["forwards"]) == (10, 15) and plain["cpu_seconds"] > 0


INTERVALS = (("0", "500"), ("500", "1000"), ("1000", "1000"), ("0", "1000"))


@pytest.mark.parametrize(("solver", "guided"), [("ddim", False), ("dpm", False), ("unipc", True)])
def test_the_forwards_in_the_sidecar_are_those_that_were_made_with_an_interval(
    model, sampled, clip_file, request, solver, guided
):
    seen, found = [], {}
    hook = model.network.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    request.addfinalizer(hook.remove)
    clip = ("--guide", str(clip_file), "--guide_steps", "3") if guided else ()
    for interval in INTERVALS:
        seen.clear()
        found[interval] = sampled("--solver", solver, "--guidance_interval", *interval, *clip)[1]["forwards"]
        assert found[interval] == sum(seen), interval
    nowhere, everywhere = found[INTERVALS[2]], found[INTERVALS[3]]
    assert nowhere < min(found[INTERVALS[0]], found[INTERVALS[1]]) < everywhere


def test_a_model_can_bring_its_own_guidance(tmp_path):
    (tmp_path / "sampling.json").write_text(
        '{"guide_rate": 0.3, "guide_target": "clean_latent", "guide_weights": [1, 2]}'
    )
    args = options.parse(["-p", "x", "--guide", "clip.mp4", "--guide_rate", "0.1"])
    settings = resolve(args, {}, tmp_path)
    assert (settings.guide_rate, settings.guide_target, settings.guide_updates) == (0.1, "clean_latent", 3)
    assert settings.guide_weights == [1, 2] and settings.motion_guidance().weights == [1, 2]
    assert "guide_rate" not in resolve(options.parse(["-p", "x"]), {}, tmp_path).values
    for wrong, said in (('"guide_rate": -1', "guide_rate is -1"), ('"guide_weights": [1]', r"guide_weights is \[1\]")):
        (tmp_path / "sampling.json").write_text(f"{{{wrong}}}")
        with pytest.raises(UserError, match=said):
            resolve(args, {}, tmp_path)


def test_help_and_readme_name_the_target_that_pocketscope_really_has(capsys):
    target = json.loads((ROOT / "models/pocketscope/sampling.json").read_text())["guide_target"]
    with pytest.raises(SystemExit):
        options.parse(["--help"])
    assert f"else predicted; PocketScope's is {target})" in " ".join(capsys.readouterr().out.split())
    assert f"`--guide_target {target}`, PocketScope's default" in " ".join((ROOT / "README.md").read_text().split())


def test_memory_stays_near_that_of_plain_sampling():
    """Counted for ZeroScope on 16 frames of 384 x 384, without weights: one guided step against one plain step."""
    unet = skeleton().to(torch.bfloat16)
    z = torch.empty(1, 4, 16, 48, 48, device="meta")
    text, empty = torch.empty(2, 1, 77, unet.config.cross_attention_dim, device="meta").unbind(0)
    predict = predictor(unet)
    plain = classifier_free_guidance(predict, text, empty, scale=9.0)
    guided = MotionGuidance(
        z, plain, classifier_free_guidance(predict, empty), DDIMScheduler(), GuidanceSettings(steps=1), [0]
    )
    peaks = []
    for step in (plain, guided.steer):
        with PeakBytes() as watch, torch.no_grad():
            step(z, torch.tensor(901))
        peaks.append(watch.peak)
    assert 1e9 < peaks[0] <= peaks[1] < 1.02 * peaks[0]


def saved_bytes(work) -> int:
    """Bytes that autograd keeps for a backward pass while `work` runs."""
    kept = []

    def pack(tensor):
        kept.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        work()
    return sum(kept)


def test_a_guided_step_keeps_a_few_latents_for_its_gradient_and_nothing_of_the_network(model):
    """Measured on a network with weights, an update; one that is differentiated through shows what is counted."""
    z = torch.randn(1, 4, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    text, empty = model.encode_text(["a horse", ""]).split(1)
    plain, t = classifier_free_guidance(model.predict, text, empty, scale=3.0), torch.tensor(901)
    guided = MotionGuidance(
        z,
        plain,
        classifier_free_guidance(model.predict, empty),
        model.scheduler,
        GuidanceSettings(steps=1, updates=1),
        [0],
    )
    with torch.no_grad():
        assert saved_bytes(lambda: plain(z, t)) == 0
    pairs = 3 + 6  # differences of neighbours and of all pairs of four frames
    kept = saved_bytes(lambda: guided.steer(z, t))
    assert 0 < kept < 8 * z.nbytes * pairs / 4
    assert saved_bytes(lambda: plain(z.clone().requires_grad_(), t)) > 20 * kept


def clip(folder, frames: int, width: int, height: int) -> str:
    path = folder / f"{frames}_{width}_{height}.mp4"
    pixels = np.random.default_rng(0).integers(0, 255, (frames, height, width, 3), np.uint8)
    iio.imwrite(path, pixels, plugin="FFMPEG", fps=8, macro_block_size=2)
    return str(path)


def test_a_larger_clip_of_the_same_shape_is_scaled(sampled, tmp_path):
    (plain,), _ = sampled()
    (guided,), _ = sampled("--guide", clip(tmp_path, 6, 128, 128), "--guide_rate", "0.3")
    assert guided.shape == plain.shape and not torch.equal(guided, plain)


@pytest.mark.parametrize(
    "size, words, said",
    [
        ((3, 64, 64), (), "3 frames where 4 are asked for at 8 frames a second; give a longer clip"),
        ((6, 96, 64), ("-W", "192", "-H", "192"), "as 192 x 128 pixels, .*: --width 192 --height 128$"),
        ((6, 64, 64), ("-T", "1"), "a video of one frame has no motion"),
    ],
)
def test_a_clip_that_does_not_fit_is_named_before_sampling(sampled, tmp_path, size, words, said):
    with pytest.raises(UserError, match=said):
        sampled("--guide", clip(tmp_path, *size), *words)


def test_a_short_clip_is_known_by_its_numbers_and_not_by_a_sentence(monkeypatch):
    settings = SimpleNamespace(width=64, height=64, num_frames=4, fps=8)
    for error, said in (
        (
            TooShort("worded otherwise", 3, 4),
            "^--guide: .*a.mp4: 3 frames where 4 are asked for at 8 frames a second; ",
        ),
        (UserError("a.mp4: 3 frames asked for (and no more)"), "^--guide: a.mp4: 3 frames asked for .and no more.$"),
    ):
        monkeypatch.setattr(guide_clip, "read_video", Mock(side_effect=error))
        with pytest.raises(UserError, match=said):
            guide_clip._frames("a.mp4", settings, 8)


def test_a_missing_clip_and_a_missing_reference_are_named(sampled, trained, tmp_path):
    with pytest.raises(UserError, match="--guide: .*none.mp4: no such file"):
        sampled("--guide", str(tmp_path / "none.mp4"))
    with pytest.raises(UserError, match="no cached_latents lie beside the checkpoint"):
        sampled("--guide")
    with pytest.raises(
        UserError, match="reference clip has 4 latent frames of 64 x 64 pixels, and the videos have 6 latent frames"
    ):
        sampled("-cf", str(trained()), "--guide", "-T", "6")
    with pytest.raises(UserError, match="--clip: 3 does not exist"):
        sampled("-cf", str(trained()), "--guide", "--clip", "3", "--noise_prior", "0")


def test_a_setting_of_guidance_without_guidance_is_refused():
    with pytest.raises(UserError, match="--guide_rate: belongs to --guide, which is not given"):
        options.parse(["--prompt", "a horse", "--guide_rate", "0.1"])
