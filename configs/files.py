"""Writing files so that they exist complete or not at all.

Lives in the lowest room because every other one writes: caches, checkpoints, videos, reports.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from configs.errors import UserError

FULL = 64 * 1024  # bytes; with less than this left, a failed write failed for want of space


def check_writable(folder: Path) -> None:
    """Raise UserError now, not after an hour's work, when `folder` can not be a folder to write into."""
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not nearest.is_dir():
        raise UserError(f"{folder}: {nearest} is a file; name a folder to write into")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"{folder}: no right to write in {nearest}; name another folder")


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` (same suffix) that becomes `path`, file or folder, if the block succeeds.

    Missing parent folders are made; after a failure nothing of all this is left and what was there before still is.
    On a full disk the failure is always an OSError with ENOSPC, however the library that was writing words it.
    """
    path = Path(path)
    made = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    _remove(part)
    try:
        yield part
        old = path.with_name(f".{path.name}.{os.getpid()}.old")
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
        full = isinstance(error, Exception) and shutil.disk_usage(path.parent).free < FULL
        _remove(part)
        for folder in made:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
