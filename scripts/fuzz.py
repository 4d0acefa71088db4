"""Try malformed inputs on the functions of all commands, for as long as there are minutes.

    python scripts/fuzz.py --minutes 30
    python scripts/fuzz.py --minutes 5 --area "checkpoint header" --area flags --seed 7

Every case must end in one sentence and exit code 2 or in a right result: no other exception, no file outside the output
folder, no value of the environment in an output, nothing half-written, at most 10 s and 2 GB. stderr has a line for
each round; the last line of stdout is JSON with the counts and the smallest case of each area that broke the property,
ready for scripts/fuzzing/found.py. The exit code is 1 where one did. Needs requirements-dev.txt.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from configs.commandline import Parser
from configs.errors import UserError, command
from configs.runtime import slow_imports

EXAMPLES = 40  # of an area in one round


@command
def main(argv: list[str] | None = None) -> None:
    import json
    import time

    parser = Parser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5, help="how long to try (default %(default)s)")
    parser.add_argument("--area", action="append", default=[], help="only this area; may be repeated")
    parser.add_argument("--seed", type=int, default=0, help="of the first round; the next has the next (default 0)")
    args = parser.parse_args(argv)
    try:
        with slow_imports():
            from scripts.fuzzing.areas import AREAS
            from scripts.fuzzing.ground import Ground
            from scripts.fuzzing.trial import try_area
    except ImportError as error:
        raise UserError(f"fuzz: {error.name} is missing; pip install -r requirements-dev.txt") from None
    names = [area.name for area in AREAS]
    if unknown := [name for name in args.area if name not in names]:
        raise UserError(f"--area: {unknown[0]} is unknown; there are {', '.join(names)}")

    ground, began, seed = Ground(), time.monotonic(), args.seed
    counts = {name: {"refused": 0, "accepted": 0} for name in args.area or names}
    broken: dict[str, dict[str, str]] = {}
    try:
        while len(broken) < len(counts) and (
            (rest := args.minutes * 60 - (time.monotonic() - began)) > 0 or seed == args.seed
        ):
            for area in AREAS:
                if area.name not in counts or area.name in broken:
                    continue
                tally = try_area(ground, area, EXAMPLES, seed)
                counts[area.name]["refused"] += tally.refused
                counts[area.name]["accepted"] += tally.accepted
                if tally.broken:
                    case, reason = tally.broken
                    broken[area.name] = {"case": repr(case), "reason": reason}
            tried = sum(sum(count.values()) for count in counts.values())
            print(f"seed {seed}: {tried} cases, {len(broken)} areas broken, {max(0, rest):.0f} s left", file=sys.stderr)
            seed += 1
    finally:
        ground.close()
    print(json.dumps({"seeds": [args.seed, seed - 1], "cases": tried, "areas": counts, "broken": broken}))
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
