"""DDIM inversion: walk a clean clip back to the noise that deterministic DDIM would denoise into it.

As the release does it: 50 steps, the empty prompt, no guidance. The result carries the reference's layout and motion,
and a share of it (the noise prior) starts the sampling of new videos. The rule is diffusers' `DDIMInverseScheduler`,
written out because it is six lines; epsilon and v-prediction, leading and trailing spacing come from the scheduler's
configuration. Latents are [b c f h w].
"""

from collections.abc import Callable, Iterable

import torch
from diffusers import DDIMScheduler

from configs.errors import UserError
from infer.sampler import Denoiser


def inversion_step(scheduler: DDIMScheduler, prediction: torch.Tensor, t: int, latents: torch.Tensor, stride: int):
    """One step from noise level t - stride up to noise level t (DDIM's step, run backwards).

    `prediction` is the U-Net's output at (latents, t), of the shape of `latents`; below timestep 0 the scheduler's
    final alpha stands for the clean clip. Returns the noisier latents, same shape.
    """
    previous = t - stride
    # final_alpha_cumprod is 1 or alphas_cumprod[0], as `set_alpha_to_one` says
    alpha_previous = scheduler.alphas_cumprod[previous] if previous >= 0 else scheduler.final_alpha_cumprod
    alpha = scheduler.alphas_cumprod[t]
    if scheduler.config.prediction_type == "v_prediction":
        clean = alpha_previous.sqrt() * latents - (1 - alpha_previous).sqrt() * prediction
        noise = alpha_previous.sqrt() * prediction + (1 - alpha_previous).sqrt() * latents
    else:
        clean = (latents - (1 - alpha_previous).sqrt() * prediction) / alpha_previous.sqrt()
        noise = prediction
    return alpha.sqrt() * clean + (1 - alpha).sqrt() * noise


@torch.no_grad()
def ddim_invert(
    denoise: Denoiser,
    scheduler: DDIMScheduler,
    latents: torch.Tensor,
    steps: int = 50,
    progress: Callable[[Iterable], Iterable] = iter,
    trajectory: bool = False,
) -> torch.Tensor:
    """Invert clean latents [b c f h w] to noise of the same shape, in fp32.

    `denoise` is the model under the empty prompt, without guidance (`guide`). With `trajectory` the result is
    [steps+1 b c f h w], from the clean latents to the noise. The scheduler passed in is not changed. Raises UserError
    when the model's numbers overflow.
    """
    ddim = DDIMScheduler.from_config(scheduler.config)
    ddim.set_timesteps(steps)
    stride = ddim.config.num_train_timesteps // steps
    latents = latents.float()
    path = [latents]
    for t in progress(ddim.timesteps.flip(0)):
        prediction = denoise(latents, t.to(latents.device))
        latents = inversion_step(ddim, prediction, int(t), latents, stride)
        path.append(latents)
    if not torch.isfinite(latents).all():
        raise UserError("inversion: the model gave values that are not finite; use mixed_precision=bf16 or no")
    return torch.stack(path) if trajectory else latents
