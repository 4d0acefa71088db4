"""The part of a checkpoint that only training needs: optimizers, schedules, loss scale and step (`training_state.pt`).

The file is opened so that nothing in it executes, and every value is checked before an optimizer takes it over: a list
in place of a dict, moments of another model or a negative step end in one sentence.
"""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from configs.checks import checked, flag, listed, real, whole
from configs.errors import UserError, shown
from models.files.tensors import read_pickle

TRAINING_STATE = "training_state.pt"
ADVICE = "the file is damaged: resume from an earlier checkpoint"
MOST_GROUPS = 2  # learning rates of an optimizer: LoRA+ has one for each factor


def _nothing(value: Any) -> None:
    if value is not None:
        raise ValueError("not null")


SCHEDULE = {  # of a LambdaLR; other keys would be set as attributes of the schedule, so they are left out
    "last_epoch": whole(0),
    "_step_count": whole(0),
    "base_lrs": listed(real(0), 1, MOST_GROUPS),
    "_last_lr": listed(real(0), 1, MOST_GROUPS),
    "lr_lambdas": listed(_nothing, 1, MOST_GROUPS),  # functions are not stored, so there is nothing to take over
    "_get_lr_called_within_step": flag,
    "_is_initial": flag,
}
SCALER = {
    "scale": real(above=0, high=1e30),
    "growth_factor": real(above=1),
    "backoff_factor": real(above=0, high=1),
    "growth_interval": whole(1),
    "_growth_tracker": whole(0),
}
MOMENTS = ("exp_avg", "exp_avg_sq")
IN_EIGHT_BITS = ("state1", "state2")  # bitsandbytes' names for AdamW's moments
WRAPPED = "__bnb_optimizer_quant_state__"  # where bitsandbytes of today keeps them, in a dict of their own
FLAT = ("s", "p0")  # Prodigy's: sum of gradients and first value, of a weight as one row; a single zero for all zeros
FOUND = {"d": real(above=0), "d_max": real(above=0), "d_numerator": real(), "k": whole(0)}  # its rate, in each group


def load_training_state(
    folder: str | Path,
    parameters: Sequence[Sequence[Sequence[torch.Tensor]]] | None = None,
    kind: str | None = None,
    eight_bits: bool = False,
) -> dict[str, Any]:
    """{"step": int, "optimizer": {"optimizers", "schedules", "scaler"}, "processes": int} of the checkpoint `folder`.

    `processes` is how many trained together, None where the file does not say.
    `parameters` are those of each optimizer that is to take the state over, by its groups; moments must have their
    shapes. `kind` and `eight_bits` are the values of the keys `optimizer` and `use_8bit_adam` of the run that does.
    Raises UserError where the file is missing, damaged, or another training's.
    """
    file = Path(folder) / TRAINING_STATE
    if not file.is_file():
        raise UserError(f"{folder}: has no {TRAINING_STATE}, so training cannot go on from it; sampling can use it")
    content = read_pickle(file)
    state = checked(
        content, {"step": whole(0), "processes": whole(1)}, str(file), needed=("step", "optimizer"), advice=ADVICE
    )
    parts = content["optimizer"]
    lists = {"optimizers": listed(_anything, most=8), "schedules": listed(_anything, most=8), "scaler": _anything}
    parts = checked(parts, lists, str(file), needed=tuple(lists), advice=ADVICE)
    if len(parts["optimizers"]) != len(parts["schedules"]):
        raise UserError(f"{file}: not one schedule to each optimizer; {ADVICE}")
    if parameters is not None and len(parts["optimizers"]) != len(parameters):
        raise UserError(
            f"{file}: written by {len(parts['optimizers'])} optimizers, this run has {len(parameters)}; resume with"
            " the same method"
        )
    for number, optimizer in enumerate(parts["optimizers"]):
        _check_optimizer(optimizer, parameters[number] if parameters is not None else None, kind, eight_bits, file)
    needed = ("last_epoch", "_step_count")
    schedules = [checked(s, SCHEDULE, str(file), needed=needed, advice=ADVICE) for s in parts["schedules"]]
    scaler = checked(parts["scaler"], SCALER, str(file), advice=ADVICE)
    if scaler and len(scaler) < len(SCALER):
        raise UserError(f"{file}: its loss scale lacks {', '.join(SCALER.keys() - scaler.keys())}; {ADVICE}")
    optimizer = {"optimizers": parts["optimizers"], "schedules": schedules, "scaler": scaler}
    return {"step": state["step"], "optimizer": optimizer, "processes": state.get("processes")}


