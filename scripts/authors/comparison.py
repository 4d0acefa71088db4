"""The comparison of a folder of reference files with this implementation, file by file. Run by scripts/parity.py."""

import gc
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors import SafetensorError

from configs.errors import UserError
from scripts.authors.cases import highway_case, infer_case, inversion_case, lora_case, unet_case
from scripts.authors.reference import ReferenceFile, Row
from scripts.authors.training import losses_case, trace_case

# what a file that lacks a tensor or a setting, or holds those of another shape or model, can provoke anywhere below
BROKEN = (
    UserError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
)
CASES: dict[str, Callable[[ReferenceFile], Iterator[Row]]] = {
    r"unet_.*": unet_case,
    r"ah_.*": highway_case,
    r"lora_.*_forward": lora_case,
    r"losses.*": losses_case,
    r"inversion.*": inversion_case,
    r"infer_.*": infer_case,
    r"train_trace_.*": trace_case,
}


def compare(folder: Path, assets: Path | None = None) -> Iterator[tuple[str, Row]]:
    """(name of the reference file, row) for everything in `folder` that a case knows how to compare.

    A case that cannot be run yields one row with an infinite difference that says why, after the rows before it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder that holds the reference files")
    places = [folder, *([assets] if assets else [])]
    for path in sorted(folder.glob("*.safetensors")):
        for pattern, case in CASES.items():
            if re.fullmatch(pattern, path.stem):
                for row in rows_of(case, path, places):
                    yield path.stem, row
                gc.collect()  # patched models are cycles; the next one may need their memory


def rows_of(case: Callable[[ReferenceFile], Iterator[Row]], path: Path, places: list[Path]) -> Iterator[Row]:
    """The rows of one case; a file that breaks it fails the case, not the table."""
    compared = False
    try:
        for row in case(ReferenceFile(path, places)):
            compared = True
            yield row
    except BROKEN as error:
        named = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        yield Row(f"not run: {named}", 0, math.inf)
    else:
        if not compared:
            yield Row("not run: no quantity in it that this command knows", 0, math.inf)
