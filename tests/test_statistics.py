"""Intervals: against published values, and where naive formulas give none."""

import math

import pytest

from infer.measure.statistics import difference, mean, share, share_or_mean


def test_wilson_interval_has_the_published_values():
    # Newcombe 1998, table I, method 3 (score, no continuity correction)
    published = ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718))
    for hits, n, low, high in published:
        found = share([True] * hits + [False] * (n - hits))
        assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


def test_student_interval_of_a_mean():
    found = mean([1.0, 2.0, 3.0])
    assert (found.value, found.n) == (2.0, 3)
    assert (found.low, found.high) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), abs=1e-5)


def test_one_video_has_a_value_and_no_interval():
    found = mean([0.25])
    assert found.value == 0.25 and math.isnan(found.low) and str(found) == "0.25"


def test_booleans_are_shares_and_numbers_are_means():
    assert str(share_or_mean([True, True])) == "1.00 [0.34, 1.00]"
    assert str(share_or_mean([12.0, 14.0])) == "13.0 [0.29, 25.7]"


def test_from_three_trainings_on_an_interval_covers_the_choice_of_the_training():
    values = [float(training) for training in range(5) for _ in range(100)]  # the videos of a training are all alike
    trainings = [training for training in range(5) for _ in range(100)]
    over_videos, over_trainings = share_or_mean(values), share_or_mean(values, trainings)
    by_hand = mean([0.0, 1.0, 2.0, 3.0, 4.0])
    assert (over_trainings.low, over_trainings.high) == pytest.approx((by_hand.low, by_hand.high))
    assert over_trainings.high > over_videos.high and over_trainings.n == 500
    assert share_or_mean(values[:200], trainings[:200]) == share_or_mean(values[:200])  # two are too few to tell


def test_an_interval_over_trainings_is_never_narrower_and_stays_a_share():
    alike = [video < 50 for _ in range(5) for video in range(100)]
    trainings = [training for training in range(5) for _ in range(100)]
    assert share_or_mean(alike, trainings) == share_or_mean(alike)
    mixed = share_or_mean([training > 0 for training in trainings], trainings)
    assert mixed.low < 0.8 - 0.4 and mixed.high == 1.0


def test_differences_widen_over_groups_too():
    one = {(group, video): float(group % 2) for group in range(6) for video in range(50)}
    other = dict.fromkeys(one, 0.0)
    plain, widened = difference(one, other), difference(one, other, group_of=lambda key: key[0])
    assert plain.low > 0.4 and widened.low < 0 and widened.value == plain.value == 0.5


def test_differences_use_only_pairs():
    found = difference({"a": 3.0, "b": 5.0, "c": 9.0}, {"a": 1.0, "b": 2.0, "d": 7.0})
    assert (found.value, found.n) == (2.5, 2)
    assert difference({"a": 1.0}, {"b": 1.0}) is None
