"""What a shortcut costs in quality, as data: the solvers and steps of a sampling, and the recipes of a training.

    python scripts/reproduce.py speed
    python scripts/reproduce.py time_to_motion

Every variant stands at what it costs in CPU seconds. A variant "CURVE @ x" is a point of a curve: a sampling of x
steps, or the checkpoint of step x.
"""

from data.world import PATHS, RETIMINGS
from scripts.artefacts.artefact import Artefact, Claim, Place, Variant
from scripts.artefacts.tradeoff import Target
from scripts.artefacts.variants import TAP, UNTOUCHED, lengths, on_curve

EARLY = "early stop @ plateau"


def _training(
    name: str, steps: int, *, middle: bool = False, watched: bool = False, **changed: float | str
) -> tuple[Variant, ...]:
    """The rows of a recipe: its last step, with `middle` also the middle of its cosine schedule, and with `watched` the
    checkpoint of every quarter at which it would have been stopped early.

    All keys that make a recipe are named, so that a row stays what it was when the defaults change.
    """
    saved = 4 if watched else 2
    keys = {"timesteps_per_step": 2, "learning_rate": 2e-3, "adam_beta2": 0.99, "lr_warmup_steps": 10} | {
        "min_timestep": 500,
        "spatial_path_probability": 0.8,
        "lora_rank": 32,
        "lora_plus_ratio": 1,
        "optimizer": "adamw",
        **changed,
    }
    train = (
        *TAP,
        f"max_train_steps={steps}",
        f"checkpointing_steps={steps // saved}",
        f"checkpoints_total_limit={saved}",
        *(f"{key}={value}" for key, value in keys.items()),
    )
    points = (steps // 2, steps) if middle else (steps,)
    rows = lengths(name, train, points)
    place = Place(f"{name}, early stop", steps)  # a curve of one point, somewhere before `steps`
    return (*rows, Variant(f"{name}, {EARLY}", train, watched=True, place=place)) if watched else rows


FORMER, SHORTER, HALVED = "4 timesteps, rate 2.5e-3, beta2 0.999", "4 timesteps", "2 timesteps"
RECIPES = (
    *_training(
        FORMER, 300, middle=True, timesteps_per_step=4, learning_rate=2.5e-3, adam_beta2=0.999, lr_warmup_steps=20
    ),
    *_training(SHORTER, 200, middle=True, watched=True, timesteps_per_step=4),
    *_training(HALVED, 200, middle=True),
    *_training(HALVED, 300),
    *_training("2 timesteps, rate 3e-3", 120, learning_rate=3e-3),
    *_training("2 timesteps, from 700", 200, min_timestep=700),
    *_training("2 timesteps, half the appearance passes", 200, spatial_path_probability=0.4),
    *_training("4 timesteps, rank 8", 200, timesteps_per_step=4, lora_rank=8),
    *_training("4 timesteps, rank 16", 200, timesteps_per_step=4, lora_rank=16),
    *_training("4 timesteps, Prodigy", 200, timesteps_per_step=4, optimizer="prodigy", learning_rate=1),
    *_training("4 timesteps, LoRA+", 100, timesteps_per_step=4, learning_rate=5e-4, lora_plus_ratio=8),
)

RECIPE = next(row.train for row in RECIPES if row.name == f"{SHORTER} @ 200")  # what configs/pocket.yaml says
UNTRAINED = Variant(UNTOUCHED.name, RECIPE, UNTOUCHED.flags)
SOLVERS = ("ddim", "unipc", "dpm")
ABOVE, BELOW = ("--guidance_interval", "300", "1000"), ("--guidance_interval", "0", "800")


def _sampling(name: str, solver: str, steps: int, *flags: str) -> Variant:
    return on_curve(name, steps, RECIPE, ("--solver", solver, "--num-steps", str(steps), *flags))


SAMPLINGS = (
    *(_sampling(solver, solver, steps) for solver in SOLVERS for steps in (4, 5, 6, 8, 10, 15, 20, 30)),
    *(_sampling("ddim, guided above 300", "ddim", steps, *ABOVE) for steps in (6, 8, 10, 15)),
    *(_sampling("ddim, guided below 800", "ddim", steps, *BELOW) for steps in (6, 7, 8, 10, 15)),
    *(_sampling(f"{solver}, guided below 800", solver, steps, *BELOW) for solver in SOLVERS[1:] for steps in (6, 8)),
)


def _no_worse(one: str, other: str, what: str) -> tuple[Claim, Claim]:
    return (
        Claim(f"{what} moves no worse", "motion", one, "not less", other, "ours"),
        Claim(f"{what} keeps the appearance no worse", "appearance", one, "not less", other, "ours"),
    )


SPEED = {
    "speed": Artefact(
        "Speed: solvers and steps of a sampling",
        "how few CPU seconds a video takes at the same motion and appearance",
        (UNTRAINED, *SAMPLINGS),
        (
            *_no_worse("ddim @ 10", "ddim @ 30", "DDIM in a third of the release's 30 steps"),
            *_no_worse("ddim @ 6", "ddim @ 10", "DDIM in 6 steps, against 10,"),
            *_no_worse("ddim @ 6", "ddim @ 20", "DDIM in 6 steps, against 20,"),
            *_no_worse("ddim, guided below 800 @ 7", "ddim @ 20", "DDIM in 7 steps, guided below 800, against 20,"),
            *_no_worse("ddim, guided below 800 @ 8", "ddim @ 20", "DDIM in 8 steps, guided below 800, against 20,"),
            *_no_worse("unipc @ 6", "ddim @ 10", "UniPC in 6 steps, against DDIM in 10,"),
            *_no_worse("dpm @ 6", "ddim @ 10", "DPM-Solver++ in 6 steps, against DDIM in 10,"),
            *_no_worse("ddim, guided above 300 @ 10", "ddim @ 10", "guidance above timestep 300 alone"),
            *_no_worse("ddim, guided below 800 @ 10", "ddim @ 10", "guidance below timestep 800 alone"),
        ),
        form="sampling",
        motions=(*RETIMINGS, *PATHS),
        appearances=3,
        prompts=4,
        world=True,
        needs="a model of the toy world",
        target=Target("ddim @ 6", "ddim @ 20", 0.4),  # the recipe's sampling, and the one of 20 steps before it
    ),
    "time_to_motion": Artefact(
        "Time to motion: recipes of a training",
        "how few CPU seconds of training teach a re-timing, at the appearance of the untouched model",
        (UNTRAINED, *RECIPES),
        (
            *_no_worse(f"{SHORTER} @ 200", f"{FORMER} @ 300", "a shorter training at a lower rate and beta2"),
            *_no_worse(f"{HALVED} @ 200", f"{SHORTER} @ 200", "half as many timesteps a step"),
            *_no_worse(
                "2 timesteps, rate 3e-3 @ 120", f"{HALVED} @ 200", "120 steps in place of 200, at a higher rate"
            ),
            *_no_worse("2 timesteps, from 700 @ 200", f"{HALVED} @ 200", "training above timestep 700 alone"),
            *_no_worse(
                "2 timesteps, half the appearance passes @ 200", f"{HALVED} @ 200", "half as many appearance passes"
            ),
            *_no_worse("4 timesteps, LoRA+ @ 100", f"{HALVED} @ 200", "LoRA+ at an eightfold rate in as many seconds"),
            *_no_worse("4 timesteps, rank 8 @ 200", f"{SHORTER} @ 200", "a quarter of the rank"),
            *_no_worse("4 timesteps, Prodigy @ 200", f"{SHORTER} @ 200", "a rate that Prodigy finds by itself"),
            *_no_worse(
                f"{SHORTER}, {EARLY}", f"{SHORTER} @ 200", "stopping where the reference's path error does not fall"
            ),
        ),
        form="training",
        motions=tuple(RETIMINGS),
        appearances=3,  # what one clip learns, another may not: a recipe is no better than the hardest of them
        world=True,
        needs="a model of the toy world",
        target=Target(f"{SHORTER} @ 200", f"{FORMER} @ 300", 0.5, success=0.9),  # today's recipe, and the former
    ),
}
