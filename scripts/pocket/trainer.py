"""A training loop that can be stopped at any moment: phases, their schedule, averaged weights and the state file.

Used to pretrain PocketScope (scripts/pretrain_pocketscope.py). Everything the next step needs is in one safetensors
file, written beside its place and renamed; randomness is derived from (seed, phase, step), so a run in pieces ends in
the same weights as a run in one.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from configs.errors import UserError
from configs.files import atomic_path


@dataclass(frozen=True)
class Phase:
    """A stretch of training with AdamW; `lr` is the plateau's rate, `ema` the decay of the averaged weights."""

    steps: int
    batch: int
    lr: float
    ema: float
    warmup: int = 40
    decay_from: float = 0.5  # where the cosine starts, as a share of the steps
    decay_to: float = 0.0  # what it ends at, as a share of lr
    upper: float = 0.0  # share of timesteps drawn from the noisier half, the rest being uniform

    def rate(self, step: int) -> float:
        """Learning rate: a linear warm-up, a plateau, a cosine down to `decay_to`.

        A closed form of the step, unlike torch's schedulers, has no state that a resumed run would have to restore.
        """
        late = (step / self.steps - self.decay_from) / (1 - self.decay_from)
        cosine = 0.5 * (1 + np.cos(np.pi * min(max(late, 0.0), 1.0)))
        return self.lr * min(1.0, (step + 1) / self.warmup) * (self.decay_to + (1 - self.decay_to) * cosine)


def step_generator(seed: int, phase: int, step: int) -> torch.Generator:
    """All randomness of one step of the phase of that number. On the CPU, so that devices draw the same numbers."""
    key = np.random.SeedSequence([seed, phase, step]).generate_state(2)
    return torch.Generator().manual_seed(int(key[0]) << 31 | int(key[1]))


