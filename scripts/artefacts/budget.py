"""What artefacts need and cost, before anything is made: `reproduce.py NAME --plan`.

Number of clips: as many as show, in four of five such experiments, a difference that is as large as the smallest one
that counts. It follows from the spread of reference clips inside their motions, of this artefact's own videos.csv where
it was made before, else of the stored table; two trainings on a clip are farther apart than two samplings of one
training, so the two kinds of claims have a spread and a number each.
"""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from statistics import median

from infer.measure.paired import MOST, POWER, blocks_of, clips_needed, paired_difference
from infer.measure.statistics import FEWEST, LEVEL
from scripts.artefacts.artefact import POOLED, Artefact, Bound, Claim
from scripts.artefacts.catalogue import ARTEFACTS
from scripts.artefacts.chain import Chain
from scripts.artefacts.plan import Cell, Plan
from scripts.artefacts.prices import Prices, measured_prices, stored_spread
from scripts.artefacts.result import total_cost
from scripts.artefacts.samples import Samples
from scripts.artefacts.testbed import Testbed


@dataclass(frozen=True)
class Bill:
    """What some chains take: trainings and videos, how many of them are there, and seconds of `unit` for the rest."""

    trainings: int
    trained: int
    videos: int
    sampled: int
    seconds: float
    unit: str

    def __str__(self) -> str:
        return (
            f"{self.trainings} trainings ({self.trained} there already), {self.videos} videos ({self.sampled}); "
            f"{self.seconds / 60:.0f} min of {self.unit} to go"
        )


def bill(asked: Iterable[tuple[Chain, Iterable[Samples]]], prices: Prices) -> Bill:
    """What these trainings, each with these of its videos, take. All videos are measured, since pages are made anew."""
    trainings = trained = videos = sampled = 0
    seconds = 0.0
    for chain, folders in asked:
        missing = {samples.folder: sum(len(prompts) for _, prompts in samples.missing()) for samples in folders}
        trainings, trained = trainings + 1, trained + (chain.run_folder is not None)
        seconds += prices.training * (chain.run_folder is None)
        seconds += prices.start * (chain.run_folder is None or any(missing.values()))
        for samples in folders:
            there = len(samples.prompts) - missing[samples.folder]
            videos, sampled = videos + len(samples.prompts), sampled + there
            seconds += prices.of_videos(missing[samples.folder], samples.flags) + there * prices.measuring
    return Bill(trainings, trained, videos, sampled, seconds, prices.unit)


def foreseen(cells: list[Cell], prices: Prices) -> float:
    """Seconds that all trainings and samplings of an artefact take by these prices, whatever is there already.

    Neither starts of processes nor measuring, which nothing notes when it is done.
    """
    return sum(
        prices.training + sum(prices.sampling(len(samples.prompts), samples.flags) for samples in folders)
        for _, folders in _asked(cells)
    )


def _asked(cells: list[Cell]) -> list[tuple[Chain, list[Samples]]]:
    """The trainings of an artefact with those of their videos that it shows."""
    chains: dict[str, tuple[Chain, list[Samples]]] = {}
    for cell in cells:
        folders = chains.setdefault(cell.chain.name, (cell.chain, []))[1]
        if cell.samples not in folders:
            folders.append(cell.samples)
    return list(chains.values())


