"""Making artefacts: plan, train and sample what is missing, measure all videos, write the pages and RESULTS.md."""

import argparse
import contextlib
import io
import shlex
import sys
import time
from pathlib import Path

import torch

from configs.errors import UserError
from configs.files import check_writable, sweep
from configs.schema import ROOT, load
from data.sources import load_clips
from infer.measure.evaluation import evaluate
from infer.measure.metrics import VideoScorer
from infer.measure.world_scores import ReferenceClips
from infer.video import read_frames, write_video
from models.backbone import Backbone, choose_device, choose_dtype, snap_of
from models.files.checkpoint import load_checkpoint
from scripts.artefacts import metric_report
from scripts.artefacts.catalogue import ARTEFACTS, GUIDANCE
from scripts.artefacts.costs import cost_rows
from scripts.artefacts.hidden_states import LabelledClip, StateComparison, compare_customizations, world_clips
from scripts.artefacts.page import write_page
from scripts.artefacts.plan import Cell, Plan, commands
from scripts.artefacts.plots import write_plots
from scripts.artefacts.provenance import commit
from scripts.artefacts.report import body, write_files
from scripts.artefacts.result import Result, made_at, total_cost
from scripts.artefacts.results_file import markdown_code, put_section
from scripts.artefacts.schedule import ChainProcesses, Launch, run_all, run_on_slurm, slurm_executor
from scripts.artefacts.testbed import Testbed

POCKET = ROOT / "models" / "pocketscope"


def reproduce(
    args: argparse.Namespace, names: list[str], words: list[str], argv: list[str], launch: Launch | None = None
) -> tuple[list[Path], int]:
    """Make the artefacts `names`; returns their pages and how many of them lack something that failed.

    `args` are the options of scripts/reproduce.py, `words` override every training's configuration, `argv` is the
    command to be printed on the pages. `launch` runs one chain; the default starts a process for it. Raises UserError
    for a request that cannot work, which then leaves nothing behind. What fails later is reported on the page, and the
    rest is made.
    """
    output = args.output_dir.resolve()
    results = results_file(args)
    pocket = args.model == "pocket"
    model = POCKET if pocket else Path(args.model).resolve()
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
            trainings=args.trainings,
        )
        for name in names:
            plan.add(name)
        executor = slurm_executor(logs, dict(word.partition("=")[::2] for word in args.slurm)) if args.slurm else None
        accepted = not args.dry_run
    finally:
        if not accepted:
            testbed.discard()
    chains = list(plan.chains.values())
    if args.dry_run:
        print("\n".join(filter(None, map(commands, chains))))
        return [], 0

    for folder in (output, *output.glob("*"), *output.glob("*/videos")):
        sweep(folder)
    measured_by = commit()  # now: the tree may have moved on before the page is written
    logs.mkdir(parents=True, exist_ok=True)
    jobs = args.jobs or max(1, torch.cuda.device_count())
    if executor:
        failed = run_on_slurm(chains, logs, executor, log_line)
    else:
        failed = run_all(chains, jobs, launch or ChainProcesses(logs, jobs), log_line)
    scorer = VideoScorer(args.clip, args.pickscore, args.viclip, args.cotracker, str(choose_device()))
    pages, incomplete = [], 0
    for name in names:
        result = make_result(name, plan, failed, scorer, measured_by, argv)
        pages.append(write_artefact(result, output / (f"{name}-smoke" if args.smoke else name), plan.cells[name]))
        if result.rows:  # a run that made nothing must not replace what an earlier one found
            put_section(results, (result.name, result.testbed.name), result.title, body(result))
        log_line(f"{result.title}: {result.conclusion}")
        for problem in result.problems:
            log_line(f"missing: {problem}")
        incomplete += not result.rows or any(cell.chain.name in failed for cell in plan.cells[name])
    return pages, incomplete


def study_metrics(args: argparse.Namespace, argv: list[str]) -> Path:
    """The study of motion metrics (scripts/artefacts/metric_study.py); returns its page. `args` as in `reproduce`."""
    output, results = args.output_dir.resolve(), results_file(args)
    command = markdown_code(f"python scripts/reproduce.py {shlex.join(argv)}")
    return metric_report.make(
        output / ("metrics-smoke" if args.smoke else "metrics"),
        results,
        smoke=args.smoke,
        clip=args.clip,
        device=str(choose_device()),
        provenance=f"{time.strftime('%Y-%m-%d')}, commit {commit()}. Command: {command}",
        say=log_line,
    )


