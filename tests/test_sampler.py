import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from configs.checks import no_interval
from configs.errors import UserError
from infer.sampler import SOLVERS, classifier_free_guidance, make_solver, rescale_guidance, sample, within
from models.backbone import predictor
from scripts.authors.weights import build_unet

from conftest import SCHEDULE, UNET


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
    sampled = sample(classifier_free_guidance(predictor(unet), text, negative, scale=5.0), scheduler, z, steps=4)
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
    both = sample(classifier_free_guidance(predictor(unet), text, negative, scale=3.0), scheduler, z, steps=2)
    alone = sample(
        classifier_free_guidance(predictor(unet), text[1:], negative[1:], scale=3.0), scheduler, z[1:], steps=2
    )
    assert torch.allclose(both[1:], alone, atol=1e-5)


def test_guidance_of_one_needs_no_negative_prompt(unet):
    z, text, negative = tensors()
    scheduler = DDIMScheduler(**SCHEDULE)
    one = sample(classifier_free_guidance(predictor(unet), text, negative, scale=1.0), scheduler, z, steps=2)
    assert torch.equal(
        one, sample(classifier_free_guidance(predictor(unet), text, negative * 7, scale=1.0), scheduler, z, steps=2)
    )


def test_every_timestep_is_announced_before_its_prediction(unet):
    seen = []
    z, text, negative = tensors()
    sample(
        classifier_free_guidance(predictor(unet), text, negative, scale=2.0),
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


TRAILING = dict(beta_schedule="linear", clip_sample=False, timestep_spacing="trailing")  # as PocketScope


def gaussian(scheduler, mean=0.6, spread=0.7):
    """The exact denoiser of data ~ N(mean, spread^2), and where its probability flow takes latents of timestep 999."""
    alphas, final = scheduler.alphas_cumprod.double(), scheduler.final_alpha_cumprod.double()

    def denoise(latents, t):
        a = alphas[t]
        posterior = mean + spread**2 * a.sqrt() / (spread**2 * a + 1 - a) * (latents - a.sqrt() * mean)
        noise = (latents - a.sqrt() * posterior) / (1 - a).sqrt()
        if scheduler.config.prediction_type == "v_prediction":
            return (a.sqrt() * noise - (1 - a).sqrt() * posterior).float()
        return noise.float()

    def flow(latents):
        first, last = ((a.sqrt() * mean, (spread**2 * a + 1 - a).sqrt()) for a in (alphas[999], final))
        return (last[0] + last[1] * (latents - first[0]) / first[1]).float()

    return denoise, flow


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("schedule", [SCHEDULE, TRAILING], ids=["zeroscope", "pocketscope"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_converges_to_the_exact_flow(solver, schedule, prediction_type):
    """They solve one equation: at many steps all end where it ends, those of order 2 much nearer than DDIM."""
    scheduler = DDIMScheduler(**schedule, prediction_type=prediction_type)
    denoise, flow = gaussian(scheduler)
    z, _, _ = tensors()

    def error(name, steps):
        return (sample(denoise, scheduler, z, steps=steps, solver=name) - flow(z)).abs().max().item()

    assert error(solver, 500) < 0.02
    if solver != "ddim":
        assert error(solver, 250) < error("ddim", 250) / 3


def gaussian_flow(mean=0.6, spread=0.7):
    """The exact velocity of data ~ N(mean, spread^2) on a flow's straight lines."""

    def denoise(latents, t):
        s = t.double() / 1000
        posterior = mean + spread**2 * (1 - s) / (spread**2 * (1 - s) ** 2 + s**2) * (latents - (1 - s) * mean)
        return ((latents - posterior) / s).float()

    return denoise


@pytest.mark.parametrize("at", [0, 1, 10])
@pytest.mark.parametrize("name", [*SOLVERS, "flow euler", "flow dpm", "flow unipc"])
def test_latents_moved_before_any_step_stay_moved_under_every_solver(name, at):
    """The exact flow is linear, so it takes a movement to where its spread goes; every solver comes near to that."""
    z, spread = tensors()[0], 0.7
    solver = name.removeprefix("flow ")
    if solver == name:
        scheduler = DDIMScheduler(**SCHEDULE)
        denoise = gaussian(scheduler)[0]
    else:
        euler = FlowMatchEulerDiscreteScheduler(shift=3.0)
        native = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
        scheduler, denoise = native if solver == "unipc" else euler, gaussian_flow()
    t = make_solver(scheduler, solver, 20).timesteps[at]

    def moved(by):
        return lambda latents, now: latents + by if now == t else latents.clone()

    def sampled(steer):
        return sample(denoise, scheduler, z, steps=20, solver=solver, steer=steer)

    plain = sampled(None)
    assert torch.equal(sampled(moved(0.0)), plain)
    s = t.double() / 1000
    kept = scheduler.alphas_cumprod[t].double() if solver == name else (1 - s) ** 2
    wanted = 0.5 * spread / (spread**2 * kept + (1 - kept if solver == name else s**2)).sqrt()
    found = (sampled(moved(0.5)) - plain).mean().item()
    assert found == pytest.approx(wanted.item(), rel=0.2)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_any_number_of_steps_is_that_many_timesteps_and_stays_finite(solver, spacing):
    scheduler = DDIMScheduler(**{**SCHEDULE, "timestep_spacing": spacing})
    denoise, _ = gaussian(scheduler)
    z, _, _ = tensors()
    for steps in (2, 3, 5, 14, 15, 61, 244, 700, 998, 999):  # diffusers' trailing spacing has a timestep -1 at 61
        timesteps = make_solver(scheduler, solver, steps).timesteps
        assert timesteps.dtype == torch.int64 and len(timesteps.unique()) == steps
        assert (
            0 <= timesteps.min()
            and timesteps.max() <= 999
            and torch.equal(timesteps, timesteps.sort(descending=True)[0])
        )
    for steps in (2, 3, 61, 700, 999):
        assert sample(denoise, scheduler, z, steps=steps, solver=solver).isfinite().all()


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_solver_starts_anew_and_leaves_the_models_scheduler_alone(unet, solver):
    scheduler, (z, text, negative) = DDIMScheduler(**SCHEDULE), tensors()
    before = dict(scheduler.config)
    first, again = (
        sample(
            classifier_free_guidance(predictor(unet), text, negative, scale=3.0), scheduler, z, steps=3, solver=solver
        )
        for _ in "ab"
    )
    assert torch.equal(first, again)
    assert dict(scheduler.config) == before and scheduler.num_inference_steps is None


def test_an_unknown_solver_and_too_few_steps_are_one_sentence():
    scheduler, (z, _, _) = DDIMScheduler(**SCHEDULE), tensors()
    with pytest.raises(UserError, match="'heun' is unknown; there are ddim, euler, unipc, dpm"):
        sample(gaussian(scheduler)[0], scheduler, z, steps=5, solver="heun")
    with pytest.raises(UserError, match="euler follows a flow, and this model is a diffusion; use ddim, unipc, dpm"):
        sample(gaussian(scheduler)[0], scheduler, z, steps=5, solver="euler")
    for solver in ("unipc", "dpm"):
        advice = r"is of order 2 and cannot take 1 step; use 2 or more, or ddim \(for a flow euler\)"
        with pytest.raises(UserError, match=f"{solver} {advice}"):
            sample(gaussian(scheduler)[0], scheduler, z, steps=1, solver=solver)
    assert sample(gaussian(scheduler)[0], scheduler, z, steps=1).isfinite().all()


def test_latents_that_overflow_are_one_sentence():
    scheduler, (z, _, _) = DDIMScheduler(**SCHEDULE), tensors()
    with pytest.raises(UserError, match="latents are not finite after 4 steps.*use precision bf16 or no"):
        sample(lambda latents, t: latents / 0, scheduler, z, steps=4)


@pytest.mark.parametrize("solver", ["ddim", "dpm"])
def test_no_step_waits_for_the_device(solver):
    """On the meta device a value cannot be read: whatever waits for it raises, so only the last check may."""
    seen, announced = [], []

    def predict(latents, timestep, text):
        seen.append((latents.device.type, timestep.device.type))
        return latents

    text = torch.empty(1, 5, 32, device="meta")
    denoise = classifier_free_guidance(predict, text, text, scale=3.0)
    interval = within((300, 1000), denoise, classifier_free_guidance(predict, text))
    z = torch.empty(1, 4, 3, 8, 8, device="meta")
    with pytest.raises((NotImplementedError, RuntimeError), match="(?i)meta"):
        sample(interval, DDIMScheduler(**SCHEDULE), z, steps=4, solver=solver, on_timestep=announced.append)
    assert seen == [("meta", "meta")] * 4
    assert len(announced) == 4 and all(type(t) is int for t in announced)


def test_guidance_inside_every_timestep_is_guidance_and_inside_none_is_scale_one(unet):
    scheduler, (z, text, negative) = DDIMScheduler(**SCHEDULE), tensors()
    guided, plain = (classifier_free_guidance(predictor(unet), text, negative, scale=scale) for scale in (5.0, 1.0))

    def sampled(denoise):
        return sample(denoise, scheduler, z, steps=4)

    assert torch.equal(sampled(within((0, 1000), guided, plain)), sampled(guided))
    assert torch.equal(sampled(within((1000, 1000), guided, plain)), sampled(plain))
    partial = sampled(within((251, 501), guided, plain))
    assert not torch.equal(partial, sampled(guided)) and not torch.equal(partial, sampled(plain))


def test_guidance_outside_its_interval_costs_one_forward():
    sizes, (z, text, negative) = [], tensors()

    def predict(latents, timestep, text):
        sizes.append((int(timestep), len(latents)))
        return latents

    denoise = within(
        (251, 501),
        classifier_free_guidance(predict, text, negative, scale=5.0),
        classifier_free_guidance(predict, text),
    )
    sample(denoise, DDIMScheduler(**SCHEDULE), z, steps=4)
    assert sizes == [(751, 1), (501, 2), (251, 2), (1, 1)]


@pytest.mark.parametrize("interval", [(700, 300), (-1, 500), (0, 1001), (float("nan"), 500)])
def test_an_interval_that_is_none_is_told(interval):
    assert "not a range of timesteps from low to high inside 0 to 1000" in no_interval(interval)
