"""Where the frozen network waits while adapters are trained or videos are sampled (the key `memory`).

default   on the device, in the model's precision: fastest
small     on the device, most weights in 8 bits: half the bytes, at the cost of rounding them
          (models/quantized.py)
smallest  on the host, layer by layer to the device: a ninth of the bytes and the default's gradients to the bit, but no
          faster than the link to the host (models/streamed.py)

Only the leaf layers that training recomputes are placed so; the first and last convolution, the samplers between the
levels, norms and biases (4 % of ZeroScope) stay on the device as they are.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn
from torch.nn.utils import parametrize

from configs.errors import UserError
from models.backbones import leaves
from models.hooks import Patch, wrap_forward
from models.quantized import store_in_eight_bits
from models.streamed import stream_from_host

LARGE = (nn.Linear, nn.Conv2d, nn.Conv3d)


def place(network: nn.Module, device: torch.device | str, memory: str = "default") -> int:
    """Put a frozen network that carries no adapters yet where `memory` says, for good; returns its bytes on `device`.

    Training with "small" saves memory, and with "smallest" works, only where activations are recomputed leaf by leaf.
    Raises UserError for another `memory` than "default" where the network has no layers of a U-Net or of Wan.
    """
    device = torch.device(device)
    groups = [large_layers(leaf) for _, leaf in leaves(network)]
    if memory != "default" and not groups:
        raise UserError(
            f"memory: {memory} is made for the 3-D U-Net and Wan, and this is a {type(network).__name__}; use default"
        )
    if memory == "small":
        store_in_eight_bits([layer for group in groups for layer in group])
    if memory != "smallest":
        nn.Module.to(network, device)  # diffusers' own `to` warns for no reason
        return parameter_bytes(network)
    stream = stream_from_host(groups, device)
    streamed = {id(layer.parametrizations.weight.original) for group in groups for layer in group}
    for tensor in (*network.parameters(), *network.buffers()):
        if id(tensor) not in streamed:
            tensor.data = tensor.data.to(device)
    host = sum(unit.flat.nbytes for unit in stream.units)
    return parameter_bytes(network) - host + stream.bytes


def visit_by_layers(module: nn.Module, device: torch.device) -> Patch:
    """Let each layer be `copied_to` the device while it is called.

    Inputs must be on `device`, and no layer may read the tensors of another.
    """
    undo = []
    for layer in module.modules():
        if layer._parameters or layer._buffers:
            undo.append(wrap_forward(layer, _visit([layer._parameters, layer._buffers], device)))
    return Patch(undo)


def copied_to(module: nn.Module, device: torch.device) -> AbstractContextManager[None]:
    """Inside the block the module's parameters and buffers are copies on `device`; the frozen originals stay where they
    are, so that nothing travels back after it.
    """
    return _copied([table for layer in module.modules() for table in (layer._parameters, layer._buffers)], device)


@contextmanager
def _copied(tables: list[dict[str, torch.Tensor | None]], device: torch.device) -> Iterator[None]:
    homes = [dict(table) for table in tables]
    try:
        for table in tables:
            table.update({name: x.to(device) for name, x in table.items() if x is not None})
        yield
    finally:
        for table, home in zip(tables, homes):
            table.update(home)


def _visit(tables: list[dict[str, torch.Tensor | None]], device: torch.device) -> Callable:
    def wrapper(forward, *args, **kwargs):
        with _copied(tables, device):
            return forward(*args, **kwargs)

    return wrapper


def is_plain(layer: nn.Module) -> bool:
    """Whether the layer's weight is a tensor that can be changed, and not one that is made when it is read."""
    return not parametrize.is_parametrized(layer, "weight")


def large_layers(leaf: nn.Module) -> list[nn.Module]:
    """The linear layers and convolutions inside a leaf layer, which hold nearly all of its weights."""
    return [layer for layer in leaf.modules() if isinstance(layer, LARGE)]


def parameter_bytes(module: nn.Module) -> int:
    """Bytes of a module's parameters and buffers in the precision they have."""
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
