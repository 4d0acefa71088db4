"""95 % intervals of what a set of videos was measured to be.

Shares (a property that a video has or lacks) get Wilson's score interval, which stays inside 0..1 and is not empty at
0 or 1; means get Student's. Differences between two variants are paired: same prompt, same seed, same initial noise.
Such an interval describes the trainings as they are, over more prompts and seeds. From `FEWEST_CLIPS` reference clips
on, it also covers what a training on another clip would give.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import binomtest, norm, ttest_1samp

LEVEL = 0.95
UNLIMITED = (-np.inf, np.inf)
FEWEST_CLIPS = 4  # an interval over fewer would be too wide to say anything
FORMULAS = (
    "Shares: Wilson's 95 % interval, (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n) with z = 1.96. Means: "
    "Student's, m ± t(n−1) s/√n. Differences between variants: Student's on the differences of videos with the same "
    "reference, prompt and seed; for shares Agresti and Min's, with half a video added to each of the four outcomes of "
    "a pair. They cover the choice of prompts and seeds, not that of another training. From four reference clips on "
    "they also cover the choice of the clip: the interval is widened to Student's on the clips' means. The prompts of "
    "a list start from four draws of noise, the same for every variant."
)


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval from `n` videos. One video has no interval: its limits are NaN."""

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


def share_or_mean(values: Sequence[bool | float], clips: Sequence[Hashable] | None = None) -> Estimate:
    """`share` of booleans, `mean` of numbers. `clips` names the reference clip of each value, default one for all."""
    shares = all(isinstance(value, bool) for value in values)
    by_clip = _grouped(values, clips or [None] * len(values))
    return _over_clips((share if shares else mean)(values), by_clip, (0.0, 1.0) if shares else UNLIMITED)


def difference(
    one: Mapping, other: Mapping, clip_of: Callable[[Hashable], Hashable] = lambda key: None
) -> Estimate | None:
    """Mean of one - other over the keys that both have, with its interval; None without a common key.

    Booleans are paired shares: Agresti and Min 2005, whose interval is not empty even when all pairs agree. `clip_of`
    names the reference clip of a key, default one for all.
    """
    keys = [key for key in one if key in other]
    if not keys:
        return None
    pairs = [(one[key], other[key]) for key in keys]
    by_clip = _grouped([float(a) - float(b) for a, b in pairs], map(clip_of, keys))
    if not all(isinstance(value, bool) for pair in pairs for value in pair):
        return _over_clips(mean([a - b for a, b in pairs]), by_clip, UNLIMITED)
    n, gained, lost = len(pairs), sum(a > b for a, b in pairs), sum(a < b for a, b in pairs)
    middle = (gained - lost) / (n + 2)
    half = norm.ppf((1 + LEVEL) / 2) * np.sqrt(gained + lost + 1 - (gained - lost) ** 2 / (n + 2)) / (n + 2)
    found = Estimate((gained - lost) / n, max(-1.0, middle - half), min(1.0, middle + half), n)
    return _over_clips(found, by_clip, (-1.0, 1.0))


def _grouped(values: Iterable[float], clips: Iterable[Hashable]) -> dict[Hashable, list[float]]:
    by_clip: dict[Hashable, list[float]] = {}
    for value, clip in zip(values, clips, strict=True):
        by_clip.setdefault(clip, []).append(value)
    return by_clip


def _over_clips(found: Estimate, by_clip: Mapping[Hashable, Sequence[float]], limits: tuple[float, float]) -> Estimate:
    """`found`, widened to Student's interval of the clips' means where there are at least `FEWEST_CLIPS` of them.

    The videos learned from one clip succeed or fail together, so they say less than as many independent videos.
    """
    if len(by_clip) < FEWEST_CLIPS:
        return found
    means = mean([float(np.mean(values)) for values in by_clip.values()])
    half, (least, most) = means.high - means.value, limits
    return replace(
        found, low=max(least, min(found.low, found.value - half)), high=min(most, max(found.high, found.value + half))
    )


def _digits(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"
