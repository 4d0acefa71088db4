"""The guided DDIM sampler: one loop for previews, inference and evaluation (the release: 30 steps, guidance 12).

The sampler knows nothing about adapters. What must change along the way, such as phased LoRA integration switching to
the untouched model at t <= tau, is a callback that sees each timestep before the U-Net does. Latents are
[b c f h w] in fp32 whatever the U-Net's precision, because DDIM accumulates thirty small differences.
"""

from collections.abc import Callable, Iterable

import torch
from diffusers import DDIMScheduler, UNet3DConditionModel


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
    unet: UNet3DConditionModel,
    scheduler: DDIMScheduler,
    latents: torch.Tensor,
    text: torch.Tensor,
    negative: torch.Tensor,
    *,
    steps: int,
    guidance_scale: float,
    guidance_rescale: float = 0.0,
    on_timestep: Callable[[int], None] | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
) -> torch.Tensor:
    """Denoise `latents` [b c f h w] (initial noise) into clean latents of the same shape, in fp32.

    `text` and `negative` are prompt embeddings [b n d]; both go through the U-Net as one batch, and
    prediction = negative + guidance_scale * (conditional - negative). A guidance scale of 1 skips the negative half.
    The scheduler's configuration decides epsilon or v-prediction, betas and timestep spacing; the object passed in is
    not changed. `on_timestep(t)` is called before each prediction.
    """
    ddim = DDIMScheduler.from_config(scheduler.config)
    ddim.set_timesteps(steps, device=latents.device)
    latents = latents.float()
    guided = guidance_scale != 1
    embeddings = (torch.cat([negative, text]) if guided else text).to(unet.dtype)

    for t in progress(ddim.timesteps):
        if on_timestep is not None:
            on_timestep(int(t))
        batch = torch.cat([latents, latents]) if guided else latents
        prediction = unet(batch.to(unet.dtype), t, embeddings).sample.float()
        if guided:
            unconditional, conditional = prediction.chunk(2)
            prediction = unconditional + guidance_scale * (conditional - unconditional)
            if guidance_rescale:
                prediction = rescale_guidance(prediction, conditional, guidance_rescale)
        latents = ddim.step(prediction, t, latents).prev_sample
    return latents
