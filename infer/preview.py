"""Previews in the middle of a training: the validation prompts, through the sampler that inference uses."""

from pathlib import Path

import torch

from data.cache import CachedClip, primary
from infer.noise import initial_noise
from infer.pictures import contact_sheet
from infer.sampler import guide, sample
from infer.video import safe_name, write_video
from models.backbone import Backbone
from models.methods import Method


def preview(cfg, backbone: Backbone, method: Method, clips: list[CachedClip], folder: Path) -> Path:
    """Sample `cfg.validation_data` with the weights as they are; writes the videos and a sheet, whose path it returns.

    Highway, phased integration and noise prior are those that `infer/infer.py` would use. The U-Net is left in
    training mode.
    """
    wanted, factor, unet = cfg.validation_data, backbone.vae_factor, backbone.unet
    shape = (1, unet.config.in_channels, wanted.num_frames, wanted.height // factor, wanted.width // factor)
    negative = backbone.encode_text([wanted.negative_prompt])
    reference = clips[primary(clips)].inversion
    usable = reference is not None and reference.shape[2] > 1
    rows = []
    unet.eval()
    for prompt in wanted.prompt:
        noise = initial_noise(
            shape,
            torch.Generator().manual_seed(cfg.seed),
            reference,
            (0.5 if wanted.noise_prior is None else wanted.noise_prior) if usable else 0.0,
            cfg.initial_noise.strategy,
            cutoff=cfg.initial_noise.cutoff,
        )
        with method.sampling(wanted.spatial_scale) as customization:
            denoise = guide(
                backbone.predict,
                backbone.encode_text([prompt]),
                negative,
                scale=wanted.guidance_scale,
                rescale=wanted.guidance_rescale,
            )
            latents = sample(
                denoise,
                backbone.scheduler,
                noise.to(backbone.device),
                steps=wanted.num_inference_steps,
                on_timestep=lambda t: (
                    customization.remove() if t <= (-1 if cfg.pli_threshold is None else cfg.pli_threshold) else None
                ),
            )
        rows.append((prompt, backbone.decode_video(latents)))
        write_video(folder / f"{safe_name(prompt)}.mp4", rows[-1][1], fps=cfg.train_data.fps or 8)
    unet.train()
    return contact_sheet(folder / "sheet.png", rows)
