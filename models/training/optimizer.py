"""The two optimizers of the dual path: AdamW for what learns motion, AdamW for the appearance adapters.

They step together, after both passes have run their backward. A path that did not run leaves its gradients None, so
AdamW neither decays nor moves its weights. Parameters are the adapters' fp32 masters; with an fp16 backbone the losses
are scaled. Several processes average gradients here, without a wrapper around the U-Net.
"""

import warnings

import torch
import torch.distributed as dist
from diffusers.optimization import get_scheduler

from configs.errors import UserError


class DualPathOptimizer:
    """`backward(loss)` for each pass, then `step()`; `state_dict()` holds all the next step needs."""

    def __init__(
        self,
        cfg,
        motion: list[torch.nn.Parameter],
        appearance: list[torch.nn.Parameter],
        *,
        motion_lr: float,
        half: bool,
        device: torch.device,
    ):
        optimizer = _adamw_8bit() if cfg.use_8bit_adam else torch.optim.AdamW
        options = dict(betas=(cfg.adam_beta1, cfg.adam_beta2), eps=cfg.adam_epsilon, weight_decay=cfg.adam_weight_decay)
        paths = [(motion, motion_lr), (appearance, cfg.learning_rate)]
        self.options = [{"initial_lr": lr, **options} for parameters, lr in paths if parameters]
        self.optimizers = [optimizer(parameters, lr=lr, **options) for parameters, lr in paths if parameters]
        self.schedules = [
            get_scheduler(
                cfg.lr_scheduler, o, num_warmup_steps=cfg.lr_warmup_steps, num_training_steps=cfg.max_train_steps
            )
            for o in self.optimizers
        ]
        self.scaler = torch.amp.GradScaler(device.type, enabled=half)
        self.scaler.scale(
            torch.zeros(1, device=device)
        )  # a process whose first clips learn nothing needs the scale too
        self.max_grad_norm = cfg.max_grad_norm
        self.share = 1 / cfg.gradient_accumulation_steps

    def backward(self, loss: torch.Tensor) -> None:
        self.scaler.scale(loss * self.share).backward()

    def step(self) -> None:
        """Average over processes, clip each path by its own norm, move the weights, advance the schedules."""
        self._average_over_processes()
        ran = [o for o in self.optimizers if any(p.grad is not None for p in _parameters(o))]
        for optimizer in ran:
            self.scaler.unscale_(optimizer)
            if self.max_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_(_parameters(optimizer), self.max_grad_norm)
            self.scaler.step(optimizer)
        if ran:
            self.scaler.update()
        with warnings.catch_warnings():
            # a path that has not run yet has not stepped either; its schedule counts steps of the run all the same
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            for optimizer, schedule in zip(self.optimizers, self.schedules):
                optimizer.zero_grad(set_to_none=True)
                schedule.step()

    @property
    def learning_rate(self) -> float:
        return self.optimizers[0].param_groups[0]["lr"]

    def state_dict(self) -> dict:
        return {
            "optimizers": [o.state_dict() for o in self.optimizers],
            "schedules": [s.state_dict() for s in self.schedules],
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Moments, schedule and loss scale of a checkpoint; rates, betas and decay are those of this run's config."""
        if len(state["optimizers"]) != len(self.optimizers):
            raise UserError(
                f"checkpoint: it was trained with {len(state['optimizers'])} optimizers and this run has "
                f"{len(self.optimizers)}; resume with the same method"
            )
        for mine, saved in zip([*self.optimizers, *self.schedules], [*state["optimizers"], *state["schedules"]]):
            mine.load_state_dict(saved)
        for optimizer, schedule, options in zip(self.optimizers, self.schedules, self.options):
            schedule.base_lrs = [options["initial_lr"]] * len(optimizer.param_groups)
            for group, factor in zip(optimizer.param_groups, schedule.lr_lambdas):
                group.update(options, lr=options["initial_lr"] * factor(schedule.last_epoch))
        if state["scaler"]:  # empty when the checkpoint comes from another precision
            self.scaler.load_state_dict(state["scaler"])

    def _average_over_processes(self) -> None:
        """Mean gradient over processes; a parameter that no process touched keeps None (clips may differ by rank)."""
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return
        parameters = [p for o in self.optimizers for p in _parameters(o)]
        touched = torch.tensor([float(p.grad is not None) for p in parameters], device=parameters[0].device)
        flat = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters])
        dist.all_reduce(touched)
        dist.all_reduce(flat)
        means = (flat / dist.get_world_size()).split([p.numel() for p in parameters])
        for parameter, mean, count in zip(parameters, means, touched.tolist()):
            parameter.grad = mean.view_as(parameter).clone() if count else None


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _adamw_8bit():
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        raise UserError(
            "use_8bit_adam: bitsandbytes is not installed; `pip install bitsandbytes` (CUDA only), or "
            "leave it off: the adapters' AdamW state is under 0.1 GB"
        ) from None
    return AdamW8bit
