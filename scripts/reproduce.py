"""Make the paper's tables and figures: `python scripts/reproduce.py table4 --model pocket`.

Plans the trainings and samplings that the artefacts need (scripts/artefacts/plan.py), makes those that are missing
(scripts/artefacts/schedule.py), measures all videos (infer/measure/evaluation.py) and writes OUTPUT_DIR/ARTEFACT/:
page.html, table.md, table.csv, videos.csv, plot.png, plot.svg and videos/. Stopped and started again, it goes on.
stdout carries the pages.
"""

import argparse
import difflib
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from configs.errors import UserError, command
from configs.schema import ROOT, load
from scripts.artefacts.catalogue import ARTEFACTS, PAPER, PROMPTS

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads make a step several times slower on a busy CPU

# for --list: seconds for a training and for a video, single reference clips (None: the artefact's motions) and prompts
# for each; PocketScope on two CPU cores, ZeroScope on a 24 GB card; estimates
COSTS = {"pocket": (150, 4, None, PROMPTS), "zeroscope": (900, 30, 4, 8)}


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("reproduce.py", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add(
        "artefacts",
        nargs="*",
        metavar="ARTEFACT or key=value",
        help="table1 to table6, figure3 to figure6, all (these ten), or motions; "
        "key=value words override the recipe for every training",
    )
    add("--list", action="store_true", help="name the artefacts with what each needs, costs and shows")
    add("--model", default="pocket", help="pocket, or a model folder in ZeroScope's layout (default %(default)s)")
    add("--world", action="store_true", help="the model in --model was pretrained on the toy world, as pocket was")
    add("--output_dir", type=Path, default=Path("outputs/reproduce"), help="default %(default)s")
    add("--smoke", action="store_true", help="tiny numbers that show the road, marked as such; not in RESULTS.md")
    add("--dry-run", action="store_true", help="print the commands that would be run, then stop")
    add("--prompts", type=_count, help=f"prompts for each reference (default all of the list, at most {PROMPTS})")
    add("--references", type=_count, help="reference motions (default all of the artefact)")
    add(
        "--trainings", type=_count, default=1, help="trainings of each kind, from seeds 0, 1, ... (default %(default)s)"
    )
    add(
        "--clips",
        type=Path,
        help="real models, several reference clips: their folder, captions in .txt beside them; "
        "prompts.txt in it says what to sample (default ours for sport)",
    )
    add("--jobs", type=_count, help="trainings at once (default one for each GPU, else 1)")
    add(
        "--slurm",
        nargs="+",
        metavar="NAME=VALUE",
        help="run as SLURM jobs, submitit's parameters: slurm_partition=gpu ...",
    )
    add("--clip", help="CLIP for real videos: folder or hub id")
    add("--pickscore", help="PickScore: folder or hub id")
    add("--viclip", help="ViCLIP: folder")
    add("--cotracker", help="CoTracker: folder with its code and weights (default: Lucas-Kanade)")
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
    lines = ["The paper's:"]
    for name, artefact in ARTEFACTS.items():
        lines += [] if name in PAPER else ["This project's own:"]
        lines += [f"{name}  {artefact.title}", f"    shows {artefact.shows}", f"    needs {artefact.needs}"]
        for model, (train, video, clips, prompts) in list(COSTS.items())[: 1 if artefact.world else None]:
            runs = 1 if artefact.several else clips or len(artefact.motions)
            trainings, videos = (
                len({v.train for v in artefact.variants}) * runs,
                len(artefact.variants) * runs * prompts,
            )
            lines.append(
                f"    costs on {model} at most {trainings} trainings and {videos} videos, about "
                f"{(trainings * train + videos * video) / 60:.0f} min (an estimate)"
            )
    return "\n".join(lines)


def choose(asked: list[str]) -> tuple[list[str], list[str]]:
    """(artefacts in the paper's order, key=value words). Raises UserError for an unknown one."""
    words = [word for word in asked if "=" in word]
    names = [word for word in asked if "=" not in word]
    for name in names:
        if name not in (*ARTEFACTS, "all"):
            near = difflib.get_close_matches(name, ARTEFACTS, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(ARTEFACTS)}, and all"
            raise UserError(f"{name}: no artefact is called so; {hint}")
    if not names:
        raise UserError(
            f"no artefact was named; give one or several of {', '.join(ARTEFACTS)}, or all ten of the paper"
        )
    return [name for name in ARTEFACTS if name in names or ("all" in names and name in PAPER)], words


if __name__ == "__main__":  # before the slow imports, so that --help, --list and a misspelt name answer at once
    ARGUMENTS = parse(sys.argv[1:])
    if ARGUMENTS.list:
        print(listing())
        sys.exit()
    command(choose)(ARGUMENTS.artefacts)

import contextlib
import io
import shlex
import signal
import time

import torch

from data.sources import load_clips
from infer.measure import evaluation
from infer.measure.metrics import Measure
from infer.video import read_video, write_video
from models.backbone import Backbone, choose_device, choose_dtype
from models.files.checkpoint import load_checkpoint
from scripts.artefacts.chain import commit
from scripts.artefacts.hidden_states import LabelledClip, States, compare, world_clips
from scripts.artefacts.page import write_page
from scripts.artefacts.plan import Place, Plan, commands
from scripts.artefacts.plots import draw
from scripts.artefacts.report import update_results, write_files
from scripts.artefacts.result import Result, cost, made_at
from scripts.artefacts.schedule import Launch, Processes, run_all, run_on_slurm
from scripts.artefacts.testbed import POCKET, Testbed


def reproduce(args: argparse.Namespace, argv: list[str], launch: Launch | None = None) -> tuple[list[Path], int]:
    """Make the artefacts; returns their pages and how many of them lack something that failed.

    `launch` runs one chain; the default starts a process for it. Raises UserError for a request that can not work; what
    fails on the way is said on the page, and the rest is done.
    """
    names, words = choose(args.artefacts)
    output = args.output_dir.resolve()
    pocket = args.model == "pocket"
    testbed = Testbed(
        POCKET if pocket else Path(args.model).resolve(),
        pocket or args.world,
        output,
        args.clips and args.clips.resolve(),
    )
    plan = Plan(
        testbed,
        output,
        words,
        smoke=args.smoke,
        prompts=args.prompts,
        references=args.references,
        trainings=args.trainings,
    )
    for name in names:
        plan.add(name)
    chains = list(plan.chains.values())
    if args.dry_run:
        print("\n".join(filter(None, map(commands, chains))))
        return [], 0
    measured_by = commit()  # now: the tree may move on before the page is written
    logs = output / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    jobs = args.jobs or max(1, torch.cuda.device_count())
    if args.slurm:
        failed = run_on_slurm(chains, logs, dict(word.partition("=")[::2] for word in args.slurm), say)
    else:
        failed = run_all(chains, jobs, launch or Processes(logs, jobs), say)
    measure = Measure(args.clip, args.pickscore, args.viclip, args.cotracker, str(choose_device()))
    results = args.results or (output / "RESULTS.md" if args.smoke else ROOT / "RESULTS.md")
    pages, incomplete = [], 0
    for name in names:
        result = make(name, plan, failed, measure, measured_by, argv)
        pages.append(write(result, output / (f"{name}-smoke" if args.smoke else name), plan.places[name]))
        if result.rows:  # a run that made nothing must not replace what an earlier one found
            update_results(result, results)
        say(f"{result.title}: {result.conclusion}")
        for problem in result.problems:
            say(f"missing: {problem}")
        incomplete += not result.rows or any(place.chain.name in failed for place in plan.places[name])
    return pages, incomplete


def make(name: str, plan: Plan, failed: dict[str, str], measure: Measure, measured_by: str, argv: list[str]) -> Result:
    """Measure what an artefact's chains made and return its Result; what failed is said in its problems."""
    rows, problems = [], list(plan.problems[name])
    places = plan.places[name]

    def measured(
        place: Place, run: str, variant: str, folder: Path, reference: evaluation.Reference | None = None
    ) -> None:
        try:
            found = evaluation.evaluate(folder, measure, reference)
        except UserError as error:
            problems.append(f"{variant} on {place.reference.name}: {error}")
            return
        problems.extend(found.problems)
        rows.extend(
            {
                "group": place.reference.group,
                "reference": place.reference.name,
                "run": run,
                "variant": variant,
                **row,
                "path": folder / row["video"],
            }
            for row in found.rows
            if row["prompt"] in place.samples.prompts
        )

    for place in places:
        if place.chain.name in failed:
            problems.append(f"{place.variant.name} on {place.reference.name}: {failed[place.chain.name]}")
        if Path(place.samples.folder).is_dir():
            measured(place, place.run, place.variant.name, Path(place.samples.folder))
    for place in {place.reference.name: place for place in places}.values() if ARTEFACTS[name].world else ():
        clip = place.reference.clip
        reference = evaluation.Reference((read_video(clip),), (clip.with_suffix(".txt").read_text().strip(),))
        for variant, folder in plan.testbed.rendered(place.reference.name, place.samples.prompts).items():
            measured(place, place.reference.name, variant, folder, reference)
    result = Result(
        name,
        plan.testbed,
        plan.smoke,
        f"python scripts/reproduce.py {shlex.join(argv)}",
        time.strftime("%Y-%m-%d"),
        measured_by,
        made_at(places),
        cost(places),
        rows,
        list(dict.fromkeys(problems)),
        measure.models,
    )
    if result.artefact.form == "states" and rows:
        try:
            result.states = states(plan, places)
        except UserError as error:
            result.problems.append(f"hidden states: {error}")
    return result


def states(plan: Plan, places: list[Place]) -> States | None:
    """Figure 4's comparison, on the first TAP run that is there."""
    chain = next((place.chain for place in places if place.chain.run_folder), None)
    if chain is None:
        return None
    cfg = load(chain.train, description="")[0]
    device = choose_device(cfg.device)
    backbone = Backbone.load(cfg.pretrained_model_path, choose_dtype(cfg.mixed_precision, device), device)
    if plan.testbed.world:
        clips, source = world_clips(2 if plan.smoke else 16), "fresh clips of the world's eight known motions"
    else:
        each = 2 if plan.smoke else 8
        examples = plan.testbed.references((), several=False)
        clips = [
            LabelledClip(
                reference.name,
                load_clips(load([*chain.train, *reference.data], description="")[0], backbone.snap)[0].frames,
                100 * number + seed,
            )
            for number, reference in enumerate(examples)
            for seed in range(each)
        ]
        source = f"{len(examples)} example clips under {each} draws of noise each"
    return compare(backbone, load_checkpoint(chain.run_folder), clips, source)


def write(result: Result, folder: Path, places: list[Place]) -> Path:
    """All files of an artefact; returns the page."""
    for place in places:
        name = place.reference.name
        if name in result.clips:
            continue
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # load_clips tells its plan, training has told it already
                clip = load_clips(load(place.chain.train, description="")[0], 8)[0]
        except UserError as error:
            result.problems.append(f"the clip of {name}: {error}")
            result.clips[name] = Path("missing")
        else:
            result.clips[name] = write_video(folder / "videos" / f"reference__{name}.mp4", clip.frames, fps=8)
    write_files(result, folder)
    draw(result, folder)
    return write_page(result, folder)


def say(message: str) -> None:
    sys.stderr.write(f"{message}\n")  # one write: lines of several workers must not run into each other


@command
def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that chains are stopped as Ctrl-C stops them
    pages, incomplete = reproduce(ARGUMENTS, sys.argv[1:])
    for page in pages:
        print(page)
    if incomplete:
        raise UserError(
            f"{incomplete} of {len(pages)} artefacts lack something that failed (said above and on their pages); "
            "the same command tries again what is missing"
        )


if __name__ == "__main__":
    main()
