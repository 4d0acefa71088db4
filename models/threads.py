"""How many CPU threads a model is run with, and how many cores there are for it.

A second thread pays only where a layer is large enough for both to have work: a training step of PocketScope (10 M
parameters) takes 0.33 CPU seconds for four timesteps on one thread and 0.44 to 0.53 on two, and ends no earlier. What a
second core can do for a small model's training is in models/training/beside.py. Threads change the order of sums, so
results of different counts agree to rounding.
"""

import os
import re
from pathlib import Path

import torch
from torch import nn

SMALL = 30_000_000  # parameters; below, one thread is quicker than two
DEFAULT = torch.get_num_threads()  # torch's own choice, or OMP_NUM_THREADS
SHARE = "MOTION_CORES"  # in the environment of a process: how many cores are its own
QUOTA = Path("/sys/fs/cgroup/cpu.max")  # a container sees its own here


def use_threads(network: nn.Module, device: torch.device, asked: int | None = None) -> int:
    """Set and return the number of threads for this process: `asked`, else OMP_NUM_THREADS, else by the model's size.

    By its size a small model gets one on a CPU; every other torch's own choice, at most the cores that there are. A
    process that serves several models gets each one's number, whatever the one before had.
    """
    if "OMP_NUM_THREADS" in os.environ:
        found = DEFAULT
    else:
        found = 1 if device.type == "cpu" and is_small(network) else min(DEFAULT, _usable())
    torch.set_num_threads(asked or found)
    return torch.get_num_threads()


def is_small(network: nn.Module) -> bool:
    """Is this network, whatever adapters it carries, quicker on one thread than on two?"""
    return sum(p.numel() for name, p in network.named_parameters() if ".lora_" not in name) < SMALL


def cores(asked: int | None = None) -> int:
    """Cores that this command may keep busy: `asked`, else OMP_NUM_THREADS, never more than it may run on."""
    if asked is None and "OMP_NUM_THREADS" in os.environ:
        asked = torch.get_num_threads()  # as torch has read it
    return min(asked or _usable(), _usable())


def _usable() -> int:
    """Cores that this process is scheduled on, or fewer where its container may use only a share of their time, or
    where it was started beside others as one of several (`SHARE`).
    """
    scheduled = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = os.environ.get(SHARE, "")
    return min(scheduled, _allowed() or scheduled, int(share) if re.fullmatch("[1-9][0-9]{0,5}", share) else scheduled)


def _allowed() -> int | None:
    """Whole cores, at least one, that the quota of a cgroup (version 2) allows; None where there is no quota.

    Neither torch nor os.cpu_count knows it: a container that may use 1.5 cores of 64 is scheduled on all 64.
    """
    try:
        quota, period = QUOTA.read_text(encoding="utf-8").split()  # microseconds of CPU time in so many microseconds
        return max(1, int(quota) // int(period))
    except (OSError, ValueError, ZeroDivisionError):  # no such file; "max" for no limit
        return None
