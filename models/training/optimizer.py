"""The two optimizers of the dual path: one for what learns motion, one for the appearance adapters.

They step together, after both passes have run their backward. A path that did not run leaves its gradients None, so
that nothing decays or moves its weights. Parameters are the adapters' fp32 masters; with an fp16 backbone the losses
are scaled. Several processes average their gradients here, without a wrapper around the network. The optimizers that
can be chosen are in models/training/optimizer_kinds.py.

B of a LoRA B A starts at zero and, at A's learning rate, stays far smaller than A for long; LoRA+ (Hayou et al., arXiv
2402.12354) gives it a higher one, here `lora_plus_ratio` times A's. The norm that is clipped stays that of both.
"""

import math
import warnings
from collections.abc import Collection
from typing import NamedTuple

import torch
from diffusers.optimization import get_scheduler
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from models.training.optimizer_kinds import LEARNED, make_optimizer, state_of
from models.training.processes import Processes

MOST_SKIPPED = 20  # steps in a row; the loss scale has then been halved from 65,536 to below 0.1


class NotFinite(ArithmeticError):
    """A number of a training step that is nan or infinite, in words; no weight has moved."""


def require_finite(losses: dict[str, float]) -> None:
    """Raise NotFinite for losses that a step must not follow."""
    broken = [f"{name} loss is {value}" for name, value in losses.items() if not math.isfinite(value)]
    if broken:
        raise NotFinite(" and the ".join(broken))


class Moved(NamedTuple):
    """What one optimizer step did."""

    norms: dict[str, float]  # path -> norm of its gradient before clipping, for the paths that ran
    scale: float | None  # fp16's loss scale, None in other precisions
    skipped: bool  # fp16: a gradient overflowed, so that the weights of its path stayed and the scale was halved


