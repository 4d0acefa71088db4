"""Motion guidance: equals its formula written out, is plain sampling at rate 0, and keeps no network for a gradient."""

import types

import pytest
import torch
from diffusers import DDIMScheduler

from infer.guidance import GuidanceSettings, Level, MotionGuidance, clean_latents, frame_differences, objective, way

SCHEDULE = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, steps_offset=1)
FLOW = types.SimpleNamespace(config=types.SimpleNamespace(num_train_timesteps=1000))


def scheduler_of(kind: str):
    return FLOW if kind == "flow_prediction" else DDIMScheduler(**SCHEDULE, prediction_type=kind)


def network(seed: int):
    """A small nonlinear stand-in for the model, [b c f h w] -> the same."""
    weight = torch.randn(4, 4, generator=torch.Generator().manual_seed(seed)) / 3
    return lambda z, t: torch.tanh(torch.einsum("dc,bcfhw->bdfhw", weight, z) + int(t) / 1000)


def latents(seed: int, batch: int = 1, frames: int = 3) -> torch.Tensor:
    return torch.randn(batch, 4, frames, 2, 2, generator=torch.Generator().manual_seed(seed))


def guidance(kind: str, *, batch: int = 1, seeds=None, **settings) -> MotionGuidance:
    return MotionGuidance(
        latents(9),
        network(1),
        network(2),
        scheduler_of(kind),
        GuidanceSettings(**{"steps": 2, **settings}),
        seeds or list(range(batch)),
    )


def slow_clean(z, prediction, a, s, kind):
    if kind == "epsilon":
        return (z - s * prediction) / a
    return a * z - s * prediction if kind == "v_prediction" else z - s * prediction


def slow_steps(kind: str, guided: MotionGuidance, z: torch.Tensor, timesteps: list[int]) -> torch.Tensor:
    """The method written out with loops over places and frames; the latents stay put between the guided steps."""
    settings, scheduler, first = guided.settings, guided.scheduler, None
    for step, t in enumerate(timesteps):
        if kind == "flow_prediction":
            s = t / 1000
            a = 1 - s
        else:
            a, s = scheduler.alphas_cumprod[t].sqrt(), (1 - scheduler.alphas_cumprod[t]).sqrt()
        if settings.target == "clean_latent":
            target = guided.reference
        else:
            from infer.guidance import _noise

            noised = a * guided.reference + s * _noise(guided.seeds[0], step, z.shape)
            target = slow_clean(noised, guided.denoise_reference(noised, t), a, s, kind)
        first = first or (z.clone(), a)
        mean_moment, square_moment = torch.zeros_like(z), torch.zeros_like(z)
        for update in range(1, settings.updates + 1):
            prediction = guided.denoise(z, t)
            kept = prediction.clone()
            if step:
                speed = {"epsilon": prediction, "v_prediction": a * prediction + s * z}.get(kind, prediction)
                mean = z - first[0] if kind == "flow_prediction" else z / a - first[0] / first[1]
                for f in range(z.shape[2]):
                    for y in range(z.shape[3]):
                        for x in range(z.shape[4]):
                            v, m = speed[0, :, f, y, x], mean[0, :, f, y, x]
                            along = (v @ m) / (m @ m) * m
                            kept[0, :, f, y, x] = along + settings.across * (v - along)
                if kind == "v_prediction":
                    kept = (kept - s * z) / a
            leaf = z.clone().requires_grad_(True)
            clean = slow_clean(leaf, kept, a, s, kind)
            count = z.shape[2]
            pairs = [(i, i + 1) for i in range(count - 1)] + [(i, j) for i in range(count) for j in range(i + 1, count)]
            motion = [
                ((clean[:, :, j] - clean[:, :, i]).abs() - (target[:, :, j] - target[:, :, i]).abs()).square()
                for i, j in pairs
            ]
            first_weight, second_weight = settings.weights
            loss = first_weight * (clean - target).square().mean() + second_weight * torch.stack(motion).mean()
            loss.backward()
            mean_moment = 0.9 * mean_moment + 0.1 * leaf.grad
            square_moment = 0.999 * square_moment + 0.001 * leaf.grad**2
            step_size = settings.rate * (mean_moment / (1 - 0.9**update))
            z = z - step_size / ((square_moment / (1 - 0.999**update)).sqrt() + 1e-8)
    return z


