"""Differences over reference clips: what a mixed model says, honest with few clips, and corrected for many claims."""

import math

import numpy as np
import pytest
from scipy.stats import bootstrap, ttest_1samp

from infer.measure.paired import FEWEST, clips_needed, decide, holm, paired_difference


def drawn(clips, videos, between, within, seed, effect=0.0):
    """Two variants whose differences have an effect of the reference clip and one of the video."""
    rng = np.random.default_rng(seed)
    shift = effect + between * rng.standard_normal(clips)
    one = {(c, v): shift[c] + within * rng.standard_normal() for c in range(clips) for v in range(videos)}
    return one, dict.fromkeys(one, 0.0)


def over_clips(one, other, clip_of=lambda key: key[0]):
    """One training on each clip."""
    return paired_difference(one, other, clip_of, clip_of)


def itself(key):
    return key


def test_the_interval_is_that_of_a_mixed_model_by_hand():
    """In a balanced design the random-effects estimate has the variance MS(between) / (trainings x videos)."""
    one, other = drawn(9, 6, between=0.5, within=1.0, seed=0)
    values = np.array([[one[t, v] for v in range(6)] for t in range(9)])
    between = 6 * values.mean(1).var(ddof=1)
    half = 2.306004 * math.sqrt(between / 54)  # Student's t for 8 degrees of freedom
    assert over_clips(one, other).interval() == pytest.approx((values.mean() - half, values.mean() + half))


def test_videos_of_a_clip_do_not_count_as_clips():
    one, other = drawn(6, 200, between=1.0, within=0.1, seed=1)
    low, high = over_clips(one, other).interval()
    naive = ttest_1samp(list(one.values()), 0).confidence_interval()
    assert high - low > 4 * (naive.high - naive.low)


def test_trainings_of_a_clip_do_not_count_as_clips_either():
    """Where the clip decides, another seed on it says little that is new; counted, it makes the interval too narrow."""
    rng = np.random.default_rng(2)
    shift = rng.standard_normal(6)
    one = {(c, t, v): shift[c] + 0.1 * rng.standard_normal() for c in range(6) for t in range(4) for v in range(8)}
    found = paired_difference(one, dict.fromkeys(one, 0.0), lambda key: key[0], lambda key: key[:2])
    assert (found.clips, found.trainings, found.pairs) == (6, 24, 192)
    alone = over_clips(
        *({key: value for key, value in side.items() if key[1] == 0} for side in (one, dict.fromkeys(one, 0.0)))
    )
    naive = over_clips(
        {(key[:2], key[2]): value for key, value in one.items()}, {(key[:2], key[2]): 0.0 for key in one}
    )
    width = [high - low for low, high in (each.interval() for each in (found, alone, naive))]
    assert width[0] == pytest.approx(width[1], rel=0.1) and width[0] > 2 * width[2]
    assert found.turned().trainings == 24


def test_few_clips_are_covered_where_a_bootstrap_is_too_narrow():
    covered = {"student": 0, "bootstrap": 0}
    rounds = 300
    for seed in range(rounds):
        found = over_clips(*drawn(6, 8, between=0.5, within=1.0, seed=seed))
        low, high = found.interval()
        covered["student"] += low <= 0 <= high
        drawn_again = bootstrap(
            (found.means,), np.mean, n_resamples=300, method="percentile", rng=np.random.default_rng(seed)
        ).confidence_interval
        covered["bootstrap"] += drawn_again.low <= 0 <= drawn_again.high
    assert covered["student"] > 0.92 * rounds > 0.9 * rounds > covered["bootstrap"]


def test_with_many_clips_a_bootstrap_says_the_same():
    found = over_clips(*drawn(60, 4, between=0.5, within=1.0, seed=3))
    drawn_again = bootstrap((found.means,), np.mean, rng=np.random.default_rng(0)).confidence_interval
    low, high = found.interval()
    assert (drawn_again.low, drawn_again.high) == pytest.approx((low, high), abs=0.1 * (high - low))


def test_an_interval_of_level_one_minus_p_ends_at_the_edge():
    found = over_clips(*drawn(8, 4, between=0.5, within=1.0, seed=4, effect=1.0))
    p = found.p_above(0.3)
    assert 0 < p < 0.5 and found.interval(1 - p)[0] == pytest.approx(0.3)
    assert found.p_above(found.value + 0.01) == 1.0 and found.p_below(found.value - 0.01) == 1.0


def test_too_few_clips_have_no_interval_and_decide_nothing():
    found = over_clips(*drawn(FEWEST - 1, 50, between=0.0, within=0.001, seed=5, effect=1.0))
    assert math.isnan(found.interval()[0]) and found.p_above(0.0) == 1.0


def test_only_pairs_count_and_every_clip_weighs_the_same():
    one = {("a", 1): 1.0, ("a", 2): 1.0, ("a", 3): 1.0, ("b", 1): 4.0, ("c", 9): 100.0}
    found = over_clips(one, dict.fromkeys([*one][:-1], 0.0))
    assert (found.value, found.clips, found.pairs) == (2.5, 2, 4)
    assert over_clips({("a", 1): 1.0}, {("b", 1): 1.0}) is None


def test_holms_thresholds_are_the_published_ones():
    # Holm 1979: 0.05 / 4, / 3, / 2, / 1 in the order of p; from the first that fails on nothing is decided
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.05 / 3, 0.0, 0.0, 0.05 / 4])
    assert holm([0.001, 0.02]) == pytest.approx([0.025, 0.05]) and holm([]) == []


