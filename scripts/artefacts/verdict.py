"""What the numbers say about claims: paired differences over reference clips, and a ruling on each.

The claims of an artefact that can be tested are one family: Holm's correction keeps the chance of any wrong ruling at
5 %. Clips are drawn inside their motions, so a ruling holds for the motions of the artefact and other clips of them. A
claim that the testbed leaves no room for is not testable: "moves no worse" than something that does not move, and
whatever is said of leakage, more or less, where neither of the two leaks. A claim about a bound asks on which side of
it the clips' own means lie. Several trainings on a clip are inside it, as their videos are, and do not make it count
twice.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import itemgetter

from infer.measure.evaluation import ALL_DEFINITIONS
from infer.measure.paired import MOST, POWER, PairedDifference, clips_needed, decide, paired_difference
from infer.measure.statistics import FEWEST, LEVEL
from scripts.artefacts.artefact import Bound, Claim
from scripts.artefacts.variants import UNTOUCHED

CLIP = "reference clip"
RULINGS = ("confirmed", "refuted", "not decided", "not testable", "not measured")
Rows = Mapping[str, list[dict]]  # the measured videos of each variant


@dataclass(frozen=True)
class Role:
    """What decides a claim about motion, appearance, leakage or consistency.

    `metric` decides; `least` is the smallest difference that counts, and by how much "no worse" may be worse; the
    metrics `beside` are printed with it. `sign`: metric used to test whether the compared variant moves at all
    (default: `metric`). It is another one for a path that is only re-timed, which correlates with what the prompt says
    before anything is learned.
    """

    metric: str
    least: float
    beside: tuple[str, ...] = ()
    sign: str | None = None
    unit: str = CLIP
    inside: str = "videos"


@dataclass(frozen=True)
class Verdict:
    """A ruling (one of RULINGS) on a claim; `words` give the numbers behind it."""

    claim: Claim
    group: str
    ruling: str
    words: str


@dataclass(frozen=True)
class Question:
    """A claim with the difference that was found for it, turned so that the claim says "above the edge"."""

    claim: Claim
    group: str
    role: Role
    found: PairedDifference
    without_room: str | None = None  # why the testbed cannot decide it

    @property
    def least(self) -> float:
        return self.role.least

    @property
    def edges(self) -> tuple[float, float]:
        """The claim is confirmed above the first and refuted below the second."""
        return (-self.least, -self.least) if self.claim.expect.startswith("not") else (0.0, self.least)

    @property
    def turned(self) -> PairedDifference:
        return self.found if self.claim.expect in ("more", "not less") else self.found.turned()

    @property
    def chances(self) -> tuple[float, float]:
        """p of confirming and of refuting it."""
        confirm, refute = self.edges
        return self.turned.p_above(confirm), self.turned.p_below(refute)

    def needed(self, level: float) -> str:
        """In words, how many clips would decide it at this level, by the difference and the spread seen."""
        confirm, refute = self.edges
        reach = max(self.turned.value - confirm, refute - self.turned.value)  # to the nearer ruling
        found = clips_needed(self.turned.spread, reach, level, self.found.blocks) if reach > 0 else None
        number = f"about {max(found, self.found.clips + 1)}" if found else f"more than {MOST}"
        return f"{number} {self.role.unit}s would decide it in {POWER:.0%} of all cases"


def judge(asked: Iterable[tuple[Claim, str, Rows]], roles: Mapping[str, Role]) -> list[Verdict]:
    """The verdicts of one artefact, corrected for their number: every (claim, group of videos, its rows) asked."""
    found = [(_question(claim, group, rows, roles), rows) for claim, group, rows in asked]
    family = [one for one, _ in found if isinstance(one, Question) and one.without_room is None]
    decisions = dict(zip(map(id, family), decide([one.chances for one in family])))
    return [
        one if isinstance(one, Verdict) else _verdict(one, rows, decisions.get(id(one)), len(family))
        for one, rows in found
    ]


def _question(claim: Claim, group: str, rows: Rows, roles: Mapping[str, Role]) -> Question | Verdict:
    role = Role(claim.other.metric, 0.0) if isinstance(claim.other, Bound) else roles.get(claim.role)
    if role is None:
        return Verdict(claim, group, "not measured", f"{claim.role} has no measure on this testbed")
    found = _difference(rows, claim.one, claim.other, role.metric)
    if found is None:
        return Verdict(claim, group, "not measured", f"no {_title(role.metric)} of both variants")
    question = Question(claim, group, role, found)
    if found.clips < FEWEST:
        words = (
            f"{_numbers(question, rows)}; {_counted(found.clips, role.unit)}: too few for an interval, which takes "
            f"{FEWEST} or more (--appearances; more trainings on a clip do not make it two)"
        )
        return Verdict(claim, group, "not decided", words)
    return Question(claim, group, role, found, _without_room(question, rows))


def _without_room(question: Question, rows: Rows) -> str | None:
    """Why the claim cannot be tested: what it compares with does not move, or neither of the two leaks.

    One rule holds for all four expectations about leakage. If neither variant leaks, "less" cannot be shown, "not less"
    is trivially true, and "more" and "not more" are about a leak that this testbed has not shown. As soon as one of the
    two leaks, each of the four can be confirmed and refuted.
    """
    claim, metric = question.claim, question.role.metric
    if isinstance(claim.other, Bound):
        return None  # a number leaves room on both sides
    if claim.role == "leakage":
        levels = {side: _difference(rows, side, Bound(metric, 0.0), metric) for side in (claim.one, claim.other)}
        if any(level.interval()[1] >= question.least for level in levels.values()):
            return None
        seen = " and ".join(f"{side} {_interval(level)}" for side, level in levels.items())
        return f"neither leaks {question.least:g} or more: {seen}"
    if question.turned.p_above(max(0.0, question.edges[0])) < 1 - LEVEL:
        return None  # better by itself, whatever the other does
    if claim.role == "motion" and claim.expect == "not less" and claim.other != UNTOUCHED.name:
        moved = _difference(rows, claim.other, UNTOUCHED.name, question.role.sign or metric)
        if moved is None or moved.p_above(0.0) >= 1 - LEVEL:
            seen = "has no videos" if moved is None else f"differs by {_interval(moved)}"
            return f"{claim.other} does not move like the reference either: the {UNTOUCHED.name} {seen}"
    return None


def _verdict(question: Question, rows: Rows, decided: int | None, family: int) -> Verdict:
    """The ruling on a question, by `paired.decide` over a `family` of so many."""
    claim, words = question.claim, _numbers(question, rows)
    if question.without_room is not None:
        return Verdict(claim, question.group, "not testable", f"{words}; {question.without_room}")
    words += f"; p {min(question.chances):.2g}, Holm over {_counted(family, 'claim')}"
    if decided == 0:
        small = not claim.expect.startswith("not") and question.turned.interval()[1] < question.least
        words += f"; smaller than {question.least:g}, the least that counts" if small else ""
        against = claim.expect.startswith("not") and question.turned.interval()[1] < 0
        words += f"; against the claim all the same, by less than the {question.least:g} allowed" if against else ""
        return Verdict(claim, question.group, "confirmed", words)
    if decided == 1:
        if not claim.expect.startswith("not") and question.least:
            words += f"; less than {question.least:g} that way"
        return Verdict(claim, question.group, "refuted", words)
    needed = question.needed(1 - (1 - LEVEL) / family)  # whatever Holm's rank of the claim
    return Verdict(claim, question.group, "not decided", f"{words}; {needed}")


def _numbers(question: Question, rows: Rows) -> str:
    claim, role, found = question.claim, question.role, question.found
    allowed = f", allowing {question.least:g}" if claim.expect.startswith("not") and question.least else ""
    each, pairs = ("", "") if isinstance(claim.other, Bound) else (" of each", "pairs of ")
    trainings = f" ({_counted(found.trainings, 'training')}{each})" if role.unit == CLIP else ""
    motions = f" of {found.blocks} motions" if found.blocks > 1 else ""
    inside = rows[claim.one][0].get("inside", role.inside)
    beside = [
        f"{_title(name)} {also.one:.2f} against {also.other:.2f}"
        for name in role.beside
        if (also := _difference(rows, claim.one, claim.other, name))
    ]
    return "; ".join(
        [
            f"{_title(role.metric)} {found.one:.3f} against {found.other:.3f}, difference {_interval(found)} over "
            f"{_counted(found.clips, role.unit)}{motions}{trainings} with {found.pairs} {pairs}{inside}{allowed}",
            *beside,
        ]
    )


def conclude(verdicts: list[Verdict], smoke: bool) -> str:
    """One sentence over all claims of an artefact."""
    if not verdicts:
        return "Nothing is claimed here: the videos are for the eye."
    count = {ruling: sum(v.ruling == ruling for v in verdicts) for ruling in RULINGS}
    counts = ", ".join(f"{number} {ruling}" for ruling, number in count.items() if number)
    sentence = f"Of {len(verdicts)} comparisons: {counts}."
    return f"SMOKE RUN, its numbers say nothing. {sentence}" if smoke else sentence


def _interval(found: PairedDifference) -> str:
    low, high = found.interval()
    return f"{found.value:+.3f}" + (f" [{low:+.3f}, {high:+.3f}]" if low == low else "")


def _difference(rows: Rows, one: str, other: str | Bound, metric: str) -> PairedDifference | None:
    found = _by_video(rows.get(one, []), metric)
    bounded = isinstance(other, Bound)
    against = dict.fromkeys(found, other.value) if bounded else _by_video(rows.get(other, []), metric)
    return paired_difference(found, against, itemgetter(1), itemgetter(2), motion_of=itemgetter(0))


def _by_video(rows: list[dict], metric: str) -> dict[tuple, float]:
    """(motion, reference clip, run, prompt, seed) -> value; a run is a clip's training of one seed."""
    return {
        (row.get("motion"), row["reference"], row["run"], row["prompt"], row["seed"]): row[metric]
        for row in rows
        if row.get(metric) is not None
    }


def _title(metric: str) -> str:
    return ALL_DEFINITIONS[metric].title if metric in ALL_DEFINITIONS else metric


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
