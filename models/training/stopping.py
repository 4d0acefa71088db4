"""How a long run stops: signals only ask, the step is finished, and all processes stop at the same one."""

import os
import signal

import torch


class StopSignals:
    """Inside the block Ctrl-C and SIGTERM only ask: `requested` becomes the signal's number.

    A second Ctrl-C insists.
    """

    def __enter__(self) -> "StopSignals":
        self.requested = 0
        self._before = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _frame) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = number
        os.write(2, b"\nfinishing this step, then saving (Ctrl-C again to stop at once)\n")


def together(processes, signal_number: int, broken: bool) -> tuple[int, bool]:
    """The largest of each over all processes: they stop at the same step, or wait for each other for ever."""
    if processes.num_processes == 1:
        return signal_number, broken
    flags = torch.tensor([signal_number, int(broken)], device=processes.device)
    torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
    return int(flags[0]), bool(flags[1])
