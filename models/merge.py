"""Trained LoRAs on a plain network for sampling: added into the weights, or run beside them where adding loses digits.

y = W x + strength * alpha/rank * up(down(x)). In fp32 the product up @ down is added to W, and sampling costs nothing
extra. In half precision the sum would be rounded to W's digits, which loses much of a small motion: where the delta is
1 % of W, 17 % of it in bf16 and 2 % in fp16. There the two small products run beside the layer, just as they did in
training, to the bit; they lose 0.4 % in bf16. A state is a dict of "<module>.lora_A.weight" (down, [rank, in]) and
"<module>.lora_B.weight" (up, [out, rank]), fp32.
"""

import contextlib
import difflib
import weakref
from collections.abc import Callable, Iterator, Mapping

import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from torch import nn

from configs.errors import UserError
from models.hooks import Patch, wrap_forward
from models.placement import is_plain

State = Mapping[str, torch.Tensor]


def attach_lora(
    network: nn.Module, state: State, strength: float = 1.0, scale: float = 1.0, beside: bool = False
) -> Patch:
    """Let the LoRA of `state` act on `network` at `strength`, as it did in training; `scale` is its alpha / rank.

    Layers in fp32 are merged (see `merge`); layers in half precision, those whose weights are placed elsewhere
    (models/placement.py), and with `beside` all, keep their weights and run the LoRA beside them.
    A strength of 0 changes nothing. Raises UserError, changing nothing, when a module is missing or a shape differs.
    """
    with contextlib.ExitStack() as undo:  # should memory run out halfway, the network is as it was
        for _, linear, down, up in _layers(network, state):
            if factor := strength * scale:
                merged = linear.weight.dtype == torch.float32 and is_plain(linear) and not beside
                put = _add_delta if merged else _run_beside
                undo.callback(put(linear, (factor, down, up)))
        return Patch([undo.pop_all().close])


def is_merged(network: nn.Module, state: State) -> bool:
    """Whether the LoRA of `state`, which acts on `network`, is in its weights and not beside them."""
    return any("_merged" in linear.__dict__ for _, linear, _, _ in _layers(network, state))


def merge(
    network: nn.Module, state: State, strength: float = 1.0, alpha_over_rank: float | Mapping[str, float] = 1.0
) -> Patch:
    """Add strength * alpha/rank * up @ down to the weights that `state` names, whatever their precision.

    Computed in fp32, stored in the weight's own dtype. Several merges add up (rounded once) and may be removed in any
    order; when the last is gone the original tensors are back, bit for bit. A strength of 0 changes nothing.
    `alpha_over_rank` is one number or one per module. Layers that carry peft adapters are merged in their base.
    Raises UserError, changing nothing, when a module is missing or a shape differs.
    """
    with contextlib.ExitStack() as undo:
        for name, linear, down, up in _layers(network, state):
            ratio = alpha_over_rank if isinstance(alpha_over_rank, int | float) else alpha_over_rank[name]
            if factor := strength * ratio:
                undo.callback(_add_delta(linear, (factor, down, up)))
        return Patch([undo.pop_all().close])


def pairs(state: State) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Module name -> (down [r, in], up [out, r]) of an adapter's state, in its order. UserError on an unpaired key."""
    found = {}
    for key in state:
        module, kind, _ = key.rpartition(".lora_A.weight")
        if kind:
            found[module] = (state[key], state.get(f"{module}.lora_B.weight"))
        elif key.removesuffix(".lora_B.weight") + ".lora_A.weight" not in state:
            raise UserError(f"adapter: {key} has no partner (expected <module>.lora_A.weight and .lora_B.weight)")
    lonely = [module for module, (_, up) in found.items() if up is None]
    if lonely:
        raise UserError(f"adapter: {lonely[0]} has a down matrix (lora_A) but no up matrix (lora_B)")
    return found


def adapted(network: nn.Module) -> list[str]:
    """Names of the linear layers in which a LoRA acts, merged or beside."""
    return [name for name, module in network.named_modules() if {"_merged", "_beside"} & module.__dict__.keys()]


@contextlib.contextmanager
def without_loras(network: nn.Module) -> Iterator[None]:
    """Inside the block the weights are the model's own, whatever `attach_lora` and `merge` put on them."""
    layers = [network.get_submodule(name) for name in adapted(network)]
    # the others' weights are their own already, and may wait on the host or in 8 bits: reading one would make it
    merged = [(layer, layer.weight.data) for layer in layers if "_merged" in layer.__dict__]
    try:
        for layer, weight in merged:
            layer.weight.data = layer._merged[0].to(weight.device)
        for layer in layers:
            layer._loras_off = True
        yield
    finally:
        for layer, weight in merged:
            layer.weight.data = weight
        for layer in layers:
            layer.__dict__.pop("_loras_off", None)


def _layers(network: nn.Module, state: State) -> list[tuple[str, nn.Linear, torch.Tensor, torch.Tensor]]:
    """(name, linear layer, down, up) of every module that `state` names; all are checked before any is returned."""
    modules = dict(network.named_modules())
    found = []
    for name, (down, up) in pairs(state).items():
        module = modules.get(name)
        module = module.base_layer if isinstance(module, LoraLayer) else module
        if not isinstance(module, nn.Linear):
            near = difflib.get_close_matches(name, modules, n=3, cutoff=0.3)
            raise UserError(f"adapter: this model has no linear layer {name}; nearest: {', '.join(near) or 'none'}")
        if (up.shape[0], down.shape[1]) != module.weight.shape or up.shape[1] != down.shape[0]:
            raise UserError(
                f"adapter: {name} is made for a weight [{up.shape[0]}, {down.shape[1]}], this model has"
                f" {list(module.weight.shape)}: use the model width it was trained with"
            )
        found.append((name, module, down, up))
    return found


def _run_beside(linear: nn.Linear, delta: tuple[float, torch.Tensor, torch.Tensor]) -> Callable[[], None]:
    factor, down, up = delta
    down, up = down.to(linear.weight), up.to(linear.weight)
    held = weakref.ref(linear)  # the layer holds this function: a strong reference would keep a dropped model
    linear.__dict__["_beside"] = linear.__dict__.get("_beside", 0) + 1

    def beside(forward, x):
        if "_loras_off" in held().__dict__:
            return forward(x)
        return forward(x) + F.linear(F.linear(x, down), up) * factor

    unwrap = wrap_forward(linear, beside)

    def undo() -> None:
        unwrap()
        linear.__dict__["_beside"] -= 1
        if not linear.__dict__["_beside"]:
            del linear.__dict__["_beside"]

    return undo


def _add_delta(linear: nn.Linear, delta: tuple[float, torch.Tensor, torch.Tensor]) -> Callable[[], None]:
    original, deltas = linear.__dict__.setdefault("_merged", (linear.weight.data, []))

    def undo() -> None:
        deltas[:] = [other for other in deltas if other is not delta]
        _apply_deltas(linear, original, deltas)
        if not deltas:
            linear.__dict__.pop("_merged", None)

    deltas.append(delta)
    try:
        _apply_deltas(linear, original, deltas)
    except BaseException:
        undo()
        raise
    return undo


@torch.no_grad()
def _apply_deltas(linear: nn.Linear, original: torch.Tensor, deltas: list) -> None:
    device = linear.weight.device
    weight = original.to(device)
    if deltas:
        total = weight.float().clone()
        for factor, down, up in deltas:
            total += factor * (up.to(device, torch.float32) @ down.to(device, torch.float32))
        weight = total.to(original.dtype)
    linear.weight.data = weight
