"""95 % intervals of what a set of videos was measured to be.

Shares (a property that a video has or has not) get Wilson's interval, which stays inside 0..1 and is not empty at 0
or 1; means get Student's. Differences between two variants are paired: same prompt, same seed, same initial noise.
All of them describe a fixed training run over more prompts and seeds, not what another training run would give.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, t

LEVEL = 0.95
FORMULAS = (
    "Shares: Wilson's 95 % interval, (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n) with z = 1.96. Means: Student's, "
    "m ± t(n−1) s/√n. Differences between variants: Student's on the differences of videos with the same reference, "
    "prompt and seed; for shares Agresti and Min's, with half a video added to each of the four outcomes of a pair. They "
    "cover the choice of prompts and seeds, not that of another training run."
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


def estimate(values: Sequence[bool | float]) -> Estimate:
    """`share` of booleans, `mean` of numbers."""
    return share(values) if all(isinstance(value, bool) for value in values) else mean(values)


def difference(one: Mapping, other: Mapping) -> Estimate | None:
    """Mean of one - other over the keys that both have, with its interval; None without a common key.

    Booleans are paired shares: Agresti and Min 2005, whose interval is not empty even when all pairs agree.
    """
    pairs = [(one[key], other[key]) for key in one if key in other]
    if not pairs:
        return None
    if not all(isinstance(value, bool) for pair in pairs for value in pair):
        return mean([a - b for a, b in pairs])
    n, gained, lost = len(pairs), sum(a > b for a, b in pairs), sum(a < b for a, b in pairs)
    middle = (gained - lost) / (n + 2)
    half = norm.ppf((1 + LEVEL) / 2) * np.sqrt(gained + lost + 1 - (gained - lost) ** 2 / (n + 2)) / (n + 2)
    return Estimate((gained - lost) / n, max(-1.0, middle - half), min(1.0, middle + half), n)


def _digits(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"
