"""Which layers a LoRA adapts: those of a preset, and regular expressions that add some or take some away.

Temporal attention purification (TAP, paper section on motion LoRA) is a choice of layers: adapting only what makes
the attention *weights* of the temporal transformers recombines the pretrained Value embeddings into a new motion.
A pattern has to match a layer's whole name, as PEFT's `target_modules` does. Patterns come from files, so they are
held to a length and a time, and may not count repetitions, which can need any amount of memory.
"""

import difflib
import re
import time
from collections.abc import Iterable, Sequence

import regex
from torch import nn

from configs.errors import UserError, shown
from models.backbones import kind_of

APPEARANCE = "appearance"  # the preset of the appearance adapters
MOST_LETTERS, MOST_SECONDS = 300, 1.0  # of this process, however busy the machine is
COUNTED = re.compile(r"\{\s*[\d,]")


def targets(network: nn.Module, preset: str, block_range: Sequence[float] | None = None) -> list[str]:
    """Names of the Linear layers that `preset` adapts, in the release's file order.

    That order is transformer_in, down_blocks, up_blocks, mid_block (a transformer's blocks are in their own order), and
    inside a block as written in the kind's `PRESETS`. With `block_range` [first, last] only layers between those shares
    of a transformer's depth. Works on a plain network and on one that already carries adapters. Raises UserError for a
    preset that this kind of network does not have, and for a network without the layers, listing the nearest names.
    """
    kind = kind_of(network)
    if preset not in kind.PRESETS:
        near = difflib.get_close_matches(preset, kind.PRESETS, n=1)
        hint = f"did you mean {near[0]}" if near else f"choose one of {', '.join(kind.PRESETS)}"
        raise UserError(f"temporal_preset: no preset of a {kind.NAME} is called {preset!r}: {hint}")
    block = kind.APPEARANCE_BLOCK if preset == APPEARANCE else kind.MOTION_BLOCK
    modules = dict(network.named_modules())
    names = [f"{name}.{part}" for name in modules if block.fullmatch(name) for part in kind.PRESETS[preset]]
    missing = [name for name in names if name not in modules] or ([] if names else [kind.EXPECTED])
    if missing:
        near = difflib.get_close_matches(missing[0], modules, n=3, cutoff=0.3)
        raise UserError(
            f"{preset}: {type(network).__name__} has no layer {missing[0]} to adapt; its nearest names are"
            f" {', '.join(near) or 'none'}: use {kind.WORDS}"
        )
    if block_range is not None:
        names = [name for name in names if kind.in_range(network, name, block_range)]
    return names


def choose_layers(
    network: nn.Module,
    preset: str,
    include: Iterable[str] | None,
    exclude: Iterable[str] | None,
    block_range: Sequence[float] | None = None,
) -> tuple[list[str], list[str]]:
    """(names of the layers to adapt, a line for each pattern with what it matched).

    The layers of `preset` that no pattern of `exclude` matches come first, in the preset's order. Then come the linear
    layers, in the blocks of `block_range` that learn motion, that a pattern of `include` matches. To choose layers
    freely, exclude everything and include what is wanted. Raises UserError for a pattern that matches nothing, naming
    the nearest layers, and where no layer is left.
    """
    chosen, notes, kind = targets(network, preset, block_range), [], kind_of(network)
    for pattern in exclude or ():
        matched = set(_matched("exclude_patterns", pattern, chosen))
        chosen = [name for name in chosen if name not in matched]
        notes.append(f"exclude     {shown(pattern)}: {len(matched)} layers, such as {min(matched)}")
    if include and preset in kind.HEAD_PRESETS:
        raise UserError(
            f"include_patterns: {preset} learns in the temporal heads of the self-attention alone, and an included "
            "layer would learn nothing; leave it out, or use the preset tap"
        )
    if include:
        linear = [name for name, module in network.named_modules() if _is_adaptable(name, module, kind.MOTION_BLOCK)]
        if block_range is not None:
            linear = [name for name in linear if kind.in_range(network, name, block_range)]
        for pattern in include:
            matched = _matched("include_patterns", pattern, linear)
            added = [name for name in matched if name not in chosen]
            chosen += added
            counts, such = f"{len(matched)} layers, {len(added)} of them new", (added or matched)[0]
            notes.append(f"include     {shown(pattern)}: {counts}, such as {such}")
    if not chosen:
        raise UserError(f"exclude_patterns: no layer of the preset {preset} is left; exclude less, or include some")
    return chosen, notes


def _is_adaptable(name: str, module: nn.Module, block: re.Pattern) -> bool:
    return isinstance(module, nn.Linear) and block.match(name) is not None


def _matched(key: str, pattern: str, names: Sequence[str]) -> list[str]:
    """Those of `names` that `pattern` matches as a whole, at least one."""
    if len(pattern) > MOST_LETTERS or COUNTED.search(pattern):
        raise UserError(
            f"{key}: {shown(pattern)} counts repetitions or has more than {MOST_LETTERS} letters; write a simpler one"
        )
    ends = time.process_time() + MOST_SECONDS
    try:
        expression = regex.compile(pattern)
        found = [n for n in names if expression.fullmatch(n, timeout=max(0.01, ends - time.process_time()))]
    except TimeoutError:
        raise UserError(f"{key}: {shown(pattern)} takes too long to match; write a simpler one") from None
    except (regex.error, RecursionError, OverflowError) as error:
        raise UserError(
            f"{key}: {shown(pattern)} is no regular expression ({error}); write for example .*\\.attn1\\.to_q"
        ) from None
    if not found:
        plain = re.sub(r"\\(.)|[*+?()|^$\[\]]", r"\1", pattern)
        near = difflib.get_close_matches(plain, names, 3, 0.3) or list(names[:3])
        raise UserError(
            f"{key}: {shown(pattern)} matches none of {len(names)} layers (it has to match the whole name); the nearest"
            f" are {', '.join(near) or 'none'}"
        )
    return found
