"""Activation checkpointing of the network's leaf layers; diffusers' 3-D U-Net has none of its own."""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from models.backbones import leaves
from models.hooks import Patch, wrap_forward


def checkpoint_activations(network: nn.Module) -> Patch:
    """Keep only the inputs of the network's leaf layers for the backward pass and recompute the rest.

    Gradients are the same to the bit and dropout masks are replayed. For that, every leaf layer gets its hidden states
    as the first positional argument: torch keeps the random state of that tensor's device. Adapters must not be
    switched between a forward and its backward.
    """
    return Patch([wrap_forward(m, _checkpointed) for _, m in leaves(network)])


def _checkpointed(forward: Callable, *args, **kwargs):
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    if args and args[0].device.type == "mps":
        kwargs["context_fn"] = lambda: (nullcontext(), _MasksOfMps())  # called just before the forward
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


class _MasksOfMps:
    """Replays dropout on MPS: inside the `with` block its random state is the one from before the forward pass, and
    afterwards the one from before the block.

    torch's checkpoint keeps the state of devices whose module says that it is initialized, and torch.mps never does.
    """

    def __init__(self):
        self._kept = torch.mps.get_rng_state()

    def __enter__(self) -> None:
        self._before = torch.mps.get_rng_state()
        torch.mps.set_rng_state(self._kept)

    def __exit__(self, *_) -> None:
        torch.mps.set_rng_state(self._before)
