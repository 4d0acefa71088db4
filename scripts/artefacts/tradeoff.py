"""Quality against cost: which variants are worth their seconds, which lose nothing, and when a curve is there.

A variant named "CURVE @ x" is a point of a curve. The yes/no measures decide here, because a shortcut that costs a
video its motion must count as a loss and not as a small mean difference; so does one that shows the reference's
appearance. Appearance match, a graded measure, stands beside appearance accuracy, which is 1.00 for nearly every
variant and does not see colours and shapes that are merely less like the prompt's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # that file imports this one
    from scripts.artefacts.verdict import Verdict

THERE = 0.8  # a motion is learned at this success ...
NEAR_BASE = 0.03  # ... with the appearance this near to the untouched model's, and no more leakage than this above its
LOST = 0.03  # a variant loses nothing when it is no more than this below the best in any measure, or above in leakage


@dataclass(frozen=True)
class Point:
    """A variant at its cost in CPU seconds, with its means over videos.

    Motion success, appearance accuracy and leakage are shares of videos (0 to 1), appearance match is 1 for what the
    prompt names; less leakage is better. Success is over the kinds of motions that are learned at all
    (scripts/artefacts/result.py: learned).
    """

    name: str
    cost: float
    success: float
    appearance: float
    match: float
    leakage: float
    curve: str | None = None  # that it is a point of; None for a row that stands alone

    def keeps(self, appearance: float, match: float, leakage: float, allowed: float) -> bool:
        """Whether the appearance is no more than `allowed` worse than these values, in each of the three measures."""
        short = max(appearance - self.appearance, match - self.match, self.leakage - leakage)
        return short <= allowed + 1e-9  # 0.98 - 0.95 is more than 0.03


@dataclass(frozen=True)
class Target:
    """What the project aims at: `one`, today's default, takes at most the share `most` of the CPU seconds of `other`,
    both variants, with a motion success of at least `success`, and is no worse where the artefact claims that."""

    one: str
    other: str
    most: float
    success: float = 0.0

    def judged(self, points: list[Point], verdicts: Iterable[Verdict] = ()) -> list[str]:
        """A sentence that says whether it was reached; none where one of the two was not measured.

        It is reached only where all claims about the two that can be tested are confirmed, and at least one is.
        """
        found = {point.name: point for point in points}
        if not {self.one, self.other} <= found.keys() or not found[self.other].cost:
            return []
        one, share = found[self.one], found[self.one].cost / found[self.other].cost
        pairs = [v for v in verdicts if (v.claim.one, v.claim.other) == (self.one, self.other)]
        rulings = [v.ruling for v in pairs if v.ruling != "not testable"]
        kept, lost = rulings.count("confirmed"), rulings.count("refuted")
        if share > self.most or one.success < self.success or lost:
            ending = "missed"
        else:
            ending = "reached" if kept == len(rulings) and (rulings or not pairs) else "not decided"
        moved = f" and success {one.success:.2f}, target {self.success:g}" if self.success else ""
        claims = f", with {kept} of {len(rulings)} claims of equal quality confirmed" if rulings else ""
        return [
            f"{self.one} takes {share:.2f} of the CPU seconds of {self.other}, target {self.most:g}{moved}{claims}: "
            f"{ending}."
        ]


def keeping(points: list[Point]) -> list[Point]:
    """The points whose appearance and leakage lose nothing (LOST) against the best of what has learned the motion.

    What has not learned it (THERE) sets no bar, unless nothing has: who does not move has the untouched appearance.
    """
    learned = [point for point in points if point.success >= THERE] or points
    best = (max(p.appearance for p in learned), max(p.match for p in learned), min(p.leakage for p in learned))
    return [point for point in points if point.keeps(*best, LOST)]


def front(points: list[Point]) -> list[Point]:
    """The Pareto front of success over cost, cheapest first, of the points that keep the appearance: what no cheaper or
    equally cheap one reaches."""
    best, kept = float("-inf"), []
    for point in sorted(keeping(points), key=lambda point: (point.cost, -point.success)):
        if point.success > best:
            best = point.success
            kept.append(point)
    return kept


def cheapest(points: list[Point]) -> Point | None:
    """The cheapest point that loses nothing (LOST) in success, appearance and leakage; None where each loses some."""
    success = max(point.success for point in points)
    whole = [point for point in keeping(points) if success - point.success <= LOST + 1e-9]
    return min(whole, key=lambda point: (point.cost, -point.success), default=None)


def reached(points: list[Point], base: Point) -> dict[str, Point | None]:
    """Curve -> its first point where the motion is learned with the appearance of `base`, the untouched model, and no
    more leakage; None: never."""
    curves: dict[str, Point | None] = {}
    for point in sorted(points, key=lambda point: point.cost):
        there = point.success >= THERE and point.keeps(base.appearance, base.match, base.leakage, NEAR_BASE)
        if curves.get(point.curve) is None:
            curves[point.curve] = point if there else None
    return curves


def in_words(points: list[Point], form: str) -> list[str]:
    """Sentences about all points of an artefact whose form is "training" or "sampling"; none without points."""
    shortcuts = [point for point in points if point.curve]
    if not shortcuts:
        return []
    best = cheapest(shortcuts)
    on_front = ", ".join(f"{point.name} ({point.success:.2f})" for point in front(shortcuts))
    sentences = [
        f"Cheapest of what loses nothing (success, appearance accuracy and appearance match within {LOST:g} of the "
        f"best, leakage no more than {LOST:g} above the least): {_described(best, form) if best else 'none'}.",
        f"Pareto front of success over cost, of what keeps appearance and leakage: {on_front or 'none'}.",
    ]
    base = [point for point in points if not point.curve]
    if form == "training" and base:
        found = sorted(reached(shortcuts, base[0]).items(), key=lambda item: item[1].cost if item[1] else float("inf"))
        sentences.append(
            f"CPU seconds until success {THERE:g} with appearance accuracy and match within {NEAR_BASE:g} of the "
            f"untouched model's and leakage no more than {NEAR_BASE:g} above its: "
            + ", ".join(f"{curve} {f'{point.cost:.0f}' if point else 'never'}" for curve, point in found)
            + "."
        )
    return sentences


def default_in_words(points: list[Point], default: str) -> list[str]:
    """A sentence on whether the variant that is the toy world's default follows from these points; none without it."""
    shortcuts = [point for point in points if point.curve]
    if default not in {point.name for point in shortcuts}:
        return []
    best = cheapest(shortcuts)
    if best and best.name == default:
        return [f"The default on the toy world is {default}; it follows from this, as the cheapest that loses nothing."]
    other = f"the cheapest that loses nothing is {best.name}" if best else "each of the variants loses something"
    return [f"The default on the toy world is {default}, and it does not follow from these numbers: {other}."]


def _described(point: Point, form: str) -> str:
    seconds = f"{point.cost:.0f} CPU seconds a clip" if form == "training" else f"{point.cost:.2f} CPU seconds a video"
    return (
        f"{point.name}, {seconds}, success {point.success:.2f}, appearance {point.appearance:.2f}, match "
        f"{point.match:.2f}, leakage {point.leakage:.2f}"
    )
