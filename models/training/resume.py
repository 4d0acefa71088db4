"""Where a training begins: in a new run folder at step 1, or at the step after the one that a checkpoint was saved at.

Method and clips must match the checkpoint; other keys that change a step are printed. configs/fields.py says of each
key what it shapes.
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from omegaconf import OmegaConf

from configs.errors import UserError
from configs.fields import KEYS
from configs.files import fresh_folder, sweep
from configs.stored import value_of
from models.files.checkpoint import list_checkpoints, load_checkpoint
from models.files.training_state import load_training_state
from models.training.processes import Processes

ENDING = ("linear", "cosine", "polynomial")  # schedules whose rate comes down to 0 at max_train_steps


def resume(cfg, method, optimizer, processes: Processes, same_clips: Callable[[Path], bool]) -> tuple[Path | None, int]:
    """Take over the checkpoint that resume_from_checkpoint names: its folder and the number of steps it has done.

    (None, 0) when there is none to go on from. `same_clips` says whether the clips whose latents a run keeps in that
    folder are those of this configuration. Raises UserError, changing nothing, for a checkpoint of another training.
    """
    source = cfg.resume_from_checkpoint
    if source == "latest":
        runs = sorted(p for p in Path(cfg.output_dir).glob("train_*") if p.is_dir() and list_checkpoints(p))
        if not runs:
            processes.say(f"note: no checkpoint under {cfg.output_dir} yet, starting from step 0")
        source = runs[-1] if runs else None
    if not source:
        return None, 0
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
    if method.heads and (heads := found.info.get("heads")):
        if heads != method.heads.info()["heads"]:
            processes.say(f"note: heads near the edge are called otherwise now; those of the checkpoint stay: {heads}")
        method.keep_to(method.heads.keeping(heads))
    state = load_training_state(found.path, optimizer.groups(), cfg.optimizer, cfg.use_8bit_adam)
    method.load(found.motion, found.appearance)
    optimizer.load_state_dict(state["optimizer"])
    changed = [other_differences(cfg, found.config or {})]
    if state["processes"] not in (None, processes.count):  # each draws noise and timesteps of its own
        changed.append(f"processes {state['processes']} → {processes.count}")
    if any(changed):
        processes.say(f"note: changed since the checkpoint: {', '.join(filter(None, changed))}")
    before, length = (found.config or {}).get("max_train_steps"), cfg.max_train_steps
    if cfg.lr_scheduler in ENDING and before not in (None, length) and state["step"] < length:
        processes.say(
            f"note: max_train_steps {before} → {length} changes the {cfg.lr_scheduler} schedule, which ends there: the "
            f"learning rate jumps to {optimizer.learning_rate:g} in step {state['step'] + 1}"
        )
    return found.path, state["step"]


def open_run(cfg, processes: Processes, checkpoint: Path | None) -> Path:
    """The run's folder, made or found by the first process and known to all.

    A run's last checkpoint goes on in the run's own folder. An earlier one starts a new folder with the log so far, so
    that what came after it is kept. What runs that were killed left half-written is cleared away.
    """
    folder = None
    if processes.is_main:
        run = checkpoint and checkpoint.parent
        last = run and list(list_checkpoints(run).values())[-1]
        if run and checkpoint.resolve() == last.resolve():
            folder = last.parent
        else:
            folder = fresh_folder(Path(cfg.output_dir) / time.strftime("train_%Y-%m-%dT%H-%M-%S"))
            if run and (run / "log.jsonl").exists():
                shutil.copy(run / "log.jsonl", folder)
        runs = {folder, *Path(cfg.output_dir).glob("train_*")}  # one that was killed early has no checkpoint to name it
        inside = [place for run in runs for place in (run, run / "cached_latents", *run.glob("previews/*"))]
        for place in (cfg.cache_dir, *inside):
            sweep(place)
    folder = processes.share(folder)
    if checkpoint:
        processes.say(f"resuming after {checkpoint}, in {folder}")
    return folder


def last_checkpoint(folder: Path) -> str:
    """What is kept of a run that ends early, in words."""
    made = list(list_checkpoints(folder))
    if not made:
        return f"no checkpoint was made yet in {folder}"
    return f"the last checkpoint is kept: resume_from_checkpoint={folder}/checkpoint-{made[-1]}"


def shaping_differences(cfg, trained: dict) -> str:
    """What must not change between a checkpoint and the run that goes on from it, in words; empty when nothing did."""
    return _differences(cfg, trained, "training", "{name} {old} (asked for: {new})")


def other_differences(cfg, trained: dict) -> str:
    """What else differs and changes the steps to come: allowed, but then they are not those of an unstopped run."""
    return _differences(cfg, trained, "steps", "{name} {old} → {new}")


def _differences(cfg, trained: dict, shapes: str, wording: str) -> str:
    """The keys that shape this and have another value than in the configuration `trained`, each in the `wording`."""
    names = [name for name, entry in KEYS.items() if entry.metadata["shapes"] == shapes]
    if cfg.method == "lora" == trained.get("method", "lora"):
        names = [name for name in names if not name.startswith("embeddings.")]  # of Motion Inversion
    wanted = [(name, value_of(trained, name), OmegaConf.select(cfg, name)) for name in names]
    return ", ".join(wording.format(name=n, old=old, new=new) for n, old, new in wanted if trained and old != new)
