"""Errors that a person can act on, and how a command ends with one.

Every check that guards against bad input raises `UserError` with one sentence: what was wrong, what was found, what
to do. Commands wrap their main function in `command`, which prints that sentence and exits with code 2. Anything else
is a defect of this project and keeps its traceback.
"""

import errno
import functools
import pickle
import reprlib
import struct
import sys
import tarfile
from collections.abc import Callable
from typing import Any

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

# a path that can not be used as asked, whatever this project does: no permission, read-only, a file for a folder
REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG}


class UserError(Exception):
    """One sentence for the person at the keyboard: what was wrong, what was found, what to do."""


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


def command(main: Callable) -> Callable:
    """Make `main` end as a command should: exit 2 on bad input or a full disk, 130 on Ctrl-C, one line on stderr."""

    @functools.wraps(main)
    def run(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except OSError as error:
            if error.errno in REFUSED and error.filename:
                print(
                    f"error: {error.filename}: {error.strerror.lower()}; give another path, or change what is there",
                    file=sys.stderr,
                )
                sys.exit(2)
            if error.errno != errno.ENOSPC:
                raise
            print(
                f"error: no space left on the disk while writing {error.filename or 'a file'}; nothing half-written"
                " was kept: free some space and run the same command again",
                file=sys.stderr,
            )
            sys.exit(2)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)

    return run
