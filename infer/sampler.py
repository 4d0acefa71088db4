"""The DDIM sampler: one loop for previews, inference and evaluation (the release: 30 steps, guidance 12).

The loop sees the model as a denoiser, a function of noisy latents and timestep; `guide` makes one from the frozen model
and a prompt. It knows nothing about adapters: what must change along the way, such as phased LoRA integration switching
to the untouched model at t <= tau, is a callback that sees each timestep before the model does. Latents are
[b c f h w] in fp32 whatever the model's precision, because DDIM accumulates thirty small differences.
"""

from collections.abc import Callable, Iterable

import torch
from diffusers import DDIMScheduler

from models.backbone import Predictor

Denoiser = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (latents [b c f h w], timestep) -> prediction


def guide(
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
        return lambda latents, timestep: predict(latents, timestep, text)
    both = torch.cat([negative, text])

    def denoise(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        unconditional, conditional = predict(torch.cat([latents, latents]), timestep, both).chunk(2)
        guided = unconditional + scale * (conditional - unconditional)
        return rescale_guidance(guided, conditional, rescale) if rescale else guided

    return denoise


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
    scheduler: DDIMScheduler,
    latents: torch.Tensor,
    *,
    steps: int,
    on_timestep: Callable[[int], None] | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
) -> torch.Tensor:
    """Denoise `latents` [b c f h w] (initial noise) into clean latents of the same shape, in fp32.

    The scheduler's configuration decides epsilon or v-prediction, betas and timestep spacing; the object passed in is
    not changed. `on_timestep(t)` is called before each prediction.
    """
    ddim = DDIMScheduler.from_config(scheduler.config)
    ddim.set_timesteps(steps, device=latents.device)
    latents = latents.float()
    for t in progress(ddim.timesteps):
        if on_timestep is not None:
            on_timestep(int(t))
        latents = ddim.step(denoise(latents, t), t, latents).prev_sample
    return latents
