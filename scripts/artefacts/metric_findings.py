"""What the study of motion metrics found, in words: statements about the metrics, and which one a paper should use.

Every sentence is chosen by the numbers: a statement is confirmed or refuted where its whole interval says so, and not
decided otherwise. Two metrics are compared by their paired difference over motions (infer/measure/paired.py).
"""

from dataclasses import dataclass

from infer.measure.paired import PairedDifference, holm
from infer.measure.statistics import Estimate, share_or_mean
from scripts.artefacts.metric_study import CLASSICAL, CLIP_METRIC, EXACT, METRICS
from scripts.artefacts.metric_worth import HALF, Key, Worth, both_ranks, grouped, label, lead, worth, wrong_share


@dataclass(frozen=True)
class Statement:
    """Something that could be so or not, and what the numbers say: confirmed, refuted or not decided."""

    text: str
    ruling: str
    words: str


def title_of(key: Key) -> str:
    return CLIP_METRIC.title if key[0] == "clip_consistency" else METRICS[key[0]].title


def statements(rows: list[dict]) -> list[Statement]:
    """The questions that the study was made for, answered by its rows."""
    found = []
    for name in ("paper", "dmt_code", "mtbench_code", "mtbench_paper", "agreement"):
        for tracking in (EXACT, CLASSICAL):
            share = worth(rows, (name, tracking)).missed.get("camera pan")
            if share:
                found.append(
                    _of_a_share(
                        f"{METRICS[name].title}, {tracking}: a camera pan over a still object scores at least as high "
                        "as the reference's own path",
                        share,
                    )
                )
    place = shift_costs(rows, ("mtbench_code", EXACT))
    found.append(_of_a_share("MTBench (script), exact tracks: the same path in another place scores lower", place))
    place = shift_costs(rows, ("agreement", EXACT))
    found.append(
        _of_a_share("displacement agreement, exact tracks: the same path in another place scores lower", place)
    )
    for tracking in (EXACT, CLASSICAL):
        ours, published = best(rows, tracking, False), best(rows, tracking, True)
        gap = lead(rows, published, ours, wrong_share)
        low, high = gap.interval()
        found.append(
            Statement(
                f"With {tracking}, {title_of(ours)} orders fewer pairs wrongly than the best published metric, "
                f"{title_of(published)}",
                "confirmed" if low > 0 else "refuted" if high < 0 else "not decided",
                f"difference {difference_words(gap)} over {gap.clips} motions, {gap.pairs} references",
            )
        )
    return found


def shift_costs(rows: list[dict], key: Key) -> Estimate:
    """Share of references whose path in another place scores lower than in the same place."""
    hits, motions = [], []
    for found in grouped(rows).values():
        scores = {row["relation"]: row["scores"].get(label(key)) for row in found}
        if None not in (scores.get("shifted"), scores.get("same path")):
            hits.append(bool(scores["shifted"] < scores["same path"] - 0.01))
            motions.append(found[0]["motion"])
    return share_or_mean(hits, motions)


def best(rows: list[dict], tracking: str, published: bool) -> Key:
    """The metric (published, or this project's agreement) that orders fewest pairs wrongly."""
    names = [n for n, m in METRICS.items() if m.published == published and (published or n.startswith("agreement"))]
    return min(((name, tracking) for name in names), key=lambda key: worth(rows, key).wrong.value)


def difference_words(gap: PairedDifference) -> str:
    """The difference with its sign and, from three motions on, its interval."""
    low, high = gap.interval()
    return f"{gap.value:+.2f}" + (f" [{low:+.2f}, {high:+.2f}]" if low == low else "")


def _of_a_share(text: str, share: Estimate) -> Statement:
    ruling = "confirmed" if share.low > HALF else "refuted" if share.high < HALF else "not decided"
    return Statement(text, ruling, f"in {share} of {share.n} references")


def advice(rows: list[dict]) -> str:
    """Which metric a paper should use, and why, from the numbers."""
    parts = []
    worths = {
        tracking: {(name, tracking): worth(rows, (name, tracking)) for name in METRICS}
        for tracking in (EXACT, CLASSICAL)
    }
    for tracking, found in worths.items():
        first, second = sorted(found, key=lambda key: found[key].wrong.value)[:2]
        gap = lead(rows, second, first, wrong_share)
        progress = max(found, key=lambda key: found[key].rank_progress.value)
        seen = [key for key in found if (m := found[key].missed.get("camera pan")) and m.high < HALF]
        parts.append(
            f"With {tracking}, {title_of(first)} orders fewest pairs wrongly ({found[first].wrong}); its lead over "
            f"{title_of(second)} is {'decided' if gap.interval()[0] > 0 else 'not decided'} ({difference_words(gap)}). "
            f"Progress is followed best by {title_of(progress)} (rank {found[progress].rank_progress}). A camera pan "
            f"is told from a moving object by {', '.join(map(title_of, seen)) or 'no metric'}."
        )
    return "\n\n".join([*parts, _recommended(rows, worths[CLASSICAL])])


def _recommended(rows: list[dict], found: dict[Key, Worth]) -> str:
    """The metric for tracked points, held against the runner-up and against all the others."""
    ranks = lambda key: found[key].rank_path.value + found[key].rank_progress.value
    pick, *others = sorted(found, key=ranks, reverse=True)
    leads = [lead(rows, pick, other, both_ranks) for other in others]
    low, _ = leads[0].interval()
    chances = [gap.p_above(0.0) for gap in leads]
    beaten = sum(chance < edge for chance, edge in zip(chances, holm(chances), strict=True))
    wrong = [one.wrong.value for one in found.values()]
    return (
        f"A paper that has only tracked points should report {title_of(pick)}: of all metrics its ranks with path and "
        f"progress error together are highest ({found[pick].rank_path} and {found[pick].rank_progress}); "
        f"{METRICS[pick[0]].sees}. Its lead over the runner-up, {title_of(others[0])}, in the sum of both ranks is "
        f"{'decided' if low > 0 else 'not decided'}: {difference_words(leads[0])}, paired over {leads[0].clips} "
        f"motions. After Holm's correction it leads {beaten} of the {len(others)} other metrics by more than chance. "
        f"And the paper should name definition, points and tracker: on the same videos, metrics of one name order "
        f"between {min(wrong):.2f} and {max(wrong):.2f} of the pairs wrongly."
    )
