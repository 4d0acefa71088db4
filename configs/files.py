"""Writing files so that they exist complete or not at all.

It lies in configs, which every other folder may import, because all of them write: caches, checkpoints, videos,
reports. What is being written lies beside its final place as `.NAME.PLACE-PID.part`; `sweep` clears away what processes
that died left behind.
"""

import errno
import hashlib
import itertools
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from configs.errors import FULL, UserError, errno_of, printable
from configs.signals import held

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

BLOCK = 64 * 1024  # bytes; with less than this left, a failed write that gives no reason failed for want of space
ABANDONED = 24 * 3600  # seconds; what another machine has not touched for so long is nobody's
LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<place>[0-9a-f]{6})-(?P<pid>\d+)\.(?P<kind>part|old)(\.\w+)?")


class NoSpace(OSError):
    """A full disk, however the library that was writing words it; `room` tells how much was needed and is left."""

    def __init__(self, path: Path, number: int = errno.ENOSPC, needs: int | None = None):
        super().__init__(number, os.strerror(number), str(path))
        state = os.statvfs(_nearest(path)) if hasattr(os, "statvfs") else None
        free = shutil.disk_usage(_nearest(path)).free
        needed = f"{_size(needs)} are needed and " if needs else ""
        inodes = state is not None and state.f_files and not state.f_favail
        self.room = f" ({needed}{_size(free)} are free{', but no inode for another file is' if inodes else ''})"


def check_writable(folder: Path) -> None:
    """Raise UserError now, not after an hour's work, when `folder` cannot be a folder to write into."""
    try:
        if b"\0" in os.fsencode(folder):
            raise ValueError
    except ValueError:  # also what cannot be encoded
        raise UserError(f"{printable(folder)}: holds a character that no path can have; name another folder") from None
    nearest = _nearest(folder)
    if not nearest.is_dir():
        raise UserError(f"{folder}: {nearest} is a file; name a folder to write into")
    try:  # asking for rights is not enough: root has them all, also under /proc and on a read-only disk
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        if error.errno in FULL:
            raise NoSpace(folder, error.errno) from error
        wrong = "no right to write" if error.errno in (errno.EACCES, errno.EPERM) else "nothing can be written"
        raise UserError(f"{folder}: {wrong} in {nearest} ({error.strerror}); name another folder") from None


def fresh_folder(path: Path) -> Path:
    """Make `path`, or the first of path-2, path-3, ... that does not exist, and return it.

    Making is the test, so that two processes that start in the same moment get two folders.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        folder = path if number == 1 else path.with_name(f"{path.name}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise AssertionError("counting ended")


@contextmanager
def atomic_path(path: str | Path, needs: int | None = None) -> Iterator[Path]:
    """A temporary path beside `path` (same suffix) that becomes `path`, file or folder, if the block succeeds.

    Missing parent folders are made; after a failure nothing of all this is left and what was there before still is.
    `needs` is how many bytes will be written, where that is known: too little room is then found before the block. A
    full disk is always raised as `NoSpace`. Raises UserError where a file would take the place of a folder.
    """
    path = Path(path)
    if needs and shutil.disk_usage(_nearest(path)).free < needs:
        raise NoSpace(path, needs=needs)
    made = _missing(path)
    part, old = (path.with_name(f".{name}.{_place()}-{os.getpid()}.{end}") for name, end in _names(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(part)
        yield part
        with held():
            if path.is_dir() and not part.is_dir():
                raise UserError(f"{path}: is a folder, and a file is to be written; name a file")
            if path.is_dir():  # a folder cannot be replaced in one go: move the old one aside first
                path.rename(old)
            try:
                part.rename(path)
            except BaseException:
                if old.exists():
                    old.rename(path)
                raise
            _remove(old)
    except BaseException as error:
        number = errno_of(error) if isinstance(error, Exception) and not isinstance(error, UserError) else None
        if number is None and isinstance(error, Exception) and shutil.disk_usage(path.parent).free < BLOCK:
            number = errno.ENOSPC
        full = NoSpace(path, number, needs) if number in FULL else None
        with held():
            if path.parent.is_dir():
                _remove(part)
            _unmake(made)
        if full:
            raise full from error
        raise


def _missing(path: Path) -> list[Path]:
    """The folders above `path` that are not there, the deepest first."""
    return [folder for folder in path.parents if not folder.exists()]


def _unmake(folders: list[Path]) -> None:
    """Remove those that are empty, the deepest first."""
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """One process, and one thread of it, at a time in a block with this `folder`, which is made where it is missing.

    After a failure a folder that was made and is empty is gone. Where the system or the file system knows no such
    locks, as some network shares, nobody waits.
    """
    descriptor, made = None, _missing(folder / "file")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if fcntl is not None:
            descriptor = os.open(folder, os.O_RDONLY)
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    except BaseException:
        with held():
            _unmake(made)
        raise
    finally:
        if descriptor is not None:
            os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a folder or file that others may be looking at: gone at once, not file by file."""
    aside = path.with_name(f".{path.name}.{_place()}-{os.getpid()}.part")
    with held():
        _remove(aside)
        path.rename(aside)
        _remove(aside)


def sweep(folder: str | Path) -> list[Path]:
    """Clear away what dead processes left half-written directly in `folder`; returns what was removed or put back.

    What a live process is writing stays, and so does what another machine touched within a day. A folder that was
    moved aside and never replaced is put back under its name.
    """
    swept = []
    for path in sorted(Path(folder).glob(".*")) if Path(folder).is_dir() else []:
        found = LEFTOVER.fullmatch(path.name)
        with suppress(FileNotFoundError):  # its writer has just finished, or another process sweeps as well
            if not found or not _is_dead(path, found["place"], int(found["pid"])):
                continue
            if found["kind"] == "old" and not (home := path.with_name(found["name"])).exists():
                path.rename(home)
            else:
                _remove(path)
            swept.append(path)
    return swept


def _is_dead(path: Path, place: str, pid: int) -> bool:
    if place != _place():
        return time.time() - path.stat().st_mtime > ABANDONED
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # it lives and is somebody else's; or no process has such a number
        return pid > 2**31 - 1
    return False


def _names(path: Path) -> list[tuple[str, str]]:
    return [(path.stem, f"part{path.suffix}"), (path.name, "old")]


def _place() -> str:
    """Six hex digits of this machine and its process numbers, which several machines and containers may share."""
    try:
        numbers = os.readlink("/proc/self/ns/pid")
    except OSError:
        numbers = ""
    return hashlib.sha256(f"{platform.node()} {numbers}".encode()).hexdigest()[:6]


def _nearest(path: Path) -> Path:
    """The path itself or the first of its parents that exists."""
    return next(place for place in (Path(path), *Path(path).absolute().parents) if place.exists())


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count:,} bytes"


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
