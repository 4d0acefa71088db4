"""What PocketScope learns from: rendered frames for the VAE with its loss, and clips that are encoded once.

A VAE is seen as an image VAE here, frames [n c h w] in -1..1; scripts/pocket/wan_parts.py shows Wan's as one. World
seeds are derived from the run's seed, so that the same command renders the same clips.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from tqdm import tqdm

from data.world import render, sample_scene
from scripts.pocket.abilities import token_ids
from scripts.pocket.trainer import is_made, save_tensors

FOREGROUND = 6.0  # extra weight of the object's latents: unweighted, shape and motion explain under 1 % of the loss
SEEDS = 10_000_000  # a world seed is this times the run's seed, plus the scene's number


def render_frames(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Single frames [n 3 64 64] and their masks [n 1 64 64], both uint8, one from each of `count` scenes."""
    frames, masks = [], []
    for index in tqdm(range(count), desc="render", leave=False):
        clip = render(sample_scene(seed * SEEDS + index))
        frames.append(clip.frames[index % 8])
        masks.append(clip.mask[index % 8, None])
    return torch.stack(frames), (torch.stack(masks) * 255).byte()


def vae_loss(vae: nn.Module, frames: torch.Tensor, masks: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """L1 weighted to the object, L1 of the error averaged over 4 and 16 pixels (a tint is small in every pixel but
    turns a background's name), and a small share of KL. Frames are in -1..1."""
    posterior = vae.encode(frames).latent_dist
    error = vae.decode(posterior.mean + posterior.std * noise).sample - frames
    weight = 1 + 3 * masks
    loss = (weight * error.abs()).mean() / weight.mean()
    for size, share in ((4, 2.0), (16, 4.0)):
        loss = loss + share * F.avg_pool2d(error, size).abs().mean()
    return loss + 1e-6 * posterior.kl().mean()


@torch.no_grad()
def encode_world(parts: dict, count: int, seed: int, path: Path) -> dict[str, torch.Tensor]:
    """Render and encode `count` clips once: latents [n 4 8 8 8], loss weights [n 8 8 8], captions [n 24] as ids."""
    settings = f"seed {seed}, {count} clips"
    if is_made(path, settings):
        return load_file(path)
    vae, kept = parts["vae"], {"latents": [], "weights": [], "captions": []}
    for start in tqdm(range(0, count, 8), desc="encode clips"):
        clips = [render(sample_scene(seed * SEEDS + i)) for i in range(start, min(start + 8, count))]
        pixels = torch.cat([clip.frames for clip in clips]).to(vae.device, vae.dtype) / 127.5 - 1
        latents = vae.encode(pixels).latent_dist.mean.float().cpu().unflatten(0, (len(clips), -1))
        weights = 1 + FOREGROUND * F.max_pool2d(torch.stack([clip.mask for clip in clips]), 8)
        kept["latents"].append(latents.transpose(1, 2))
        kept["weights"].append(weights / weights.mean((1, 2, 3), keepdim=True))
        kept["captions"].append(token_ids(parts["tokenizer"], [clip.prompt for clip in clips]))
    world = {name: torch.cat(tensors) for name, tensors in kept.items()}
    save_tensors(world, path, {"settings": settings})
    return world


def draw_clips(
    world: dict[str, torch.Tensor], batch: int, single: bool, empty: torch.Tensor, rng: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents [b c f h w], loss weights [b f h w] and captions [b n] of a batch, 10 % of it under `empty` [1 n].

    With `single` one frame of each clip is drawn.
    """
    rows = torch.randint(len(world["latents"]), (batch,), generator=rng)
    frames = torch.randint(8, (batch,), generator=rng)
    latents, weights, captions = (world[key][rows] for key in ("latents", "weights", "captions"))
    if single:  # [b c f h w] -> [b c 1 h w]
        pick = torch.arange(batch)
        latents, weights = latents[pick, :, frames].unsqueeze(2), weights[pick, frames].unsqueeze(1)
    return latents, weights, torch.where(torch.rand(batch, 1, generator=rng) < 0.1, empty, captions)
