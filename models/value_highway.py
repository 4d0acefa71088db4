"""The value highway: on a diffusion transformer, what comes nearest to the appearance highway of a U-Net.

A transformer has no skip connections that could leave it before motion is mixed in. But in each adapted block attention
mixes Values, and those can come from a stream that no adapter has touched: the network is run twice, first without its
LoRAs, and the second run takes the first's Values in every block that a LoRA adapts. So the LoRAs decide how tokens are
mixed and never what is mixed. It costs a second forward. Without LoRAs it is the identity, bit for bit.
"""

import weakref
from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch import nn

from models.backbones import kind_of
from models.hooks import Patch, wrap_forward
from models.merge import adapted, without_loras


class ValueHighway(Patch):
    """The attached highway; `skips` is empty, since none is moved."""

    skips = ()

    def __str__(self) -> str:
        return "highway: Values of adapted blocks come from the model without its LoRAs"


def attach_value_highway(network: nn.Module) -> ValueHighway:
    """Attach it to the blocks of a network that has no skip connections, after its LoRAs."""
    values: dict[str, torch.Tensor] = {}
    state = {"run": None}
    blocks = kind_of(network).carriers(network)
    undo = [
        wrap_forward(network.get_submodule(f"{attention}.to_v"), _value(block.name, values, state))
        for block in blocks
        for attention in block.self_attentions
    ]

    @contextmanager
    def run(kind: str):
        state["run"] = kind
        try:
            yield
        finally:
            state["run"] = None

    reference = weakref.ref(network)  # which holds the wrapper: a strong reference would keep a dropped model

    def twice(forward, *args, **kwargs):
        network = reference()
        layers = adapted(network)
        touched = {block.name for block in blocks if any(name.startswith(f"{block.name}.") for name in layers)}
        if not touched:
            return forward(*args, **kwargs)
        with run("first"), without_loras(network), torch.no_grad():
            forward(*args, **kwargs)
        for name in values.keys() - touched:
            del values[name]
        for name, value in values.items():  # a compiled block's lie in a CUDA graph's memory, which ends with its run
            values[name] = value.clone()  # small beside the run, so without asking whether it was compiled
        try:
            with run("second"):
                return forward(*args, **kwargs)
        finally:
            values.clear()

    return ValueHighway([*undo, wrap_forward(network, twice)])


def _value(name: str, values: dict[str, torch.Tensor], state: dict) -> Callable:
    def wrapper(forward, x):
        if state["run"] == "second" and name in values:
            return values[name]
        found = forward(x)
        if state["run"] == "first":
            values[name] = found
        return found

    return wrapper
