"""Making artefacts: plan, train and sample what is missing, measure all videos, write the pages and RESULTS.md."""

import argparse
import shlex
import sys
import time
from pathlib import Path

import torch

from configs.errors import UserError
from configs.files import check_writable, sweep
from configs.paths import POCKET, ROOT
from configs.schema import load
from data.sources import load_clips
from infer.measure.metrics import VideoScorer
from infer.video import safe_name, write_video
from models.backbone import choose_device
from models.outline import snap_of
from scripts.artefacts import measure_study, metric_report
from scripts.artefacts.budget import describe
from scripts.artefacts.catalogue import STUDIES
from scripts.artefacts.measuring import Measurer, make_result
from scripts.artefacts.page import write_page
from scripts.artefacts.plan import Cell, Plan, commands
from scripts.artefacts.plots import write_plots
from scripts.artefacts.provenance import commit
from scripts.artefacts.quotation import quote
from scripts.artefacts.report import body, write_files
from scripts.artefacts.result import Result
from scripts.artefacts.results_file import check_results, markdown_code, put_section
from scripts.artefacts.schedule import ChainProcesses, Launch, run_all, run_on_slurm, slurm_executor
from scripts.artefacts.testbed import Testbed


def reproduce(
    args: argparse.Namespace, names: list[str], words: list[str], argv: list[str], launch: Launch | None = None
) -> tuple[list[Path], int]:
    """Make the artefacts `names`; returns their pages and how many of them lack something that failed.

    `args` are the options of scripts/reproduce.py, `words` override every training's configuration, `argv` is the
    command to be printed on the pages. `launch` runs one chain; the default starts a process for it. An artefact is
    written as soon as what it needs is there. Raises UserError for a request that cannot work, which then leaves
    nothing behind. What fails later is reported on the page, and the rest is made.
    """
    output = args.output_dir.resolve()
    results = results_file(args)
    pocket = args.model == "pocket"
    model = POCKET if pocket else Path(args.model).resolve()
    if args.appearances and not (pocket or args.world):
        raise UserError(
            "--appearances: only the toy world draws clips in other appearances; leave it out, or give --world"
        )
    testbed = Testbed(model, pocket or args.world, output, args.clips and args.clips.resolve())
    logs, accepted = output / "logs", False
    try:
        plan = Plan(
            testbed,
            output,
            words,
            smoke=args.smoke,
            prompts=args.prompts,
            references=args.references,
            appearances=args.appearances,
            trainings=args.trainings,
        )
        for name in names:
            plan.add(name)
        executor = slurm_executor(logs, dict(word.partition("=")[::2] for word in args.slurm)) if args.slurm else None
        accepted = not (args.dry_run or args.plan)
    finally:
        if not accepted:
            testbed.discard()
    jobs = args.jobs or max(1, torch.cuda.device_count())
    if args.plan or args.dry_run:
        text = (
            describe(plan, names, jobs) if args.plan else "\n".join(filter(None, map(commands, plan.chains.values())))
        )
        print(text)
        return [], 0

    for folder in (output, *output.glob("*"), *output.glob("*/videos")):
        sweep(folder)
    measured_by = commit()  # now: the tree may have moved on before the page is written
    logs.mkdir(parents=True, exist_ok=True)
    launch = launch or ChainProcesses(logs, jobs)
    failed = run_on_slurm(list(plan.chains.values()), logs, executor, log_line) if executor else {}
    measure = Measurer(VideoScorer(args.clip, args.pickscore, args.viclip, args.cotracker, str(choose_device())), jobs)
    pages, incomplete = [], 0
    for name in names:
        if not executor:
            untried = [chain for chain in plan.chains_of(name) if chain.name not in failed]
            failed |= run_all(untried, jobs, launch, log_line)
        result = make_result(name, plan, failed, measure, measured_by, argv)
        result.quoted = quote(results, result.artefact.beside, {row["motion"] for row in result.rows})
        pages.append(write_artefact(result, output / (f"{name}-smoke" if args.smoke else name), plan.cells[name]))
        if result.rows:  # a run that made nothing must not replace what an earlier one found
            put_section(results, (result.name, result.testbed.name), result.title, body(result))
        log_line(f"{result.title}: {result.conclusion}")
        for problem in result.problems:
            log_line(f"missing: {problem}")
        incomplete += not result.rows or any(cell.chain.name in failed for cell in plan.cells[name])
    return pages, incomplete


def describe_study(name: str) -> str:
    """What --plan and --dry-run print in place of a study."""
    title, needs = STUDIES[name]
    return f"{name}: {title}. It trains nothing and needs {needs}."


def study(name: str, args: argparse.Namespace, argv: list[str]) -> Path:
    """A study of the measures themselves (scripts/artefacts/catalogue.py: STUDIES); returns its page."""
    output, results = args.output_dir.resolve(), results_file(args)
    folder = output / (f"{name}-smoke" if args.smoke else name)
    command = markdown_code(f"python scripts/reproduce.py {shlex.join(argv)}")
    provenance = f"{time.strftime('%Y-%m-%d')}, commit {commit()}. Command: {command}"
    if name == "measures":
        model = POCKET if args.model == "pocket" else Path(args.model).resolve()
        return measure_study.make(folder, results, model=model, smoke=args.smoke, provenance=provenance)
    return metric_report.make(
        folder,
        results,
        smoke=args.smoke,
        clip=args.clip,
        device=str(choose_device()),
        provenance=provenance,
        say=log_line,
    )


def results_file(args: argparse.Namespace) -> Path:
    """The file of results that the options `args` name.

    Raises UserError where it or the output folder cannot be written: now, and not after hours of training.
    """
    output = args.output_dir.resolve()
    results = args.results or (output / "RESULTS.md" if args.smoke else ROOT / "RESULTS.md")
    check_results(results)
    for folder in (output, results.parent):
        check_writable(folder)
    return results


def write_artefact(result: Result, folder: Path, cells: list[Cell]) -> Path:
    """Write all files of an artefact into `folder`; returns the page."""
    for cell in cells:
        name = cell.task.reference
        if name in result.clips:
            continue
        try:
            cfg = load(cell.chain.train, description="")[0]
            clip = load_clips(cfg, snap_of(cfg.pretrained_model_path))[0]
        except UserError as error:
            result.problems.append(f"the clip of {name}: {error}")
            result.clips[name] = Path("missing")
        else:
            result.clips[name] = write_video(
                folder / "videos" / f"reference__{safe_name(name)}.mp4", clip.frames, fps=8
            )
    write_files(result, folder)
    write_plots(result, folder)
    return write_page(result, folder)


def log_line(message: str) -> None:
    """One line on stderr, in one write: lines of several workers must not run into each other."""
    sys.stderr.write(f"{message}\n")
