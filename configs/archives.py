"""A look at a file of tensors before a library opens it: is it readable, whole, and no bigger than it seems?

A `.safetensors` file says in its first eight bytes how long its header is; a `.pt` file of today is a zip archive of
a pickle and of raw numbers, stored as they are. Imports nothing slow.
"""

import io
import lzma
import pickletools
import zipfile
import zlib
from pathlib import Path

from configs.errors import UserError

MOST_HEADER = 16 << 20  # bytes of a safetensors header; an adapter's has 100 KB
MOST_PICKLE = 16 << 20  # bytes of the pickle in a .pt file, without its numbers; a training state's has 45 KB a clip
MOST_SHARED = 40  # tuples a pickle uses again; a hash of tuples in tuples takes 2^(half of that) steps
REMEMBER, RECALL = ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"), ("BINGET", "LONG_BINGET", "GET")
DAMAGED_ZIP = (  # also by an entry that is encrypted, or whose compressed stream is broken
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    RuntimeError,  # also NotImplementedError: another way of compressing
    ValueError,
    EOFError,
    OSError,
)
AGAIN = "copy or download it again"


def check_safetensors(path: Path) -> None:
    """Raise UserError where `path` cannot be read or its header is longer than the file or than any adapter's."""
    start, size = _start(path)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or not 2 <= length <= size - 8:
        raise UserError(f"{path}: truncated, or not a safetensors file ({size:,} bytes): {AGAIN}")
    if length > MOST_HEADER:
        raise UserError(f"{path}: its header has {length:,} bytes, more than the {MOST_HEADER:,} that are read")


def check_pickle(path: Path) -> None:
    """Raise UserError where the .pt file `path` cannot be read, is compressed, or its pickle is out of proportion."""
    start, size = _start(path)
    if not start.startswith(b"PK"):  # the layout of before 2020: a pickle and raw numbers, one after the other
        with open(path, "rb") as file:
            _check_tuples(path, file.read(MOST_PICKLE), pickles=5)  # two numbers, a machine, the content, its keys
        return
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if sum(entry.file_size for entry in entries) > size:
                raise UserError(f"{path}: is compressed, so its size on disk means nothing; save it with torch.save")
            for entry in entries:
                if entry.filename.endswith(".pkl"):
                    if entry.file_size > MOST_PICKLE:
                        raise UserError(f"{path}: its pickle has {entry.file_size:,} bytes, more than are read")
                    _check_tuples(path, archive.read(entry))
    except DAMAGED_ZIP as error:
        raise UserError(f"{path}: truncated, or not a PyTorch file: {AGAIN}") from error


def _start(path: Path) -> tuple[bytes, int]:
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: is {'a folder' if path.is_dir() else 'no regular file'} where a file is needed")
        with open(path, "rb") as file:
            return file.read(8), path.stat().st_size
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; the folder that should hold it is incomplete") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); change its rights, or give another") from None


def _check_tuples(path: Path, content: bytes, pickles: int = 1) -> None:
    """Refuse tuples within tuples that share their parts: the machine would hash them for years."""
    stream, recalled = io.BytesIO(content), 0
    try:
        for _ in range(pickles):
            tuples, last, count = set(), "", 0
            for operation, argument, _ in pickletools.genops(stream):
                if operation.name in REMEMBER:
                    if last.startswith(("TUPLE", "REDUCE", "POP")):
                        tuples.add(count if argument is None else argument)
                    count += 1
                elif operation.name in RECALL:
                    recalled += argument in tuples
                last = operation.name
    except (ValueError, IndexError, EOFError):  # damaged, which the unpickler reports too, or longer than was read
        if len(content) >= MOST_PICKLE:
            raise UserError(f"{path}: its pickle has more than the {MOST_PICKLE:,} bytes that are read") from None
    if recalled > MOST_SHARED:
        raise UserError(f"{path}: refused, its pickle nests tuples {recalled} times in each other; no adapter does")
