"""Quality against cost: which variants are worth their seconds, which lose nothing, and when a curve is there.

A variant named "CURVE @ x" is a point of a curve. The yes/no measures decide here, because a shortcut that costs a
video its motion must count as a loss and not as a small mean difference.
"""

from dataclasses import dataclass

THERE = 0.8  # a motion is learned at this success ...
NEAR_BASE = 0.03  # ... with the appearance this near to the untouched model's
LOST = 0.03  # a variant loses nothing when success and appearance are this near to the best ones'


@dataclass(frozen=True)
class Point:
    """A variant at its cost in CPU seconds, with its motion success and appearance accuracy (0 to 1)."""

    name: str
    cost: float
    success: float
    appearance: float

    @property
    def curve(self) -> str:
        return self.name.partition(" @ ")[0]


def front(points: list[Point]) -> list[Point]:
    """The Pareto front of success over cost, cheapest first: what no cheaper or equally cheap point reaches."""
    best, kept = float("-inf"), []
    for point in sorted(points, key=lambda point: (point.cost, -point.success)):
        if point.success > best:
            best = point.success
            kept.append(point)
    return kept


def cheapest(points: list[Point]) -> Point:
    """The cheapest point that loses nothing (LOST) against the best success and the best appearance of all."""
    success, appearance = max(p.success for p in points), max(p.appearance for p in points)
    whole = [p for p in points if p.success >= success - LOST and p.appearance >= appearance - LOST]
    return min(whole or points, key=lambda point: (point.cost, -point.success))


def reached(points: list[Point], appearance: float) -> dict[str, Point | None]:
    """Curve -> its first point where the motion is learned, the untouched model having this appearance; None: never."""
    curves: dict[str, Point | None] = {}
    for point in sorted(points, key=lambda point: point.cost):
        there = point.success >= THERE and point.appearance >= appearance - NEAR_BASE
        if curves.get(point.curve) is None:
            curves[point.curve] = point if there else None
    return curves


def in_words(points: list[Point], form: str) -> list[str]:
    """Sentences about all points of an artefact whose form is "training" or "sampling"; none without points."""
    shortcuts = [point for point in points if " @ " in point.name]
    if not shortcuts:
        return []
    best = cheapest(shortcuts)
    on_front = ", ".join(f"{point.name} ({point.success:.2f})" for point in front(shortcuts))
    sentences = [
        f"Cheapest of what loses nothing (success and appearance within {LOST:g} of the best): {best.name}, "
        f"{_seconds(best, form)}, success {best.success:.2f}, appearance {best.appearance:.2f}.",
        f"Pareto front of success over cost: {on_front}.",
    ]
    level = [point.appearance for point in points if " @ " not in point.name]
    if form == "training" and level:
        found = sorted(reached(shortcuts, level[0]).items(), key=lambda item: item[1].cost if item[1] else float("inf"))
        sentences.append(
            f"CPU seconds until success {THERE:g} with the appearance within {NEAR_BASE:g} of the untouched model's: "
            + ", ".join(f"{curve} {f'{point.cost:.0f}' if point else 'never'}" for curve, point in found)
            + "."
        )
    return sentences


def _seconds(point: Point, form: str) -> str:
    return f"{point.cost:.0f} CPU seconds a clip" if form == "training" else f"{point.cost:.2f} CPU seconds a video"
