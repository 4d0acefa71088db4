"""What the numbers say about a claim: a paired difference of two variants with its interval, and a ruling on it."""

from dataclasses import dataclass

from infer.measure.evaluation import ALL_DEFINITIONS
from infer.measure.statistics import Estimate, difference
from scripts.artefacts.catalogue import Claim

RULINGS = ("confirmed", "refuted", "not decided", "not measured")


@dataclass(frozen=True)
class Verdict:
    """A ruling (one of RULINGS) on a claim; `words` give the numbers behind it."""

    claim: Claim
    group: str
    ruling: str
    words: str


def rule(expect: str, found: Estimate, margin: float) -> str:
    """The ruling on an expectation "more", "less", "not less" or "not more" of the difference `found`.

    "more" and "less" are confirmed when the whole interval is on that side of 0, and refuted when none of it is. The
    other two allow `margin`: they are confirmed when the whole interval is above -margin (below +margin), and refuted
    when none of it is.
    """
    sign = 1 if expect in ("more", "not less") else -1
    low, high = sorted((sign * found.low, sign * found.high))
    edge = -margin if expect.startswith("not") else 0.0
    if not low < high:  # a single video has no interval, and videos that are all alike have an empty one
        return "not decided"
    if low > edge:
        return "confirmed"
    return "refuted" if high <= edge else "not decided"


def judge(claim: Claim, group: str, rows: dict[str, list[dict]], roles: dict[str, tuple[str, float]]) -> Verdict:
    """`rows` are the measured videos of each variant; `roles` maps a claim's role to (metric, margin)."""
    if claim.role not in roles:
        return Verdict(claim, group, "not measured", f"{claim.role} has no measure on this testbed")
    metric, margin = roles[claim.role]
    one, other = (_by_video(rows.get(name, []), metric) for name in (claim.one, claim.other))
    found = difference(one, other, clip_of=lambda video: video[0])
    if found is None:
        return Verdict(claim, group, "not measured", f"no {ALL_DEFINITIONS[metric].title} of both variants")
    means = [sum(values.values()) / len(values) for values in (one, other)]
    margin = margin if claim.margin is None else claim.margin
    ruling = rule(claim.expect, found, margin)
    allowed = f", allowing {margin:g}" if claim.expect.startswith("not") else ""
    words = (
        f"{ALL_DEFINITIONS[metric].title} {means[0]:.2f} against {means[1]:.2f}, difference {found.value:+.2f} "
        f"[{found.low:+.2f}, {found.high:+.2f}] over {found.n} pairs of videos, "
        f"{_counted(len({video[0] for video in one}), 'reference clip')}{allowed}"
    )
    return Verdict(claim, group, ruling, words)


def conclude(verdicts: list[Verdict], smoke: bool) -> str:
    """One sentence over all claims of an artefact."""
    if not verdicts:
        return "Nothing is claimed here: the videos are for the eye."
    count = {ruling: sum(v.ruling == ruling for v in verdicts) for ruling in RULINGS}
    counts = ", ".join(f"{number} {ruling}" for ruling, number in count.items() if number)
    sentence = f"Of {len(verdicts)} comparisons: {counts}."
    return f"SMOKE RUN, its numbers say nothing. {sentence}" if smoke else sentence


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _by_video(rows: list[dict], metric: str) -> dict[tuple, float]:
    return {
        (row["reference"], row["run"], row["prompt"], row["seed"]): row[metric]
        for row in rows
        if row.get(metric) is not None
    }