def results_file(args: argparse.Namespace) -> Path:
    """The file of results that the options `args` name.

    Raises UserError where it or the output folder cannot be written: now, and not after hours of training.
    """
    output = args.output_dir.resolve()
    results = args.results or (output / "RESULTS.md" if args.smoke else ROOT / "RESULTS.md")
    if results.is_dir():
        raise UserError(f"--results: {results} is a folder; name a file such as {results / 'RESULTS.md'}")
    for folder in (output, results.parent):
        check_writable(folder)
    return results


def make_result(
    name: str, plan: Plan, failed: dict[str, str], scorer: VideoScorer, measured_by: str, argv: list[str]
) -> Result:
    """Measure what an artefact's chains made; `failed` chains and videos that cannot be measured become problems."""
    rows, problems = [], list(plan.problems[name])
    cells = plan.cells[name]

    def measured(cell: Cell, run: str, variant: str, folder: Path, reference: ReferenceClips | None = None) -> None:
        try:
            found = evaluate(folder, scorer, reference)
        except UserError as error:
            problems.append(f"{variant} on {cell.task.name}: {error}")
            return
        problems.extend(found.problems)
        rows.extend(
            {
                "group": cell.task.group,
                "reference": cell.task.name,
                "run": run,
                "variant": variant,
                **row,
                "path": folder / row["video"],
            }
            for row in found.rows
            if row["prompt"] in cell.samples.prompts
        )

    for cell in cells:
        if cell.chain.name in failed:
            problems.append(f"{cell.variant.name} on {cell.task.name}: {failed[cell.chain.name]}")
        if Path(cell.samples.folder).is_dir():
            measured(cell, cell.run, cell.variant.name, Path(cell.samples.folder))
    for cell in {cell.task.name: cell for cell in cells}.values() if ARTEFACTS[name].world else ():
        clip = cell.task.clip
        reference = ReferenceClips((read_frames(clip),), (clip.with_suffix(".txt").read_text().strip(),))
        for variant, folder in plan.testbed.rendered(cell.task.name, cell.samples.prompts).items():
            measured(cell, cell.task.name, variant, folder, reference)
    result = Result(
        name,
        plan.testbed,
        plan.smoke,
        f"python scripts/reproduce.py {shlex.join(argv)}",
        time.strftime("%Y-%m-%d"),
        measured_by,
        made_at(cells),
        total_cost(cells),
        rows,
        list(dict.fromkeys(problems)),
        scorer.models,
        costs=cost_rows(cells) if GUIDANCE in ARTEFACTS[name].variants else [],
    )
    if result.artefact.form == "states" and rows:
        try:
            result.states = compare_hidden_states(plan, cells)
        except UserError as error:
            result.problems.append(f"hidden states: {error}")
    return result


def compare_hidden_states(plan: Plan, cells: list[Cell]) -> StateComparison | None:
    """Figure 4's comparison, on the first finished run; None when there is none."""
    chain = next((cell.chain for cell in cells if cell.chain.run_folder), None)
    if chain is None:
        return None
    cfg = load(chain.train, description="")[0]
    device = choose_device(cfg.device)
    backbone = Backbone.load(cfg.pretrained_model_path, choose_dtype(cfg.mixed_precision, device), device)
    if plan.testbed.world:
        clips, source = world_clips(2 if plan.smoke else 16), "fresh clips of the world's eight known motions"
    else:
        each = 2 if plan.smoke else 8
        examples = plan.testbed.tasks((), several=False)
        clips = [
            LabelledClip(
                task.name,
                load_clips(load([*chain.train, *task.data], description="")[0], backbone.snap)[0].frames,
                100 * number + seed,
            )
            for number, task in enumerate(examples)
            for seed in range(each)
        ]
        source = f"{len(examples)} example clips under {each} draws of noise each"
    return compare_customizations(backbone, load_checkpoint(chain.run_folder), clips, source)


def write_artefact(result: Result, folder: Path, cells: list[Cell]) -> Path:
    """Write all files of an artefact into `folder`; returns the page."""
    for cell in cells:
        name = cell.task.name
        if name in result.clips:
            continue
        try:
            cfg = load(cell.chain.train, description="")[0]
            with contextlib.redirect_stderr(io.StringIO()):  # training has printed how the clip is cut
                clip = load_clips(cfg, snap_of(cfg.pretrained_model_path))[0]
        except UserError as error:
            result.problems.append(f"the clip of {name}: {error}")
            result.clips[name] = Path("missing")
        else:
            result.clips[name] = write_video(folder / "videos" / f"reference__{name}.mp4", clip.frames, fps=8)
    write_files(result, folder)
    write_plots(result, folder)
    return write_page(result, folder)


def log_line(message: str) -> None:
    """One line on stderr, in one write: lines of several workers must not run into each other."""
    sys.stderr.write(f"{message}\n")
