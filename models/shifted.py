"""Self-attention whose inputs are shifted (Motion Inversion), in the layout of a U-Net.

    q = Wq (x + e_qk)    k = Wk (x + e_qk)    v = Wv (x + e_v)

x is [(b h w) f c], the inputs of temporal attention; models/backbones/wan_attention.py does it where a clip is one
sequence. Everything comes off again with the embeddings, a Patch.
"""

import weakref
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn

from models.blocks import Block
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
        shifts.on_remove(wrap_forward(unet.get_submodule(name), _tell_grid))
    for block in shifts.blocks:
        for kind in block.attentions:
            attention = unet.get_submodule(f"{block.name}.{kind}")
            shifts.on_remove(wrap_forward(attention, _temporal(shifts, weakref.ref(attention), block, kind)))


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
        attn = attention()
        return attend(attn, attn.to_q(pattern), attn.to_k(pattern), attn.to_v(value))

    return wrapper


def attend(attn: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """What the stock processors make of queries, keys and values [s n (heads d)], through the output's layer."""
    query, key, value = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (query, key, value))
    mixed = F.scaled_dot_product_attention(query, key, value)
    return attn.to_out[1](attn.to_out[0](mixed.transpose(1, 2).flatten(2)))
