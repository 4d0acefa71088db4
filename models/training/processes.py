"""The processes that train together: how they find each other, what they exchange, and how they end.

`torchrun --nproc_per_node N train.py ...` starts one process per GPU, or N on a CPU. Each draws its own share of a step
(`micro` in objective.py), so N processes learn what one would with gradient_accumulation_steps=N; on a CPU, for two, to
the bit. A process alone is a group of one, for which nothing here communicates.
"""

import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import psutil
import torch
import torch.distributed as dist
from accelerate import PartialState
from tqdm import tqdm

from configs.errors import UserError, is_out_of_memory
from configs.plain import shown_error
from models.backbone import choose_device

SAME_GPU = "Duplicate GPU"  # NCCL's words
TIMEOUT = timedelta(hours=12)  # the others wait while the first process encodes clips and samples previews


class LostProcess(UserError):
    """Another process ended in the middle of a training; with `silent` this process leaves the message to another."""

    def __init__(self, message: str, silent: bool):
        super().__init__(message)
        self.silent = silent


class Processes:
    """This process among those of its training. `count` of them, this one is number `rank`, the first is `is_main`."""

    _words: dist.ProcessGroup | None = None  # the group of `gather`; the one that averages gradients until it is made

    def __init__(self, device: str):
        """Join the others. Raises UserError when a launcher started fewer than it was asked for, or two share a GPU."""
        _check_device(device)
        chosen = choose_device(device)
        state = PartialState(cpu=chosen.type == "cpu", timeout=TIMEOUT)
        self.count, self.rank = state.num_processes, state.process_index
        self.device = state.device if self.count > 1 else chosen
        _check_launcher(self.count)
        self.pids: list[tuple[str, int]] = []  # until the first exchange, in which NCCL is set up
        self.pids = self.gather((os.uname().nodename if hasattr(os, "uname") else "", os.getpid()))
        if self.count > 1:  # NCCL would wait for a process that is gone, and Python with it, deaf to signals
            self._words = dist.new_group(backend="gloo", timeout=TIMEOUT)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def say(self, message: str) -> None:
        """Print to stderr, once for all processes and on a line of its own, whatever bar is running."""
        if self.is_main:
            tqdm.write(message, file=sys.stderr)

    def gather(self, value: Any) -> list:
        """The `value` of every process, in the order of their ranks."""
        values = [value] * self.count
        if self.count > 1:
            with self._talking():
                dist.all_gather_object(values, value, self._words)
        return values

    def share(self, value: Any) -> Any:
        """The first process's `value`, in every process."""
        return self.gather(value)[0]

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The first process runs the block, then the others do: they find what it has cached."""
        if not self.is_main:
            self.gather(None)
        yield
        if self.is_main:
            self.gather(None)

    def average_gradients(self, parameters: list[torch.nn.Parameter]) -> None:
        """Mean gradient over processes; a parameter that no process touched keeps None (clips may differ by rank)."""
        if self.count == 1:
            return
        touched = torch.tensor([float(p.grad is not None) for p in parameters], device=parameters[0].device)
        flat = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters])
        with self._talking():
            dist.all_reduce(touched)
            dist.all_reduce(flat)
            touched = touched.tolist()
        means = (flat / self.count).split([p.numel() for p in parameters])
        for parameter, mean, count in zip(parameters, means, touched):
            parameter.grad = mean.view_as(parameter).clone() if count else None

    def leave(self) -> None:
        """End the group; all its processes have to."""
        if self.count > 1 and dist.is_initialized():
            dist.destroy_process_group()

    @contextmanager
    def _talking(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # gloo's and NCCL's word for a connection that broke
            own = is_out_of_memory(error) or isinstance(error, torch.AcceleratorError)  # a fault of this GPU's kernels
            if not self.pids and SAME_GPU in str(error):
                raise UserError(
                    "processes: two of them were given the same GPU; start as many as there are GPUs: torchrun "
                    "--nproc_per_node N"
                ) from None
            if own or not self.pids:  # what else fails at first is a setting and no lost process
                raise
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun stops the survivors: let them finish their line
            said = re.sub(r"^\[\S*\] ", "", shown_error(error))  # without the place in gloo's sources
            speaks = self._speaks()
            if speaks:  # below the bar of the lost one, whose line nobody has ended
                print(file=sys.stderr)
            raise LostProcess(f"training: another of its processes has ended ({said})", not speaks) from None

    def _speaks(self) -> bool:
        """Is this the first survivor on this machine? A process that dies needs a moment to be gone."""
        host, mine = self.pids[self.rank]
        lower = [pid for name, pid in self.pids[: self.rank] if name == host and pid != mine]
        deadline = time.monotonic() + 1
        while any(map(_alive, lower)) and time.monotonic() < deadline:
            time.sleep(0.05)
        return not any(map(_alive, lower))


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


def _check_device(asked: str) -> None:
    """Under a launcher every process has a GPU of its own, and the launcher says which."""
    if int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > 1 and asked.startswith("cuda:"):
        raise UserError(
            f"device: {asked} is one GPU, and several processes train; choose theirs by CUDA_VISIBLE_DEVICES"
        )


def _check_launcher(count: int) -> None:
    launched = "LOCAL_RANK" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > count
    # `accelerate launch` names a master where it was asked for several processes, also where it starts only one
    lonely = count == 1 and "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ
    if launched or lonely:
        asked = os.environ.get("WORLD_SIZE", "several") if launched else "several"
        raise UserError(
            f"processes: the launcher was asked for {asked} and only {count} trains here, on its own; start them with"
            " `torchrun --nproc_per_node N train.py ...` (with device=cpu where no GPU shall be used)"
        )
