"""The appearance pass of a step in a process of its own, beside the motion pass: two cores of a CPU, the same numbers.

Both passes of a step compute gradients at the weights from before it, and the optimizers step after both
(train.py: training_step), so neither pass waits for the other. On one core a step of PocketScope with four timesteps
takes 0.33 s, of which the motion pass alone takes 0.28 s. Sharing out the timesteps instead, two to each process, costs
1.47 times the CPU seconds and adds the sums in another order; the passes, each as it is, give results equal to the bit.

The second process is a copy of the first, forked before the first step. Appearance adapters and their gradients lie in
memory that both processes share. The first process sends the number of the step, from which every random draw derives;
the second one answers with the losses of the appearance pass.
"""

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from itertools import accumulate
from mmap import mmap
from multiprocessing.connection import Connection

import torch
from torch import nn

from configs.errors import UserError
from models.hooks import TEMPORAL_LAYERS
from models.threads import cores, is_small
from models.training.processes import LostProcess

LINE = "processes   2: the appearance pass runs beside the motion pass, on a core of its own, with the same result"
LINE_OF_MEMORY = 64  # bytes; torch's own tensors begin at multiples of it

Losses = list[dict[str, float]]  # of each clip of a step, by name
Gradients = Callable[..., tuple[Losses, list[int]]]  # (step, learn_appearance=, learn_motion=) -> losses, timesteps


def fits(cfg, method, device: torch.device, frames: int, processes: int = 1) -> bool:
    """True when a second core is free for the appearance pass and the result is bit-identical to that of one process.

    `frames` are those of the longest clip; images have no motion pass. Dropout masks come from one generator that both
    passes share, so the appearance pass must draw none. A forked process can neither use a GPU, nor run a backward pass
    where torch sees one.
    """
    alone = sys.platform == "linux" and device.type == "cpu" and processes == 1 and not torch.accelerator.is_available()
    both = bool(method.appearance) and cfg.spatial_path_probability > 0 and cfg.train_temporal_lora and frames > 1
    exact = cfg.lora_unet_dropout == 0 and not _drops_in_single_frames(method.network)
    return alone and both and exact and cfg.compile == "off" and is_small(method.network) and cores(cfg.threads) > 1


class Passes:
    """Both passes of a step with their gradients, one after the other, or `apart`: each in a process of its own.

    Inside its `with` block the object is called with a step's number and returns what `gradients` returns for it.
    `parameters` are those of the appearance adapters. `cpu_seconds` are those of the second process in the last step.
    Apart, each process runs one thread. Entering raises UserError where no second process can be started.
    """

    def __init__(self, gradients: Gradients, parameters: list[nn.Parameter], apart: bool):
        self.gradients, self.parameters, self.apart, self.cpu_seconds = gradients, parameters, apart, 0.0

    def __enter__(self) -> "Passes":
        if self.apart:
            self._threads = torch.get_num_threads()
            torch.set_num_threads(1)
            for parameter, shared in zip(self.parameters, _shared(self.parameters)):
                parameter.data = shared.copy_(parameter.data)
            self._found = _shared(self.parameters)
            context = multiprocessing.get_context("fork")
            self._connection, other = context.Pipe()
            self.process = context.Process(target=self._work, args=(other,), daemon=True)
            try:
                self.process.start()
            except OSError as error:  # no memory for it, or as many processes as this user may have
                raise UserError(
                    f"threads: the second process could not be started ({error.strerror}); set threads=1"
                ) from None
            other.close()  # so that the end of the second process is the end of the connection
        return self

    def __exit__(self, *_) -> None:
        if self.apart:
            self._connection.close()
            self.process.kill()  # what it may still compute is of no use
            self.process.join()
            torch.set_num_threads(self._threads)

    def __call__(self, step: int) -> tuple[Losses, list[int]]:
        """Raises LostProcess when the second process has ended, and what was raised in it."""
        if not self.apart:
            return self.gradients(step)
        self._talk(self._connection.send, step)
        losses, timesteps = self.gradients(step, learn_appearance=False)
        answer = self._talk(self._connection.recv)
        if isinstance(answer, Exception):
            raise answer
        of_appearance, touched, self.cpu_seconds = answer
        for parameter, gradient, has_one in zip(self.parameters, self._found, touched):
            parameter.grad = gradient if has_one else None
        return [first | second for first, second in zip(of_appearance, losses, strict=True)], timesteps

    def _talk(self, exchange: Callable, *given):
        try:
            return exchange(*given)
        except (EOFError, OSError):
            raise LostProcess("training: the process that runs its appearance pass has ended", silent=False) from None

    def _work(self, connection: Connection) -> None:
        """The second process: answers each step until the first one closes the connection, or is no more."""
        self._connection.close()  # the copy of the first one's end, which would keep it open
        for number in (signal.SIGINT, signal.SIGTERM):  # a terminal sends them to both, and the step is to be finished
            signal.signal(number, signal.SIG_IGN)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):  # the first process prints; a reader of its output waits until nobody holds the stream
            os.dup2(nowhere, stream)
        before = time.process_time()
        try:
            while True:
                step = connection.recv()
                losses, _ = self.gradients(step, learn_motion=False)
                touched = [parameter.grad is not None for parameter in self.parameters]
                for parameter, shared in zip(self.parameters, self._found):
                    if parameter.grad is not None:
                        shared.copy_(parameter.grad)
                        parameter.grad = None
                now = time.process_time()
                connection.send((losses, touched, now - before))
                before = now
        except (EOFError, ConnectionError):
            return
        except Exception as error:
            error.add_note(f"in the process of the appearance pass:\n{traceback.format_exc()}")
            connection.send(error)


def _shared(parameters: list[nn.Parameter]) -> list[torch.Tensor]:
    """A tensor of zeros of each parameter's shape and type, in memory that this process and its forks see.

    An anonymous mapping has no name that could be left behind, and is not limited by the size of /dev/shm.
    """
    sizes = [-(-p.numel() * p.element_size() // LINE_OF_MEMORY) * LINE_OF_MEMORY for p in parameters]
    memory, starts = mmap(-1, sum(sizes)), accumulate(sizes, initial=0)
    return [
        torch.frombuffer(memory, dtype=p.dtype, count=p.numel(), offset=start).view(p.shape)
        for p, start in zip(parameters, starts)
    ]


def _drops_in_single_frames(network: nn.Module) -> bool:
    """Is there dropout outside the temporal layers, which a pass on one frame bypasses (models/hooks.py)?"""
    bypassed = {part for layer in network.modules() if isinstance(layer, TEMPORAL_LAYERS) for part in layer.modules()}
    return any(isinstance(m, nn.Dropout) and m.p > 0 and m not in bypassed for m in network.modules())
