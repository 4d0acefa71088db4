"""Query and Key against all layers at equal motion, over rates and lengths of training, as data.

    python scripts/reproduce.py dit_sweep --model models/pocketscope_dit --world

The artefact `dit` compares them at one rate and one length, where one may leak more because it moves more. Here every
training keeps the checkpoints of four lengths. The rate is constant after its warm-up, so that a checkpoint is exactly
the training that ends there; under the recipe's cosine it would be one that was cut off. A cosine is half its peak on
average: the rates are those of the recipe's average, and two and four times as much.

Where both move, neither may have begun to leak. So the two are compared once more where a training goes on far beyond
that: at the end of the longest at the highest rate, where both move well and what leaks more has had the time to.
"""

from configs.paths import ROOT
from configs.plain import read_yaml
from scripts.artefacts.artefact import EQUAL_MOTION, Artefact, Claim, Variant
from scripts.artefacts.transformer import MOTIONS, NO_APPEARANCE
from scripts.artefacts.variants import MOTION_DIRECTOR, TAP, UNTOUCHED, lengths

AVERAGE = read_yaml(ROOT / "configs/reproduce/pocket_dit.yaml")["learning_rate"] / 2
RATES = tuple(factor * AVERAGE for factor in (1, 2, 4))
STEPS = (50, 100, 200, 400)
QUERY_KEY, ALL = "q + k", "all layers"
SETTINGS = {
    "dual path": (),
    "no dual path": (NO_APPEARANCE,),
    "no dual path, every timestep": (NO_APPEARANCE, "min_timestep=0"),
}


def _curve(preset: str, setting: str, rate: float) -> tuple[Variant, ...]:
    """The lengths of one training, which are its checkpoints."""
    train = (
        *(TAP if preset == QUERY_KEY else MOTION_DIRECTOR),
        *SETTINGS[setting],
        f"learning_rate={rate:g}",
        "lr_scheduler=constant_with_warmup",
        f"max_train_steps={STEPS[-1]}",
        f"checkpointing_steps={STEPS[0]}",
        f"checkpoints_total_limit={STEPS[-1] // STEPS[0]}",
    )
    return lengths(f"{preset}, {setting}", train, STEPS, rate=f"{rate:g}")


CURVES = tuple(
    variant
    for setting in SETTINGS
    for preset in (QUERY_KEY, ALL)
    for rate in RATES
    for variant in _curve(preset, setting, rate)
)


def _purer(words: str, one: str, other: str) -> tuple[Claim, Claim]:
    return (
        Claim(f"{words}, q + k leaks less than all layers", "leakage", one, "less", other, "ours"),
        Claim(f"{words}, q + k keeps the appearance better than all layers", "appearance", one, "more", other, "ours"),
    )


def _about(setting: str) -> tuple[Claim, ...]:
    one, other = f"{QUERY_KEY}, {setting}", f"{ALL}, {setting}"
    where = setting if setting.startswith("no ") else f"with the {setting}"
    end = f", rate {RATES[-1]:g} @ {STEPS[-1]}"
    beyond = f"{where}, trained far beyond the recipe"
    return (
        *_purer(f"{where}, at equal motion", one, other),
        *_purer(beyond, one + end, other + end),
        Claim(f"{beyond}, q + k moves no worse than all layers", "motion", one + end, "not less", other + end, "ours"),
    )


SWEEP = {
    "dit_sweep": Artefact(
        "Transformer: leakage at equal motion, over rates and lengths",
        "whether adapting Query and Key alone leaks less than adapting all layers that moves equally well (rates are "
        "constant after the warm-up: the recipe's average, and two and four times as much; lengths are the checkpoints "
        f"{', '.join(map(str, STEPS))} of one training; far beyond the recipe is the longest at the highest rate)",
        (Variant(UNTOUCHED.name, CURVES[0].train, UNTOUCHED.flags), *CURVES),
        tuple(claim for setting in SETTINGS for claim in _about(setting)),
        form=EQUAL_MOTION,
        motions=MOTIONS[:4],
        pooled=True,
        appearances=1,
        world=True,
        network="transformer",
        needs="PocketScope-DiT: --model models/pocketscope_dit --world",
    )
}
