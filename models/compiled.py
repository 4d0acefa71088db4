"""The network's leaf layers through torch.compile: fewer and larger kernels, for cards that wait for the host.

ResNet blocks, temporal convolutions, spatial and temporal transformers are compiled, one region for each kind: layers
of one class and shape in one block share their graphs. A region is the library's own forward, beneath every patch, so
that the one-frame bypass, the highway and the recomputation of activations act around it as they always do, and
dropout masks are drawn by torch's own generator, as without. Adapters are inside: a region has a graph for each state
in which training calls it, three at most with one appearance adapter (one frame; all frames with and without the
appearance), and each further appearance adapter adds its own. All blocks of a transformer share theirs, twice as many:
nothing in front of the first learns, so that it is differentiated apart.

A graph takes 6 CPU seconds to compile on a CPU, forward and backward together (23 graphs of the smallest U-Net that has
every kind of layer: 136 s), so compiling pays in long trainings alone and is off unless asked for. The first step of
`python scripts/bench.py --model pocket --compile blocks` did not finish in 597 CPU seconds on one core of an AVX-512
machine, so no ratio of steps is known there. It has not been timed on a GPU yet.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Hashable, Iterable

import torch
from torch import nn

from configs.errors import UserError, printable
from models.backbones import kind_of, leaves
from models.hooks import Patch, know_dtype, wrap_forward
from models.lean import attach_lean

WAIT = (  # for whoever looks at a bar that stands still
    "compile: each kind of layer is compiled when it is first called, which can take minutes before the first step; on"
    " a CPU it can take longer than a short training"
)
MOST_GRAPHS = 32  # for each layer of a kind; beyond, torch runs it uncompiled and says so


def attach_quicker(
    network: nn.Module, mode: str, device: torch.device, *, training: bool, learned: Iterable[nn.Parameter] = ()
) -> Patch:
    """The layers compiled if `mode` asks for that, else lean where that pays: one replaces what the other changes."""
    if mode == "off":
        patch = attach_lean(network)
    else:
        patch = compile_layers(network, mode, device, training=training, learned=learned)
    patch.on_remove(know_dtype(network).remove)
    return patch


def compile_layers(
    network: nn.Module,
    mode: str,
    device: torch.device,
    *,
    training: bool,
    learned: Iterable[nn.Parameter] = (),
    backend: str | Callable = "inductor",
) -> Patch:
    """Compile the leaf layers when they are first called in training mode (or in evaluation mode, as `training` says).

    `mode` "off" changes nothing, "blocks" compiles, "step" also records what a region does as a CUDA graph and replays
    it. In the other mode (previews in the middle of a training) the layers run as they were. `learned` are all the
    parameters that get gradients. Raises UserError where compiling does not work, and for "step" on another device than
    CUDA.
    """
    if mode == "off":
        return Patch()
    check_compiling(mode, device, backend)
    options = {"fallback_random": True, "triton.cudagraphs": mode == "step"} if backend == "inductor" else None
    level = kind_of(network).level
    found = [(layer, (level(name), *_kind(layer))) for name, layer in leaves(network)]
    kinds = Counter(kind for _, kind in found)
    regions = {kind: _region(kind[1].forward, MOST_GRAPHS * count, backend, options) for kind, count in kinds.items()}
    undo = []
    for layer, kind in found:
        undo.append(wrap_forward(layer, _compiled(layer, regions[kind], training), innermost=True))
    if not regions:
        raise UserError(
            f"compile: it is made for the 3-D U-Net and Wan, and this is a {type(network).__name__}; use compile=off"
        )
    if mode == "step":
        undo.append(wrap_forward(network, _as_one_step))
        undo += [_copied_gradient(parameter) for parameter in learned if training]
    return Patch(undo)


def check_compiling(mode: str, device: torch.device, backend: str | Callable = "inductor") -> None:
    """Raise UserError where nothing can be compiled for this device, and for "step" on another than CUDA."""
    if mode == "step" and device.type != "cuda":
        raise UserError(f"compile: step replays CUDA graphs and the device is {device.type}; use compile=blocks")
    if mode != "off" and backend == "inductor":
        _check_compiler(device)


def _region(forward: Callable, most: int, backend: str | Callable, options: dict | None) -> Callable:
    """A function of a layer and what it is called with, compiled when it is first called.

    `forward` is that of the layer's class, and `most` graphs are made of it. It is looked up out here because diffusers
    allows a Wan block into graphs as one opaque call: reached through the class it would break the graph.
    """

    def region(layer: nn.Module, args: tuple, kwargs: dict):
        return forward(layer, *args, **kwargs)

    return torch.compile(
        region,
        backend=backend,
        options=options,
        dynamic=False,  # sizes are those of one clip
        recompile_limit=most,
        isolate_recompiles=True,  # kinds do not count into each other's limit
    )


def _kind(layer: nn.Module) -> tuple[Hashable, ...]:
    """What layers of one level have in common whose graphs are the same: class, and shapes of the weights."""
    return type(layer), tuple(tuple(p.shape) for key, p in layer.named_parameters() if ".lora_" not in key)


def _compiled(layer: nn.Module, region: Callable, training: bool) -> Callable:
    reference = weakref.ref(layer)  # the layer holds this function: a strong reference would keep a dropped model

    def forward(base, *args, **kwargs):
        layer = reference()
        return region(layer, args, kwargs) if layer.training == training else base(*args, **kwargs)

    return forward


def _as_one_step(forward: Callable, *args, **kwargs):
    """Results of CUDA graphs live until the next step begins; without the mark each region would begin one."""
    torch.compiler.cudagraph_mark_step_begin()
    return forward(*args, **kwargs)


def _copied_gradient(parameter: nn.Parameter) -> Callable[[], None]:
    """Let the parameter's gradient be a copy; returns the function that undoes it.

    Else it is what the compiled backward returned, in the memory of its CUDA graph, which the next forward frees: the
    appearance's gradients have to outlive the motion pass, and those of one clip the passes of the next.
    """
    learns = parameter.requires_grad
    hook = parameter.requires_grad_(True).register_hook(torch.clone)  # which a frozen parameter refuses, and keeps
    parameter.requires_grad_(learns)
    return hook.remove


def _check_compiler(device: torch.device) -> None:
    """Raise UserError unless a function of one line can be compiled for this device."""
    try:
        torch.compile(lambda x: torch.sin(x) + 1)(torch.zeros(8, device=device))
    except Exception as error:  # a missing compiler shows as whatever the backend happens to raise
        first, _, _ = str(error).strip().partition("\n")  # then comes how to debug PyTorch
        found = printable(first)[:160] or type(error).__name__
        raise UserError(
            f"compile: nothing can be compiled here ({found}); install a C++ compiler such as g++ (and for CUDA "
            "Triton, which PyTorch brings along on Linux), or use compile=off"
        ) from error
