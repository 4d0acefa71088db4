"""DDIM inversion against the library, the release's numbers, and its own inverse."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler
from safetensors.torch import load_file

from configs.errors import UserError
from infer.inversion import ddim_invert, inversion_step
from infer.sampler import guide
from models.backbone import predictor

ZEROSCOPE = dict(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    clip_sample=False,
    set_alpha_to_one=False,
    steps_offset=1,
)
SCHEDULERS = {
    "epsilon, leading": ZEROSCOPE,
    "v-prediction, leading": dict(ZEROSCOPE, prediction_type="v_prediction"),
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


@pytest.mark.parametrize("steps", [4, 30, 50])
@pytest.mark.parametrize("config", SCHEDULERS.values(), ids=SCHEDULERS.keys())
def test_inversion_equals_the_librarys_inverse_scheduler(config, steps, latents):
    unet, text = ToyUnet(), torch.full((1, 2, 3), 0.1)
    ours = ddim_invert(guide(predictor(unet), text), DDIMScheduler(**config), latents, steps)

    reference = DDIMInverseScheduler.from_config(DDIMScheduler(**config).config)
    reference.set_timesteps(steps)
    theirs = latents
    for t in reference.timesteps:
        theirs = reference.step(unet(theirs, t, text).sample, t, theirs).prev_sample
    torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=2e-6)
    assert unet.timesteps[:steps] == reference.timesteps.tolist()


def test_golden_steps_of_the_release_are_reproduced():
    # Written by the authors' code; tolerance from float32 order of operations. Never changed.
    golden = load_file(Path(__file__).parent / "golden" / "inversion_steps.safetensors")
    for t in (1, 21, 981):
        ours = inversion_step(DDIMScheduler(**ZEROSCOPE), golden["eps"], t, golden["latents"], stride=20)
        torch.testing.assert_close(ours, golden[f"step_t{t}"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("steps", [10, 50])
def test_timesteps_are_the_releases_and_the_last_of_fifty_is_981(steps, latents):
    golden = load_file(Path(__file__).parent / "golden" / "inversion_steps.safetensors")[f"timesteps{steps}"]
    unet = ToyUnet()
    ddim_invert(guide(predictor(unet), torch.zeros(1, 2, 3)), DDIMScheduler(**ZEROSCOPE), latents, steps)
    assert unet.timesteps == sorted(golden.tolist())
    assert steps != 50 or unet.timesteps[-1] == 981


def test_sampling_the_inversion_gives_the_clip_back(latents):
    # a noise prediction that does not depend on the latents makes every step exactly reversible
    unet, text, scheduler = ToyUnet(gain=0.0), torch.full((1, 2, 3), 0.1), DDIMScheduler(**ZEROSCOPE)
    restored = ddim_invert(guide(predictor(unet), text), scheduler, latents, 50)
    scheduler.set_timesteps(50)
    for t in scheduler.timesteps:
        restored = scheduler.step(unet(restored, t, text).sample, t, restored).prev_sample
    torch.testing.assert_close(restored, latents, rtol=1e-4, atol=1e-4)


def test_trajectory_starts_at_the_clip_and_ends_at_the_noise(latents):
    scheduler, text = DDIMScheduler(**ZEROSCOPE), torch.zeros(1, 2, 3)
    path = ddim_invert(guide(predictor(ToyUnet()), text), scheduler, latents, 4, trajectory=True)
    assert path.shape == (5, *latents.shape)
    assert torch.equal(path[0], latents)
    assert torch.equal(path[-1], ddim_invert(guide(predictor(ToyUnet()), text), scheduler, latents, 4))
    assert scheduler.num_inference_steps is None, "the caller's scheduler must stay as it was"


def test_overflow_is_one_sentence(latents):
    with pytest.raises(UserError, match="not finite"):
        ddim_invert(
            guide(predictor(ToyUnet(gain=float("inf"))), torch.zeros(1, 2, 3)), DDIMScheduler(**ZEROSCOPE), latents, 4
        )
