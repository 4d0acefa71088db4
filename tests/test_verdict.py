"""What the numbers say about a claim: the ruling of an interval, and the words with their numbers."""

import pytest

from infer.measure.statistics import Estimate
from scripts.artefacts.catalogue import Claim
from scripts.artefacts.verdict import judge, rule


@pytest.mark.parametrize(
    ("expect", "low", "high", "ruling"),
    [
        ("more", 0.1, 0.3, "holds"),
        ("more", -0.1, 0.3, "undecided"),
        ("more", -0.3, -0.1, "does not hold"),
        ("less", -0.3, -0.1, "holds"),
        ("less", 0.1, 0.3, "does not hold"),
        ("not less", -0.05, 0.3, "holds"),
        ("not less", -0.2, 0.3, "undecided"),
        ("not less", -0.3, -0.2, "does not hold"),
        ("not more", -0.3, 0.05, "holds"),
        ("not more", 0.2, 0.3, "does not hold"),
        ("more", float("nan"), float("nan"), "undecided"),
        ("more", 0.0, 0.0, "undecided"),
        ("less", 0.0, 0.0, "undecided"),
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
    assert verdict.ruling == "holds" and "16 pairs" in verdict.words
    assert "0.00 against 1.00, difference -1.00" in verdict.words
    assert judge(claim, "g", {"a": []}, {"leakage": ("leakage", 0.1)}).ruling == "not measured"
    assert judge(claim, "g", {}, {}).ruling == "not measured"
