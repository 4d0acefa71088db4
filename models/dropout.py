"""Dropout of a LoRA's update, whose masks cost little on a CPU too.

torch's own kernel draws one number for each value there, which takes more than a tenth of a training step. One draw of
64 bits decides about four values here.
"""

import torch
import torch.nn.functional as F

LEVELS = 1 << 16  # of the 16 random bits that decide about a value


def drop(x: torch.Tensor, probability: float) -> torch.Tensor:
    """Each value of `x` is 0 with `probability`, the others are scaled so that the mean stays; `x` may be overwritten.

    On a CPU the probability is rounded to a multiple of 2^-16. The numbers come from torch's global generator, so
    activation checkpointing repeats them.
    """
    if x.device.type != "cpu":
        return F.dropout(x, probability)
    dropped = min(round(probability * LEVELS), LEVELS - 1)
    words = torch.randint(-(2**63), 2**63 - 1, (-(-x.numel() // 4),), device=x.device)
    bits = words.view(torch.int16)[: x.numel()].view(x.shape)  # -LEVELS / 2 and above
    mask = torch.ge(bits, dropped - LEVELS // 2, out=torch.empty_like(x, requires_grad=False))
    return x.mul_(mask.mul_(LEVELS / (LEVELS - dropped)))
