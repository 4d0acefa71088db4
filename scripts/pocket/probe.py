"""Has a model learned motion? Its loss hardly shows it, because most of a clip is ground; swapping a word does."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from data.world import MOTIONS
from scripts.pocket.abilities import token_ids

OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up", "grow": "shrink", "shrink": "grow"}


@torch.no_grad()
def motion_probe(
    tokenizer: PreTrainedTokenizerBase,
    world: dict[str, torch.Tensor],
    error: Callable[..., torch.Tensor],
    levels: Callable[[int, torch.Generator], torch.Tensor],
) -> float:
    """Mean increase of the loss when a caption's motion word is swapped for its opposite.

    `error(latents, weights, captions, levels, noise)` is the loss and `levels(n, generator)` draws timesteps or noise
    levels, best from the noisier part. Below about 0.01 the model has not learned motion.
    """
    rng, increase = torch.Generator().manual_seed(0), []
    for motion, other in OPPOSITE.items():
        a, b = (token_ids(tokenizer, [MOTIONS[name]])[0] for name in (motion, other))
        place = int(a.ne(b).nonzero()[0])
        rows = world["captions"].eq(a[place]).any(1).nonzero()[:6, 0]
        if len(rows):
            latents, weights, captions = (world[key][rows] for key in ("latents", "weights", "captions"))
            noise = torch.randn(latents.shape, generator=rng)
            level = levels(len(rows), rng)
            swapped = torch.where(captions == a[place], b[place], captions)
            right = error(latents, weights, captions, level, noise)
            increase.append(float(error(latents, weights, swapped, level, noise) - right))
    return float(np.mean(increase)) if increase else 0.0
