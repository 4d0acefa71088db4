"""Wan's self-attention, over all tokens of a clip at once: [b (f h w) c].

The norm of its queries and keys spans all heads, so a change in one head rescales the others; `pure_norm` divides by
the base model's norm instead. `watch` shows queries and keys as attention gets them. `shift_tokens` adds Motion
Inversion's embeddings (models/shifted.py) to the inputs.
"""

import weakref
from collections.abc import Callable, Iterable

import torch
from torch import nn

from models.blocks import Block
from models.hooks import Patch, wrap_forward
from models.shifted import Shifts, attend


def query_key(
    attention: nn.Module, x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys [b tokens heads d] of the inputs `x` [b tokens c], as the stock processor lets them meet."""
    query, key = attention.norm_q(attention.to_q(x)), attention.norm_k(attention.to_k(x))
    return tuple(turned(part.unflatten(2, (attention.heads, -1)), *rotary) for part in (query, key))


def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding of [b tokens heads d], as Wan interleaves it: pairs of channels are turned."""
    one, two = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[..., 0::2], sin[..., 1::2]
    return torch.stack([one * cos - two * sin, one * sin + two * cos], dim=-1).flatten(-2).type_as(x)


def watch(network: nn.Module, see: Callable[[torch.Tensor, torch.Tensor], None]) -> Patch:
    """Call `see(query, key)` in every self-attention, one block after another; they act as before."""

    def watched(attention: nn.Module) -> Callable:
        def wrapper(forward, hidden_states, text=None, mask=None, rotary=None):
            see(*query_key(attention, hidden_states, rotary))
            return forward(hidden_states, text, mask, rotary)

        return wrapper

    return Patch([wrap_forward(block.attn1, watched(block.attn1)) for block in network.blocks])


def pure_norm(network: nn.Module, layers: Iterable[str]) -> Patch:
    """Take the divisor of QK-norm from the base model's queries and keys in the attentions of `layers`.

    norm(q + d) becomes norm(q) + d * weight / rms(q): heads without a change keep their values bit for bit. It is the
    identity where no adapter acts. Adapters must act beside the layers and not in their weights. Several of these may
    be on one network, in any order with the adapters: each looks at the layer under all of them.
    """
    undo = []
    for name in layers:
        attention, _, part = name.rpartition(".")
        if part in ("to_q", "to_k"):
            projection = network.get_submodule(name)
            norm = network.get_submodule(f"{attention}.{part.replace('to', 'norm')}")
            known: list[torch.Tensor] = []
            undo += [
                wrap_forward(getattr(projection, "base_layer", projection), _remember(known), innermost=True),
                wrap_forward(norm, _norm_of_base(known, norm.weight, norm.eps)),
            ]
    return Patch(undo)


def _remember(known: list) -> Callable:
    def wrapper(forward, x):
        known[:] = [forward(x)]
        return known[0]

    return wrapper


def _norm_of_base(known: list, weight: torch.Tensor, eps: float) -> Callable:
    def wrapper(forward, changed):
        base = known.pop() if known else changed
        if base is changed:
            return forward(changed)
        divisor = base.float().square().mean(-1, keepdim=True).add(eps).rsqrt()
        return forward(base) + ((changed - base).float() * divisor * weight).type_as(base)

    return wrapper


def shift_tokens(network: nn.Module, shifts: Shifts) -> None:
    """Shift the inputs of the self-attention of a diffusion transformer."""
    running: dict[str, tuple[int, int, int]] = {}  # "grid" -> tokens (f, h, w) of the clip in the current forward
    patch = network.config.patch_size

    def tell(forward, hidden_states: torch.Tensor, *args, **kwargs):
        running["grid"] = tuple(size // step for size, step in zip(hidden_states.shape[2:], patch, strict=True))
        return forward(hidden_states, *args, **kwargs)

    shifts.on_remove(wrap_forward(network, tell))
    for block in shifts.blocks:
        for kind in block.attentions:
            attention = network.get_submodule(f"{block.name}.{kind}")
            shifts.on_remove(wrap_forward(attention, _joint(shifts, weakref.ref(attention), block, kind, running)))


def _joint(shifts: Shifts, attention: weakref.ref, block: Block, kind: str, running: dict):
    def wrapper(forward, hidden_states: torch.Tensor, text=None, mask=None, rotary=None):
        if shifts.strength == 0:
            return forward(hidden_states, text, mask, rotary)
        (frames, *grid), dtype = running["grid"], hidden_states.dtype
        video = hidden_states.unflatten(1, (frames, -1))  # [b (f h w) c] -> [b f (h w) c]
        pattern, value = video + shifts.query_key(block.name, frames).transpose(0, 1).to(dtype), video
        if (shift := shifts.value(block, kind, tuple(grid), frames)) is not None:
            value = video + shift.transpose(0, 1).to(dtype)
        attn = attention()
        query, key = (x.flatten(2) for x in query_key(attn, pattern.flatten(1, 2), rotary))
        return attend(attn, query, key, attn.to_v(value.flatten(1, 2)))

    return wrapper