class Trainer:
    """Runs phases one after the other; SIGINT and SIGTERM end the running step, save and set `stopped`."""

    def __init__(self, folder: Path, seed: int, save_every: int, dtype: torch.dtype = torch.float32):
        self.folder, self.seed, self.save_every, self.dtype = folder, seed, save_every, dtype
        self.stopped, self.running, self.number = False, False, -1
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, self._stop)

    def _stop(self, *_) -> None:
        if not self.running:  # between phases nothing is lost
            raise KeyboardInterrupt
        self.stopped = True

    def done(self, name: str, phase: Phase) -> bool:
        """Whether this phase is complete. Raises UserError where its file was made with other settings."""
        return is_made(self.folder / f"{name}.safetensors", self._settings(phase))

    def _settings(self, phase: Phase) -> str:
        return f"seed {self.seed}, {self.dtype}, {phase}"

    def run(
        self,
        name: str,
        phase: Phase,
        model: nn.Module,
        loss: Callable[[torch.Generator], torch.Tensor],
        before: Callable[[int], None] = lambda step: None,
        report: Callable[[int], None] = lambda step: None,
        every: int = 1_000_000,
    ) -> bool:
        """Train what requires gradients in `model`; True once the phase is complete, the averaged weights in place.

        `loss` draws one batch from the step's generator; `before(step)` may change the model; `report(step)` measures
        it with the averaged weights, every so many steps and at the end. A phase that is done is only loaded. Raises
        UserError on a loss that is not finite, and where the state file belongs to another phase.
        """
        self.number += 1
        result, state = self.folder / f"{name}.safetensors", self.folder / "state.safetensors"
        if self.done(name, phase):
            if state.exists() and _metadata(state)["phase"] == name:
                state.unlink()  # killed between writing the result and removing the state
            model.load_state_dict(load_file(result))
            return True
        trained = {key: value for key, value in model.named_parameters() if value.requires_grad}
        mean = averaged(model, phase.ema)
        average = {key: value for key, value in mean.module.named_parameters() if key in trained}
        optimizer = torch.optim.AdamW(trained.values(), lr=phase.lr, betas=(0.9, 0.99), weight_decay=0.0)
        start = self._restore(state, name, self._settings(phase), model, average, optimizer)
        mean.n_averaged.fill_(start + 1)  # the average begins with the weights that the phase begins with
        bar = tqdm(range(start, phase.steps), initial=start, total=phase.steps, desc=name, mininterval=5)
        clock, smooth, self.running = time.time(), None, True
        for step in bar:
            optimizer.param_groups[0]["lr"] = phase.rate(step)
            before(step)
            value = loss(step_generator(self.seed, self.number, step))
            if not torch.isfinite(value):
                raise UserError(f"{name}: the loss is {value.item()} at step {step}; lower the phase's learning rate.")
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(trained.values(), 1.0)
            optimizer.step()
            mean.update_parameters(model)
            smooth = value.item() if smooth is None else 0.97 * smooth + 0.03 * value.item()
            seconds = (time.time() - clock) / (step - start + 1)
            bar.set_postfix({"loss": f"{smooth:.4f}", "s/step": f"{seconds:.2f}"}, refresh=False)
            last = step + 1 == phase.steps
            if not self.stopped and (last or (step + 1) % every == 0):
                with swapped(trained, average):
                    report(step + 1)
            if self.stopped or last or (step + 1) % self.save_every == 0:
                self._save(state, name, step + 1, self._settings(phase), model, average, optimizer)
            if self.stopped:
                return False
        self.running = False
        _copy(average, trained)
        save_tensors(model.state_dict(), result, {"settings": self._settings(phase)})
        state.unlink()
        return True

    def _save(self, path: Path, name: str, step: int, settings: str, model, average, optimizer) -> None:
        tensors = {f"model/{key}": value for key, value in model.state_dict().items()}
        tensors |= {f"average/{key}": value for key, value in average.items()}
        for index, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{key}": torch.as_tensor(value) for key, value in moments.items()}
        save_tensors(tensors, path, {"phase": name, "step": str(step), "settings": settings})

    @torch.no_grad()
    def _restore(self, path: Path, name: str, settings: str, model, average, optimizer) -> int:
        if not path.exists():
            return 0
        position = _metadata(path)
        if position.get("phase") != name:
            found = position.get("phase")
            raise UserError(f"{path}: is at phase {found}, expected {name}; delete {path.parent} and start over.")
        is_made(path, settings)
        tensors = load_file(path)
        model.load_state_dict(_below("model/", tensors))
        for key, value in _below("average/", tensors).items():
            average[key].copy_(value)
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in _below("optimizer/", tensors).items():
            index, moment = key.split("/")
            moments.setdefault(int(index), {})[moment] = value
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
        return int(position["step"])


def averaged(model: nn.Module, most: float) -> AveragedModel:
    """A copy of `model` for the exponential average of its weights, with a decay that rises from 0.1 to `most`."""

    def update(mean: torch.Tensor, value: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
        return torch.lerp(mean, value, 1 - min(most, int(count) / (int(count) + 9)))

    return AveragedModel(model, avg_fn=update)


def is_made(path: Path, settings: str) -> bool:
    """Whether this file is there. Raises UserError where other settings made it: mixing the two would ruin both."""
    if not path.exists():
        return False
    found = _metadata(path).get("settings", "none")
    if found != settings:
        raise UserError(
            f"{path}: was made with other settings ({found}; now {settings}); give another --out, or delete the folder"
        )
    return True


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise UserError(f"{path}: is damaged ({error}); delete it, its phase is made again") from None


@contextmanager
def swapped(trained: dict[str, torch.Tensor], average: dict[str, torch.Tensor]) -> Iterator[None]:
    """While inside, the parameters hold their running average."""
    kept = {key: value.detach().clone() for key, value in trained.items()}
    try:
        _copy(average, trained)
        yield
    finally:
        _copy(kept, trained)


@torch.no_grad()
def _copy(source: dict[str, torch.Tensor], target: dict[str, torch.Tensor]) -> None:
    for key, value in target.items():
        value.copy_(source[key])


def _below(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def save_tensors(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Save as safetensors, whole or not at all."""
    with atomic_path(path) as part:
        save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, part, metadata)