def test_a_certain_refutation_makes_no_confirmation_cheaper():
    """Twenty differences that are not there, of which most are plainly smaller than what counts."""
    wrong, rounds = {"both": 0, "smaller p alone": 0}, 300
    rng = np.random.default_rng(0)
    for _ in range(rounds):
        values = 0.05 * rng.standard_normal((20, 16))
        found = [over_clips(dict(enumerate(row)), dict.fromkeys(range(16), 0.0), itself) for row in values]
        chances = [(one.p_above(0.0), one.p_below(0.1)) for one in found]
        wrong["both"] += 0 in decide(chances)
        edges = holm([min(pair) for pair in chances])
        wrong["smaller p alone"] += any(pair[0] < edge for pair, edge in zip(chances, edges))
    assert wrong["both"] <= 0.05 * rounds < 0.1 * rounds < wrong["smaller p alone"]


def test_a_claim_gets_the_ruling_of_its_smaller_p_value():
    assert decide([]) == []
    assert decide([(0.001, 0.002), (0.04, 1.0), (1.0, 0.02)]) == [0, 0, 1]  # 0.05 / 3, then / 2, then / 1
    assert decide([(0.002, 0.001), (0.06, 1.0), (1.0, 0.03)]) == [1, None, None]


def of_motions(clips_each, between, within, seed, effect=0.0):
    """Four videos of every clip, whose motions have effects of their own."""
    rng = np.random.default_rng(seed)
    one = {}
    for motion, clips in enumerate(clips_each):
        shift = between * (motion - (len(clips_each) - 1) / 2) + effect
        for clip in range(clips):
            own = shift + within * rng.standard_normal()
            one |= {(motion, clip, video): own + within * rng.standard_normal() for video in range(4)}
    return one, dict.fromkeys(one, 0.0)


def by_motion(one, other, blocks=True):
    motion_of = (lambda key: key[0]) if blocks else (lambda key: None)
    return paired_difference(one, other, lambda key: key[:2], lambda key: key[:2], motion_of)


def test_motions_are_blocks_where_they_have_several_clips_each():
    """The interval is that of a one-way layout by hand, and covers these motions' mean as often as it says."""
    one, other = of_motions([3, 3], between=2.0, within=0.3, seed=0)
    means = np.array([[np.mean([one[m, c, v] for v in range(4)]) for c in range(3)] for m in range(2)])
    spread = math.sqrt(((means - means.mean(1, keepdims=True)) ** 2).sum() / 4)
    half = 2.776445 * spread / math.sqrt(6)  # Student's t for 4 degrees of freedom
    found = by_motion(one, other)
    assert found.interval() == pytest.approx((means.mean() - half, means.mean() + half))
    assert found.spread == pytest.approx(spread) and found.blocks == 2
    whole = by_motion(one, other, blocks=False)
    assert np.diff(whole.interval()) > 3 * np.diff(found.interval()), "the motions differ, which is no noise"
    covered = 0
    for seed in range(300):
        low, high = by_motion(*of_motions([4, 4], between=2.0, within=0.3, seed=seed)).interval()
        covered += low <= 0 <= high
    assert 0.92 * 300 < covered


def test_motions_of_one_clip_each_are_what_is_drawn():
    one, other = of_motions([1, 1, 1, 1, 1], between=1.0, within=0.1, seed=1)
    alone, plain = by_motion(one, other), by_motion(one, other, blocks=False)
    assert alone.interval() == plain.interval() and alone.blocks == 1


def test_sides_and_difference_are_averaged_alike():
    one = {("a", clip, video): 1.0 for clip, videos in ((0, 8), (1, 1), (2, 1)) for video in range(videos)}
    other = {key: 0.0 if key[1] == 0 else 1.5 for key in one}
    found = by_motion(one, other)
    assert found.one - found.other == pytest.approx(found.value) and found.value == pytest.approx(0.0)


def test_equal_means_of_few_clips_are_no_certainty():
    """Five of eight videos of each of three clips succeed: that no clip differs is chance, and not without error."""
    one = {(clip, video): float(video < 5) for clip in range(3) for video in range(8)}
    found = over_clips(one, dict.fromkeys(one, 0.5))
    low, high = found.interval()
    assert low < 0 < high and found.p_above(0.0) > 0.2
    same = over_clips(one, one)  # the same videos on both sides: nothing spreads, and nothing can
    assert same.interval() == (0.0, 0.0) and same.p_above(-0.1) == 0.0


def test_the_number_of_clips_needed_decides_in_four_of_five_cases():
    needed = clips_needed(spread=0.1, distance=0.1)
    assert needed == 10  # the textbook's number for an effect of one standard deviation
    rng, decided = np.random.default_rng(0), 0
    for _ in range(1000):
        found = over_clips(
            dict(enumerate(0.1 + 0.1 * rng.standard_normal(needed))), dict.fromkeys(range(needed), 0.0), itself
        )
        decided += found.p_above(0.0) < 0.05
    assert 0.76 * 1000 < decided < 0.87 * 1000
    assert clips_needed(0.1, 0.1, blocks=4) > needed > clips_needed(0.1, 0.2)
    assert clips_needed(1.0, 0.001) is None and clips_needed(0.0, 0.1) == FEWEST
