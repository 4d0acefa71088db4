"""What each method costs and when to take it: prints the two tables of configs/methods/README.md.

    python scripts/methods_table.py            # about two minutes on a CPU

Parameters are counted on the meta device for ZeroScope (16 frames of 384x384) and for the pocket model, as motion plus
one appearance adapter, which is trained beside it and takes no space in a file of the motion alone. The file is the
motion in fp32. Seconds are CPU time of a training step of the pocket model, both passes included where the method has
both; memory is the counted peak of a training step (scripts/bench.py): ZeroScope in bf16 with activation checkpointing,
the pocket model in fp32 without. The second table counts parameters of what only a diffusion transformer has, for Wan
2.1 of 1.3 B (33 frames of 480x272) and for PocketScope-DiT.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from configs.commandline import Parser
from configs.errors import UserError, command
from configs.runtime import slow_imports

FOLDER = Path(__file__).resolve().parents[1] / "configs/methods"
METHODS = sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.yaml"))


@command
def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="default all")
    parser.add_argument(
        "--repeats", type=int, default=5, metavar="N", help="timed steps of each method, after one that warms up"
    )
    args = parser.parse_args(argv)
    if args.repeats < 1:
        raise UserError(f"--repeats: {args.repeats} measures nothing; give 1 or more")
    with slow_imports():
        from scripts.benchmark import method_costs as costs

    asked = args.methods or [*costs.WHEN, *costs.TRANSFORMER_WHEN]
    tables = (
        (costs.HEADER, costs.rows([name for name in asked if name in costs.WHEN], args.repeats)),
        (costs.TRANSFORMER_HEADER, costs.transformer_rows([n for n in asked if n in costs.TRANSFORMER_WHEN])),
    )
    for header, found in tables:
        for row in [header, ["---"] * len(header), *found] if found else ():
            print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
