"""Where a training begins: in a new run folder, or after the steps that a checkpoint has behind it.

A run resumes only as what it was: the same method on the same clips. What may change is told.
"""

import itertools
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from omegaconf import OmegaConf
from tqdm import tqdm

from configs.errors import UserError
from configs.fields import KEYS
from models.files.checkpoint import list_checkpoints, load_checkpoint, load_training_state

SHAPING = (
    "method",
    "temporal_preset",
    "lora_rank",
    "lora_alpha",
    "seed",
    "embeddings.blocks",
    "embeddings.widths",
    "embeddings.max_frames",
    "embeddings.loss",
)  # a run resumes only with the checkpoint's own
FREE = (
    "pretrained_model_path",
    "fallback",
    "output_dir",
    "cache",
    "resume",
    "train_data",
    "validation",
    "checkpoint",
    "max_train_steps",
    "logger",
    "device",
    "gradient_checkpointing",
)  # say nothing about a step's numbers


def begin_or_resume(cfg, method, optimizer, processes, same_clips: Callable[[Path], bool]) -> tuple[Path, int]:
    """The run folder and the number of steps done: a new folder and 0, or what resume_from_checkpoint names.

    A run's last checkpoint goes on in the run's own folder. An earlier one starts a new folder with the log so far, so
    that what came after it is kept. `same_clips` says whether the clips whose latents a run keeps in that folder are
    those of this configuration.
    """
    fresh = new_folder(Path(cfg.output_dir) / time.strftime("train_%Y-%m-%dT%H-%M-%S"))
    source = cfg.resume_from_checkpoint
    if source == "latest":
        runs = sorted(p for p in Path(cfg.output_dir).glob("train_*") if p.is_dir() and list_checkpoints(p))
        if not runs:
            say(processes, f"note: no checkpoint under {cfg.output_dir} yet, starting from step 0")
        source = runs[-1] if runs else None
    if not source:
        return fresh, 0
    found = load_checkpoint(source)
    if changed := shaping_differences(cfg, found.config or {}):
        raise UserError(
            f"resume_from_checkpoint: {found.path} was trained with {changed}; give the same, or start anew"
        )
    if not same_clips(found.path.parent / "cached_latents"):
        raise UserError(
            f"resume_from_checkpoint: {found.path} learned from other clips or captions than this configuration's; "
            "give the same, or start anew"
        )
    if changed := other_differences(cfg, found.config or {}):
        say(processes, f"note: other than before the stop: {changed}")
    method.load(found.motion, found.appearance)
    state = load_training_state(found.path)
    optimizer.load_state_dict(state["optimizer"])
    run, step = found.path.parent, state["step"]
    if step < max(list_checkpoints(run)):
        if processes.is_main_process:
            fresh.mkdir(parents=True)
            if (run / "log.jsonl").exists():
                shutil.copy(run / "log.jsonl", fresh)
        run = fresh
    say(processes, f"resuming after step {step} of {found.path}, in {run}")
    return run, step


def shaping_differences(cfg, trained: dict) -> str:
    """What must not change between a checkpoint and the run that goes on from it, in words; empty when nothing did."""
    return _differences(cfg, trained, SHAPING)


def other_differences(cfg, trained: dict) -> str:
    """What else differs and changes the steps to come: allowed, but then they are not those of an unstopped run."""
    return _differences(cfg, trained, [name for name in KEYS if name not in SHAPING and not name.startswith(FREE)])


def _differences(cfg, trained: dict, names) -> str:
    before = OmegaConf.create(trained)
    wanted = [(name, OmegaConf.select(before, name), OmegaConf.select(cfg, name)) for name in names]
    return ", ".join(f"{name} {old} (asked for: {new})" for name, old, new in wanted if trained and old != new)


def new_folder(path: Path) -> Path:
    """`path`, or the first of path-2, path-3, ... that does not exist: two runs may start in the same second."""
    names = (path if i == 1 else path.with_name(f"{path.name}-{i}") for i in itertools.count(1))
    return next(name for name in names if not name.exists())


def say(processes, message: str) -> None:
    if processes.is_main_process:
        tqdm.write(message, file=sys.stderr)  # on a line of its own, whatever bar is running
