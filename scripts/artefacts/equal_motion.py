"""Curves of training compared at equal motion: what each has leaked by the time it has learned the motion.

Two presets that are trained equally long do not move equally well, and what moves more may leak more. So the lengths
of a training, which are its checkpoints, make a curve of one preset at one rate, which starts at the untouched model. A
curve is read where it first reaches the motion `LEARNED`, on every reference clip by itself, and the readings of two
presets are paired by clip and rate. To a verdict a preset is then like a variant, with curves in place of videos.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from infer.measure.evaluation import ALL_DEFINITIONS
from scripts.artefacts.artefact import Bound, Variant
from scripts.artefacts.claims import LEARNED
from scripts.artefacts.variants import UNTOUCHED

FORMULA = (
    "At equal motion: the checkpoints of a training are a curve over its length t, from the untouched model (t = 0) "
    "on. Let m(t) be the mean motion success of a clip's videos and l(t) their mean of another measure. A curve is "
    f"read at m* = {LEARNED.value:g}: with t1 the first checkpoint where m(t1) ≥ m*, and t0 the one before it, l* = "
    "l(t0) + (m* − m(t0)) / (m(t1) − m(t0)) · (l(t1) − l(t0)). Presets are compared on the same clip at the same rate; "
    "the value of a clip is the mean difference of l* over the rates at which both reach m*. A pair of which one never "
    "reaches m* has no equal motion to be compared at and is left out."
)
CELLS = ("appearance_pull", "appearance_match")  # what the table shows beside the step


@dataclass(frozen=True)
class Curve:
    """The lengths of one training: (step, name of the variant), shortest first."""

    preset: str
    rate: str
    points: tuple[tuple[int, str], ...]

    @property
    def name(self) -> str:
        return f"{self.preset}, rate {self.rate}"


@dataclass(frozen=True)
class Reading:
    """A curve on one run (a clip's training): what was measured at equal motion, "step" among it, or why nothing."""

    curve: Curve
    motion: str
    reference: str
    run: str
    found: Mapping[str, float] | None
    why_not: str = ""

    @property
    def cell(self) -> str:
        if self.found is None:
            return self.why_not
        shown = " / ".join(f"{self.found[name]:.3f}" if name in self.found else "–" for name in CELLS)
        return f"step {self.found['step']:.0f}: {shown}"


def curves(variants: Iterable[Variant]) -> list[Curve]:
    """The curves that the variants' places make, in their order."""
    points: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for variant in variants:
        if place := variant.place:
            points.setdefault((place.preset, place.rate), []).append((int(place.at), variant.name))
    return [Curve(preset, rate, tuple(sorted(found))) for (preset, rate), found in points.items()]


def at_level(points: Sequence[Mapping[str, float]], level: Bound = LEARNED) -> dict[str, float] | None:
    """Every measure where `level.metric` first reaches `level.value`, linear between the two points around it.

    `points` hold means by metric, in order of training. None where the level is never reached or already by the first.
    """
    motion, wanted = level.metric, level.value
    if points[0][motion] >= wanted:
        return None
    for before, after in pairwise(points):
        if after[motion] >= wanted:
            share = (wanted - before[motion]) / (after[motion] - before[motion])
            common = before.keys() & after.keys()
            return {name: before[name] + share * (after[name] - before[name]) for name in common}
    return None


def readings(rows: Iterable[dict], variants: Iterable[Variant]) -> list[Reading]:
    """Every curve on every run. `rows` are measured videos (scripts/artefacts/result.py)."""
    videos: dict[tuple[str, str], list[dict]] = {}
    for row in rows:
        videos.setdefault((row["run"], row["variant"]), []).append(row)
    learned = {run: (found[0]["motion"], found[0]["reference"]) for (run, _), found in videos.items()}
    return [
        _read(curve, *learned[run], run, {name: found for (of, name), found in videos.items() if of == run})
        for run in learned
        for curve in curves(variants)
    ]


def as_rows(found: Iterable[Reading]) -> dict[str, list[dict]]:
    """Preset -> its readings, in the form of the videos that a verdict is about: one for each training."""
    rows: dict[str, list[dict]] = {}
    for one in found:
        key = {
            "motion": one.motion,
            "reference": one.reference,
            "run": f"{one.run}, {one.curve.rate}",
            "prompt": "",
            "seed": 0,
            "inside": "curves",
        }
        rows.setdefault(one.curve.preset, []).extend([{**one.found, **key}] if one.found else [])
    return rows


def table(found: Sequence[Reading]) -> list[list[str]]:
    """A row for each curve and a column for each run, the header first."""
    runs = dict.fromkeys(one.run for one in found)
    cells = {(one.curve, one.run): one.cell for one in found}
    shown = " / ".join(ALL_DEFINITIONS[name].title for name in CELLS)
    header = [f"at motion success {LEARNED.value:g}: {shown}", *runs]
    return [
        header,
        *([curve.name, *(cells[curve, run] for run in runs)] for curve in dict.fromkeys(o.curve for o in found)),
    ]


def _read(curve: Curve, motion: str, reference: str, run: str, videos: Mapping[str, list[dict]]) -> Reading:
    names = [(0, UNTOUCHED.name), *curve.points]
    points = [{"step": float(step), **_means(videos.get(name, []))} for step, name in names]
    if any(LEARNED.metric not in point for point in points):
        return Reading(curve, motion, reference, run, None, "missing")
    if points[0][LEARNED.metric] >= LEARNED.value:
        return Reading(curve, motion, reference, run, None, "shown by the untouched model")
    most = max(point[LEARNED.metric] for point in points)
    return Reading(curve, motion, reference, run, at_level(points), f"never, at most {most:.2f}")


def _means(rows: Sequence[dict]) -> dict[str, float]:
    values = {name: [row[name] for row in rows if row.get(name) is not None] for name in ALL_DEFINITIONS}
    return {name: fmean(found) for name, found in values.items() if found}
