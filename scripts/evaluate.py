"""Measure a folder of samples by the JSON sidecars beside them: motion, appearance, leakage.

    python scripts/evaluate.py outputs/infer
    python scripts/evaluate.py outputs/base --reference data/examples/pocket_there_and_back.mp4
    python scripts/evaluate.py outputs/car --clip models/clip-vit-base-patch32 --csv car.csv

A sidecar holds the prompt and, through the configuration of its checkpoint, the reference clip; samples of the
untouched model need --reference. On the toy world the measures are exact; other videos get those whose weights are
given. stderr has the table with 95 % intervals and one sentence for all that could not be measured. The unit of an
interval is the reference clip, with its trainings and their videos inside, as in RESULTS.md. The last line of stdout is
JSON with the means (on the toy world motion_success, appearance_accuracy, leakage, and the graded measures of
infer/measure/world_definitions.py) and n; --csv has every video's own.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from configs.commandline import Parser
from configs.errors import UserError, command, printable
from configs.runtime import slow_imports

WEIGHTS = {  # flag -> a metric that needs it, and what it takes
    "clip": ("text_alignment", "CLIP: a folder or a hub id"),
    "pickscore": ("pickscore", "PickScore: a folder or a hub id"),
    "viclip": ("viclip", "ViCLIP: a folder, whose code is run"),
    "cotracker": ("motion_fidelity", "CoTracker 3: a folder, whose code is run"),
}


@command
def main(argv: list[str] | None = None) -> None:
    import json

    parser = Parser(description=__doc__)
    parser.add_argument("folder", type=Path, help="videos with JSON sidecars, as infer/infer.py writes them")
    parser.add_argument("--reference", help="measure motion and leakage against this clip, whatever the sidecars say")
    parser.add_argument("--caption", help="what that clip shows; default: the .txt beside it")
    for flag, (_, what) in WEIGHTS.items():
        parser.add_argument(f"--{flag}", help=f"weights of {what}")
    parser.add_argument("--csv", type=Path, help="write a row for every video into this file")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)
    with slow_imports():
        from infer.measure.evaluation import ALL_DEFINITIONS, evaluate, given_reference
        from infer.measure.metrics import VideoScorer
        from infer.measure.tables import write_table
        from models.backbone import choose_device

    measure = VideoScorer(args.clip, args.pickscore, args.viclip, args.cotracker, str(choose_device(args.device)))
    if args.csv and args.csv.is_dir():
        raise UserError(f"--csv: {args.csv} is a folder; name a file such as {args.csv / 'videos.csv'}")
    result = evaluate(args.folder, measure, given_reference(args.reference, args.caption))
    for problem in filter(None, (*result.problems, result.caveat)):
        print(f"note: {printable(problem)}", file=sys.stderr)
    facts = result.summary()
    if not facts:
        raise UserError(f"{args.folder}: none of its videos could be measured; the notes above name the reasons")
    for name, estimate in facts.items():
        print(f"{ALL_DEFINITIONS[name].title}: {estimate}", file=sys.stderr)
    if args.csv:
        write_table(args.csv, result.rows)
    print(json.dumps({name: round(estimate.value, 4) for name, estimate in facts.items()} | {"n": len(result.rows)}))
    if lacking := [
        flag for flag, (metric, _) in WEIGHTS.items() if getattr(args, flag) and metric in measure.unavailable
    ]:
        raise UserError(f"--{', --'.join(lacking)}: asked for and could not be used; the notes above name the reasons")


if __name__ == "__main__":
    main()
