"""One step of a training, in all its processes together: what it needs, what it returns, and what is written of it."""

from pathlib import Path
from statistics import mean
from typing import NamedTuple

import torch
from omegaconf import DictConfig

from configs.errors import UserError
from models.backbone import Backbone
from models.methods import Method
from models.training.beside import Passes
from models.training.journal import Journal, mean_losses
from models.training.optimizer import DualPathOptimizer, Moved, NotFinite, require_finite
from models.training.processes import LostProcess, Processes
from models.training.resume import last_checkpoint
from models.training.saving import save
from models.training.stopping import StopSignals


class Training(NamedTuple):
    """All that takes part in a training, in this process."""

    cfg: DictConfig
    backbone: Backbone
    method: Method
    optimizer: DualPathOptimizer
    clips: list  # of data/cache.py: CachedClip
    processes: Processes


class Done(NamedTuple):
    """One step that is done, in all processes together."""

    losses: dict[str, float]  # means over its clips, by name
    moved: Moved
    learning_rate: float
    timestep: float  # mean over its clips and their noised copies
    stopped: int  # number of the signal that ends the training after this step, 0 for none


def take_step(training: Training, passes: Passes, stop: StopSignals, folder: Path, step: int) -> Done:
    """Take a step: both passes in every process, then the weights move.

    Raises UserError, naming the last checkpoint in `folder`, for numbers that are not finite and for a lost process.
    """
    optimizer, processes = training.optimizer, training.processes
    try:
        found, timesteps = passes(step)
        everyone = processes.gather((found, timesteps, stop.requested))
        losses = mean_losses([losses for found, _, _ in everyone for losses in found])
        stopped = max(requested for _, _, requested in everyone)  # all leave at the same step
        require_finite(losses)
        rate, moved = optimizer.learning_rate, optimizer.step()
    except NotFinite as what:
        advice = "" if training.backbone.dtype == torch.float32 else ", or use mixed_precision=bf16"
        raise UserError(
            f"training: the {what} at step {step}, timestep {timesteps}; no weight was moved in this step, and "
            f"{last_checkpoint(folder)}; lower learning_rate{advice}"
        ) from None
    except LostProcess as lost:
        raise LostProcess(f"{lost} during step {step}; {last_checkpoint(folder)}", lost.silent) from None
    stuck = [path for path in moved.norms if path in optimizer.unmoved]
    if step == training.cfg.max_train_steps and stuck:
        raise UserError(
            f"training: the gradient of the {' and '.join(stuck)} path overflowed fp16 in every step, so that it "
            f"learned nothing; {last_checkpoint(folder)}; lower learning_rate, or use mixed_precision=bf16"
        )
    return Done(losses, moved, rate, mean(t for _, drawn, _ in everyone for t in drawn), stopped)


def record(
    training: Training, folder: Path, journal: Journal, previews, step: int, done: Done, cpu_beside: float
) -> None:
    """Log a step, and make the checkpoint and the previews (infer/training/preview.py) that are due after it."""
    cfg, method, optimizer = training.cfg, training.method, training.optimizer
    numbers = {"timestep": done.timestep, "learning_rate": done.learning_rate, "cpu_beside": cpu_beside}
    journal.log(step, done.losses, done.moved, **numbers)
    due = step == cfg.max_train_steps or done.stopped or step % cfg.checkpointing_steps == 0
    if due:
        save(cfg, method, optimizer, folder, step, previews)
    made = {} if done.stopped else previews.after(step)  # whoever stops a training does not want to wait for videos
    if due and made:  # once more, with its own preview in the header
        save(cfg, method, optimizer, folder, step, previews)
    journal.previews(step, made)
    journal.pause()