def describe(plan: Plan, names: list[str], jobs: int) -> str:
    """What --plan prints."""
    lengths = {chain.steps for chain in plan.chains.values()}
    prices = measured_prices(plan.testbed.world, plan.folder, plan.testbed.name, lengths)
    lines = [
        f"A training takes {prices.training:.0f} s of {prices.unit} and a video {prices.video:.2f} s, by "
        f"{prices.source}; two artefacts that need the same training share it."
    ]
    for name in names:
        artefact, cells = ARTEFACTS[name], plan.cells[name]
        lines.append(f"{name}: {artefact.title}")
        lines += [f"    lacks: {problem}" for problem in plan.problems[name]]
        if not cells:
            continue
        tasks = {(cell.task.name, cell.task.appearance) for cell in cells}
        motions = {motion for motion, _ in tasks}
        lines += [
            f"    {len(artefact.variants)} variants x {len(motions)} motions x {len(tasks) // len(motions)} clips x "
            f"{f'{plan.trainings} trainings x ' if plan.trainings > 1 else ''}{len(cells[0].samples.prompts)} prompts",
            f"    {bill(_asked(cells), prices)}; made so far: {total_cost(cells)}",
            *_needs(plan, name),
        ]
    whole = bill([(chain, chain.samples) for chain in plan.chains.values()], prices)
    places = "cores" if plan.testbed.world else "cards"
    lines.append(
        f"Together: {whole}, about {whole.seconds / 60 / jobs:.0f} min with --jobs {jobs} on as many {places}."
    )
    return "\n".join(lines)


def _needs(plan: Plan, name: str) -> list[str]:
    """For each kind of an artefact's claims: the smallest difference that counts, and how many clips decide it."""
    artefact, cells, lines = ARTEFACTS[name], plan.cells[name], []
    asked = artefact.asked(dict.fromkeys(cell.task.group for cell in cells))
    groups = dict.fromkeys(group for _, group in asked)
    level = 1 - (1 - LEVEL) / max(1, len(asked))
    found = measured_spread(name, plan.folder / name / "videos.csv", plan.testbed)
    kinds = dict.fromkeys(_kind(artefact, claim, plan.testbed.roles) for claim in artefact.claims)
    for role, one_training in filter(None, kinds):
        least = plan.testbed.roles[role].least
        what = f"{role}, {'two samplings of one training' if one_training else 'two trainings'}"
        spread, source = found.get((role, one_training)), "of its own videos"
        if spread is None and plan.testbed.world:
            spread, source = stored_spread(one_training).get(role), "stored"
        if spread is None:
            lines.append(f"    {what}: no spread is known yet for this model; make it once, then plan again")
            continue
        planned = []
        for group in groups:
            tasks = {cell.task.reference: cell.task for cell in cells if group in (POOLED, cell.task.group)}
            needed = clips_needed(spread, least, level, len(set(blocks_of([task.name for task in tasks.values()]))))
            planned.append(f"{needed or f'more than {MOST}'} ({group}, {len(tasks)} planned)")
        lines.append(
            f"    {what}: a difference of {least:g} counts; at a spread of {spread:.3f} ({source}) one just as large "
            f"is seen in {POWER:.0%} of all cases, and a larger one more often, with this many reference clips: "
            + ", ".join(planned)
        )
    return lines


def _kind(artefact: Artefact, claim: Claim, roles: dict) -> tuple[str, bool] | None:
    """(role, whether two samplings of one training are compared); None where no measured variants are compared."""
    if claim.role not in roles or isinstance(claim.other, Bound):
        return None
    return claim.role, artefact.share_training(claim)


def measured_spread(name: str, table: Path, testbed: Testbed) -> dict[tuple[str, bool], float]:
    """Kind of claim -> median of the spread of its differences over clips, in the table of an artefact made before.

    What another model made, as the table's rows say, shows nothing.
    """
    artefact, roles = ARTEFACTS[name], testbed.roles
    if not table.is_file():
        return {}
    with table.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get("model") == testbed.name]
    spreads: dict[tuple[str, bool], list[float]] = {}
    for claim, group in artefact.asked({row["group"] for row in rows}):
        if kind := _kind(artefact, claim, roles):
            metric = roles[kind[0]].metric
            sides = (
                {
                    (row.get("motion"), row["reference"], row["run"], row["prompt"], row["seed"]): float(row[metric])
                    for row in rows
                    if row["variant"] == variant and group in (POOLED, row["group"]) and row.get(metric)
                }
                for variant in (claim.one, claim.other)
            )
            found = paired_difference(*sides, itemgetter(1), itemgetter(2), motion_of=itemgetter(0))
            if found and found.clips >= FEWEST:
                spreads.setdefault(kind, []).append(found.spread)
    return {kind: median(values) for kind, values in spreads.items()}
