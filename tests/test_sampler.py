import pytest
import torch
from diffusers import DDIMScheduler

from infer.sampler import guide, rescale_guidance, sample
from models.backbone import predictor
from scripts.authors.weights import build_unet

from conftest import UNET

SCHEDULE = dict(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    clip_sample=False,
    set_alpha_to_one=False,
    steps_offset=1,
)


@pytest.fixture(scope="module")
def unet():
    return build_unet(UNET)


def tensors(batch=1):
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(batch, 4, 3, 8, 8, generator=generator),
        torch.randn(batch, 5, 32, generator=generator),
        torch.randn(batch, 5, 32, generator=generator),
    )


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_sampling_equals_the_ddim_formula_written_out(unet, prediction_type):
    scheduler = DDIMScheduler(**SCHEDULE, prediction_type=prediction_type)
    z, text, negative = tensors()
    sampled = sample(guide(predictor(unet), text, negative, scale=5.0), scheduler, z, steps=4)
    for t in (751, 501, 251, 1):
        with torch.no_grad():
            e0, e1 = (unet(z, t, c).sample for c in (negative, text))
        e = e0 + 5.0 * (e1 - e0)
        a = scheduler.alphas_cumprod[t]
        previous = scheduler.alphas_cumprod[t - 250] if t >= 250 else scheduler.alphas_cumprod[0]
        clean = (
            (z - (1 - a).sqrt() * e) / a.sqrt() if prediction_type == "epsilon" else a.sqrt() * z - (1 - a).sqrt() * e
        )
        noise = e if prediction_type == "epsilon" else a.sqrt() * e + (1 - a).sqrt() * z
        z = previous.sqrt() * clean + (1 - previous).sqrt() * noise
    assert torch.allclose(sampled, z, rtol=2e-5, atol=2e-5)


def test_videos_of_a_batch_do_not_see_each_other(unet):
    z, text, negative = tensors(2)
    scheduler = DDIMScheduler(**SCHEDULE)
    both = sample(guide(predictor(unet), text, negative, scale=3.0), scheduler, z, steps=2)
    alone = sample(guide(predictor(unet), text[1:], negative[1:], scale=3.0), scheduler, z[1:], steps=2)
    assert torch.allclose(both[1:], alone, atol=1e-5)


def test_guidance_of_one_needs_no_negative_prompt(unet):
    z, text, negative = tensors()
    scheduler = DDIMScheduler(**SCHEDULE)
    one = sample(guide(predictor(unet), text, negative, scale=1.0), scheduler, z, steps=2)
    assert torch.equal(one, sample(guide(predictor(unet), text, negative * 7, scale=1.0), scheduler, z, steps=2))


def test_every_timestep_is_announced_before_its_prediction(unet):
    seen = []
    z, text, negative = tensors()
    sample(
        guide(predictor(unet), text, negative, scale=2.0),
        DDIMScheduler(**SCHEDULE),
        z,
        steps=4,
        on_timestep=seen.append,
    )
    assert seen == [751, 501, 251, 1]


def test_rescaled_guidance_has_the_spread_of_the_conditional_prediction():
    generator = torch.Generator().manual_seed(0)
    conditional, guided = (s * torch.randn(2, 4, 3, 8, 8, generator=generator) for s in (1.0, 6.0))
    rescaled = rescale_guidance(guided, conditional, 1.0)
    assert torch.allclose(rescaled.std((1, 2, 3, 4)), conditional.std((1, 2, 3, 4)))
    assert torch.equal(rescale_guidance(guided, conditional, 0.0), guided)
