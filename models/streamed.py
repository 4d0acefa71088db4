"""Frozen weights that stay on the host and visit the device when their layer is computed.

The weights of one leaf layer (a ResNet block, a temporal convolution, a transformer's block) travel together, as
one copy out of page-locked memory. Two buffers on the device take turns: while one layer computes, the layer that came
next the last time is copied into the other, on a stream of its own. Nothing depends on when a layer runs, because a
weight is fetched by being read; so the forward pass, its recomputation in the backward pass and layers that a pass
leaves out need no hooks of their own.

What autograd saved of a weight is gone when the next layer is read. Training therefore recomputes activations leaf by
leaf (models/activation_checkpointing.py), which reads each weight again before its gradient is needed.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.utils import parametrize


class Unit(NamedTuple):
    """One leaf layer's weights on the host: all of them flat, and where each lies in it."""

    flat: torch.Tensor
    places: list[tuple[int, torch.Size]]


class Stream:
    """The traffic of `units` to `device`. `bytes` are what it holds there; `copies` counts what was brought."""

    def __init__(self, units: Sequence[Unit], device: torch.device):
        self.units, self.device, self.copies = list(units), device, 0
        largest = max(unit.flat.numel() for unit in self.units)
        self.buffers = [torch.empty(largest, dtype=self.units[0].flat.dtype, device=device) for _ in range(2)]
        self.bytes = sum(buffer.nbytes for buffer in self.buffers)
        self._holds: list[int | None] = [None, None]  # the unit in each buffer
        self._active = 0  # the buffer that is read
        self._before: int | None = None  # the unit that was read before the active one
        self._followed: dict[tuple[int | None, int], int] = {}  # (unit before, unit) -> the unit that came next
        cuda = device.type == "cuda"
        self._side = torch.cuda.Stream(device) if cuda else None
        self._arrived = [torch.cuda.Event() for _ in range(2)] if cuda else []
        for buffer in self.buffers if cuda else ():  # a copy may still run when the model is dropped
            buffer.record_stream(self._side)

    def read(self, number: int, place: int) -> torch.Tensor:
        """Weight number `place` of a unit, on the device; valid until another unit is read."""
        if self._holds[self._active] != number:
            self._turn_to(number)
        start, shape = self.units[number].places[place]
        return self.buffers[self._active][start : start + shape.numel()].view(shape)

    def _turn_to(self, number: int) -> None:
        before, self._active = self._holds[self._active], 1 - self._active
        if before is not None:
            self._followed[self._before, before] = number
        if self._holds[self._active] != number:
            self._fetch(self._active, number)
        if self._side:
            torch.cuda.current_stream(self.device).wait_event(self._arrived[self._active])
        self._before = before
        ahead = self._followed.get((before, number))
        if ahead not in (None, number, before):  # the one before is still in the other buffer
            self._fetch(1 - self._active, ahead)

    @torch.no_grad()
    def _fetch(self, buffer: int, number: int) -> None:
        flat = self.units[number].flat
        target = self.buffers[buffer][: flat.numel()]
        if self._side:
            self._side.wait_stream(torch.cuda.current_stream(self.device))  # whoever read this buffer has finished
            with torch.cuda.stream(self._side):
                target.copy_(flat, non_blocking=True)
                self._arrived[buffer].record(self._side)
        else:
            target.copy_(flat)
        self._holds[buffer] = number
        self.copies += 1


class Visit(nn.Module):
    """How a streamed weight is read, as a parametrization of torch; the host's tensor stays its original."""

    def __init__(self, stream: Stream, unit: int, place: int):
        super().__init__()
        self.stream, self.unit, self.place = stream, unit, place

    def forward(self, _host: torch.Tensor) -> torch.Tensor:
        return self.stream.read(self.unit, self.place)


def stream_from_host(groups: Sequence[list[nn.Module]], device: torch.device) -> Stream:
    """Move the `weight` of every layer to the host, from where those of one group travel to `device` together.

    All of them have one dtype. On a CPU the copies are made just the same, into buffers beside the weights.
    """
    units = []
    for layers in groups:
        weights = [layer.weight.detach() for layer in layers]
        home = device if device.type == "meta" else torch.device("cpu")
        flat = torch.cat([weight.flatten() for weight in weights]).to(home)
        flat = flat.pin_memory() if device.type == "cuda" else flat
        starts = [0]
        for weight in weights:
            starts.append(starts[-1] + weight.numel())
        units.append(Unit(flat, [(start, weight.shape) for start, weight in zip(starts, weights)]))
        for layer, (start, shape) in zip(layers, units[-1].places):
            layer.weight.data = flat[start : start + shape.numel()].view(shape)
    stream = Stream(units, device)
    for number, layers in enumerate(groups):
        for place, layer in enumerate(layers):
            parametrize.register_parametrization(layer, "weight", Visit(stream, number, place), unsafe=True)
    return stream
