"""95 % intervals of what a set of videos was measured to be.

Shares (a property that a video has or has not) get Wilson's interval, which stays inside 0..1 and is not empty at 0
or 1; means get Student's. Differences between two variants are paired: same prompt, same seed, same initial noise.
These describe fixed trainings over more prompts and seeds. From `FEWEST_RUNS` trainings on the interval also covers what
another training, on another clip or from another seed, would give.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import norm, t

LEVEL = 0.95
UNLIMITED = (-np.inf, np.inf)
FEWEST_RUNS = 5  # an interval over fewer trainings would be too wide to say anything
FORMULAS = (
    "Shares: Wilson's 95 % interval, (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n) with z = 1.96. Means: Student's, "
    "m ± t(n−1) s/√n. Differences between variants: Student's on the differences of videos with the same reference, "
    "prompt and seed; for shares Agresti and Min's, with half a video added to each of the four outcomes of a pair. They "
    "cover the choice of prompts and seeds; from five trainings on also that of the training: the interval is widened to "
    "Student's on the trainings' means."
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
    """The share of True with Wilson's interval (Wilson 1927, score interval)."""
    n, z = len(hits), norm.ppf((1 + LEVEL) / 2)
    p = sum(hits) / n
    middle, spread = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    scale = 1 + z**2 / n
    # at p = 0 and 1 the interval ends exactly there; rounding would leave it just beside
    return Estimate(p, max(0.0, (middle - spread) / scale) if p else 0.0,
                    min(1.0, (middle + spread) / scale) if p < 1 else 1.0, n)


def mean(values: Sequence[float]) -> Estimate:
    """The mean with Student's interval."""
    numbers = np.asarray(values, dtype=float)
    n, middle = len(numbers), float(numbers.mean())
    if n < 2:
        return Estimate(middle, float("nan"), float("nan"), n)
    half = float(t.ppf((1 + LEVEL) / 2, n - 1) * numbers.std(ddof=1) / np.sqrt(n))
    return Estimate(middle, middle - half, middle + half, n)


def estimate(values: Sequence[bool | float], runs: Sequence[Hashable] | None = None) -> Estimate:
    """`share` of booleans, `mean` of numbers. `runs` names the training of each value, default one for all."""
    shares = all(isinstance(value, bool) for value in values)
    by_run = _grouped(values, runs or [None] * len(values))
    return _over_runs((share if shares else mean)(values), by_run, (0.0, 1.0) if shares else UNLIMITED)


def difference(one: Mapping, other: Mapping, run_of: Callable[[Hashable], Hashable] = lambda key: None) -> Estimate | None:
    """Mean of one - other over the keys that both have, with its interval; None without a common key.

    Booleans are paired shares: Agresti and Min 2005, whose interval is not empty even when all pairs agree. `run_of`
    names the training of a key, default one for all.
    """
    keys = [key for key in one if key in other]
    if not keys:
        return None
    pairs = [(one[key], other[key]) for key in keys]
    by_run = _grouped([float(a) - float(b) for a, b in pairs], map(run_of, keys))
    if not all(isinstance(value, bool) for pair in pairs for value in pair):
        return _over_runs(mean([a - b for a, b in pairs]), by_run, UNLIMITED)
    n, gained, lost = len(pairs), sum(a > b for a, b in pairs), sum(a < b for a, b in pairs)
    middle = (gained - lost) / (n + 2)
    half = norm.ppf((1 + LEVEL) / 2) * np.sqrt(gained + lost + 1 - (gained - lost) ** 2 / (n + 2)) / (n + 2)
    found = Estimate((gained - lost) / n, max(-1.0, middle - half), min(1.0, middle + half), n)
    return _over_runs(found, by_run, (-1.0, 1.0))


def _grouped(values: Iterable[float], runs: Iterable[Hashable]) -> dict[Hashable, list[float]]:
    by_run: dict[Hashable, list[float]] = {}
    for value, run in zip(values, runs, strict=True):
        by_run.setdefault(run, []).append(value)
    return by_run


def _over_runs(found: Estimate, by_run: Mapping[Hashable, Sequence[float]], limits: tuple[float, float]) -> Estimate:
    """`found`, widened to Student's interval of the runs' means where there are at least `FEWEST_RUNS` of them.

    The videos of one training succeed or fail together, so they tell less than as many independent videos.
    """
    if len(by_run) < FEWEST_RUNS:
        return found
    means = mean([float(np.mean(values)) for values in by_run.values()])
    half, (least, most) = means.high - means.value, limits
    return replace(found, low=max(least, min(found.low, found.value - half)),
                   high=min(most, max(found.high, found.value + half)))


def _digits(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"
