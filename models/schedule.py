"""Noise levels: what a timestep means to a diffusion model and to a flow model.

Diffusion (epsilon, v): z_t = sqrt(alpha_t) z + sqrt(1 - alpha_t) noise, timesteps are whole numbers 0..999, and the
scheduler's own methods do it. Flow matching (Lipman et al. 2023, as Wan uses it): z_t = (1 - sigma) z + sigma noise,
timestep 1000 sigma, and the model predicts the velocity noise - z. A flow's shift s spends more levels on much noise:
sigma = s u / (1 + (s - 1) u) for u uniform in 0..1. Latents are [b c f h w].
"""

import torch
from diffusers import SchedulerMixin

FLOW = "flow_prediction"
TIMESTEPS = 1000


def prediction_type(scheduler: SchedulerMixin) -> str:
    """What the model predicts: "epsilon", "v_prediction", "flow_prediction", or another of diffusers' words."""
    return getattr(scheduler.config, "prediction_type", FLOW)  # a scheduler made for flows alone does not name it


def is_flow(scheduler: SchedulerMixin) -> bool:
    return prediction_type(scheduler) == FLOW


def shift_of(scheduler: SchedulerMixin) -> float:
    """The shift of a flow's noise levels, in training and in sampling."""
    return scheduler.config.get("flow_shift", scheduler.config.get("shift", 1.0))


def draw_timesteps(
    scheduler: SchedulerMixin | None, count: int, low: int, high: int, generator: torch.Generator
) -> torch.Tensor:
    """`count` timesteps from `low` to `high`, both included: whole numbers, evenly; a flow's by its shift, in fp32."""
    if scheduler is None or not is_flow(scheduler):
        return torch.randint(low, high + 1, (count,), generator=generator)
    shift = shift_of(scheduler)
    first, last = (_unshifted(edge / TIMESTEPS, shift) for edge in (low, min(high + 1, TIMESTEPS)))
    u = first + (last - first) * torch.rand(count, generator=generator)
    return TIMESTEPS * shift * u / (1 + (shift - 1) * u)


def _unshifted(sigma: float, shift: float) -> float:
    return sigma / (shift - (shift - 1) * sigma)


def add_noise(
    scheduler: SchedulerMixin, latents: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor
) -> torch.Tensor:
    """Latents at the noise level of `timestep` [b]."""
    if not is_flow(scheduler):
        return scheduler.add_noise(latents, noise, timestep)
    sigma = (timestep / TIMESTEPS).view(-1, *[1] * (latents.ndim - 1)).to(latents)
    return (1 - sigma) * latents + sigma * noise


def noised(
    scheduler: SchedulerMixin, latents: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(`add_noise`, `target`): what the model gets and what it should predict."""
    return add_noise(scheduler, latents, noise, timestep), target(scheduler, latents, noise, timestep)


def target(
    scheduler: SchedulerMixin, latents: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor
) -> torch.Tensor:
    """What the model should predict, [b c f h w]: the noise, or the velocity of v-prediction or of a flow."""
    if is_flow(scheduler):
        return noise - latents
    if prediction_type(scheduler) == "epsilon":
        return noise
    return scheduler.get_velocity(latents, noise, timestep)
