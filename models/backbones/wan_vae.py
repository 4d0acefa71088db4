"""Wan's causal VAE: between frames and latents.

It turns 4n+1 frames into n+1 latents; one without temporal compression (PocketScope-DiT's) codes each frame on its own.
"""

import torch
from torch import nn

from configs.errors import UserError


def vae_factor(vae_config) -> int:
    """Pixels per latent pixel."""
    return vae_config["scale_factor_spatial"]


def latent_frames(frames: int, vae_config) -> int:
    """Latents of a clip of so many frames, 1 + (frames - 1) / 4 for Wan. Raises UserError for a length in between."""
    factor = vae_config["scale_factor_temporal"]
    if (frames - 1) % factor:
        lower = (frames - 1) // factor * factor + 1
        nearest = lower if frames - lower < factor / 2 else lower + factor
        raise UserError(
            f"frames: {frames} cannot be encoded, this model's VAE takes {factor}n+1; use {nearest} frames "
            "(train_data.n_sample_frames, or --num-frames)"
        )
    return 1 + (frames - 1) // factor


def _mean_and_std(vae: nn.Module, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation [1 c 1 1 1] of the latents, from the VAE's configuration."""
    mean, std = (torch.tensor(vae.config[f"latents_{name}"]).to(latents) for name in ("mean", "std"))
    return mean[None, :, None, None, None], std[None, :, None, None, None]


def _encode(vae: nn.Module, clips: torch.Tensor) -> torch.Tensor:
    """-1..1 [b c f h w] -> normal latents fp32 [b c f h w], the mode of the posterior."""
    latents = vae.encode(clips.to(vae.dtype)).latent_dist.mode().float()
    mean, std = _mean_and_std(vae, latents)
    return (latents - mean) / std


@torch.no_grad()
def encode_video(vae: nn.Module, frames: torch.Tensor, device: torch.device) -> torch.Tensor:
    """uint8 [f c h w] -> normal latents fp32 [1 c f h/8 w/8]; see `latent_frames` for the length.

    Without temporal compression frames are encoded one by one: the stock class reads one frame and then fours, and
    would drop what is left over.
    """
    latent_frames(len(frames), vae.config)  # refuses a length that the stock class would cut without a word
    pixels = frames.to(device).float() / 127.5 - 1
    if vae.config.scale_factor_temporal == 1:
        return torch.cat([_encode(vae, frame[None, :, None]) for frame in pixels], dim=2)
    return _encode(vae, pixels.movedim(0, 1)[None])


@torch.no_grad()
def encode_stills(vae: nn.Module, frames: torch.Tensor, device: torch.device) -> torch.Tensor | None:
    """uint8 [f c h w] -> every fourth frame encoded on its own, normal latents fp32 [1 c f' h/8 w/8], f' as the clip's.

    A latent of Wan's VAE covers four frames of a clip, except the first, which covers one; the spatial pass needs
    latents of one frame. Returns None for a VAE whose latents cover one frame each: the clip's own latents then do.
    """
    factor = vae.config.scale_factor_temporal
    if factor == 1:
        return None
    return torch.cat([encode_video(vae, frame[None], device) for frame in frames[::factor]], dim=2)


@torch.no_grad()
def decode_video(vae: nn.Module, latents: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Normal latents [1 c f h w] -> fp32 [f c h w] in -1..1."""
    latents = latents.to(device).float()
    mean, std = _mean_and_std(vae, latents)
    return vae.decode((latents * std + mean).to(vae.dtype)).sample[0].float().movedim(1, 0)
