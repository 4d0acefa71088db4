"""How a long run stops: a signal only asks for it, the step is finished, and all processes stop after the same step."""

import os
import signal

from configs.signals import waits


class StopSignals:
    """Inside the block Ctrl-C and SIGTERM only ask: `requested` becomes the signal's number.

    A second Ctrl-C insists; a second SIGTERM, which launchers send to all that they started, does not. Processes that
    train together compare their `requested` in every step (steps.py), so that all leave the loop at the same one;
    otherwise the next exchange between them would wait for ever.
    """

    def __enter__(self) -> "StopSignals":
        self.requested = 0
        self._before = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._ask:  # a lost process has made this one deaf
                signal.signal(number, handler)

    def _ask(self, number: int, _frame) -> None:
        if self.requested:
            if number == signal.SIGINT and not waits(number):
                raise KeyboardInterrupt
            return
        self.requested = number
        if number == signal.SIGINT:
            os.write(2, b"\nfinishing this step, then saving (Ctrl-C again to stop at once)\n")