@pytest.mark.parametrize("target", ["predicted", "clean_latent"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow_prediction"])
def test_equals_the_formula_written_out_slowly(kind, target):
    guided, z = guidance(kind, rate=0.05, target=target), latents(3)
    slow = slow_steps(kind, guided, z, [901, 801])
    for t in (901, 801):
        z = guided.steer(z, torch.tensor(t))
        guided(z, torch.tensor(t))
    assert torch.allclose(z, slow, atol=2e-5)


def test_the_initial_noise_of_zero_terminal_snr_is_infinitely_far_away():
    """The mean velocity is then the direction of the noise itself, and no number is divided by 0."""
    scheduler = DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    first, last = Level.of(scheduler, 999), Level.of(scheduler, 801)
    assert first.alpha == 0 < last.alpha
    z, noise = latents(3), latents(4)
    assert torch.allclose(way(z, last, noise, first), -last.alpha * noise)
    guided = MotionGuidance(latents(9), network(1), network(2), scheduler, GuidanceSettings(steps=2, updates=2), [0])
    for t in (999, 801):
        z = guided.steer(z, torch.tensor(t))
        assert guided(z, torch.tensor(t)).isfinite().all() and z.isfinite().all()


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow_prediction"])
def test_the_noise_level_undoes_the_noising(kind):
    scheduler, clean, noise = scheduler_of(kind), latents(0), latents(1)
    level = Level.of(scheduler, 601)
    noised = level.alpha * clean + level.sigma * noise
    if kind != "flow_prediction":
        assert torch.allclose(noised, scheduler.add_noise(clean, noise, torch.tensor([601])), atol=1e-6)
    prediction = {
        "epsilon": noise,
        "v_prediction": level.alpha * noise - level.sigma * clean,
        "flow_prediction": noise - clean,
    }[kind]
    assert torch.allclose(clean_latents(noised, prediction, level), clean, atol=1e-5)


def test_rate_zero_leaves_latents_and_prediction_bit_for_bit():
    guided, z, t = guidance("v_prediction", rate=0.0), latents(4), torch.tensor(901)
    assert torch.equal(guided.steer(z, t), z)
    assert torch.equal(guided(z, t), network(1)(z, t))


def test_steps_after_the_last_guided_one_are_plain():
    guided, z = guidance("epsilon", steps=1, rate=0.1), latents(5)
    moved = guided.steer(z, torch.tensor(901))
    assert not torch.equal(moved, z)
    guided(moved, torch.tensor(901))
    assert guided.steer(moved, torch.tensor(801)) is moved
    assert torch.equal(guided(moved, torch.tensor(801)), network(1)(moved, torch.tensor(801)))


def test_guidance_brings_the_predicted_clean_latents_nearer():
    guided, z, t = guidance("epsilon", rate=0.05, updates=8, target="clean_latent"), latents(6), torch.tensor(501)
    level = Level.of(guided.scheduler, t)

    def error(z):
        return objective(clean_latents(z, guided.denoise(z, t), level), guided.reference, (20.0, 5.0)).item()

    assert error(guided.steer(z, t)) < 0.8 * error(z)


def test_videos_of_a_batch_are_guided_as_alone():
    both = guidance("v_prediction", seeds=[3, 7], rate=0.05)
    alone = guidance("v_prediction", seeds=[7], rate=0.05)
    z = latents(8, batch=2)
    other = z[1:]
    for t in (901, 801):
        z, other = both.steer(z, torch.tensor(t)), alone.steer(other, torch.tensor(t))
        both(z, torch.tensor(t)), alone(other, torch.tensor(t))
    assert torch.allclose(z[1:], other, atol=1e-6)


def test_the_network_is_called_without_a_gradient_and_as_often_as_promised():
    calls = {"prompt": 0, "reference": 0}

    def watched(name, inner):
        def denoise(z, t):
            assert not torch.is_grad_enabled() and not z.requires_grad
            calls[name] += 1
            return inner(z, t)

        return denoise

    for target, reference in (("predicted", 2), ("clean_latent", 0)):
        guided = guidance("epsilon", target=target)
        guided.denoise, guided.denoise_reference = watched("prompt", network(1)), watched("reference", network(2))
        calls.update(prompt=0, reference=0)
        z = latents(0)
        for t in (901, 801, 701, 601, 501):
            z = guided.steer(z, torch.tensor(t))
            with torch.no_grad():
                guided(z, torch.tensor(t))
        assert calls == {"prompt": 2 * 3 + 3, "reference": reference}
        assert guided.settings.forwards([1] * 5) == calls["prompt"] + calls["reference"]
        assert guided.settings.forwards([2] * 5) == 2 * calls["prompt"] + calls["reference"]


def test_differences_are_of_neighbours_and_of_all_pairs():
    x = torch.tensor([0.0, 1.0, 4.0]).reshape(1, 1, 3, 1, 1)
    assert frame_differences(x).flatten().tolist() == [1, 3, 1, 4, 3]
