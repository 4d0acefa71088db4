"""The result of one artefact: every measured video, the verdicts on its claims, what it cost and what is missing."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from infer.measure.evaluation import ALL_DEFINITIONS, summarize
from infer.measure.statistics import Estimate
from models.training.journal import read_log
from scripts.artefacts import equal_motion
from scripts.artefacts.artefact import COSTS, EACH_MOTION, EQUAL_MOTION, POOLED, Artefact, Variant
from scripts.artefacts.catalogue import ARTEFACTS
from scripts.artefacts.claims import LEARNED
from scripts.artefacts.costs import VariantCost, cost_table
from scripts.artefacts.hidden_states import StateComparison
from scripts.artefacts.plan import Cell
from scripts.artefacts.prices import stored_prices
from scripts.artefacts.provenance import COMMITS
from scripts.artefacts.quotation import Quotation
from scripts.artefacts.samples import sidecars
from scripts.artefacts.testbed import Testbed
from scripts.artefacts.tradeoff import Point, default_in_words, in_words
from scripts.artefacts.variants import RENDERED
from scripts.artefacts.verdict import Verdict, conclude, judge

QUALITIES = ("motion_success", "appearance_accuracy", "appearance_match", "leakage")  # of a Point, in its order


@dataclass(frozen=True)
class Cost:
    """Seconds of all trainings and samplings that the artefact needs, whenever they were made, and the devices.

    `spent` are the same in the unit of the prices (scripts/artefacts/prices.py): of CPU where a CPU made all of them.
    """

    trainings: int
    train_seconds: float
    videos: int
    sample_seconds: float
    devices: tuple[str, ...]
    spent: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.trainings} trainings, {_duration(self.train_seconds)}; {self.videos} videos, "
            f"{_duration(self.sample_seconds)}; on {', '.join(self.devices) or 'nothing'}"
        )


@dataclass
class Result:
    """What was found for one artefact; a row is a video: group, motion, reference, run, variant, prompt, seed, path
    and metrics."""

    name: str
    testbed: Testbed
    smoke: bool
    command: str
    date: str
    commit: str  # the one that measured
    made_at: list[str]  # those that trained and sampled
    cost: Cost
    rows: list[dict]
    foreseen: float = 0.0  # seconds of training and sampling by the stored prices
    problems: list[str] = field(default_factory=list)
    models: dict[str, str] = field(default_factory=dict)
    clips: dict[str, Path] = field(default_factory=dict)  # reference -> a video of it
    costs: dict[str, VariantCost] = field(default_factory=dict)  # of each variant, where costs are compared
    quoted: Quotation | None = None  # what another model does on the same motions
    states: StateComparison | None = None  # figure 4 alone: scripts/artefacts/hidden_states.py

    @property
    def artefact(self) -> Artefact:
        return ARTEFACTS[self.name]

    @property
    def variants(self) -> tuple[Variant, ...]:
        """The artefact's variants; where it needs the toy world, also what rendered clips score."""
        return (*self.artefact.variants, *(RENDERED if self.artefact.world else ()))

    @property
    def title(self) -> str:
        return f"{self.artefact.title} ({self.testbed.name}{', SMOKE RUN' if self.smoke else ''})"

    @property
    def provenance(self) -> str:
        made = f", trained and sampled at {', '.join(self.made_at)}" if self.made_at not in ([], [self.commit]) else ""
        unit = stored_prices(self.testbed.world).unit
        return (
            f"{self.date}, commit {self.commit}{made}. Cost: {self.cost}. By the stored prices training and sampling "
            f"were to take {_duration(self.foreseen)} of {unit}; they took {_duration(self.cost.spent)}."
        )

    @property
    def groups(self) -> list[str]:
        """The kinds of motions, each with a table of its own; curves at equal motion share one."""
        found = list(dict.fromkeys(row["group"] for row in self.rows))
        return [POOLED] if found and self.artefact.form == EQUAL_MOTION else found

    @property
    def metrics(self) -> list[str]:
        """The columns of the main table: the artefact's and the testbed's that at least one video has."""
        return self._measured((*self.artefact.also, *self.testbed.columns))

    @property
    def details(self) -> list[str]:
        """The columns of the second table: what the graded measures are made of."""
        return self._measured(self.testbed.details)

    def _measured(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if any(row.get(name) is not None for row in self.rows)]

    def of(self, variant: str, group: str = POOLED) -> list[dict]:
        return [row for row in self.rows if row["variant"] == variant and group in (POOLED, row["group"])]

    @property
    def reports(self) -> bool:
        """Does the paper report anything for one of the rows?"""
        return any(variant.reported for variant in self.variants)

    def table(self, group: str) -> list[tuple[str, str, dict[str, Estimate], int]]:
        """(variant, the paper's text, estimates, videos) of every variant; one without videos has no estimates."""
        table = []
        for variant in self.variants:
            rows = self.of(variant.name, group)
            table.append((variant.name, variant.reported, summarize(rows), len(rows)))
        return table

    def by_motion(self) -> tuple[str, list[str], list[list[str]]]:
        """(what the cells hold, header, rows): every variant on every motion; no rows for a single motion."""
        motions = list(dict.fromkeys(row["motion"] for row in self.rows))
        roles = self.testbed.roles
        names = (self.testbed.columns[0], roles["appearance"].metric, roles["leakage"].metric)
        shown = [name for name in names if name in self.metrics]
        rows = []
        for variant in self.variants if len(motions) > 1 else ():
            found = [summarize(row for row in self.of(variant.name) if row["motion"] == motion) for motion in motions]
            rows.append(
                [variant.name, *(" / ".join(f"{e[m].value:.2f}" if m in e else "–" for m in shown) for e in found)]
            )
        return " / ".join(ALL_DEFINITIONS[m].title for m in shown), [EACH_MOTION, *motions], rows

    @property
    def cost_rows(self) -> list[list[str]]:
        """The table of costs, the header first; empty where costs are not compared."""
        return cost_table(self.costs)

    @property
    def points(self) -> list[Point]:
        """Where the variants stand between cost and quality; none for an artefact that does not compare these.

        A variant whose cost was not noted stands nowhere; a training costs nothing only where nothing learned is used.
        A kind of motion that no variant learns says nothing about what a shortcut loses, except of the appearance.
        """
        found, form = [], self.artefact.form
        free = [variant.name for variant in self.variants if form == "training" and not variant.uses_training]
        curves = {variant.name: variant.place.curve for variant in self.variants if variant.place}
        learned = self.learned if form in COSTS else []
        for name, cost in self.costs.items() if form in COSTS else ():
            mean = {metric: estimate.value for metric, estimate in summarize(self.of(name)).items()}
            moved = summarize(self.of_kinds(name, learned)).get(LEARNED.metric)
            mean[LEARNED.metric] = moved.value if moved else None
            seconds = 0.0 if name in free else getattr(cost, form)
            if seconds is not None and all(mean.get(metric) is not None for metric in QUALITIES):
                found.append(Point(name, seconds, *(mean[metric] for metric in QUALITIES), curves.get(name)))
        return found

    def of_kinds(self, variant: str, groups: Iterable[str]) -> list[dict]:
        """The videos of a variant in these groups of motions."""
        return [row for row in self.of(variant) if row["group"] in groups]

    @property
    def learned(self) -> list[str]:
        """The groups of motions that are learned in the mean (LEARNED) by the variant which the artefact's target is
        held against; all groups where there is none."""
        other = self.artefact.target.other if self.artefact.target else ""
        success = {group: summarize(self.of(other, group)).get(LEARNED.metric) for group in self.groups}
        return [group for group, found in success.items() if found and found.value >= LEARNED.value] or self.groups

    @property
    def tradeoff(self) -> list[str]:
        """Sentences on what the points say, what is the default, and whether the artefact's target was reached."""
        points, target = self.points, self.artefact.target
        said = in_words(points, self.artefact.form)
        if not target:
            return said
        if said and self.learned != self.groups:
            kinds = " and ".join(self.learned)
            said.insert(
                0, f"Success is over the motions of the kind {kinds}: {target.other} does not learn the others."
            )
        return said + default_in_words(points, target.one) + target.judged(points, self.verdicts)

    @cached_property
    def verdicts(self) -> list[Verdict]:
        if self.states is not None:
            return self.states.verdicts()
        groups = {group: {v.name: self.of(v.name, group) for v in self.variants} for group in (*self.groups, POOLED)}
        if self.artefact.form == EQUAL_MOTION:  # a preset stands beside the variants that are the points of its curves
            groups = {group: found | equal_motion.as_rows(self._readings(group)) for group, found in groups.items()}
        asked = self.artefact.asked(self.groups)
        return judge([(claim, group, groups[group]) for claim, group in asked], self.testbed.roles)

    def _readings(self, group: str = POOLED) -> list[equal_motion.Reading]:
        rows = (row for row in self.rows if group in (POOLED, row["group"]))
        return equal_motion.readings(rows, self.artefact.variants)

    def at_equal_motion(self) -> list[list[str]]:
        """The table of curves at equal motion, the header first; empty for an artefact of another form."""
        found = self._readings() if self.artefact.form == EQUAL_MOTION else []
        return equal_motion.table(found) if found else []

    @property
    def conclusion(self) -> str:
        return conclude(self.verdicts, self.smoke)

    def definitions(self) -> list[tuple[str, str, str, str]]:
        """(title, model, formula, source) of the metrics shown."""
        rows = []
        for name in (*self.metrics, *self.details):
            d = ALL_DEFINITIONS[name]
            model = self.models.get(
                "motion_fidelity"
                if "fidelity" in name
                else {"pickscore": "pickscore", "viclip": "viclip"}.get(name, "clip")
            )
            rows.append((d.title, model if model and not self.testbed.world else d.model, d.formula, d.source))
        return rows


