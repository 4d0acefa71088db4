"""The difference between two variants over reference clips, whether it is decided, and how many clips would decide it.

Videos of one training succeed or fail together, and so do trainings on one clip from several seeds: one clip teaches
what another does not. So the reference clip is what is drawn again and again, with its trainings and their videos
inside. The videos of two variants are paired (same clip, repetition of its training, prompt, seed, initial noise); the
pairs of a clip are averaged, and the clips' means go into Student's t. With as many videos of every clip this is what
a linear mixed model gives in which clips, and trainings inside clips, are random effects, without its fit. A bootstrap
over clips gives the same intervals from about thirty on; below, it is too narrow (tests/test_paired.py shows both).

Clips of one motion resemble each other. Where motions have several clips each, the motions are blocks: the spread is
that of clips inside their motion, and what is said holds for these motions and other clips of them. Where each clip
shows a motion of its own, the motions themselves are what is drawn.

An interval is never narrower than the pairs would have it if they were all independent: a few clips whose means
happen to be equal do not show that there is nothing to spread.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
from scipy.stats import nct, t

from infer.measure.statistics import FEWEST, LEVEL, grouped

MOST = 1000  # more clips than anybody will learn from
POWER = 0.8  # of the experiments that would be made with so many clips, how many would decide


@dataclass(frozen=True)
class PairedDifference:
    """`differences` one - other of the pairs inside each clip, and the motion that each clip shows.

    `one` and `other` are the variants' own means, averaged as the differences are. `trainings` counts those of each
    variant, on all clips together.
    """

    differences: tuple[tuple[float, ...], ...]
    motions: tuple[Hashable, ...]
    one: float
    other: float
    trainings: int

    @property
    def means(self) -> tuple[float, ...]:
        """One for each clip."""
        return tuple(float(np.mean(found)) for found in self.differences)

    @property
    def value(self) -> float:
        return _mean(self.means, blocks_of(self.motions))

    @property
    def clips(self) -> int:
        return len(self.differences)

    @property
    def pairs(self) -> int:
        return sum(map(len, self.differences))

    @property
    def blocks(self) -> int:
        """How many motions' own means the spread of clips leaves out: it has as many degrees of freedom fewer."""
        return len(set(blocks_of(self.motions)))

    @property
    def spread(self) -> float:
        """Standard deviation of the clips' means, inside their motions."""
        return _spread(self.means, blocks_of(self.motions))[0]

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Student's interval; NaN with fewer than `FEWEST` clips."""
        if self.clips < FEWEST:
            return float("nan"), float("nan")
        half = max(float(t.ppf((1 + level) / 2, freedom)) * error for error, freedom in self._errors())
        return self.value - half, self.value + half

    def p_above(self, edge: float) -> float:
        """Two-sided p value of means like these, or farther from `edge`, where the true difference is `edge`.

        An interval of level 1 - p ends at `edge`. 1 where the difference is not above `edge`, and with too few clips.
        """
        if self.clips < FEWEST or self.value <= edge:
            return 1.0
        way = self.value - edge
        return max(2 * float(t.sf(way / error, freedom)) if error else 0.0 for error, freedom in self._errors())

    def p_below(self, edge: float) -> float:
        """`p_above` for the other side."""
        return self.turned().p_above(-edge)

    def _errors(self) -> list[tuple[float, int]]:
        """(standard error, degrees of freedom) by the clips' means, and by the pairs as if they were independent."""
        blocks = blocks_of(self.motions)
        found = [_error(self.means, blocks)]
        of_pairs = [block for block, inside in zip(blocks, self.differences) for _ in inside]
        if self.pairs > self.clips:
            found.append(_error([*chain.from_iterable(self.differences)], of_pairs))
        return found

    def turned(self) -> "PairedDifference":
        """The same with the opposite sign, for what is better when it is smaller."""
        return replace(self, differences=tuple(tuple(-value for value in inside) for inside in self.differences))


def paired_difference(
    one: Mapping,
    other: Mapping,
    clip_of: Callable[[Hashable], Hashable],
    training_of: Callable[[Hashable], Hashable],
    motion_of: Callable[[Hashable], Hashable] = lambda key: None,
) -> PairedDifference | None:
    """one - other over the keys that both have; the functions name the clip, the training and the motion of a key.

    Every clip of a motion weighs the same, however many of its videos could be measured. None without a common key.
    """
    keys = [key for key in one if key in other]
    if not keys:
        return None
    inside: dict[Hashable, list] = {}
    for key in keys:
        inside.setdefault(clip_of(key), []).append(key)
    motions = tuple(motion_of(found[0]) for found in inside.values())
    sides = (
        _mean([float(np.mean([float(side[key]) for key in found])) for found in inside.values()], blocks_of(motions))
        for side in (one, other)
    )
    differences = tuple(tuple(float(one[key]) - float(other[key]) for key in found) for found in inside.values())
    return PairedDifference(differences, motions, *sides, len(set(map(training_of, keys))))


def blocks_of(motions: Sequence[Hashable]) -> Sequence[Hashable]:
    """The motions where their clips repeat often enough to show a spread inside them, else one block of all clips."""
    return motions if len(motions) - len(set(motions)) >= FEWEST - 1 else [None] * len(motions)


def _arrays(values: Sequence[float], blocks: Sequence[Hashable]) -> list[np.ndarray]:
    return [np.array(found) for found in grouped(values, blocks).values()]


def _mean(values: Sequence[float], blocks: Sequence[Hashable]) -> float:
    """The mean of the blocks' means."""
    return float(np.mean([found.mean() for found in _arrays(values, blocks)]))


def _spread(values: Sequence[float], blocks: Sequence[Hashable]) -> tuple[float, int]:
    """(standard deviation inside the blocks, its degrees of freedom)."""
    inside = _arrays(values, blocks)
    freedom = len(values) - len(inside)
    return float(np.sqrt(sum(((found - found.mean()) ** 2).sum() for found in inside) / freedom)), freedom


def _error(values: Sequence[float], blocks: Sequence[Hashable]) -> tuple[float, int]:
    """(standard error of `_mean`, its degrees of freedom)."""
    spread, freedom = _spread(values, blocks)
    inside = _arrays(values, blocks)
    return spread * sum(1 / len(found) for found in inside) ** 0.5 / len(inside), freedom


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


def decide(chances: Sequence[tuple[float, float]], level: float = LEVEL) -> list[int | None]:
    """Which of its two rulings each claim gets, 0 (confirmed) or 1 (refuted), by the p values of both; None: neither.

    Holm's correction with a direction (Shaffer 1980; Finner 1999): a claim stands in line with its smaller p value and
    gets the ruling of that one alone. The threshold that a certain refutation has earned confirms nothing.
    """
    smaller = [min(both) for both in chances]
    return [
        both.index(p) if p < threshold else None for both, p, threshold in zip(chances, smaller, holm(smaller, level))
    ]


def clips_needed(spread: float, distance: float, level: float = LEVEL, blocks: int = 1) -> int | None:
    """How many clips decide, in `POWER` of all cases, that a difference is beyond an edge which is `distance` away.

    `spread` is that of the clips' means inside `blocks` motions; intervals are of this `level`. None for over `MOST`.
    """

    def decides(count: int) -> bool:
        freedom = count - blocks
        return nct.sf(t.ppf((1 + level) / 2, freedom), freedom, distance * count**0.5 / spread) >= POWER

    fewest = max(FEWEST, blocks + FEWEST - 1)
    if not spread:
        return fewest
    return next((count for count in range(fewest, MOST + 1) if decides(count)), None)
