"""Compare this implementation with reference numbers: `python scripts/parity.py FOLDER [--assets FOLDER]`.

FOLDER holds reference files (scripts/authors/reference.py), recognized by their prefix: unet_, ah_, lora_*_forward,
losses, inversion, infer_*, train_trace_*. Everything is read from the files: sizes, ranks, presets, steps, and the
U-Net itself. Pipeline, checkpoint and cache folders are looked for in FOLDER and in --assets. Prints a Markdown table;
the exit code is 1 when a difference exceeds its tolerance or a case cannot be run, 2 when there is nothing to compare.
"""

import shlex
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from configs.commandline import Parser
from configs.errors import UserError, command
from configs.runtime import slow_imports

HEADER = ["| case | quantity | tolerance | difference | |", "|---|---|---|---|---|"]


@command
def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("folder", type=Path, help="reference files")
    parser.add_argument("--assets", type=Path, help="pipeline, checkpoint and cache folders, where not beside them")
    parser.add_argument("--results", type=Path, help="also keep the table as a section of this file (RESULTS.md)")
    args = parser.parse_args(argv)
    with slow_imports():
        from scripts.artefacts.provenance import commit
        from scripts.artefacts.results_file import check_results, markdown, markdown_code, put_section
        from scripts.authors.comparison import compare

    if args.results:
        check_results(args.results)
    failed, table = 0, []
    for case, row in compare(args.folder, args.assets):
        if not table:
            print(*HEADER, sep="\n")
        passed = row.difference <= row.tolerance  # NaN fails
        failed += not passed
        verdict = "pass" if passed else "FAIL"
        cells = markdown(case), markdown(row.quantity), f"{row.tolerance:.0e}", f"{row.difference:.1e}", verdict
        table.append(f"| {' | '.join(cells)} |")
        print(table[-1], flush=True)
    if not table:
        raise UserError(
            f"{args.folder}: no reference file there (unet_*, ah_*, lora_*_forward, losses*, inversion*,"
            " infer_*, train_trace_* .safetensors)"
        )
    count = f"{len(table) - failed} of {len(table)} pass"
    print(count, file=sys.stderr)
    if args.results:
        again = f"python scripts/parity.py {shlex.join(sys.argv[1:] if argv is None else argv)}"
        facts = (
            f"{count}. The reference numbers were made with the authors' release and MotionDirector's LoRA code, in "
            "fp32 on a CPU.\n\n"
            + "\n".join([*HEADER, *table])
            + f"\n\n{time.strftime('%Y-%m-%d')}, commit {commit()}. "
            f"Command: {markdown_code(again)}\n"
        )
        put_section(args.results, ("parity", "release"), "Agreement with the authors' code", facts)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