def total_cost(cells: list[Cell]) -> Cost:
    """The cost of the cells' runs and of the videos that they show, from the logs written when they were made."""
    runs = {cell.chain.run_folder for cell in cells if cell.chain.run_folder}
    steps = [record for run in runs for record in read_log(run / "log.jsonl")]
    shown = {(cell.samples.folder, *video) for cell in cells for video in cell.samples.wanted()}
    folders = dict.fromkeys(cell.samples.folder for cell in cells)
    notes = [found for folder in folders for found, *video in sidecars(Path(folder)) if (folder, *video) in shown]
    devices = {found["device"].split(":")[0] for found in notes}
    named = {"cpu": f"cpu ({os.cpu_count()} cores)"}
    if torch.cuda.is_available():
        named["cuda"] = torch.cuda.get_device_name(0)
    unit = "cpu_seconds" if devices == {"cpu"} else "seconds"
    return Cost(
        len(runs),
        sum(found["seconds"] for found in steps),
        len(notes),
        sum(found["seconds"] for found in notes),
        tuple(sorted(named.get(device, device) for device in devices)),
        sum(found.get(unit, found["seconds"]) for found in (*steps, *notes)),
    )


def made_at(cells: list[Cell]) -> list[str]:
    """The commits at which the runs and videos of an artefact were made, as far as they were noted."""
    folders = {path for cell in cells for path in (cell.chain.run, cell.samples.folder)}
    notes = [Path(folder) / COMMITS for folder in folders]
    return sorted({line for path in notes if path.exists() for line in path.read_text(encoding="utf-8").splitlines()})


def _duration(seconds: float) -> str:
    unit, size = ("s", 1) if seconds < 120 else ("min", 60) if seconds < 7200 else ("h", 3600)
    return f"{seconds / size:.{1 if unit == 'h' else 0}f} {unit}"
