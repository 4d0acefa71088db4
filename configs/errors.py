"""Errors that a person can act on, and how a command ends with one.

Every check that guards against bad input raises `UserError` with one sentence: what was wrong, what was found, what
to do. Commands wrap their main function in `command`, which prints that sentence and exits with code 2. A full disk,
missing rights and exhausted memory are recognized in the words of every library that reports them; SIGTERM and Ctrl-C
unwind like exceptions (configs/signals.py), so that files being written are cleared away. Anything else is a defect of
this project and keeps its traceback.
"""

import errno
import functools
import os
import pickle
import re
import reprlib
import signal
import struct
import sys
import tarfile
import traceback
from collections.abc import Callable
from typing import Any

from configs.signals import ENDINGS, Stop, Terminated

# What torch.load raises, opening with weights_only, for a file that is cut short, altered, or no pickle at all: its
# unpickler trusts lengths, indices and shapes that damage can make anything.
DAMAGED_PICKLE = (
    pickle.UnpicklingError,
    struct.error,
    tarfile.TarError,
    OSError,
    EOFError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)

# a path that cannot be used as asked, whatever this project does: no permission, read-only, a file for a folder
REFUSED = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.ELOOP,
}
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
WORDED = {  # how libraries that raise no OSError of their own word the same
    "no space left": errno.ENOSPC,
    "disk full": errno.ENOSPC,
    "not enough space on the disk": errno.ENOSPC,
    "disk quota exceeded": errno.EDQUOT,
    "permission denied": errno.EACCES,
    "read-only file system": errno.EROFS,
}
EXHAUSTED = (  # what the allocators of the CPU, CUDA and MPS say, and sizes that no allocator is even asked for
    "defaultcpuallocator",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "out of memory",
    "alloc_failed",
    "storage size calculation overflowed",
    "numel: integer multiplication overflow",
    "invalid buffer size",
)
LESS_MEMORY = (
    "make the frames smaller (width and height), take fewer of them (train_data.n_sample_frames, or --num-frames),"
    " compute less at once (timesteps_per_step=1, gradient_checkpointing=true, or --batch-size 1), or keep the"
    " frozen model smaller (memory=small or smallest, or --memory)"
)


class UserError(Exception):
    """One sentence for the person at the keyboard: what was wrong, what was found, what to do.

    Of several processes the first prints what all of them found; `silent` is True or False where it is known already
    whether this one is to print it.
    """

    silent: bool | None = None


def printable(text: str) -> str:
    """`text` on one line with every control character, lone surrogate and invisible sign written as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def shown(value: Any, most: int = 80) -> str:
    """A refused value as a message repeats it: its repr in at most `most` characters, safe for any terminal."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = most
    try:
        text = printable(short.repr(value))
    except ValueError:  # Python writes no integer of more than 4300 digits
        text = f"a {type(value).__name__} too long to print"
    return text if len(text) <= most else f"{text[: most - 3]}..."


def errno_of(error: BaseException) -> int | None:
    """The operating system's number for what went wrong, also where a library put it into words only."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    text = str(error).lower()
    if number := re.search(r"\(os error (\d+)\)", text):  # as Rust's libraries word it
        return int(number[1])
    return next((number for words, number in WORDED.items() if words in text), None)


def is_out_of_memory(error: BaseException) -> bool:
    """Is this any library's word for exhausted memory? By name and text, because configs does not import torch."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in EXHAUSTED)


def ending(error: BaseException) -> tuple[str, int] | None:
    """The line on stderr and the exit code that `error` ends a command with; None for a defect of this project."""
    if isinstance(error, UserError):
        return "error: " + "\n".join(map(printable, str(error).split("\n"))), 2
    if isinstance(error, KeyboardInterrupt):
        return ENDINGS[signal.SIGINT]
    if isinstance(error, Terminated):
        return ENDINGS[signal.SIGTERM]
    if is_out_of_memory(error):
        asked = re.search(r"tried to allocate (\d[\d.]* ?\w*)", str(error), re.IGNORECASE)
        amount = f" ({printable(asked[1])} more were needed at once)" if asked else ""
        return f"error: out of memory{amount}; {LESS_MEMORY}", 2
    number, place = errno_of(error), getattr(error, "filename", None)
    if number in FULL:
        what = os.strerror(number).lower() if number != errno.ENOSPC else "no space left on the disk"
        room = getattr(error, "room", "")
        return (
            f"error: {what} while writing {printable(place or 'a file')}{room}; nothing half-written was kept and"
            " what was complete before still is: free some space and run the same command again",
            2,
        )
    if number in REFUSED and (place or not isinstance(error, OSError)):
        reason = os.strerror(number).lower()
        return f"error: {printable(place or error)}: {reason}; give another path, or change what is there", 2
    return None


def sentence_in(printed: str) -> str | None:
    """What a command that printed this ended with, in one sentence; None where no line says so.

    The last line that begins with "error:", by `ending`, with the indented lines that belong to it. A progress bar ends
    its line with a carriage return.
    """
    lines = "\n".join(printed.splitlines())
    found = re.findall(r"^error: (.+(?:\n[ \t]+.+)*)", lines, re.MULTILINE)
    if not found:
        return None
    first, *rest = (line.strip() for line in found[-1].split("\n"))
    return first + (" " if first.endswith(":") else "; ") * bool(rest) + "; ".join(rest)


def why_ended(printed: str, code: int) -> str:
    """`sentence_in` of what a failed command printed, else its exit code and its last line."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    last = f" ({lines[-1][:200]})" if lines else ""
    return sentence_in(printed) or f"the command ended by itself with code {code}{last}"


def command(main: Callable) -> Callable:
    """Make `main` end as a command should, with one line on stderr in place of a traceback.

    The exit code is 2 on bad input, a full disk or exhausted memory, 130 on Ctrl-C, 143 on SIGTERM, and 141 without a
    line where nobody reads the output any more. Slow imports belong inside `main`, so that a signal during them ends
    the same way. A signal that arrived decides the end, also where the last thing that it could stop was done.
    """

    @functools.wraps(main)
    def run(*args, **kwargs):
        stop = Stop(getattr(main, "__code__", None))
        try:
            with stop:
                result = main(*args, **kwargs)
                sys.stdout.flush()  # here, where a full disk is one line
            if stop.number is None:
                return result
            raise SystemExit  # somebody swallowed what the signal raised, at the very end
        except BaseException as error:
            # a signal goes first: libraries turn what is raised in the middle of them into errors of their own
            if stop.number is None and isinstance(error, BrokenPipeError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # they have seen enough, as `head` does
                sys.exit(141)  # 128 + SIGPIPE
            if (how := ENDINGS[stop.number] if stop.number else ending(error)) is None:
                raise
            _let_go(error)
            print(how[0], file=sys.stderr)
            sys.exit(how[1])

    return run


def _let_go(error: BaseException | None) -> None:
    """Close what the frames of an error still hold before its line is printed: generators, files, progress bars."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
