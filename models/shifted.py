"""Self-attention whose inputs are shifted, in the layout of each kind of network (Motion Inversion).

    q = Wq (x + e_qk)    k = Wk (x + e_qk)    v = Wv (x + e_v)

`shift_temporal` does it to the temporal attention of a U-Net, where x is [(b h w) f c]; `shift_tokens` to the joint
self-attention of a diffusion transformer, where a clip is one sequence, x is [b (f h w) c], and queries and keys are
normalised and turned before they meet. Everything comes off again with the embeddings, a Patch.
"""

import weakref
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn

from models.blocks import Block
from models.heads import turned
from models.hooks import wrap_forward

GRID = "latent_grid"  # how a U-Net's attention learns its (height, width): only the transformer around it sees them


class Shifts(Protocol):
    """The part of models/embeddings.py that acts here; strength 0 is the plain model."""

    blocks: list[Block]
    strength: float

    def undo(self, function) -> None: ...

    def query_key(self, block: str, frames: int) -> torch.Tensor: ...  # [1 f c]

    def value(self, block: Block, attention: str, grid: tuple[int, int], frames: int) -> torch.Tensor | None: ...

    # [(h w) f c], or [(h w) 1 c] where it is still; None where sampling leaves it out


def shift_temporal(unet: nn.Module, shifts: Shifts) -> None:
    """Shift the inputs of the temporal attention of a U-Net."""
    for name in dict.fromkeys(block.name.rpartition(".transformer_blocks.")[0] for block in shifts.blocks):
        shifts.undo(wrap_forward(unet.get_submodule(name), _tell_grid))
    for block in shifts.blocks:
        for kind in block.attentions:
            attention = unet.get_submodule(f"{block.name}.{kind}")
            shifts.undo(wrap_forward(attention, _temporal(shifts, weakref.ref(attention), block, kind)))


def shift_tokens(network: nn.Module, shifts: Shifts) -> None:
    """Shift the inputs of the self-attention of a diffusion transformer."""
    running: dict[str, tuple[int, int, int]] = {}  # "grid" -> tokens (f, h, w) of the clip in the current forward
    patch = network.config.patch_size

    def tell(forward, hidden_states: torch.Tensor, *args, **kwargs):
        running["grid"] = tuple(size // step for size, step in zip(hidden_states.shape[2:], patch, strict=True))
        return forward(hidden_states, *args, **kwargs)

    shifts.undo(wrap_forward(network, tell))
    for block in shifts.blocks:
        for kind in block.attentions:
            attention = network.get_submodule(f"{block.name}.{kind}")
            shifts.undo(wrap_forward(attention, _joint(shifts, weakref.ref(attention), block, kind, running)))


def _tell_grid(forward, hidden_states: torch.Tensor, *args, cross_attention_kwargs: dict | None = None, **kwargs):
    grid = tuple(hidden_states.shape[-2:])
    return forward(
        hidden_states, *args, cross_attention_kwargs={**(cross_attention_kwargs or {}), GRID: grid}, **kwargs
    )


# The attention holds its wrapper: a strong reference to it would keep a dropped model.


def _temporal(shifts: Shifts, attention: weakref.ref, block: Block, kind: str):
    def wrapper(forward, hidden_states: torch.Tensor, *args, **kwargs):
        grid = kwargs.pop(GRID)
        if shifts.strength == 0:
            return forward(hidden_states, *args, **kwargs)
        frames, dtype = hidden_states.shape[1], hidden_states.dtype  # [(b h w) f c]
        pattern, value = hidden_states + shifts.query_key(block.name, frames).to(dtype), hidden_states
        if (shift := shifts.value(block, kind, grid, frames)) is not None:
            value = (value.unflatten(0, (-1, len(shift))) + shift.to(dtype)).flatten(0, 1)
        return attend(attention(), pattern, value)

    return wrapper


def _joint(shifts: Shifts, attention: weakref.ref, block: Block, kind: str, running: dict):
    def wrapper(forward, hidden_states: torch.Tensor, text=None, mask=None, rotary=None):
        if shifts.strength == 0:
            return forward(hidden_states, text, mask, rotary)
        (frames, *grid), dtype = running["grid"], hidden_states.dtype
        video = hidden_states.unflatten(1, (frames, -1))  # [b (f h w) c] -> [b f (h w) c]
        pattern, value = video + shifts.query_key(block.name, frames).transpose(0, 1).to(dtype), video
        if (shift := shifts.value(block, kind, tuple(grid), frames)) is not None:
            value = video + shift.transpose(0, 1).to(dtype)
        return attend(attention(), pattern.flatten(1, 2), value.flatten(1, 2), rotary)

    return wrapper


def attend(
    attn: nn.Module, pattern: torch.Tensor, value: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor] | None = None
) -> torch.Tensor:
    """Self-attention [s n c] with queries and keys from `pattern` and values from `value`, as the stock processors
    compute it: with `rotary`, a transformer's, queries and keys are normalised over all heads and turned.
    """
    query, key, value = attn.to_q(pattern), attn.to_k(pattern), attn.to_v(value)
    if rotary is not None:
        query, key = attn.norm_q(query), attn.norm_k(key)
    query, key, value = (x.unflatten(-1, (attn.heads, -1)) for x in (query, key, value))
    if rotary is not None:
        query, key = (turned(x, *rotary) for x in (query, key))
    mixed = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (query, key, value)))
    return attn.to_out[1](attn.to_out[0](mixed.transpose(1, 2).flatten(2)))
