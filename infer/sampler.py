"""The sampler: one loop for previews, inference and evaluation (the release: DDIM, 30 steps, guidance 12).

The loop sees the model as a denoiser, a function of noisy latents and timestep; `classifier_free_guidance` makes one
from the frozen model and a prompt. The loop knows nothing about adapters: what must change along the way, such as
phased LoRA integration switching to the untouched model at t <= tau, is a callback that sees each timestep before the
model does. Latents are [b c f h w] in fp32 whatever the model's precision, because a solver adds up many small
differences. Timesteps stay on the CPU, where the solver looks up its coefficients; only what the model gets is moved,
so that a DDIM step never waits for the device.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)

from configs.errors import UserError
from models.backbone import Predictor
from models.schedule import FLOW, is_flow, shift_of

Denoiser = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (latents [b c f h w], timestep []) -> prediction

SOLVERS = {"ddim": DDIMScheduler, "unipc": UniPCMultistepScheduler, "dpm": DPMSolverMultistepScheduler}
FLOW_SOLVERS = {"euler": FlowMatchEulerDiscreteScheduler, **{name: SOLVERS[name] for name in ("unipc", "dpm")}}
ORDERS = {"ddim": 1, "euler": 1, "unipc": 2, "dpm": 2}


def classifier_free_guidance(
    predict: Predictor,
    text: torch.Tensor,
    negative: torch.Tensor | None = None,
    *,
    scale: float = 1.0,
    rescale: float = 0.0,
) -> Denoiser:
    """The model under a prompt: prediction = negative + scale * (conditional - negative).

    `text` and `negative` are prompt embeddings [b n d]; both go through the model as one batch. A scale of 1 skips the
    negative half. `rescale` in [0, 1] is the share of `rescale_guidance`.
    """
    if scale == 1:
        return lambda latents, timestep: predict(latents, _on_device_of(latents, timestep), text)
    both = torch.cat([negative, text])

    def denoise(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        twice = torch.cat([latents, latents])
        unconditional, conditional = predict(twice, _on_device_of(latents, timestep), both).chunk(2)
        guided = unconditional + scale * (conditional - unconditional)
        return rescale_guidance(guided, conditional, rescale) if rescale else guided

    return denoise


def within(interval: Sequence[float], guided: Denoiser, plain: Denoiser) -> Denoiser:
    """Guidance at timesteps low <= t <= high alone; elsewhere `plain`, which costs one forward in place of two.

    Limited-interval guidance (Kynkäänniemi et al. 2024). The interval is one (configs/checks.py: no_interval).
    """
    return lambda latents, timestep: (guided if is_inside(interval, timestep) else plain)(latents, timestep)


def is_inside(interval: Sequence[float] | None, timestep: torch.Tensor) -> bool:
    """Whether guidance acts at `timestep` []; without an interval it always does."""
    return interval is None or bool(interval[0] <= timestep <= interval[1])


def rescale_guidance(guided: torch.Tensor, conditional: torch.Tensor, share: float) -> torch.Tensor:
    """Pull the guided prediction back to the conditional one's spread (Lin et al. 2023, equation 16).

    Strong guidance inflates the standard deviation of the prediction and so burns colours; `share` in [0, 1] mixes
    the rescaled prediction with the plain one. Shapes [b c f h w].
    """
    dims = list(range(1, guided.ndim))
    rescaled = guided * (conditional.std(dims, keepdim=True) / guided.std(dims, keepdim=True))
    return share * rescaled + (1 - share) * guided


@torch.no_grad()
def sample(
    denoise: Denoiser,
    scheduler: SchedulerMixin,
    latents: torch.Tensor,
    *,
    steps: int,
    solver: str = "ddim",
    on_timestep: Callable[[float], None] | None = None,
    steer: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
) -> torch.Tensor:
    """Denoise `latents` [b c f h w] (initial noise) into clean latents of the same shape, in fp32.

    The scheduler's configuration decides epsilon, v-prediction or flow, betas and timestep spacing; the object passed
    in is not changed. `solver` is one of `SOLVERS`, or for a flow of `FLOW_SOLVERS`. Before each prediction
    `on_timestep(t)` is called, and then `steer(latents, t)`, which may move the latents from which the step is taken
    (infer/guidance.py). Raises UserError for an unknown solver, for fewer steps than it needs, and when the latents do
    not stay finite.
    """
    stepper = make_solver(scheduler, solver, steps)
    latents = latents.float()
    for t in progress(stepper.timesteps):
        if on_timestep is not None:
            on_timestep(t.item())
        if steer is not None:
            latents = _moved(stepper, latents, steer(latents, t))
        latents = stepper.step(denoise(latents, t), t, latents).prev_sample
    if not torch.isfinite(latents).all():
        raise UserError(
            f"sampling: the latents are not finite after {steps} steps: the model or an adapter overflows; use "
            "precision bf16 or no, a lower guidance scale, or a checkpoint of an earlier step"
        )
    return latents


def make_solver(scheduler: SchedulerMixin, name: str, steps: int) -> SchedulerMixin:
    """A fresh solver on the noise schedule of `scheduler`, with `timesteps` (on the CPU) set; it steps once.

    DDIM is used as the model's folder configures it. UniPC and DPM-Solver++ (both multistep, of order 2) solve the same
    equation, from the last timestep to the noise level at which DDIM ends. Raises UserError as `check_solver`.
    """
    check_solver(name, steps)
    if is_flow(scheduler):
        return _flow_solver(scheduler, name, steps)
    if name not in SOLVERS:
        raise UserError(f"solver: {name} follows a flow, and this model is a diffusion; use {', '.join(SOLVERS)}")
    config, changes = scheduler.config, {}
    if name != "ddim":
        # "leading" would start these far below the highest timestep, at 831 with 5 steps, from noise of timestep 999
        spacing = "trailing" if config.timestep_spacing == "leading" else config.timestep_spacing
        changes = {
            "timestep_spacing": spacing,
            "final_sigmas_type": "zero" if config.set_alpha_to_one else "sigma_min",
            "solver_order": ORDERS[name],
        }
    stepper = SOLVERS[name].from_config(config, **changes)
    stepper.set_timesteps(steps)
    # diffusers counts trailing timesteps down in floating point and for some numbers of steps (61) adds timestep -1
    stepper.timesteps = stepper.timesteps[:steps]
    if name != "ddim":
        stepper.sigmas = torch.cat([stepper.sigmas[:steps], stepper.sigmas[-1:]])
        stepper.set_begin_index(0)
    return stepper


def _flow_solver(scheduler: SchedulerMixin, name: str, steps: int) -> SchedulerMixin:
    """A solver of the flow's equation with the model's shift; UniPC as the model's folder configures it."""
    if name not in FLOW_SOLVERS:
        raise UserError(f"solver: {name} solves a diffusion, and this model is a flow; use {', '.join(FLOW_SOLVERS)}")
    kind, shift = FLOW_SOLVERS[name], shift_of(scheduler)
    if isinstance(scheduler, kind):
        stepper = kind.from_config(scheduler.config)
    elif name == "euler":
        stepper = kind(shift=shift)
    else:
        stepper = kind(prediction_type=FLOW, use_flow_sigmas=True, flow_shift=shift)
    stepper.set_timesteps(steps)
    stepper.set_begin_index(0)
    return stepper


def check_solver(name: str, steps: int) -> None:
    """Raise UserError for an unknown solver, and for fewer steps than its order."""
    if name not in ORDERS:
        raise UserError(f"solver: {name!r} is unknown; there are {', '.join(ORDERS)}")
    if steps < ORDERS[name]:
        raise UserError(
            f"solver: {name} is of order {ORDERS[name]} and cannot take {steps} step; use 2 or more, or ddim (for a "
            "flow euler)"
        )


def _moved(stepper: SchedulerMixin, latents: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
    """`moved`, from which the step will really be taken: UniPC's corrector is left out of a step of moved latents.

    The corrector solves the step before anew from that step's latents, with the prediction made now, and puts the
    result in place of the latents that it is given. A movement would be lost, and the prediction does not belong to
    that solution: it was made beside it. Moved latents begin a new solution, as the first noise does, so there is
    nothing to correct; the step itself keeps its order.
    """
    if isinstance(stepper, UniPCMultistepScheduler) and not torch.equal(latents, moved):
        stepper.last_sample = None  # what the corrector would begin from
    return moved


def _on_device_of(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """The timestep on the device of the latents, without waiting for that device."""
    return timestep.to(latents.device, non_blocking=True)
