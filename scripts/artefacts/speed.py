"""What a shortcut costs in quality, as data: the solvers and steps of a sampling, and the recipes of a training.

    python scripts/reproduce.py speed
    python scripts/reproduce.py time_to_motion

Every variant stands at what it costs in CPU seconds. A variant "CURVE @ x" is a point of a curve: a sampling of x steps,
or the checkpoint of step x.
"""

from data.world import PATHS, RETIMINGS
from scripts.artefacts.artefact import Artefact, Claim, Variant
from scripts.artefacts.variants import TAP, UNTOUCHED


def _sampling(name: str, solver: str, steps: int, *flags: str) -> Variant:
    return Variant(f"{name} @ {steps}", TAP, ("--solver", solver, "--num-steps", str(steps), *flags))


def _training(name: str, steps: int, *, middle: bool = False, **changed: float) -> tuple[Variant, ...]:
    """The rows of a recipe: its last step, and with `middle` also the middle of its cosine schedule.

    All keys that make a recipe are named, so that a row stays what it was when the defaults change.
    """
    keys = {"timesteps_per_step": 2, "learning_rate": 2e-3, "adam_beta2": 0.99, "lr_warmup_steps": 10} | {
        "min_timestep": 500,
        "spatial_path_probability": 0.8,
        "lora_rank": 32,
        **changed,
    }
    train = (
        *TAP,
        f"max_train_steps={steps}",
        f"checkpointing_steps={steps // 2}",
        "checkpoints_total_limit=2",
        *(f"{key}={value:g}" for key, value in keys.items()),
    )
    points = (steps // 2, steps) if middle else (steps,)
    return tuple(Variant(f"{name} @ {step}", train, ("--checkpoint_index", str(step))) for step in points)


FORMER, SHORTER, HALVED = "4 timesteps, rate 2.5e-3, beta2 0.999", "4 timesteps", "2 timesteps"
RECIPES = (
    *_training(
        FORMER, 300, middle=True, timesteps_per_step=4, learning_rate=2.5e-3, adam_beta2=0.999, lr_warmup_steps=20
    ),
    *_training(SHORTER, 200, middle=True, timesteps_per_step=4),
    *_training(SHORTER, 120, timesteps_per_step=4),
    *_training(HALVED, 200, middle=True),
    *_training("2 timesteps, rate 3e-3", 120, learning_rate=3e-3),
    *_training("2 timesteps, from 700", 200, min_timestep=700),
    *_training("2 timesteps, half the appearance passes", 200, spatial_path_probability=0.4),
    *_training("2 timesteps, rank 8", 200, lora_rank=8),
)

SPEED = {
    "time_to_motion": Artefact(
        "Time to motion: recipes of a training",
        "how few CPU seconds of training teach a re-timing, at the appearance of the untouched model",
        (Variant(UNTOUCHED.name, RECIPES[1].train, UNTOUCHED.flags), *RECIPES),
        (),
        motions=tuple(RETIMINGS),
        appearances=2,
        world=True,
        needs="a model of the toy world",
    ),
}
