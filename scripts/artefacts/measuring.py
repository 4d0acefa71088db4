"""From chains to a result: measure every video of an artefact, its costs, and Figure 4's hidden states."""

import shlex
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from configs.errors import UserError
from configs.schema import load
from data.sources import load_clips
from infer.measure.evaluation import Evaluation, evaluate
from infer.measure.metrics import VideoScorer
from infer.measure.world_scores import ReferenceClips
from infer.video import read_frames
from models.backbone import Backbone, choose_device, choose_dtype
from models.files.checkpoint import load_checkpoint
from scripts.artefacts.budget import foreseen
from scripts.artefacts.catalogue import ARTEFACTS
from scripts.artefacts.costs import variant_costs
from scripts.artefacts.hidden_states import LabelledClip, StateComparison, compare_customizations, world_clips
from scripts.artefacts.plan import Cell, Plan
from scripts.artefacts.prices import stored_prices
from scripts.artefacts.result import Result, made_at, total_cost


class Measurer:
    """Measures folders of videos, each once: artefacts share trainings, and so their videos."""

    def __init__(self, scorer: VideoScorer, jobs: int = 1):
        self.scorer, self.jobs = scorer, jobs
        self._known: dict[tuple[Path, str], Evaluation | UserError] = {}

    def __call__(self, folder: Path, reference: ReferenceClips | None = None, of: str = "") -> Evaluation:
        """`infer.measure.evaluation.evaluate`; `of` names the reference. Raises UserError as that does."""
        key = folder, of
        if key not in self._known:
            self._known[key] = evaluate(folder, self.scorer, reference)
        if isinstance(found := self._known[key], UserError):
            raise found
        return found

    def ahead(self, folders: Iterable[Path]) -> None:
        """Measure folders of the toy world, `jobs` at once, each against its own reference: threads wait for ffmpeg's
        processes at the same time. No folder needs the scorer, whose weights threads could not share."""
        new = [folder for folder in dict.fromkeys(folders) if (folder, "") not in self._known]
        pool = ThreadPoolExecutor(self.jobs)
        try:
            for folder, found in zip(new, pool.map(_evaluated, new), strict=True):
                self._known[folder, ""] = found
        finally:
            pool.shutdown(cancel_futures=True)


def _evaluated(folder: Path) -> Evaluation | UserError:
    try:
        return evaluate(folder, VideoScorer())
    except UserError as error:
        return error


def make_result(
    name: str, plan: Plan, failed: dict[str, str], measure: Measurer, measured_by: str, argv: list[str]
) -> Result:
    """Measure what an artefact's chains made; `failed` chains and videos that cannot be measured become problems."""
    rows, problems = [], list(plan.problems[name])
    cells = plan.cells[name]
    if plan.testbed.world:
        measure.ahead(folder for cell in cells if (folder := Path(cell.samples.folder)).is_dir())

    def measured(cell: Cell, run: str, variant: str, folder: Path, reference: ReferenceClips | None = None) -> None:
        wanted = cell.samples.wanted()
        try:
            found = measure(folder, reference, cell.task.reference if reference else "")
        except UserError as error:
            problems.append(f"{variant} on {cell.task.reference}: {error}")
            return
        problems.extend(found.problems)
        rows.extend(
            {
                "model": plan.testbed.name,
                "group": cell.task.group,
                "motion": cell.task.name,
                "run": run,
                "variant": variant,
                **row,
                "reference": cell.task.reference,  # by its name, and apart from the other folders' first ones
                "path": folder / row["video"],
            }
            for row in found.rows
            if (row["prompt"], row["seed"]) in wanted or (reference and row["prompt"] in cell.samples.prompts)
        )

    for cell in cells:
        if cell.chain.name in failed:
            problems.append(f"{cell.variant.name} on {cell.task.reference}: {failed[cell.chain.name]}")
        if Path(cell.samples.folder).is_dir():
            measured(cell, cell.run, cell.variant.name, Path(cell.samples.folder))
    first = {cell.task.name: cell for cell in reversed(cells)}  # the first clip of every motion
    for cell in first.values() if ARTEFACTS[name].world else ():
        clip = cell.task.clip
        caption = clip.with_suffix(".txt").read_text(encoding="utf-8").strip()
        reference = ReferenceClips((read_frames(clip),), (caption,))
        for variant, folder in plan.testbed.rendered(cell.task.name, cell.samples.prompts).items():
            measured(cell, cell.run, variant, folder, reference)
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
        foreseen(cells, stored_prices(plan.testbed.world)),
        list(dict.fromkeys(problems)),
        measure.scorer.models,
        costs=variant_costs(cells, str(plan.testbed.model)) if ARTEFACTS[name].compares_costs else {},
    )
    if result.artefact.form == "states" and rows:
        try:
            result.states = compare_hidden_states(plan, cells)
        except UserError as error:
            result.problems.append(f"hidden states: {error}")
    return result


def compare_hidden_states(plan: Plan, cells: list[Cell]) -> StateComparison | None:
    """Figure 4's comparison of the adapters of every finished training; None when there is none."""
    finished = list({cell.chain.name: cell for cell in cells if cell.chain.run_folder}.values())
    if not finished:
        return None
    train = finished[0].chain.train
    cfg = load(train, description="")[0]
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
                load_clips(load([*train, *task.data], description="")[0], backbone.snap)[0].frames,
                100 * number + seed,
            )
            for number, task in enumerate(examples)
            for seed in range(each)
        ]
        source = f"{len(examples)} example clips under {each} draws of noise each"
    adapters = [(cell.task.reference, load_checkpoint(cell.chain.run_folder)) for cell in finished]
    return compare_customizations(backbone, adapters, clips, source)
