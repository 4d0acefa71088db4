"""The difference between two variants over reference clips, whether it is decided, and how many clips would decide it.

Videos of one training succeed or fail together, and so do trainings on one clip from several seeds: one clip teaches
what another does not. So the reference clip is what is drawn again and again, with its trainings and their videos
inside. The videos of two variants are paired (same clip, repetition of its training, prompt, seed, initial noise); the
pairs of a clip are averaged, and the clips' means go into Student's t. With as many videos of every clip this is what
a linear mixed model gives in which clips, and trainings inside clips, are random effects, without its fit. A bootstrap
over clips gives the same intervals from about thirty on; below, it is too narrow (tests/test_paired.py shows both).
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import t, ttest_1samp

from infer.measure.statistics import FEWEST, LEVEL

MOST = 1000  # more clips than anybody will learn from


@dataclass(frozen=True)
class PairedDifference:
    """`means` of one - other, one for each clip; `one` and `other` are the variants' own means over all `pairs`.

    `trainings` counts those of each variant, on all clips together.
    """

    means: tuple[float, ...]
    one: float
    other: float
    pairs: int
    trainings: int

    @property
    def value(self) -> float:
        return float(np.mean(self.means))

    @property
    def clips(self) -> int:
        return len(self.means)

    @property
    def spread(self) -> float:
        """Standard deviation of the clips' means."""
        return float(np.std(self.means, ddof=1))

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Student's interval; NaN with fewer than `FEWEST` clips."""
        if self.clips < FEWEST:
            return float("nan"), float("nan")
        if np.ptp(self.means) == 0:  # equal means have an empty interval, where the t statistic is 0 / 0
            return self.value, self.value
        found = ttest_1samp(self.means, 0).confidence_interval(level)
        return float(found.low), float(found.high)

    def p_above(self, edge: float) -> float:
        """How likely means like these, or farther up, are where the true difference is `edge`: two-sided, 1 below it.

        An interval of level 1 - p ends at `edge`. 1 as well with too few clips.
        """
        if self.clips < FEWEST or self.value <= edge:
            return 1.0
        return 0.0 if np.ptp(self.means) == 0 else float(ttest_1samp(self.means, edge).pvalue)

    def turned(self) -> "PairedDifference":
        """The same with the opposite sign, for what is better when it is smaller."""
        return replace(self, means=tuple(-mean for mean in self.means))


def paired_difference(
    one: Mapping, other: Mapping, clip_of: Callable[[Hashable], Hashable], training_of: Callable[[Hashable], Hashable]
) -> PairedDifference | None:
    """one - other over the keys that both have; the functions name the clip and the training of a key.

    Every clip weighs the same, however many of its videos could be measured. None without a common key.
    """
    keys = [key for key in one if key in other]
    if not keys:
        return None
    inside: dict[Hashable, list[float]] = {}
    for key in keys:
        inside.setdefault(clip_of(key), []).append(float(one[key]) - float(other[key]))
    sides = (float(np.mean([float(side[key]) for key in keys])) for side in (one, other))
    means = tuple(float(np.mean(found)) for found in inside.values())
    return PairedDifference(means, *sides, len(keys), len(set(map(training_of, keys))))


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


def clips_needed(spread: float, half: float, level: float = LEVEL) -> int | None:
    """How many clips give an interval of +- `half` where their means have this `spread`; None for over `MOST`."""
    for count in range(FEWEST, MOST + 1):
        if t.ppf((1 + level) / 2, count - 1) * spread / count**0.5 <= half:
            return count
    return None
