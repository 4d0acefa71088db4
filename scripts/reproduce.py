"""Make the paper's tables and figures: `python scripts/reproduce.py table4 --model pocket`.

Plans the trainings and samplings that the artefacts need (scripts/artefacts/plan.py), makes those that are missing
(scripts/artefacts/schedule.py), measures all videos (infer/measure/evaluation.py) and writes OUTPUT_DIR/ARTEFACT/:
page.html, table.md, table.csv, videos.csv, plot.png, plot.svg and videos/. The same command continues after a stop.
stdout carries the paths of the pages.
"""

import argparse
import difflib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from configs.commandline import Parser
from configs.errors import UserError, command, shown
from configs.runtime import slow_imports

REAL = 4, 8  # for --list: reference clips and prompts of each, with a real model


def parse(argv: list[str]) -> argparse.Namespace:
    """The flags and what they act on. Raises UserError for wrong ones; --help prints and exits."""
    parser = Parser("reproduce.py", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add(
        "artefacts",
        nargs="*",
        metavar="ARTEFACT or key=value",
        help="table1 to table6, figure3 to figure6, all (these ten), or one of this project's own (see --list); "
        "key=value words override the configuration of every training",
    )
    add("--list", action="store_true", help="print what each artefact shows, needs and costs")
    add("--model", default="pocket", help="pocket, or a model folder in ZeroScope's layout (default %(default)s)")
    add("--world", action="store_true", help="the model in --model was pretrained on the toy world, as pocket was")
    add("--output_dir", type=Path, default=Path("outputs/reproduce"), help="default %(default)s")
    add(
        "--smoke",
        action="store_true",
        help="exercise the pipeline with tiny numbers, which say nothing; the results are marked and kept out of "
        "RESULTS.md",
    )
    add("--dry-run", action="store_true", help="print the commands that would be run, then stop; writes nothing")
    add("--plan", action="store_true", help="print what is needed and what it costs, then stop; writes nothing")
    add("--prompts", type=_count, help="prompts for each training (default the artefact's; real models at most 16)")
    add("--references", type=_count, help="reference motions at most (default all of the artefact)")
    add("--appearances", type=_count, help="toy world: reference clips of each motion, each in another appearance")
    add("--trainings", type=_count, default=1, help="trainings on each clip, from other seeds (default %(default)s)")
    add(
        "--clips",
        type=Path,
        help="real models, several reference clips: their folder, with captions in .txt files beside them; "
        "a prompts.txt in it names the prompts (default: this project's for sport)",
    )
    add("--jobs", type=_count, help="trainings at once (default one for each GPU, else 1)")
    add(
        "--slurm",
        nargs="+",
        metavar="NAME=VALUE",
        help="run as SLURM jobs with these parameters of submitit: slurm_partition=gpu ...",
    )
    add("--clip", help="weights of CLIP, for real videos: a folder or a hub id")
    add("--pickscore", help="weights of PickScore: a folder or a hub id")
    add("--viclip", help="weights of ViCLIP: a folder, whose code is run")
    add("--cotracker", help="CoTracker 3: a folder, whose code is run (default: Lucas-Kanade)")
    add(
        "--benchmark",
        type=Path,
        metavar="FOLDER",
        help="in place of artefacts: the cases of MTBench or JointTuner in this folder, with a real --model",
    )
    add(
        "--method",
        choices=["guidance", "tap", "tap_guidance", "motiondirector", "motion_inversion"],
        help="how --benchmark learns each motion (default guidance, which needs no training)",
    )
    add("--results", type=Path, help="the file of results to update (default RESULTS.md; a smoke run keeps its own)")
    args = parser.parse_intermixed_args(argv)
    if args.slurm:  # its words end where an artefact's name follows
        args.artefacts += [word for word in args.slurm if "=" not in word]
        args.slurm = [word for word in args.slurm if "=" in word]
    return args


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}; give a whole number of 1 or more")
    return int(text)


