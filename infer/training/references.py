"""The reference clips as the model sees them: read, encoded and inverted once, and kept in the cache.

Latents [1 c f h w], text embeddings [1 n d], inversions like the latents; all fp32 on the CPU.
"""

from dataclasses import replace
from functools import cache as once
from pathlib import Path

import torch

from configs.errors import printable
from configs.runtime import note
from data import cache
from data.sources import load_clips
from infer.inversion import ddim_invert
from infer.sampler import classifier_free_guidance
from models.backbone import Backbone


def prepare_clips(cfg, backbone: Backbone) -> list[cache.CachedClip]:
    """Latents, text embeddings and inversions of the reference clips, from the cache where it has them.

    What was cut from where goes to stderr. Raises UserError as the clips' readers do.
    """
    if cfg.cached_latent_dir:
        clips = [
            clip if clip.text is not None else replace(clip, text=backbone.encode_text([clip.prompt]))
            for clip in cache.read_folder(cfg.cached_latent_dir)
        ]
        cache.check_clips_fit(clips, backbone.network.config.in_channels, backbone.text_width)
        return clips
    clips = load_clips(cfg, backbone.snap)
    for number, clip in enumerate(clips):
        note(printable(f'clip {number}: {clip.source}, "{clip.prompt}"'))
    unconditional = once(lambda: backbone.encode_text([""]).to(backbone.device))  # where a clip is not cached yet

    def invert(latents: torch.Tensor) -> torch.Tensor | None:
        if latents.shape[2] == 1:
            return None  # an image has no motion that a sampling could start from
        denoise = classifier_free_guidance(backbone.predict, unconditional())
        with backbone.both_experts():
            return ddim_invert(denoise, backbone.scheduler, latents.to(backbone.device), cfg.inversion_steps).cpu()

    return cache.build(
        clips,
        Path(cfg.cache_dir),
        key_parts={
            "weights": backbone.fingerprint(),
            "precision": str(backbone.dtype),
            "inversion": cfg.inversion_steps,
        },
        encode_video=lambda frames: backbone.encode_video(frames).cpu(),
        encode_stills=backbone.encode_stills,
        encode_text=lambda prompt: backbone.encode_text([prompt]),
        invert=invert,
    )
