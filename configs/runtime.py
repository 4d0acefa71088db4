"""What a command does before torch is imported, and which of several processes speaks for all of them."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from configs.errors import UserError

GRACE = 30.0  # seconds for the first process to say what is wrong and end; torchrun then stops the others at once


def quiet_threads() -> None:
    """Make idle OpenMP threads sleep, unless OMP_WAIT_POLICY says otherwise. Call it before torch is imported.

    Threads that spin while they wait take the cores from each other: on a busy CPU a step takes several times longer.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def is_first() -> bool:
    """Is this process the first of those that a launcher started together? One alone is."""
    return os.environ.get("RANK", "0") == "0"


def note(text: str) -> None:
    """Print to stderr, once for all processes."""
    if is_first():
        print(text, file=sys.stderr)


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
