"""The optimizers that a training may take: AdamW, AdamW with 8-bit state, and Prodigy, which finds its own rate.

Prodigy (Mishchenko and Defazio, arXiv 2306.06101) is AdamW at the rate d * lr: d is a lower bound, raised in the course
of a training, on how far the weights are from where they will end, and `learning_rate` only multiplies it. It is taken
from the package prodigyopt, which like bitsandbytes is needed only where it is asked for.
"""

from typing import Any

import torch
from torch.optim import Optimizer

from configs.errors import UserError
from models.files.training_state import WRAPPED

TABLES = ("qmap1", "qmap2")  # what the 256 values of an 8-bit moment stand for
LEARNED = ("d", "d_max", "d_numerator", "k")  # what Prodigy has found of its rate, in each of its groups


def check_optimizer(cfg) -> None:
    """Raise UserError, before anything is loaded, where the package that `cfg`'s optimizer comes from is missing."""
    _kind(cfg)


def bytes_of_state(cfg) -> int:
    """What the optimizer keeps of each trained number: two moments, and for Prodigy a sum and the first value too."""
    return 16 if cfg.optimizer == "prodigy" else 2 if cfg.use_8bit_adam else 8


def make_optimizer(cfg, groups: list[dict], device: torch.device, options: dict[str, Any]) -> Optimizer:
    """The optimizer of one path that `cfg` asks for, on groups of {"params", "lr"} with betas, eps and weight_decay.

    Raises UserError as `check_optimizer` does.
    """
    kind = _kind(cfg)
    if cfg.optimizer == "prodigy":
        return _prodigy(kind, groups, **options)
    # one kernel, where torch's default is a dozen calls a parameter; that of MPS knows no loss scale: it would make the
    # weights nan where an overflowed step is to be skipped
    fused = device.type in ("cuda", "cpu") or (device.type == "mps" and cfg.mixed_precision != "fp16")
    return kind(groups, **options, **({"fused": True} if fused and kind is torch.optim.AdamW else {}))


def state_of(optimizer: Optimizer) -> dict[str, Any]:
    """The optimizer's state for a checkpoint, in which no tensor stands twice: such a file would be refused as a trap.

    AdamW with 8-bit state shares its two tables of values among all parameters; each gets a copy here.
    """
    state = optimizer.state_dict()
    for moments in state["state"].values():
        entries = moments.get(WRAPPED, moments)
        entries.update({name: entries[name].clone() for name in TABLES if name in entries})
    return state


def _kind(cfg) -> type[Optimizer]:
    if cfg.optimizer == "prodigy":
        try:
            from prodigyopt import Prodigy
        except ImportError:
            raise UserError(
                "optimizer: prodigy needs the package prodigyopt; `pip install prodigyopt`, or set optimizer to adamw"
            ) from None
        return Prodigy
    if cfg.use_8bit_adam:
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError:
            raise UserError(
                "use_8bit_adam: bitsandbytes is not installed; `pip install bitsandbytes` (CUDA only), or "
                "leave it off: the adapters' AdamW state is under 0.1 GB"
            ) from None
        return AdamW8bit
    return torch.optim.AdamW


def _prodigy(kind: type[Optimizer], groups: list[dict], *, weight_decay: float, **options: Any) -> Optimizer:
    """One Prodigy for all groups, with the settings that its authors advise for diffusion models and a warm-up.

    It takes one rate for all groups. A group whose rate is `stretch` times the first's is therefore moved in units of
    its own: Prodigy sees p / stretch and the gradient with respect to that, so that a step of p is `stretch` times as
    long.
    """
    rate = groups[0]["lr"]
    # the decay stands in the groups: of one in its arguments the package speaks on stdout
    groups = [{**g, "lr": rate, "stretch": g["lr"] / rate, "weight_decay": weight_decay} for g in groups]
    made = kind(groups, use_bias_correction=True, safeguard_warmup=True, **options)
    made.register_step_pre_hook(_shrink)
    made.register_step_post_hook(_stretch)
    return made


@torch.no_grad()
def _shrink(optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
    for p, stretch in _stretched(optimizer):
        p.div_(stretch)
        p.grad.mul_(stretch)


@torch.no_grad()
def _stretch(optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
    for p, stretch in _stretched(optimizer):
        p.mul_(stretch)


def _stretched(optimizer: Optimizer) -> list[tuple[torch.Tensor, float]]:
    """The parameters that will move, with their groups' stretch, where that is not 1."""
    groups = [group for group in optimizer.param_groups if group["stretch"] != 1]
    return [(p, group["stretch"]) for group in groups for p in group["params"] if p.grad is not None]
