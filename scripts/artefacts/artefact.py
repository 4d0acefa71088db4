"""What an artefact is made of: variants, which are trained and sampled, and claims, which their numbers decide.

A variant is a training (overrides of the configuration's keys) and a way of sampling from it (flags of
infer/infer.py). Equal trainings are made once, whichever artefact asks for them. A claim compares two variants.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from data.world import RETIMINGS
from scripts.artefacts.tradeoff import Target

REPORTED = "reported [S]"
PROMPTS, SMOKE_PROMPTS = 16, 2  # for each reference clip of a real model, at most
EACH_MOTION = "each motion"  # heads the table of every variant on every motion
POOLED = "every motion"  # the group of all motions together
EQUAL_MOTION = "equal motion"  # a form: curves of training, compared where they move equally well
COSTS = ("training", "sampling")  # forms whose picture has CPU seconds on its horizontal axis
RETIMED = tuple(RETIMINGS)[:2]  # a known motion on another clock: pretrained values can be recombined


class Place(NamedTuple):
    """Where a variant stands on a curve: the curve's name, and the number on its axis (steps, beta).

    A curve over the lengths of a training is of one `preset` at one `rate`.
    """

    curve: str
    at: float
    preset: str = ""
    rate: str = ""


@dataclass(frozen=True)
class Variant:
    """One row. `train` are key=value words, `flags` go to infer.py, `reported` is the paper's text for the row.

    A `watched` training is sampled from the checkpoint at which it would have been stopped early
    (scripts/artefacts/plateau.py). `place` is that of a row which is a point of a curve.
    """

    name: str
    train: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    reported: str = ""
    watched: bool = False
    place: Place | None = None

    @property
    def uses_training(self) -> bool:
        """Whether anything learned takes part in it; at strength 0 the videos are the base model's."""
        return ("--lora_scale", "0") not in pairwise(self.flags)


@dataclass(frozen=True)
class Bound:
    """A number that stands where another variant could: means of `metric` are held against it, with no allowance."""

    metric: str
    value: float


@dataclass(frozen=True)
class Claim:
    """`one` against `other`, a variant or a Bound, on a role ("motion", "appearance", "leakage", "consistency").

    `expect` is "more", "less", "not less" or "not more". `whose` says whether the paper or this project claims it.
    `group` is the only group of motions that it is about; default every group.
    """

    text: str
    role: str
    one: str
    expect: str
    other: str | Bound
    whose: str = "paper"
    group: str | None = None


@dataclass(frozen=True)
class Beside:
    """Rows (names of variants) of another artefact, made with another model, that stand beside an artefact's own."""

    what: str
    artefact: str
    model: str
    rows: tuple[str, ...]


@dataclass(frozen=True)
class Artefact:
    """A table or figure. `form` says how it is drawn: rows, sweep (variants with a place), states or grid; what
    its variants cost: training or sampling (scripts/artefacts/tradeoff.py); or curves of training at equal motion,
    whose presets its claims may name in place of variants (scripts/artefacts/equal_motion.py).

    `motions` are the toy world's reference motions; with `several`, three clips of each are learned from together;
    claims about `pooled` motions that name no group are judged over all of them, of whatever kind they are.
    Every motion is learned from as many reference clips as there are `appearances`, one training each, and every
    training is sampled with `prompts` prompts: videos of a training resemble each other, so more clips say more than
    more prompts. `also` names metrics that stand in the main table beside the testbed's; `beside` is quoted from the
    file of results (scripts/artefacts/quotation.py).
    """

    title: str
    shows: str
    variants: tuple[Variant, ...]
    claims: tuple[Claim, ...] = ()
    form: str = "rows"
    motions: tuple[str, ...] = RETIMED
    several: bool = False
    pooled: bool = False
    appearances: int = 8
    prompts: int = 8
    also: tuple[str, ...] = ()
    world: bool = False  # needs a model of the toy world, where the truth is known
    network: str | None = None  # the folder of the network that it is about, where it is about one kind of model
    needs: str = "one reference clip for each motion"
    reported: str = ""
    beside: Beside | None = None
    target: Target | None = None  # of an artefact whose form is one of COSTS

    @property
    def compares_costs(self) -> bool:
        """Whether costs belong to what it shows: its form is one, or guidance without training is among the rows."""
        return self.form in COSTS or any("--guide" in variant.flags for variant in self.variants)

    def share_training(self, claim: Claim) -> bool:
        """Whether the two variants of a claim are two samplings of one training.

        Where one of them uses nothing that was learned, their difference is what a training brings. Presets at equal
        motion are no variants: each stands for several trainings.
        """
        by_name = {variant.name: variant for variant in self.variants}
        if not {claim.one, claim.other} <= by_name.keys():
            return False
        one, other = by_name[claim.one], by_name[claim.other]
        return one.train == other.train and one.uses_training == other.uses_training

    def asked(self, groups: Iterable[str]) -> list[tuple[Claim, str]]:
        """What is judged: every claim in every group of motions that it is about."""
        found = dict.fromkeys((POOLED, *groups)) if self.pooled else groups
        own = POOLED if self.pooled else None  # of a claim that names none
        return [(claim, group) for group in found for claim in self.claims if (claim.group or own) in (None, group)]
