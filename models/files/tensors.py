"""Tensors out of a file and into one: nothing executes, nothing is larger than the file, every number is finite.

safetensors files hold tensors by name with a header of texts; `.pt` files hold a pickle, which is opened so that only
tensors and plain containers can come out of it.
"""

import json
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from configs.archives import AGAIN, check_pickle, check_safetensors
from configs.errors import DAMAGED_PICKLE, UserError, is_out_of_memory, printable, shown
from configs.plain import shown_error
from models.files.modelspec import with_hash

State = dict[str, torch.Tensor]
REAL = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
MOST_TENSORS = 50_000
MOST_VALUES = 500_000  # in a pickle, containers and their contents together


def write_tensors(tensors: State, path: Path, header: Mapping[str, str]) -> None:
    """Write a safetensors file with `header` as its metadata, and a hash where that follows the model spec."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, path, metadata=with_hash(header, contiguous))
    _order_header(path)


def _order_header(path: Path) -> None:
    """Sort the texts in a header that was just written: safetensors puts them in another order each time."""
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
        if len(ordered) == length:
            file.seek(8)
            file.write(ordered)


def read_tensors(path: Path) -> tuple[State, dict[str, str]]:
    """(tensors on the CPU, header) of a safetensors file. Raises UserError where it is damaged or a number is not
    finite. A single whole number, as musubi-tuner's converter stores an alpha, becomes a real one.
    """
    check_safetensors(path)
    try:
        with safe_open(path, framework="pt") as file:
            names = sorted(file.keys())
            if len(names) > MOST_TENSORS:
                raise UserError(f"{path}: holds {len(names):,} tensors, more than the {MOST_TENSORS:,} that are read")
            tensors, header = {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (SafetensorError, OSError, TypeError, ValueError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise UserError(f"{path}: truncated, or not a safetensors file ({shown_error(error)}): {AGAIN}") from error
    for name, tensor in tensors.items():
        if tensor.dtype in WHOLE and tensor.numel() == 1:
            tensors[name] = tensor = tensor.float()
        check_real(tensor, name, path)
    return tensors, header


def names_in(path: Path) -> list[str]:
    """The names of a safetensors file, whose tensors are not read; none where it is no such file."""
    try:
        check_safetensors(path)
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (UserError, SafetensorError, OSError):
        return []


def read_pickle(path: Path) -> Any:
    """What `path` pickles, tensors on the CPU. Nothing in the file is executed.

    Raises UserError for a file that asks for anything but tensors and plain containers, for a damaged one, and for
    tensors that claim more numbers than the file holds.
    """
    check_pickle(path)
    try:
        with warnings.catch_warnings():  # about pickles of others: they are read or refused, which is reported
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = next((line for line in str(error).splitlines() if "GLOBAL" in line or "Unsupported" in line), "")
        reason = printable(reason.strip())[:160] or "no pickle of tensors"
        raise UserError(
            f"{path}: refused, it holds more than tensors ({reason});"
            " nothing in it was executed: ask its author for a safetensors file"
        ) from error
    except DAMAGED_PICKLE as error:
        if is_out_of_memory(error):
            raise UserError(f"{path}: refused, its tensors claim more memory than there is: {AGAIN}") from error
        raise UserError(f"{path}: truncated, or not a PyTorch file: {AGAIN}") from error
    _check_sizes(content, path)
    return content


def _check_sizes(content: Any, path: Path) -> None:
    """Refuse tensors whose numbers are not all in the file: a stride of 0 makes terabytes of one number."""
    left, level, total = MOST_VALUES, [content], 0
    while level:
        below: list[Any] = []
        for value in level:
            if isinstance(value, torch.Tensor):
                plain = value.layout is torch.strided and value.device.type == "cpu" and not value.is_quantized
                size = value.numel() * value.element_size()
                if not plain or size > value.untyped_storage().nbytes():
                    raise UserError(f"{path}: refused, a tensor {_kind(value)} is not held whole by the file")
                total += size
            elif isinstance(value, Mapping):
                below += [*value.keys(), *value.values()]
            elif isinstance(value, (list, tuple, set)):
                below += value
        left -= len(below)
        if left < 0:
            raise UserError(f"{path}: refused, it nests more than {MOST_VALUES:,} values; no adapter does")
        level = below
    if total > path.stat().st_size:
        raise UserError(f"{path}: refused, its tensors are larger than the file and share their numbers")


def check_real(tensor: torch.Tensor, name: str, path: Path | str, axes: int | None = None) -> None:
    """Raise UserError unless `tensor` holds finite real numbers (and has `axes` axes, each of some length)."""
    if tensor.dtype not in REAL or not tensor.numel() or (axes is not None and tensor.ndim != axes):
        wanted = f"a tensor of {axes} axes" if axes else "a tensor"
        raise UserError(f"{path}: {shown(name, 200)} is {_kind(tensor)}, not {wanted} of real numbers; {AGAIN}")
    if not torch.isfinite(tensor).all():
        count = int((~torch.isfinite(tensor)).sum())
        raise UserError(
            f"{path}: {shown(name, 200)} holds numbers that are not finite ({count:,} of {tensor.numel():,}); the"
            " training that wrote it had diverged: use an earlier checkpoint, or train with a lower learning_rate"
        )


def _kind(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {shown(list(tensor.shape))}"