def _check_optimizer(
    state: Any, groups: Sequence[Sequence[torch.Tensor]] | None, kind: str | None, eight_bits: bool, file: Path
) -> None:
    shape = {"state": _anything, "param_groups": listed(_anything, 1, MOST_GROUPS)}
    parts = checked(state, shape, str(file), needed=tuple(shape), advice=ADVICE)
    saved = [
        checked(group, {"params": listed(whole(0))}, str(file), needed=("params",), advice=ADVICE)["params"]
        for group in parts["param_groups"]
    ]
    wrote = "prodigy" if any("d" in group for group in parts["param_groups"]) else "adamw"
    if kind not in (None, wrote):
        raise UserError(f"optimizer: this run's is {kind} and {wrote} wrote {file}; resume with optimizer={wrote}")
    for group in parts["param_groups"] if wrote == "prodigy" else ():
        checked(group, FOUND, str(file), needed=tuple(FOUND), advice=ADVICE)
    if groups is not None and len(saved) != len(groups):
        raise UserError(
            f"lora_plus_ratio: this run has {len(groups)} learning rates for the two factors of a LoRA and {file} has "
            f"{len(saved)}; resume with the value that it was trained with"
        )
    numbers, parameters = list(chain(*saved)), None if groups is None else list(chain(*groups))
    count = len(numbers)
    if numbers != list(range(count)) or (parameters is not None and count != len(parameters)):
        here = "" if parameters is None else f", this run has {len(parameters)}"
        raise UserError(f"{file}: its optimizer moved {count} parameters{here}; resume with the same method and preset")
    if not isinstance(parts["state"], dict) or any(
        type(number) is not int or number not in range(count) for number in parts["state"]
    ):
        raise UserError(f"{file}: its optimizer state is {shown(parts['state'])}; {ADVICE}")
    for moments in parts["state"].values():
        if isinstance(moments, dict) and isinstance(moments.get(WRAPPED), dict):
            moments |= moments.pop(WRAPPED)
    in_eight_bits = any(isinstance(moments, dict) and "state1" in moments for moments in parts["state"].values())
    if kind == "adamw" and parts["state"] and in_eight_bits != eight_bits:
        run, saved_with = (str(value).lower() for value in (eight_bits, in_eight_bits))
        raise UserError(
            f"use_8bit_adam: this run's is {run} and {file} was written with {saved_with}; resume with "
            f"use_8bit_adam={saved_with}"
        )
    for number, moments in parts["state"].items():
        if not isinstance(moments, dict):
            raise UserError(f"{file}: the optimizer state of parameter {number} is {shown(moments)}; {ADVICE}")
        needed = {"step", *(IN_EIGHT_BITS if in_eight_bits else MOMENTS), *(FLAT if wrote == "prodigy" else ())}
        if lost := sorted(needed - moments.keys()):
            raise UserError(f"{file}: the optimizer state of parameter {number} has no {lost[0]}; {ADVICE}")
        for name, value in moments.items():
            wanted = None if parameters is None else _shape(name, value, parameters[number])
            if wrong := _wrong(name, value, wanted):
                raise UserError(f"{file}: {shown(name)} of parameter {number} {wrong}; {ADVICE}")


def _shape(name: Any, value: Any, weight: torch.Tensor) -> torch.Size | None:
    """The shape that an entry of a weight's state must have; None for one that may have any."""
    if name in MOMENTS + IN_EIGHT_BITS:
        return weight.shape
    single = name == "p0" and isinstance(value, torch.Tensor) and not value.dim()
    return torch.Size([] if single else [weight.numel()]) if name in FLAT else None


def _wrong(name: Any, value: Any, shape: torch.Size | None) -> str | None:
    """What is wrong with one entry of an optimizer's state, in words."""
    if not isinstance(value, torch.Tensor):
        counts = name == "step" and type(value) in (int, float) and 0 <= value <= 2**53
        return None if counts else f"is {shown(value)}"
    if shape is not None and value.shape != shape:
        return f"has the shape {list(value.shape)}, its weight has {list(shape)}"
    if value.is_complex() or (value.is_floating_point() and not torch.isfinite(value).all()):
        return "is not finite"
    if name == "step" and (value.numel() != 1 or value < 0):
        return f"is {shown(value.tolist())}"
    if name == "exp_avg_sq" and (value < 0).any():
        return "is negative, which no mean of squares is"
    return None


def _anything(value: Any) -> Any:
    return value
