"""What the numbers say about a claim: rulings over reference clips, what is not testable, words with numbers."""

import numpy as np
import pytest

from scripts.artefacts.artefact import POOLED, Artefact, Bound, Claim
from scripts.artefacts.variants import UNTOUCHED
from scripts.artefacts.verdict import Role, Verdict, conclude, judge

ROLES = {
    "motion": Role("correlation", 0.1, ("motion_success",)),
    "leakage": Role("appearance_pull", 0.1, ("leakage",)),
    "appearance": Role("appearance_match", 0.1),
}


def rows(metric, level, spread=0.02, clips=8, seed=0, trainings=1, **also):
    rng = np.random.default_rng(seed)
    means = level + spread * rng.standard_normal(clips)
    return [
        {
            "reference": f"clip {c}",
            "run": f"clip {c}, training {t}",
            "prompt": p,
            "seed": 0,
            metric: float(mean),
            **also,
        }
        for c, mean in enumerate(means)
        for t in range(trainings)
        for p in range(4 // trainings)
    ]


def ruling(claim, **variants):
    (verdict,) = judge([(claim, "g", variants)], ROLES)
    return verdict


@pytest.mark.parametrize(
    ("expect", "level", "ruled"),
    [
        ("more", 0.8, "confirmed"),
        ("more", 0.5, "refuted"),  # short of the smallest difference that counts
        ("more", 0.2, "refuted"),
        ("less", 0.2, "confirmed"),
        ("less", 0.8, "refuted"),
        ("not less", 0.5, "confirmed"),
        ("not less", 0.8, "confirmed"),
        ("not less", 0.2, "refuted"),
        ("not more", 0.5, "confirmed"),
        ("not more", 0.8, "refuted"),
    ],
)
def test_a_ruling_follows_from_the_difference_over_clips(expect, level, ruled):
    found = ruling(
        Claim("c", "appearance", "a", expect, "b"),
        a=rows("appearance_match", level),
        b=rows("appearance_match", 0.5, seed=1),
    )
    assert found.ruling == ruled and "over 8 reference clips (8 trainings of each) with 32 pairs" in found.words


@pytest.mark.parametrize(("expect", "level"), [("not less", 0.45), ("not more", 0.55)])
def test_what_is_confirmed_by_its_allowance_alone_says_that_the_difference_is_against_it(expect, level):
    claim = Claim("c", "appearance", "a", expect, "b")
    other = rows("appearance_match", 0.5, seed=1)
    found, equal = (ruling(claim, a=rows("appearance_match", at), b=other) for at in (level, 0.5))
    assert (found.ruling, equal.ruling) == ("confirmed", "confirmed")
    assert "against the claim all the same, by less than the 0.1 allowed" in found.words
    assert "all the same" not in equal.words


@pytest.mark.parametrize(
    ("expect", "level", "ruled"),
    [("not less", 0.6, "confirmed"), ("not less", 0.4, "refuted"), ("not more", 0.4, "confirmed")]
    + [("not more", 0.6, "refuted"), ("not less", 0.5, "not decided")],
)
def test_a_bound_stands_where_another_variant_could(expect, level, ruled):
    """Its own metric decides, whatever the role's is; there is no allowance, and nothing has to move beside it."""
    claim = Claim("c", "motion", "a", expect, Bound("motion_success", 0.5))
    found = ruling(claim, a=rows("motion_success", level, 0.05, correlation=0.0))
    assert found.ruling == ruled
    assert f"against 0.500, difference {'+' if level > 0.5 else '-'}" in found.words or level == 0.5
    assert "over 8 reference clips (8 trainings) with 32 videos;" in found.words
    few = ruling(claim, a=rows("motion_success", level, clips=2))
    assert few.ruling == "not decided" and "2 reference clips: too few" in few.words


def test_a_claim_about_one_group_is_asked_there_alone():
    everywhere, paths = Claim("c", "motion", "a", "more", "b"), Claim("c", "motion", "a", "more", "b", group="path")
    asked = Artefact("x", "x", (), (everywhere, paths)).asked(["re-timing", "path"])
    assert asked == [(everywhere, "re-timing"), (everywhere, "path"), (paths, "path")]
    pooled = Artefact("x", "x", (), (everywhere, paths), pooled=True).asked(["re-timing", "path"])
    assert pooled == [(everywhere, POOLED), (paths, "path")]


def test_what_is_not_decided_names_the_clips_that_would_decide_it():
    claim = Claim("c", "appearance", "a", "more", "b")
    found = ruling(claim, a=rows("appearance_match", 0.54, 0.1), b=rows("appearance_match", 0.5, 0.1, seed=1))
    assert found.ruling == "not decided"
    needed = int(found.words.split("; about ")[1].split(" reference clips")[0])
    assert 8 < needed < 200
    many = ruling(
        claim,
        a=rows("appearance_match", 0.54, 0.1, clips=4 * needed),
        b=rows("appearance_match", 0.5, 0.1, clips=4 * needed, seed=1),
    )
    assert many.ruling in ("confirmed", "refuted")


def test_two_trainings_on_each_of_two_clips_are_two_clips_and_decide_nothing():
    """The clip is the unit, with its trainings inside: another seed on it is not another clip."""
    claim = Claim("c", "appearance", "a", "more", "b")

    def found(clips: int, trainings: int) -> Verdict:
        sides = {name: rows("appearance_match", level, clips=clips, trainings=trainings) for name, level in levels}
        return ruling(claim, **sides)

    levels = (("a", 0.9), ("b", 0.1))
    few, enough = found(2, 2), found(3, 2)
    assert few.ruling == "not decided" and "2 reference clips: too few for an interval, which takes 3" in few.words
    assert "over 2 reference clips (4 trainings of each) with 8 pairs of videos" in few.words
    assert enough.ruling == "confirmed" and "over 3 reference clips (6 trainings of each)" in enough.words


def test_moving_no_worse_than_something_that_stands_still_is_not_testable():
    claim = Claim("a moves no worse than b", "motion", "a", "not less", "b")
    still = {UNTOUCHED.name: rows("correlation", 0.3, seed=2)}
    found = ruling(claim, a=rows("correlation", 0.3), b=rows("correlation", 0.3, seed=1), **still)
    assert found.ruling == "not testable" and "b does not move like the reference either" in found.words
    moves = ruling(claim, a=rows("correlation", 0.9), b=rows("correlation", 0.9, seed=1), **still)
    better = ruling(claim, a=rows("correlation", 0.9), b=rows("correlation", 0.3, seed=1), **still)
    unknown = ruling(claim, a=rows("correlation", 0.9), b=rows("correlation", 0.9, seed=1))
    assert (moves.ruling, better.ruling, unknown.ruling) == ("confirmed", "confirmed", "not testable")


def test_whether_there_is_a_motion_to_be_worse_than_is_read_from_the_roles_sign():
    """A re-timed path correlates with what the words say, so that correlation alone would find no motion in it."""
    claim = Claim("a moves no worse than b", "motion", "a", "not less", "b")
    role = {"motion": Role("correlation", 0.1, sign="motion_success")}

    def found(success: float) -> str:
        learned = {"a": rows("correlation", 0.9, motion_success=success)}
        learned["b"] = rows("correlation", 0.9, seed=1, motion_success=success)
        words = {UNTOUCHED.name: rows("correlation", 0.9, seed=2, motion_success=0.0)}
        return judge([(claim, "g", learned | words)], role)[0].ruling

    assert (found(1.0), found(0.0)) == ("confirmed", "not testable")


@pytest.mark.parametrize(
    ("expect", "where_one_leaks", "where_the_other_leaks"),
    [
        ("less", "refuted", "confirmed"),
        ("more", "confirmed", "refuted"),
        ("not less", "confirmed", "refuted"),
        ("not more", "refuted", "confirmed"),
    ],
)
def test_leakage_is_not_testable_where_neither_leaks_and_decided_where_one_does(
    expect, where_one_leaks, where_the_other_leaks
):
    claim = Claim("c", "leakage", "a", expect, "b")

    def found(one: float, other: float) -> Verdict:
        return ruling(claim, a=rows("appearance_pull", one), b=rows("appearance_pull", other, seed=1))

    none = found(0.0, 0.0)
    assert none.ruling == "not testable" and "neither leaks 0.1 or more: a " in none.words and " and b " in none.words
    assert found(-0.06, 0.04).ruling == "not testable"  # decidedly apart, and still no leak on either side
    assert (found(0.5, 0.0).ruling, found(0.0, 0.5).ruling) == (where_one_leaks, where_the_other_leaks)


def test_a_claim_that_stands_alone_can_fall_among_many():
    claim = Claim("c", "appearance", "a", "more", "b")
    sides = {"a": rows("appearance_match", 0.59, 0.06), "b": rows("appearance_match", 0.5, 0.06, seed=1)}
    weak = {"a": rows("appearance_match", 0.54, 0.2, seed=5), "b": rows("appearance_match", 0.5, 0.2, seed=6)}
    (alone,) = judge([(claim, "g", sides)], ROLES)
    first, *others = judge([(claim, "g", sides), *[(claim, f"g{i}", weak) for i in range(30)]], ROLES)
    assert alone.ruling == "confirmed" and "Holm over 1 claim" in alone.words
    assert first.ruling == "not decided" and "Holm over 31 claims" in first.words
    assert {verdict.ruling for verdict in others} == {"not decided"}


def test_the_graded_measure_decides_and_the_yes_or_no_stands_beside():
    claim = Claim("a leaks less than b", "leakage", "a", "less", "b")
    found = ruling(
        claim, a=rows("appearance_pull", 0.1, leakage=False), b=rows("appearance_pull", 0.4, seed=1, leakage=False)
    )
    assert found.ruling == "confirmed" and "leakage 0.00 against 0.00" in found.words


def test_what_has_no_videos_or_no_measure_is_not_measured():
    claim = Claim("a leaks less than b", "leakage", "a", "less", "b")
    assert ruling(claim, a=[]).ruling == "not measured"
    assert judge([(claim, "g", {})], {})[0].ruling == "not measured"


def test_the_conclusion_counts_the_rulings():
    claim = Claim("a leaks less than b", "leakage", "a", "less", "b")
    verdicts = [Verdict(claim, "g", ruling, "") for ruling in ("refuted", "confirmed", "confirmed")]
    assert conclude(verdicts, smoke=False) == "Of 3 comparisons: 2 confirmed, 1 refuted."
    assert conclude(verdicts, smoke=True).startswith("SMOKE RUN") and "claimed" in conclude([], smoke=False)
