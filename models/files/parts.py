"""One part of a pipeline folder, loaded by its library so that damaged files end in a sentence, not in a traceback."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

from huggingface_hub.errors import LocalEntryNotFoundError, StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import nn

from configs.archives import AGAIN, check_pickle, check_safetensors
from configs.errors import UserError, is_out_of_memory, shown
from configs.plain import shown_error
from models import backbones

# what diffusers, transformers, safetensors and torch raise for files that are cut short or of another model
UNLOADABLE = (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ArithmeticError)
UNLOADABLE += (AssertionError, SafetensorError, UnpicklingError, StrictDataclassError)


@contextmanager
def quiet(logger: str) -> Iterator[None]:
    """Keep a library from warning of what this file words better, or of what is in order."""
    level = logging.getLogger(logger).level
    logging.getLogger(logger).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logging.getLogger(logger).setLevel(level)


def load_part(path: str, name: str, part: type, options: dict):
    """The part `name` of a pipeline folder or hub id, of the class `part`; `options` go to its `from_pretrained`.

    A module comes with every weight that it has, none of them made up by a library for one that is missing. Raises
    UserError for files that are damaged, incomplete or of another model.
    """
    folder, is_module = Path(path) / name, issubclass(part, nn.Module)
    if folder.is_dir() and is_module:
        for file in sorted(folder.iterdir()):
            _check_weights(file)
        weights = [p.name for p in folder.iterdir() if p.suffix in (".bin", ".safetensors")]
        if weights and all(".fp16." in file for file in weights):
            options = {**options, "variant": "fp16"}
    try:
        # diffusers calls .bin weights unsafe; they are opened so that nothing in them executes
        with quiet("diffusers.models.modeling_utils"), quiet("transformers"):
            if not is_module:
                return part.from_pretrained(path, subfolder=name, **options)
            module, found = part.from_pretrained(path, subfolder=name, output_loading_info=True, **options)
    except UNLOADABLE as error:
        if is_out_of_memory(error):
            raise
        raise UserError(
            f"model: {name} of {path} cannot be loaded ({reason(error)}); check that the download is complete and "
            f"is {backbones.kind_of_model(path).WORDS}"
        ) from error
    wrong = [*sorted(found["missing_keys"]), *(key for key, *_ in found["mismatched_keys"])]
    if wrong:
        raise UserError(
            f"model: {name} of {path} lacks {len(wrong)} of its weights, or they have other shapes "
            f"({shown(wrong[0])}); check that the download is complete and is {backbones.kind_of_model(path).WORDS}"
        )
    return module


def reason(error: Exception) -> str:
    """Why something could not be loaded, in a library's words; diffusers calls a file missing where no network is."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, LocalEntryNotFoundError):
            return "the hub cannot be reached, and its cache on this machine does not have it"
        cause = cause.__cause__ or cause.__context__
    return shown_error(error)


def _check_weights(file: Path) -> None:
    """Raise UserError for a damaged file of weights; diffusers would read it whole, however large, to say so."""
    if file.suffix == ".bin":
        check_pickle(file)
    if file.suffix == ".safetensors":
        check_safetensors(file)
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file}: truncated, or no safetensors file ({shown_error(error)}): {AGAIN}") from None
