"""Pickles of other programs: read as data, or refused."""

import warnings
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from configs.archives import check_pickle
from configs.errors import DAMAGED_PICKLE, UserError, is_out_of_memory
from configs.plain import shown_error


def read_pickle(path: Path, kind: str) -> Any:
    """What a file pickles, tensors on the CPU. Nothing in it is run.

    `kind` says in a message what it should have been. Raises UserError for a file that cannot be read so.
    """
    check_pickle(path)
    try:
        with warnings.catch_warnings():  # about pickles of others: they are read or refused, which is reported
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGED_PICKLE as error:
        if is_out_of_memory(error):
            raise UserError(f"{path}: refused, its tensors claim more memory than there is") from None
        # torch's own words about a pickle advise to open it all the same
        reason = "more than tensors, or damaged" if isinstance(error, UnpicklingError) else shown_error(error)
        raise UserError(f"{path}: not {kind} ({reason}); nothing in it was run: copy or download it again") from None


def is_held(tensor: torch.Tensor) -> bool:
    """Are these real numbers that the file holds one by one, and not a sparse, quantized or repeated tensor?"""
    if tensor.layout is not torch.strided or tensor.is_complex() or tensor.is_quantized or tensor.device.type != "cpu":
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
