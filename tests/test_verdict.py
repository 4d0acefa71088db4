"""What the numbers say about a claim: the ruling of an interval, and the words with their numbers."""

import pytest

from infer.measure.statistics import Estimate
from scripts.artefacts.artefact import Claim
from scripts.artefacts.verdict import Verdict, conclude, judge, rule


@pytest.mark.parametrize(
    ("expect", "low", "high", "ruling"),
    [
        ("more", 0.1, 0.3, "confirmed"),
        ("more", -0.1, 0.3, "not decided"),
        ("more", -0.3, -0.1, "refuted"),
        ("less", -0.3, -0.1, "confirmed"),
        ("less", 0.1, 0.3, "refuted"),
        ("not less", -0.05, 0.3, "confirmed"),
        ("not less", -0.2, 0.3, "not decided"),
        ("not less", -0.3, -0.2, "refuted"),
        ("not more", -0.3, 0.05, "confirmed"),
        ("not more", 0.2, 0.3, "refuted"),
        ("more", float("nan"), float("nan"), "not decided"),
        ("more", 0.0, 0.0, "not decided"),
        ("less", 0.0, 0.0, "not decided"),
    ],
)
def test_a_ruling_follows_from_the_interval(expect, low, high, ruling):
    assert rule(expect, Estimate((low + high) / 2, low, high, 9), 0.1) == ruling


def test_a_verdict_is_computed_from_pairs_of_videos():
    def rows(hits):
        return [
            {"reference": "r", "run": "r", "prompt": str(i), "seed": 0, "leakage": hit} for i, hit in enumerate(hits)
        ]

    claim = Claim("a leaks less than b", "leakage", "a", "less", "b")
    verdict = judge(claim, "g", {"a": rows([False] * 16), "b": rows([True] * 16)}, {"leakage": ("leakage", 0.1)})
    assert verdict.ruling == "confirmed" and "16 pairs" in verdict.words
    assert "0.00 against 1.00, difference -1.00" in verdict.words
    assert judge(claim, "g", {"a": []}, {"leakage": ("leakage", 0.1)}).ruling == "not measured"
    assert judge(claim, "g", {}, {}).ruling == "not measured"


def test_the_conclusion_counts_the_rulings():
    claim = Claim("a leaks less than b", "leakage", "a", "less", "b")
    verdicts = [Verdict(claim, "g", ruling, "") for ruling in ("refuted", "confirmed", "confirmed")]
    assert conclude(verdicts, smoke=False) == "Of 3 comparisons: 2 confirmed, 1 refuted."
    assert conclude(verdicts, smoke=True).startswith("SMOKE RUN") and "claimed" in conclude([], smoke=False)
