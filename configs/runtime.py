"""How a command imports torch, and which of several processes speaks for all of them."""

import gc
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from configs.errors import UserError

GRACE = 30.0  # seconds for the first process to say what is wrong and end; torchrun then stops the others at once


@contextmanager
def slow_imports() -> Iterator[None]:
    """A command imports torch, and what stands on it, inside this block: after its words are known to be good.

    What is imported is there until the process ends. Looking for garbage among its two million objects, while they are
    made and again at the end, took 1.8 of 5.6 seconds. And idle OpenMP threads are made to sleep, unless
    OMP_WAIT_POLICY says otherwise: threads that spin while they wait take the cores from each other.
    """
    if "torch" in sys.modules:  # it has been prepared by whoever imported it
        yield
        return
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()


def is_first() -> bool:
    """Is this process the first of those that a launcher started together? One alone is."""
    return os.environ.get("RANK", "0") == "0"


def note(text: str) -> None:
    """Print to stderr, once for all processes and on a line of its own, whatever bar is running."""
    from tqdm import tqdm  # not needed by --help

    if is_first():
        tqdm.write(text, file=sys.stderr)


@contextmanager
def one_voice() -> Iterator[None]:
    """Where every process ends with the same sentence, only the first prints it.

    The others wait until the launcher stops them; one that is still there after that found something of its own.
    """
    try:
        yield
    except UserError as error:
        if error.silent:
            sys.exit(2)
        if error.silent is None and not is_first():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(GRACE)
        raise
