"""The objective: draws that depend on (seed, step) alone, and losses that equal their formulas."""

from math import sqrt

import pytest
import torch
from diffusers import DDIMScheduler

from configs.errors import UserError
from models.schedule import target
from models.training.objective import check_scheduler, debias, draw_step, spatial_loss, temporal_loss

LATENTS = torch.randn(2, 4, 5, 3, 3, generator=torch.Generator().manual_seed(0))


def test_a_draw_depends_on_seed_step_and_micro_alone():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    one, again = draw_step(3, 7, LATENTS, micro=2), draw_step(3, 7, LATENTS, micro=2)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one.noise, again.noise) and torch.equal(one.timestep, again.timestep) and one[2:] == again[2:]
    others = [
        draw_step(4, 7, LATENTS, micro=2),
        draw_step(3, 8, LATENTS, micro=2),
        draw_step(3, 7, LATENTS),
        draw_step(37, 2, LATENTS),
    ]
    assert not any(torch.equal(one.noise, other.noise) for other in others)


def test_draws_cover_their_ranges_and_nothing_else():
    tiny = torch.zeros(1, 1, 3, 1, 1)
    draws = [draw_step(0, step, tiny, min_timestep=300, max_timestep=303) for step in range(300)]
    assert {int(d.timestep) for d in draws} == {300, 301, 302, 303}
    assert {d.frame for d in draws} == {d.anchor for d in draws} == {0, 1, 2}
    assert any(d.frame != d.anchor for d in draws)
    assert 0.72 < sum(d.spatial for d in draws) / len(draws) < 0.88


@pytest.mark.parametrize("probability", [0, 1])
def test_the_spatial_pass_can_be_always_or_never(probability):
    assert {draw_step(0, step, LATENTS, spatial_probability=probability).spatial for step in range(50)} == {
        bool(probability)
    }


def test_each_sample_of_a_batch_has_its_own_timestep_and_the_latents_dtype():
    drawn = draw_step(0, 1, LATENTS.to(torch.bfloat16))
    assert drawn.timestep.shape == (2,) and drawn.timestep.dtype == torch.int64
    assert drawn.noise.dtype == torch.bfloat16 and drawn.noise.shape == LATENTS.shape


def test_debiasing_damps_what_all_frames_share():
    constant = LATENTS[:, :, :1].expand_as(LATENTS)
    torch.testing.assert_close(debias(constant, 2), (sqrt(2) - 1) * constant)
    assert torch.equal(debias(LATENTS, 2, beta=0.0), LATENTS)


def test_the_temporal_loss_is_its_formula_frame_by_frame():
    prediction, noise, anchor, beta = LATENTS, LATENTS.flip(0), 3, 0.7
    mse, debiased = temporal_loss(prediction, noise, anchor, beta)
    error = prediction - noise
    frames = [(sqrt(beta**2 + 1) * error[:, :, f] - beta * error[:, :, anchor]).square().mean() for f in range(5)]
    torch.testing.assert_close(debiased, torch.stack(frames).mean())
    torch.testing.assert_close(mse, error.square().mean())


def test_losses_of_half_precision_tensors_are_computed_in_full():
    half = LATENTS.half() * 300  # squares leave the range of fp16
    assert spatial_loss(half, -half).dtype == torch.float32
    for loss in (spatial_loss(half, -half), *temporal_loss(half, -half, 0)):
        assert torch.isfinite(loss)


def test_the_target_is_the_noise_or_the_velocity():
    noise, t = LATENTS.flip(0), torch.tensor([10, 900])
    assert target(DDIMScheduler(), LATENTS, noise, t) is noise
    scheduler = DDIMScheduler(prediction_type="v_prediction")
    a = scheduler.alphas_cumprod[t].view(-1, 1, 1, 1, 1)
    torch.testing.assert_close(target(scheduler, LATENTS, noise, t), a.sqrt() * noise - (1 - a).sqrt() * LATENTS)
    with pytest.raises(UserError, match="prediction_type is 'sample'"):
        check_scheduler(DDIMScheduler(prediction_type="sample"), 999)
    with pytest.raises(UserError, match="max_timestep: 999 is not among the model's 10 timesteps"):
        check_scheduler(DDIMScheduler(num_train_timesteps=10), 999)
    check_scheduler(scheduler, 999)
