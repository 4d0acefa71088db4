"""DDIM inversion: walk a clean clip back to the noise that deterministic DDIM would denoise into it.

It follows the release: 50 steps, the empty prompt, no guidance. The result carries the reference clip's layout and
motion, and a share of it (the noise prior) starts the sampling of new videos. Each step is diffusers'
`DDIMInverseScheduler`; the timesteps are those of the DDIM that will sample, in reverse. A flow is inverted by Euler's
steps from clean to noise. Latents are [b c f h w].
"""

from collections.abc import Callable, Iterable
from types import SimpleNamespace

import torch
from diffusers import DDIMInverseScheduler, SchedulerMixin

from configs.errors import UserError
from infer.sampler import Denoiser, make_solver
from models.schedule import is_flow


class FlowInverse:
    """Euler's steps of a flow in reverse, with the model asked at the noisier end of each, as DDIM's inverse does."""

    def __init__(self, scheduler: SchedulerMixin, steps: int):
        solver = make_solver(scheduler, "euler", steps)
        self.timesteps, self.sigmas = solver.timesteps.flip(0), solver.sigmas.flip(0)

    def step(self, prediction: torch.Tensor, timestep: torch.Tensor, latents: torch.Tensor) -> SimpleNamespace:
        i = self.timesteps.tolist().index(float(timestep))
        return SimpleNamespace(prev_sample=latents + (self.sigmas[i + 1] - self.sigmas[i]) * prediction)


def make_inverse(scheduler: SchedulerMixin, steps: int) -> DDIMInverseScheduler | FlowInverse:
    """The inverse of DDIM with `steps` steps on the noise schedule of `scheduler`; its `timesteps` ascend.

    `.step(prediction, t, latents).prev_sample` takes latents from noise level t - 1000 // steps up to noise level t.
    Below timestep 0 the final alpha of the schedule (1, or that of timestep 0) stands for the clean clip.
    """
    if is_flow(scheduler):
        return FlowInverse(scheduler, steps)
    inverse = DDIMInverseScheduler.from_config(scheduler.config)
    inverse.num_inference_steps = steps
    inverse.timesteps = make_solver(scheduler, "ddim", steps).timesteps.flip(0)  # its own know no linspace spacing
    return inverse


@torch.no_grad()
def ddim_invert(
    denoise: Denoiser,
    scheduler: SchedulerMixin,
    latents: torch.Tensor,
    steps: int = 50,
    progress: Callable[[Iterable], Iterable] = iter,
    trajectory: bool = False,
) -> torch.Tensor:
    """Invert clean latents [b c f h w] to noise of the same shape, in fp32.

    `denoise` is the model under the empty prompt, without guidance (`classifier_free_guidance` of scale 1). With
    `trajectory` the result is [steps+1 b c f h w], from the clean latents to the noise. The scheduler passed in is not
    changed. Raises UserError when the latents do not stay finite.
    """
    inverse = make_inverse(scheduler, steps)
    latents = latents.float()
    path = [latents]
    for t in progress(inverse.timesteps):
        latents = inverse.step(denoise(latents, t), t, latents).prev_sample
        if trajectory:
            path.append(latents)
    if not torch.isfinite(latents).all():
        raise UserError(
            "inversion: the latents are not finite, the model overflows on this clip; use mixed_precision=bf16 or no"
        )
    return torch.stack(path) if trajectory else latents
