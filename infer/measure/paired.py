"""The difference between two variants over trainings, whether it is decided, and how many trainings would decide it.

Videos sampled from one training succeed or fail together, so the training is what is drawn again and again. The
videos of two variants are paired (same reference clip, prompt, seed, initial noise); the pairs inside a training are
averaged, and the trainings' means go into Student's t. With as many videos in every training this is exactly what a
linear mixed model with a random effect of the training gives, without its fit. A bootstrap over trainings gives the
same intervals from about thirty trainings on; below, it is too narrow (tests/test_paired.py shows both).
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t, ttest_1samp

from infer.measure.statistics import FEWEST_TRAININGS, LEVEL

MOST = 1000  # more trainings than anybody will make


@dataclass(frozen=True)
class PairedDifference:
    """`means` of one - other, one for each training; `one` and `other` are the variants' own means over `pairs`."""

    means: tuple[float, ...]
    one: float
    other: float
    pairs: int

    @property
    def value(self) -> float:
        return float(np.mean(self.means))

    @property
    def trainings(self) -> int:
        return len(self.means)

    @property
    def spread(self) -> float:
        """Standard deviation of the trainings' means."""
        return float(np.std(self.means, ddof=1))

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Student's interval; NaN with fewer than `FEWEST_TRAININGS` trainings."""
        if self.trainings < FEWEST_TRAININGS:
            return float("nan"), float("nan")
        if np.ptp(self.means) == 0:  # equal means have an empty interval, where the t statistic is 0 / 0
            return self.value, self.value
        found = ttest_1samp(self.means, 0).confidence_interval(level)
        return float(found.low), float(found.high)

    def p_above(self, edge: float) -> float:
        """How likely means like these, or farther up, are where the true difference is `edge`: two-sided, 1 below it.

        An interval of level 1 - p ends at `edge`. 1 as well with too few trainings.
        """
        if self.trainings < FEWEST_TRAININGS or self.value <= edge:
            return 1.0
        return 0.0 if np.ptp(self.means) == 0 else float(ttest_1samp(self.means, edge).pvalue)

    def turned(self) -> "PairedDifference":
        """The same with the opposite sign, for what is better when it is smaller."""
        return PairedDifference(tuple(-mean for mean in self.means), self.one, self.other, self.pairs)


def paired_difference(
    one: Mapping, other: Mapping, training_of: Callable[[Hashable], Hashable]
) -> PairedDifference | None:
    """one - other over the keys that both have; `training_of` names the training of a key. None without a common key.

    Every training weighs the same, however many of its videos could be measured.
    """
    keys = [key for key in one if key in other]
    if not keys:
        return None
    inside: dict[Hashable, list[float]] = {}
    for key in keys:
        inside.setdefault(training_of(key), []).append(float(one[key]) - float(other[key]))
    sides = (float(np.mean([float(side[key]) for key in keys])) for side in (one, other))
    return PairedDifference(tuple(float(np.mean(found)) for found in inside.values()), *sides, len(keys))


def holm(p_values: Sequence[float], level: float = LEVEL) -> list[float]:
    """The threshold that each p value has to stay below, so that all decisions together err in 1 - `level` (Holm 1979).

    The smallest is held against (1 - level) / number, the next against (1 - level) / (number - 1), and so on; from the
    first that fails on, the threshold is 0.
    """
    thresholds, alive = [0.0] * len(p_values), True
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        threshold = (1 - level) / (len(p_values) - rank)
        alive &= p_values[index] < threshold
        thresholds[index] = threshold if alive else 0.0
    return thresholds


def trainings_needed(spread: float, half: float, level: float = LEVEL) -> int | None:
    """How many trainings give an interval of +- `half` where their means have this `spread`; None for over `MOST`."""
    for count in range(FEWEST_TRAININGS, MOST + 1):
        if t.ppf((1 + level) / 2, count - 1) * spread / count**0.5 <= half:
            return count
    return None
