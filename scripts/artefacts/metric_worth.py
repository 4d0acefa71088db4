"""Statistics of the study of motion metrics (metric_study.py): what one metric is worth, and what it decides.

A row is a pair of clips with its true errors and its scores; the rows of one reference are its partners. Values are
found for each reference. Intervals are over motions, because references of one motion resemble each other.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
from scipy.stats import spearmanr

from infer.measure.paired import PairedDifference, paired_difference
from infer.measure.statistics import Estimate, share_or_mean
from scripts.artefacts.metric_study import CLASSICAL, EXACT, METRICS, PIXELS
from scripts.artefacts.relations import RELATIONS

Key = tuple[str, str]  # (metric, tracking)
Value = Callable[[list[dict], Key], float]  # of one reference's rows

SAME_TRUTH = 1.0  # pixels of 64: pairs whose path errors differ by less are not put in order
TIE = 1e-6
HALF = 0.5  # a statement about most references holds when the whole interval is above this share
SAME, SHIFTED = "same path", "shifted"  # the two relations whose motion is truly the reference's


@dataclass(frozen=True)
class Worth:
    """What one metric is worth with one kind of tracks; estimates are over references, intervals over motions."""

    rank_path: Estimate  # Spearman's with minus the path error
    rank_progress: Estimate  # ... with minus the progress error
    wrong: Estimate  # share of pairs ordered wrongly
    wrong_without_pan: Estimate
    relations: dict[str, Estimate]  # mean score
    missed: dict[str, Estimate]  # share of references in which the relation scores at or above the same path
    unmeasured: int


def keys_of(rows: Iterable[dict]) -> list[Key]:
    """(metric, tracking) of every score in the rows, exact tracks first."""
    found = dict.fromkeys(key for row in rows for key in row["scores"])
    names = [*METRICS, "clip_consistency"]
    split = [tuple(key.split("/")) for key in found]
    return sorted(split, key=lambda key: ((EXACT, CLASSICAL, PIXELS).index(key[1]), names.index(key[0])))


def worth(rows: list[dict], key: Key) -> Worth:
    """All statistics of one metric with one kind of tracks."""
    by_reference = grouped(rows)
    motions = [found[0]["motion"] for found in by_reference.values()]

    def over_references(value: Callable[[list[dict]], float | bool]) -> Estimate:
        return share_or_mean([value(found) for found in by_reference.values()], motions)

    return Worth(
        over_references(lambda found: rank(found, key, "path_error")),
        over_references(lambda found: rank(found, key, "progress_error")),
        over_references(lambda found: wrong_share(found, key)),
        over_references(lambda found: wrong_share([r for r in found if r["relation"] != "camera pan"], key)),
        {
            name: share_or_mean([row["scores"][label(key)] for row in scored], [row["motion"] for row in scored])
            for name in RELATIONS
            if (scored := [r for r in rows if r["relation"] == name and label(key) in r["scores"]])
        },
        {name: found for name in RELATIONS if (found := missed_share(by_reference, key, name))},
        sum(label(key) not in row["scores"] for row in rows),
    )


def lead(rows: list[dict], one: Key, other: Key, value: Value) -> PairedDifference:
    """one - other of what `value` gives for a reference, paired by reference; what is drawn is the motion."""
    both = (
        {(found[0]["motion"], name): value(found, key) for name, found in grouped(rows).items()} for key in (one, other)
    )
    return paired_difference(*both, clip_of=itemgetter(0), training_of=itemgetter(1))  # a motion is the unit


def decision(missed: Estimate) -> str:
    """ "rewarded": the metric puts the same path above the partner in most references; "blind": it does not.

    "undecided" where the interval of `missed`, the share in which it does not, holds one half.
    """
    return "rewarded" if missed.high < HALF else "blind" if missed.low > HALF else "undecided"


def true_decision(relation: str) -> str:
    """What the truth decides: the same path is above every partner but the shifted one, whose path it is."""
    return "blind" if relation == SHIFTED else "rewarded"


def grouped(rows: Iterable[dict]) -> dict[str, list[dict]]:
    by_reference: dict[str, list[dict]] = {}
    for row in rows:
        by_reference.setdefault(row["reference"], []).append(row)
    return by_reference


def label(key: Key) -> str:
    return "/".join(key)


def rank(rows: list[dict], key: Key, error: str) -> float:
    """Spearman's correlation of the score with minus an error over a reference's pairs; 0 where either is constant."""
    scored = [(row["scores"][label(key)], -row[error]) for row in rows if label(key) in row["scores"]]
    scores, errors = np.array(scored).T.round(9) if scored else (np.zeros(1), np.zeros(1))
    if len(scored) < 3 or np.ptp(scores) == 0 or np.ptp(errors) == 0:
        return 0.0
    return float(spearmanr(scores, errors).statistic)


def both_ranks(rows: list[dict], key: Key) -> float:
    """The ranks with path and with progress error together, -2 to 2."""
    return rank(rows, key, "path_error") + rank(rows, key, "progress_error")


def wrong_share(rows: list[dict], key: Key) -> float:
    """Share of pairs of a reference's partners that the metric puts in the wrong order of path error.

    A tie, and a partner that cannot be measured, count as half: a metric that says nothing would guess.
    """
    wrong = []
    for i, one in enumerate(rows):
        for other in rows[:i]:
            gap = one["path_error"] - other["path_error"]
            if abs(gap) <= SAME_TRUTH:
                continue
            scores = [row["scores"].get(label(key)) for row in (one, other)]
            if None in scores or abs(scores[0] - scores[1]) < TIE:
                wrong.append(0.5)
            else:
                wrong.append(float((scores[0] > scores[1]) == (gap > 0)))
    return float(np.mean(wrong)) if wrong else 0.5


def missed_share(by_reference: dict[str, list[dict]], key: Key, relation: str) -> Estimate | None:
    """Share of references in which the partner scores at or above the same path; None where there is none.

    The partner is truly another motion, or the shifted one. Asked about the same path itself, it is the one that scores
    highest among all that are truly another motion.
    """
    hits, motions = [], []
    for found in by_reference.values():
        scored = {row["relation"]: row for row in found if label(key) in row["scores"]}
        if (same := scored.pop(SAME, None)) is None:
            continue
        others = [
            row["scores"][label(key)]
            for name, row in scored.items()
            if (name == relation or relation == SAME)
            and (name == relation == SHIFTED or row["path_error"] - same["path_error"] > SAME_TRUTH)
        ]
        if others:
            hits.append(bool(max(others) >= same["scores"][label(key)] - TIE))
            motions.append(same["motion"])
    return share_or_mean(hits, motions) if hits else None
