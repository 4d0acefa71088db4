"""95 % intervals of what a set of videos was measured to be.

Shares (a property that a video has or lacks) get Wilson's score interval, which stays inside 0..1 and is not empty at
0 or 1; means get Student's. Videos of one unit (a reference clip, with all trainings on it) resemble each other, so
from `FEWEST` units on the interval is widened to what the units' means say; below, it describes the units as they are,
over more prompts and seeds.
Differences between variants are in infer/measure/paired.py.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import binomtest, ttest_1samp

LEVEL = 0.95
UNLIMITED = (-np.inf, np.inf)
FEWEST = 3  # units: an interval over fewer would be too wide to say anything
FORMULAS = (
    "Shares: Wilson's 95 % interval, (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n) with z = 1.96. Means: "
    "Student's, m ± t(n−1) s/√n. Videos that learned from one reference clip resemble each other: from three clips on, "
    "the interval is widened to Student's on the clips' means. Differences between variants: pairs of videos with the "
    "same reference clip, prompt, seed and initial noise; their means over each clip, all its trainings together; "
    "Student's t on these, with the motions as blocks where they have several clips each (what is said holds for these "
    "motions), which is the linear mixed model with a random effect of the clip; never narrower than by independent "
    "pairs. Claims: p values by Holm over the artefact's claims that could be tested, each with the smaller of its "
    "two; a claim that something is more (or less) is refuted when the difference is short "
    "of the smallest that counts. Every four prompts of a clip start from one draw of noise of its own, the same for "
    "every variant."
)


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval from `n` videos. The mean of one video has no interval: its limits are NaN."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        interval = f" [{_digits(self.low)}, {_digits(self.high)}]" if np.isfinite(self.low) else ""
        return f"{_digits(self.value)}{interval}"


def share(hits: Sequence[bool]) -> Estimate:
    """The share of True with Wilson's score interval (Wilson 1927), without continuity correction."""
    interval = binomtest(sum(hits), len(hits)).proportion_ci(LEVEL, method="wilson")
    return Estimate(sum(hits) / len(hits), float(interval.low), float(interval.high), len(hits))


def mean(values: Sequence[float]) -> Estimate:
    """The mean with Student's interval."""
    numbers = np.asarray(values, dtype=float)
    n, middle = len(numbers), float(numbers.mean())
    if n < 2:
        return Estimate(middle, float("nan"), float("nan"), n)
    if np.ptp(numbers) == 0:  # equal values have an empty interval, where the t statistic is 0 / 0
        return Estimate(middle, middle, middle, n)
    interval = ttest_1samp(numbers, 0).confidence_interval(LEVEL)
    return Estimate(middle, float(interval.low), float(interval.high), n)


def share_or_mean(values: Sequence[bool | float], units: Sequence[Hashable] | None = None) -> Estimate:
    """`share` of booleans, `mean` of numbers. `units` names the reference clip of each value, default one for all."""
    shares = all(isinstance(value, bool) for value in values)
    inside = grouped(values, units or [None] * len(values))
    return _over_units((share if shares else mean)(values), inside, (0.0, 1.0) if shares else UNLIMITED)


def grouped(values: Iterable[float], units: Iterable[Hashable]) -> dict[Hashable, list[float]]:
    """The values of each unit, in order."""
    inside: dict[Hashable, list[float]] = {}
    for value, unit in zip(values, units, strict=True):
        inside.setdefault(unit, []).append(value)
    return inside


def _over_units(found: Estimate, inside: Mapping[Hashable, Sequence[float]], limits: tuple[float, float]) -> Estimate:
    """`found`, widened to Student's interval of the units' means where there are `FEWEST` of them."""
    if len(inside) < FEWEST:
        return found
    means = mean([float(np.mean(values)) for values in inside.values()])
    half, (least, most) = means.high - means.value, limits
    return replace(
        found, low=max(least, min(found.low, found.value - half)), high=min(most, max(found.high, found.value + half))
    )


def _digits(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"
