"""How many CPU threads a model is run with.

A second thread pays only where a layer is large enough for both to have work: a training step of PocketScope (10 M
parameters) takes 0.33 CPU seconds for four timesteps on one thread and 0.44 to 0.53 on two, and is no sooner done.
Threads change the order of sums, so results of different counts agree to rounding.
"""

import os

import torch
from torch import nn

SMALL = 30_000_000  # parameters; below, one thread is quicker than two


def use_threads(unet: nn.Module, device: torch.device, asked: int | None = None) -> int:
    """Set and return the number of threads for this process: `asked`, else OMP_NUM_THREADS, else by the model's size.

    On another device than the CPU only an explicit number changes anything.
    """
    if asked is not None:
        torch.set_num_threads(asked)
    elif device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        if sum(parameter.numel() for parameter in unet.parameters()) < SMALL:
            torch.set_num_threads(1)
    return torch.get_num_threads()
