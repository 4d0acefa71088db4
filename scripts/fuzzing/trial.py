"""One area tried with so many cases: those that were ever found, then new ones."""

from dataclasses import dataclass, field
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase

from scripts.fuzzing.areas import Area
from scripts.fuzzing.found import FOUND
from scripts.fuzzing.ground import Broken, Ground


@dataclass
class Tally:
    """What became of the cases of one area; `broken` is the smallest that broke the property, with the reason."""

    refused: int = 0
    accepted: int = 0
    broken: tuple[Any, str] | None = field(default=None)


def try_area(ground: Ground, area: Area, examples: int, seed: int | None = None) -> Tally:
    """Try `examples` cases (times the area's share); without a seed always the same ones."""
    tally = Tally()

    def attempt(case: Any) -> None:
        try:
            accepted = ground.judge(area.attempt, case)
        except Broken as error:
            tally.broken = case, str(error)  # the smallest comes last
            raise
        tally.accepted += accepted
        tally.refused += not accepted

    check = hypothesis.given(area.cases)(attempt)
    for case in FOUND.get(area.name, []):
        check = hypothesis.example(case)(check)
    if seed is not None:
        check = hypothesis.seed(seed)(check)
    settings = hypothesis.settings(
        max_examples=max(1, int(examples * area.share)),
        deadline=None,
        derandomize=seed is None,
        database=None,
        print_blob=False,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        verbosity=hypothesis.Verbosity.quiet,
    )
    try:
        settings(check)()
    except (AssertionError, BaseExceptionGroup):
        if tally.broken is None:
            raise
    return tally
