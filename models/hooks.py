"""Reversible patches on somebody else's model.

Nothing here edits diffusers. A patch changes the forward of named modules, hands back a `Patch`, and `Patch.remove()`
(or leaving its `with` block) restores the model bit for bit, in whatever order patches are removed.

Two patches live here because every method needs them: the one-frame bypass of the temporal layers (the U-Net of the
paper's release skipped them at one frame, today's diffusers runs them), and a dtype that is not looked for. Hidden
states are [(b f) c h w] inside the U-Net.
"""

import weakref
from collections.abc import Callable, Collection, Iterable

import torch
from diffusers.models.resnet import TemporalConvLayer
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from torch import nn

TEMPORAL_LAYERS = (TemporalConvLayer, TransformerTemporalModel)


class Patch:
    """What undoes a change: call `remove()`, or use it as a context manager. Removing twice is harmless."""

    def __init__(self, undo: Iterable[Callable[[], None]] = ()):
        self._undo = list(undo)

    def on_remove(self, function: Callable[[], None]) -> None:
        """Call `function` when the patch is removed; of several the last one given is called first."""
        self._undo.append(function)

    def remove(self) -> None:
        while self._undo:
            self._undo.pop()()

    def __enter__(self) -> "Patch":
        return self

    def __exit__(self, *_) -> None:
        self.remove()


def wrap_forward(module: nn.Module, wrapper: Callable, innermost: bool = False) -> Callable[[], None]:
    """Call `wrapper(forward, *args, **kwargs)` in place of `module.forward`; returns the function that undoes it.

    Wrappers stack (the last one added is outermost, unless it asks to be `innermost`) and can be taken off in any
    order, which plain reassignment of `forward` would get wrong. Neither the module's new `forward` nor the undo
    function holds the module, so a model is freed with its last name whether or not its patches were removed; a wrapper
    that needs the module should hold it by `weakref` too.
    """
    key = object()  # the same wrapper may be added twice and removed once
    before = module.__dict__.get("_forward_wrappers", {})
    module.__dict__["_forward_wrappers"] = {key: wrapper, **before} if innermost else {**before, key: wrapper}
    _compose(module)
    reference = weakref.ref(module)

    def undo() -> None:
        module = reference()
        if module is not None and module.__dict__.get("_forward_wrappers", {}).pop(key, None):
            _compose(module)

    return undo


def _compose(module: nn.Module) -> None:
    wrappers = module.__dict__["_forward_wrappers"]
    if not wrappers:
        del module.__dict__["forward"], module.__dict__["_forward_wrappers"]
        return
    forward = _unwrapped(weakref.ref(module), type(module).forward)
    for wrapper in wrappers.values():
        forward = _bind(wrapper, forward)
    module.forward = forward


def _unwrapped(reference: weakref.ref, forward: Callable) -> Callable:
    return lambda *args, **kwargs: forward(reference(), *args, **kwargs)


def _bind(wrapper: Callable, forward: Callable) -> Callable:
    return lambda *args, **kwargs: wrapper(forward, *args, **kwargs)


def _skip_one_frame(forward: Callable, hidden_states: torch.Tensor, *args, num_frames: int = 1, **kwargs):
    if num_frames > 1:
        return forward(hidden_states, *args, num_frames=num_frames, **kwargs)
    return hidden_states if "return_dict" not in kwargs else (hidden_states,)


def bypass_single_frames(unet: nn.Module, keep: Collection[str] = ()) -> Patch:
    """Make every temporal convolution and temporal transformer the identity when the U-Net sees one frame.

    This is what the paper's base model does in the spatial pass (release, with its shipped configs); passes of two
    and more frames are untouched. Layers named in `keep` still run: without gradient checkpointing the release
    forgets to guard `mid_block.temp_convs.0`, which only scripts/parity.py follows.
    """
    return Patch(
        [
            wrap_forward(m, _skip_one_frame)
            for name, m in unet.named_modules()
            if isinstance(m, TEMPORAL_LAYERS) and name not in keep
        ]
    )


def know_dtype(network: nn.Module) -> Patch:
    """Let `network.dtype` be what it is now: diffusers looks through all modules for it, in every forward of a U-Net.

    That takes as long for a small model as for a large one: 5 ms of PocketScope's forward. Only another class can have
    another property, so the network gets one of the same name, as torch's parametrizations do.
    """
    stock, reference = type(network), weakref.ref(network)
    if isinstance(vars(stock).get("dtype"), torch.dtype):
        return Patch()
    network.__class__ = type(stock.__name__, (stock,), {"dtype": network.dtype, "__module__": stock.__module__})

    def undo() -> None:
        if (network := reference()) is not None:
            network.__class__ = stock

    return Patch([undo])


def training_mode(network: nn.Module, frozen_dropout: bool = True) -> nn.Module:
    """Put the network into training mode, in which LoRA dropout acts, and return it.

    So does the frozen model's own dropout, which the temporal convolutions of a U-Net have, as in the release, unless
    `frozen_dropout` is off.
    """
    network.train()
    if not frozen_dropout:
        for name, module in network.named_modules():
            if isinstance(module, nn.Dropout) and "lora_dropout" not in name:  # peft's name for a LoRA's
                module.eval()
    return network
