"""Compare this implementation with reference numbers: `python scripts/parity.py FOLDER [--assets FOLDER]`.

FOLDER holds reference files (scripts/authors/reference.py), told apart by their prefix: unet_, ah_, lora_*_forward,
losses, inversion, infer_*, train_trace_*. Everything is read from the files: sizes, ranks, presets, steps, and the
U-Net itself. Pipeline, checkpoint and cache folders are looked for in FOLDER and in --assets. Prints a Markdown table;
exit code 1 when a difference is over its tolerance or a case can not be run, 2 when there is none.
"""

import argparse
import gc
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: several times faster on a busy machine

from safetensors import SafetensorError

from configs.errors import UserError, command
from scripts.artefacts.chain import commit
from scripts.artefacts.report import rewrite
from scripts.artefacts.sections import read_sections, section
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

    A case that can not be run yields one row with an infinite difference that says why, after the rows before it.
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="reference files")
    parser.add_argument("--assets", type=Path, help="pipeline, checkpoint and cache folders, where not beside them")
    parser.add_argument("--results", type=Path, help="also keep the table as a section of this file (RESULTS.md)")
    args = parser.parse_args()
    failed = total = 0
    table = ["| case | quantity | tolerance | difference | |", "|---|---|---|---|---|"]
    for case, row in compare(args.folder, args.assets):
        if not total:
            print(*table, sep="\n")
        passed = row.difference <= row.tolerance  # NaN fails
        total, failed = total + 1, failed + (not passed)
        verdict = "pass" if passed else "FAIL"
        quantity = " ".join(row.quantity.replace("|", "/").split())
        table.append(f"| {case} | {quantity} | {row.tolerance:.0e} | {row.difference:.1e} | {verdict} |")
        print(table[-1], flush=True)
    if not total:
        raise UserError(
            f"{args.folder}: no reference file there (unet_*, ah_*, lora_*_forward, losses*, inversion*,"
            " infer_*, train_trace_* .safetensors)"
        )
    told = f"{total - failed} of {total} pass"
    print(told, file=sys.stderr)
    if args.results:
        facts = (
            f"{told}. Reference numbers made with the authors' release and MotionDirector's LoRA code, fp32 on a "
            f"CPU.\n\n" + "\n".join(table) + f"\n\n{time.strftime('%Y-%m-%d')}, commit {commit()}. "
            f"Command: `python scripts/parity.py {args.folder.name} --results {args.results}`\n"
        )
        key = ("parity", "release")
        rewrite(
            args.results, read_sections(args.results) | {key: section(key, "Agreement with the authors' code", facts)}
        )
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    command(main)()
