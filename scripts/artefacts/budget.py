"""What artefacts need and cost, before anything is made: `reproduce.py NAME --plan`.

Number of trainings: the interval of a difference is to be no wider than the smallest difference that counts, so that
every claim of the kind "more" is decided one way or the other: above 0, or short of that difference. Its width follows
from the spread over trainings, of this artefact's own videos.csv where it was made before, else of the stored table.
"""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from infer.measure.paired import paired_difference, trainings_needed
from infer.measure.statistics import FEWEST_TRAININGS, LEVEL
from scripts.artefacts.catalogue import ARTEFACTS
from scripts.artefacts.chain import Chain, Samples
from scripts.artefacts.plan import Cell, Plan
from scripts.artefacts.prices import Prices, measured_prices, stored_spread
from scripts.artefacts.result import total_cost


@dataclass(frozen=True)
class Bill:
    """What some chains take: trainings and videos, how many of them are there already, and seconds for the rest."""

    trainings: int
    trained: int
    videos: int
    sampled: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.trainings} trainings ({self.trained} there already), {self.videos} videos ({self.sampled}); "
            f"{self.seconds / 60:.0f} min of CPU to go"
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
    return Bill(trainings, trained, videos, sampled, seconds)


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
    prices = measured_prices(plan.testbed.world, plan.folder / "runs", plan.folder / "samples")
    lines = [
        f"A training takes {prices.training:.0f} s of CPU and a video {prices.video:.2f} s, by {prices.source}; two "
        "artefacts that need the same training share it."
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
            f"{len(cells[0].samples.prompts)} prompts",
            f"    {bill(_asked(cells), prices)}; made so far: {total_cost(cells)}",
            *_needs(plan, name),
        ]
    whole = bill([(chain, chain.samples) for chain in plan.chains.values()], prices)
    lines.append(f"Together: {whole}, about {whole.seconds / 60 / jobs:.0f} min with --jobs {jobs} on as many cores.")
    return "\n".join(lines)


def _needs(plan: Plan, name: str) -> list[str]:
    """For each role of an artefact's claims: the smallest difference that counts, and the trainings it asks for."""
    artefact, cells, lines = ARTEFACTS[name], plan.cells[name], []
    groups = dict.fromkeys(cell.task.group for cell in cells)
    level = 1 - (1 - LEVEL) / max(1, len(artefact.asked(groups)))
    found = measured_spread(name, plan.folder / name / "videos.csv", plan.testbed.roles)
    for role in dict.fromkeys(claim.role for claim in artefact.claims):
        if role not in plan.testbed.roles:
            continue
        least = plan.testbed.roles[role].least
        spread, source = (found[role], "of its own videos") if role in found else (stored_spread().get(role), "stored")
        if spread is None or (not plan.testbed.world and source == "stored"):
            lines.append(f"    {role}: no spread is known yet for this model; make it once, then plan again")
            continue
        needed = trainings_needed(spread, least / 2, level)
        planned = {group: len({cell.run for cell in cells if cell.task.group == group}) for group in groups}
        lines.append(
            f"    {role}: a difference of {least:g} counts; at a spread of {spread:.3f} ({source}) it takes "
            f"{needed or 'more than 1000'} trainings of each variant; planned "
            + ", ".join(f"{count} ({group})" for group, count in planned.items())
        )
    return lines


def measured_spread(name: str, table: Path, roles: dict) -> dict[str, float]:
    """Role -> median over claims of the spread of their differences over trainings, in an artefact made before."""
    if not table.is_file():
        return {}
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    spreads: dict[str, list[float]] = {}
    for claim in ARTEFACTS[name].claims:
        metric = roles[claim.role].metric if claim.role in roles else None
        for group in {row["group"] for row in rows}:
            sides = (
                {
                    (row["run"], row["prompt"], row["seed"]): float(row[metric])
                    for row in rows
                    if (row["group"], row["variant"]) == (group, variant) and row.get(metric)
                }
                for variant in (claim.one, claim.other)
            )
            found = paired_difference(*sides, lambda video: video[0])
            if found and found.trainings >= FEWEST_TRAININGS:
                spreads.setdefault(claim.role, []).append(found.spread)
    return {role: median(values) for role, values in spreads.items()}
