"""DDIM inversion against its formula, the release's numbers, and its own inverse."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file

from configs.errors import UserError
from infer.inversion import ddim_invert, make_inverse
from infer.sampler import classifier_free_guidance
from models.backbone import predictor

from conftest import SCHEDULE

SCHEDULERS = {
    "epsilon, leading": SCHEDULE,
    "epsilon, linspace": dict(SCHEDULE, timestep_spacing="linspace"),
    "v-prediction, leading": dict(SCHEDULE, prediction_type="v_prediction"),
    "v-prediction, trailing, linear": dict(
        beta_schedule="linear", prediction_type="v_prediction", clip_sample=False, timestep_spacing="trailing"
    ),
}


class ToyUnet:
    """A smooth function of latents and timestep in place of the U-Net: inversion only needs something to call."""

    dtype = torch.float32

    def __init__(self, gain: float = 0.3):
        self.gain = gain
        self.timesteps = []

    def __call__(self, latents, t, text):
        self.timesteps.append(int(t))
        return SimpleNamespace(sample=self.gain * torch.tanh(latents.roll(1, -1) + 0.001 * t) + text.mean())


@pytest.fixture
def latents():
    return torch.randn(1, 4, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def inverted_by_hand(unet, text, scheduler, latents, steps):
    """DDIM's step run backwards, written out: from noise level t - stride up to noise level t."""
    scheduler.set_timesteps(steps)
    stride = 1000 // steps
    for t in scheduler.timesteps[:steps].flip(0).tolist():
        prediction, previous = unet(latents, t, text).sample, t - stride
        before = scheduler.alphas_cumprod[previous] if previous >= 0 else scheduler.final_alpha_cumprod
        after = scheduler.alphas_cumprod[t]
        if scheduler.config.prediction_type == "v_prediction":
            clean = before.sqrt() * latents - (1 - before).sqrt() * prediction
            noise = before.sqrt() * prediction + (1 - before).sqrt() * latents
        else:
            clean, noise = (latents - (1 - before).sqrt() * prediction) / before.sqrt(), prediction
        latents = after.sqrt() * clean + (1 - after).sqrt() * noise
    return latents


@pytest.mark.parametrize("steps", [4, 30, 50, 61])
@pytest.mark.parametrize("config", SCHEDULERS.values(), ids=SCHEDULERS.keys())
def test_inversion_equals_the_formula_written_out(config, steps, latents, capsys):
    unet, text, scheduler = ToyUnet(), torch.full((1, 2, 3), 0.1), DDIMScheduler(**config)
    ours = ddim_invert(classifier_free_guidance(predictor(unet), text), scheduler, latents, steps)
    visited = list(unet.timesteps)
    theirs = inverted_by_hand(unet, text, DDIMScheduler(**config), latents, steps)
    torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=2e-6)
    assert visited == unet.timesteps[steps:] and 0 <= min(visited)
    assert not capsys.readouterr().err


def test_golden_steps_of_the_release_are_reproduced():
    # Written by the authors' code; tolerance from float32 order of operations. Never changed.
    golden = load_file(Path(__file__).parent / "golden" / "steps_of_inversion.safetensors")
    for t in (1, 21, 981):
        ours = make_inverse(DDIMScheduler(**SCHEDULE), 50).step(golden["eps"], t, golden["latents"]).prev_sample
        torch.testing.assert_close(ours, golden[f"step_t{t}"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("steps", [10, 50])
def test_timesteps_are_the_releases_and_the_last_of_fifty_is_981(steps, latents):
    golden = load_file(Path(__file__).parent / "golden" / "steps_of_inversion.safetensors")[f"timesteps{steps}"]
    unet = ToyUnet()
    ddim_invert(
        classifier_free_guidance(predictor(unet), torch.zeros(1, 2, 3)), DDIMScheduler(**SCHEDULE), latents, steps
    )
    assert unet.timesteps == sorted(golden.tolist())
    assert steps != 50 or unet.timesteps[-1] == 981


def test_sampling_the_inversion_gives_the_clip_back(latents):
    # a noise prediction that does not depend on the latents makes every step exactly reversible
    unet, text, scheduler = ToyUnet(gain=0.0), torch.full((1, 2, 3), 0.1), DDIMScheduler(**SCHEDULE)
    restored = ddim_invert(classifier_free_guidance(predictor(unet), text), scheduler, latents, 50)
    scheduler.set_timesteps(50)
    for t in scheduler.timesteps:
        restored = scheduler.step(unet(restored, t, text).sample, t, restored).prev_sample
    torch.testing.assert_close(restored, latents, rtol=1e-4, atol=1e-4)


def test_trajectory_starts_at_the_clip_and_ends_at_the_noise(latents):
    scheduler, text = DDIMScheduler(**SCHEDULE), torch.zeros(1, 2, 3)
    path = ddim_invert(classifier_free_guidance(predictor(ToyUnet()), text), scheduler, latents, 4, trajectory=True)
    assert path.shape == (5, *latents.shape)
    assert torch.equal(path[0], latents)
    assert torch.equal(
        path[-1], ddim_invert(classifier_free_guidance(predictor(ToyUnet()), text), scheduler, latents, 4)
    )
    assert scheduler.num_inference_steps is None, "the caller's scheduler must stay as it was"


def test_overflow_is_one_sentence(latents):
    with pytest.raises(UserError, match="not finite"):
        ddim_invert(
            classifier_free_guidance(predictor(ToyUnet(gain=float("inf"))), torch.zeros(1, 2, 3)),
            DDIMScheduler(**SCHEDULE),
            latents,
            4,
        )
