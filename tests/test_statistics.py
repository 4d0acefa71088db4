"""Intervals: against published values, and where naive formulas give none."""

import math

import pytest

from infer.measure.statistics import mean, share, share_or_mean


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


def test_from_three_clips_on_an_interval_covers_the_choice_of_the_clip():
    values = [float(clip) for clip in range(5) for _ in range(100)]  # the videos of a clip are all alike
    clips = [clip for clip in range(5) for _ in range(100)]
    over_videos, over_clips = share_or_mean(values), share_or_mean(values, clips)
    by_hand = mean([0.0, 1.0, 2.0, 3.0, 4.0])
    assert (over_clips.low, over_clips.high) == pytest.approx((by_hand.low, by_hand.high))
    assert over_clips.high > over_videos.high and over_clips.n == 500
    assert share_or_mean(values[:200], clips[:200]) == share_or_mean(values[:200])  # two are too few to tell


def test_an_interval_over_clips_is_never_narrower_and_stays_a_share():
    alike = [video < 50 for _ in range(5) for video in range(100)]
    clips = [clip for clip in range(5) for _ in range(100)]
    assert share_or_mean(alike, clips) == share_or_mean(alike)
    mixed = share_or_mean([clip > 0 for clip in clips], clips)
    assert mixed.low < 0.8 - 0.4 and mixed.high == 1.0