class DualPathOptimizer:
    """`backward(loss)` for each pass, then `step()`; `state_dict()` holds all the next step needs.

    `motion` and `appearance` are the parameters of the two paths. `motion_lr` is the learning rate of the first; that
    of the second is `learning_rate` of `cfg`. `second_factors` are the B matrices of all LoRAs, which LoRA+ gives a
    higher rate. With `half` the losses are scaled, as the backward pass of an fp16 network needs. Raises UserError
    where the package of the optimizer is missing.
    """

    def __init__(
        self,
        cfg,
        motion: list[torch.nn.Parameter],
        appearance: list[torch.nn.Parameter],
        *,
        motion_lr: float,
        second_factors: Collection[torch.nn.Parameter] = (),
        half: bool,
        device: torch.device,
        processes: Processes | None = None,
    ):
        betas = (cfg.adam_beta1, cfg.adam_beta2)
        options = dict(betas=betas, eps=cfg.adam_epsilon, weight_decay=cfg.adam_weight_decay)
        paths = {"motion": (motion, motion_lr), "appearance": (appearance, cfg.learning_rate)}
        paths = {
            path: _groups(*given, second_factors, cfg.lora_plus_ratio) for path, given in paths.items() if given[0]
        }
        self.paths = list(paths)
        self.optimizers = [make_optimizer(cfg, groups, device, options) for groups in paths.values()]
        steps = dict(num_warmup_steps=cfg.lr_warmup_steps, num_training_steps=cfg.max_train_steps)
        self.schedules = [get_scheduler(cfg.lr_scheduler, o, **steps) for o in self.optimizers]
        self.rates = [list(schedule.base_lrs) for schedule in self.schedules]
        self.scaler = torch.amp.GradScaler(device.type, enabled=half)
        # GradScaler makes its scale on first use; a process whose first clips have no loss would reach update() without
        self.scaler.scale(torch.zeros(1, device=device))
        self.max_grad_norm, self.share = cfg.max_grad_norm, 1 / cfg.gradient_accumulation_steps
        self.processes, self.unmoved = processes, set(self.paths)  # that no step of this run has moved yet
        self._overflows = dict.fromkeys(self.paths, 0)  # steps in a row in which a path's gradient overflowed fp16

    def groups(self) -> list[list[list[torch.nn.Parameter]]]:
        """The trained parameters of each path, by their learning rates: LoRA+ has two."""
        return [[group["params"] for group in optimizer.param_groups] for optimizer in self.optimizers]

    def backward(self, loss: torch.Tensor) -> None:
        self.scaler.scale(loss * self.share).backward()

    def step(self) -> Moved:
        """Average over processes, clip each path by its own norm, move the weights, advance the schedules.

        Raises NotFinite, before any weight moves, when a gradient is not finite. With fp16 that is the sign of too
        large a loss scale: the path stays where it is, and only MOST_SKIPPED such steps in a row are an error.
        """
        if self.processes:
            self.processes.average_gradients([p for optimizer in self.optimizers for p in _parameters(optimizer)])
        ran = {path: o for path, o in zip(self.paths, self.optimizers) if _gradients(o)}
        for optimizer in ran.values():
            self.scaler.unscale_(optimizer)
        norms = {path: get_total_norm(_gradients(optimizer)) for path, optimizer in ran.items()}
        values = dict(zip(norms, torch.stack([*norms.values()]).tolist())) if norms else {}
        self._check(values)
        for path, optimizer in ran.items():
            if self.max_grad_norm is not None:
                clip_grads_with_norm_(_parameters(optimizer), self.max_grad_norm, norms[path])
            self.scaler.step(optimizer)
        if ran:
            self.scaler.update()
        with warnings.catch_warnings():
            # a path that has not run yet has not stepped either; its schedule counts steps of the run all the same
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            for optimizer, schedule in zip(self.optimizers, self.schedules):
                optimizer.zero_grad(set_to_none=True)
                schedule.step()
        scale = self.scaler.get_scale() if self.scaler.is_enabled() else None
        return Moved(values, scale, any(not math.isfinite(norm) for norm in values.values()))

    def _check(self, norms: dict[str, float]) -> None:
        broken = {path: norm for path, norm in norms.items() if not math.isfinite(norm)}
        if broken and not self.scaler.is_enabled():
            raise NotFinite(" and the ".join(f"{path} path's gradient is {norm}" for path, norm in broken.items()))
        for path in norms:
            self._overflows[path] = self._overflows[path] + 1 if path in broken else 0
            if self._overflows[path] >= MOST_SKIPPED:
                raise NotFinite(
                    f"{path} path's gradient overflowed fp16 in each of {MOST_SKIPPED} steps, down to a loss scale of "
                    f"{self.scaler.get_scale():g}"
                )
        self.unmoved -= norms.keys() - broken.keys()

    @property
    def learning_rate(self) -> float:
        """Of the motion path; of its first factors under LoRA+; with Prodigy the rate that it has found so far."""
        group = self.optimizers[0].param_groups[0]
        return group["lr"] * group.get("d", 1.0)

    def state_dict(self) -> dict:
        return {
            "optimizers": [state_of(o) for o in self.optimizers],
            "schedules": [s.state_dict() for s in self.schedules],
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Moments, schedule, loss scale and what Prodigy found, of a checkpoint; the rest is this run's config's."""
        for path, saved in zip(self.paths, state["optimizers"]):
            # CUDA's AdamW has a state of a path that never moved, too: its steps were skipped, and count none
            if any(float(moments.get("step", 1)) > 0 for moments in saved["state"].values()):
                self.unmoved.discard(path)
        for mine, saved in zip(self.optimizers, state["optimizers"]):
            pairs = zip(mine.state_dict()["param_groups"], saved["param_groups"])
            groups = [own | {name: old[name] for name in LEARNED if name in own} for own, old in pairs]
            mine.load_state_dict({**saved, "param_groups": groups})
        for mine, saved in zip(self.schedules, state["schedules"]):
            mine.load_state_dict(saved)
        for optimizer, schedule, rates in zip(self.optimizers, self.schedules, self.rates):
            schedule.base_lrs = rates
            for group, factor, rate in zip(optimizer.param_groups, schedule.lr_lambdas, rates):
                group.update(initial_lr=rate, lr=rate * factor(schedule.last_epoch))
        if state["scaler"]:  # empty when the checkpoint comes from another precision
            self.scaler.load_state_dict(state["scaler"])


def _groups(
    parameters: list[torch.nn.Parameter], rate: float, second_factors: Collection[torch.nn.Parameter], ratio: float
) -> list[dict]:
    """The groups of a path: one for a single rate, else what is no second factor, and the second factors."""
    raised = {id(p) for p in second_factors} if ratio != 1 else set()
    first, second = [p for p in parameters if id(p) not in raised], [p for p in parameters if id(p) in raised]
    return [{"params": group, "lr": lr} for group, lr in ((first, rate), (second, ratio * rate)) if group]


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _gradients(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [p.grad for p in _parameters(optimizer) if p.grad is not None]