def listing() -> str:
    """What --list prints."""
    from scripts.artefacts.catalogue import ARTEFACTS, OWN, STUDIES
    from scripts.artefacts.prices import stored_prices

    lines = ["The paper's:"]
    for name, artefact in ARTEFACTS.items():
        lines += ["This project's own:"] if name == next(iter(OWN)) else []
        lines += [f"{name}  {artefact.title}", f"    shows {artefact.shows}", f"    needs {artefact.needs}"]
        for world in (True,) if artefact.world else (True, False):
            prices, trained = stored_prices(world), len({v.train for v in artefact.variants})
            clips, prompts = (len(artefact.motions) * artefact.appearances, artefact.prompts) if world else REAL
            clips = 1 if artefact.several and not world else clips
            seconds = clips * trained * (prices.start + prices.training)
            seconds += sum(clips * prices.of_videos(prompts, v.flags) for v in artefact.variants)
            lines.append(
                f"    costs on {'the toy world' if world else 'zeroscope'} at most {clips * trained} trainings and "
                f"{clips * len(artefact.variants) * prompts} videos, about {seconds / 60:.0f} min of "
                f"{prices.unit}{'' if world else ' (an estimate)'}"
            )
    lines += ["Studies of the measures:"]
    lines += [f"{name}  {title}\n    needs {needs}" for name, (title, needs) in STUDIES.items()]
    return "\n".join(lines)


def choose(asked: list[str]) -> tuple[list[str], list[str]]:
    """(artefacts in the paper's order, key=value words). Raises UserError for an unknown artefact, or none."""
    from scripts.artefacts.catalogue import ARTEFACTS, PAPER, STUDIES

    known = (*ARTEFACTS, *STUDIES)
    words = [word for word in asked if "=" in word]
    names = [word for word in asked if "=" not in word]
    for name in names:
        if name not in (*known, "all"):
            near = difflib.get_close_matches(name[:80], known, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}, and all"
            raise UserError(f"{shown(name)}: no artefact has this name; {hint}")
    if not names:
        raise UserError(f"no artefact was named; give one or several of {', '.join(known)}, or all ten of the paper")
    return [name for name in known if name in names or ("all" in names and name in PAPER)], words


def run_on_benchmark(args: argparse.Namespace) -> None:
    """A public benchmark in place of artefacts; stdout carries the path of its table, or what it would take."""
    if named := [word for word in args.artefacts if "=" not in word]:
        raise UserError(f"{shown(named[0])}: --benchmark makes one table of its own; leave the artefacts out")
    if args.model == "pocket":
        raise UserError("--benchmark: its clips are real, and pocket knows the toy world alone; give --model FOLDER")
    of_artefacts = ("world", "appearances", "clips", "jobs", "slurm", "results")
    if given := [name for name in of_artefacts if getattr(args, name)] + ["trainings"] * (args.trainings > 1):
        raise UserError(f"--{given[0]}: is for artefacts, and does nothing with --benchmark; leave it out")
    args.method = args.method or "guidance"
    with slow_imports():
        from scripts.artefacts.production import log_line
        from scripts.artefacts.public_benchmark import describe_benchmark, run_benchmark

    if args.plan or args.dry_run:
        print(describe_benchmark(args))
        return
    table, failed = run_benchmark(args, args.artefacts, log_line)
    print(table)
    if failed:
        missing = "1 case is" if failed == 1 else f"{failed} cases are"
        raise UserError(f"{missing} missing from the table (named above and in it); the others are measured")


@command
def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    args = parse(argv)
    if args.list:
        print(listing())
        return
    if args.benchmark:
        run_on_benchmark(args)
        return
    if args.method:
        raise UserError("--method: says how --benchmark learns; an artefact has methods of its own, so leave it out")
    names, words = choose(args.artefacts)
    with slow_imports():
        from scripts.artefacts.catalogue import STUDIES
        from scripts.artefacts.production import describe_study, reproduce, study

    studies, names = ([name for name in names if (name in STUDIES) == wanted] for wanted in (True, False))
    studied = []
    for name in studies:
        if args.plan or args.dry_run:
            print(describe_study(name))
        else:
            studied.append(study(name, args, argv))
    pages, incomplete = reproduce(args, names, words, argv) if names else ([], 0)
    pages = [*studied, *pages]
    for page in pages:
        print(page)
    if incomplete:
        raise UserError(
            f"{incomplete} of {len(pages)} artefacts lack something that failed (printed above and on their pages); "
            "the same command tries again what is missing"
        )


if __name__ == "__main__":
    main()
