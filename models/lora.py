"""LoRA adapters on the U-Net's transformers: which layers a preset adapts, injection, switching, merging.

Temporal attention purification (TAP, paper section on motion LoRA) is a choice of layers: adapting only what makes
the attention *weights* of the temporal transformers recombines the pretrained Value embeddings into a new motion.
y = W x + scale * up(down(x)), scale = alpha / rank, down ~ N(0, std 1/rank), up = 0. A state is a dict of
"<module>.lora_A.weight" (down, [rank, in]) and "<module>.lora_B.weight" (up, [out, rank]), always fp32.
"""

import contextlib
import difflib
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn

from configs.errors import UserError
from models.hooks import Patch


def _both_attentions(*kinds: str) -> tuple[str, ...]:
    return tuple(f"attn{i}.{kind}" for i in (1, 2) for kind in kinds)


_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
_FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")

# What each preset adapts inside one transformer block, in the order of the release's positional files.
PRESETS: dict[str, tuple[str, ...]] = {
    "tap": _both_attentions("to_q", "to_k"),
    "tap_key": _both_attentions("to_k"),
    "release": _both_attentions("to_k", "to_out.0"),
    "motiondirector": (*_both_attentions(*_PROJECTIONS), *_FEED_FORWARD),
    "query": _both_attentions("to_q"),
    "value": _both_attentions("to_v"),
    "out": _both_attentions("to_out.0"),
    "ff": _FEED_FORWARD,
    "qk_out": _both_attentions("to_q", "to_k", "to_out.0"),
    "appearance": (*(f"attn1.{kind}" for kind in _PROJECTIONS), *_FEED_FORWARD),
}
_TEMPORAL_BLOCK = re.compile(r"(transformer_in|.+\.temp_attentions\.\d+)\.transformer_blocks\.\d+")
_SPATIAL_BLOCK = re.compile(r".+\.attentions\.\d+\.transformer_blocks\.\d+")


def targets(unet: nn.Module, preset: str) -> list[str]:
    """Names of the Linear layers that `preset` adapts, in the release's file order.

    That order is transformer_in, down_blocks, up_blocks, mid_block, and inside a block as written in `PRESETS`.
    Works on a plain U-Net and on one that already carries adapters. Raises UserError for an unknown preset and for a
    U-Net without the layers, listing the nearest names.
    """
    if preset not in PRESETS:
        near = difflib.get_close_matches(preset, PRESETS, n=1)
        hint = f"did you mean {near[0]}" if near else f"choose one of {', '.join(PRESETS)}"
        raise UserError(f"temporal_preset: no preset is called {preset!r}: {hint}")
    block = _SPATIAL_BLOCK if preset == "appearance" else _TEMPORAL_BLOCK
    modules = dict(unet.named_modules())
    names = [f"{name}.{part}" for name in modules if block.fullmatch(name) for part in PRESETS[preset]]
    missing = [name for name in names if name not in modules] or ([] if names else ["temp_attentions.0"])
    if missing:
        near = difflib.get_close_matches(missing[0], modules, n=3, cutoff=0.3)
        raise UserError(
            f"{preset}: {type(unet).__name__} has no layer {missing[0]} to adapt; its nearest names are"
            f" {', '.join(near) or 'none'}: use a ZeroScope or ModelScope U-Net (UNet3DConditionModel)"
        )
    return names


class LoraAdapter(Patch):
    """One injected adapter. `layers` maps module names, in file order, to the peft layer that holds its two matrices.

    It is off and frozen until `active` switches it on; `remove()` takes it out of the U-Net again.
    """

    def __init__(self, unet: nn.Module, name: str, preset: str, rank: int, alpha: float, layers: dict[str, LoraLayer]):
        super().__init__([lambda: _eject(unet, self)])
        self.name, self.preset, self.rank, self.alpha, self.layers = name, preset, rank, alpha, layers
        self.matrices = {}  # state key -> the nn.Linear whose weight it is
        for module, layer in layers.items():
            self.matrices[f"{module}.lora_A.weight"] = layer.lora_A[name]
            self.matrices[f"{module}.lora_B.weight"] = layer.lora_B[name]
        self._parameters = [linear.weight for linear in self.matrices.values()]

    def __str__(self) -> str:
        kind = "spatial" if self.preset == "appearance" else "temporal"
        transformers = len({name.split(".transformer_blocks")[0] for name in self.layers})
        size = sum(p.numel() for p in self.parameters())
        return f"{self.preset}: {len(self.layers)} layers, {transformers} {kind} transformers, {size:,} parameters"

    @property
    def scale(self) -> float:
        """alpha / rank, what `merge` multiplies this adapter's state with."""
        return self.alpha / self.rank

    def parameters(self) -> list[nn.Parameter]:
        """The fp32 masters, down then up for each layer, in file order."""
        return self._parameters

    def state_dict(self) -> dict[str, torch.Tensor]:
        """ "<module>.lora_A.weight" [r, in] and "<module>.lora_B.weight" [out, r], detached, fp32."""
        return {key: linear.weight.detach().clone() for key, linear in self.matrices.items()}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Copy `state` in. Raises UserError, changing nothing, on a missing, surplus or differently shaped tensor."""
        wrong = sorted(self.matrices.keys() ^ state.keys())
        if wrong:
            verb = "lacks" if wrong[0] in self.matrices else "has a surplus"
            raise UserError(
                f"adapter {self.name} ({self.preset}): the file {verb} {wrong[0]} ({len(wrong)} names"
                " differ): was it trained with another preset or on another U-Net?"
            )
        for key, linear in self.matrices.items():
            if state[key].shape != linear.weight.shape:
                raise UserError(
                    f"adapter {self.name}: {key} is {list(state[key].shape)} in the file and"
                    f" {list(linear.weight.shape)} here: use the U-Net width and rank it was trained with"
                )
        with torch.no_grad():
            for key, linear in self.matrices.items():
                linear.weight.copy_(state[key])


def add_adapter(
    unet: nn.Module,
    name: str,
    preset: str,
    rank: int,
    *,
    alpha: float | None = None,
    dropout: float = 0.0,
    placement: str = "release",
    generator: torch.Generator | None = None,
) -> LoraAdapter:
    """Inject a LoRA adapter called `name` (no dots) and return it, switched off and frozen.

    Several adapters may sit on one U-Net, also on the same layers: they act in parallel, each on the layer's input.
    `alpha` defaults to `rank`; a layer narrower than `rank` gets the rank it can have at the same scale alpha / rank.
    `placement` of the dropout: "release" after up, "peft" before down. `generator` (CPU) draws the down matrices;
    without one they come from torch's global generator. Raises UserError when the U-Net lacks the preset's layers.
    Source: release and MotionDirector LoRA code (scale 1, down std 1/rank, up 0).
    """
    names = targets(unet, preset)
    alpha = float(rank if alpha is None else alpha)
    modules = dict(unet.named_modules())
    ranks = {n: min(rank, modules[n].in_features, modules[n].out_features) for n in names}
    clipped = {re.escape(n): r for n, r in ranks.items() if r < rank}
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules="|".join(map(re.escape, names)),
        lora_dropout=dropout if placement == "peft" else 0.0,
        rank_pattern=clipped,
        alpha_pattern={n: alpha / rank * r for n, r in clipped.items()},
    )
    before = {n: (m._active_adapter, m._disable_adapters) for n, m in modules.items() if isinstance(m, LoraLayer)}
    grads = {p: p.requires_grad for n, p in unet.named_parameters() if ".lora_" in n}
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():  # peft's own initial values are overwritten
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters are intended
        inject_adapter_in_model(config, unet, name)
    for parameter, flag in grads.items():  # peft switches every other adapter off: switch back
        parameter.requires_grad_(flag)
    for module_name, module in unet.named_modules():
        if isinstance(module, LoraLayer):
            module._active_adapter, module._disable_adapters = before.get(module_name, ([], True))
    adapter = LoraAdapter(unet, name, preset, rank, alpha, {n: unet.get_submodule(n) for n in names})
    for module_name, layer in adapter.layers.items():
        layer.train(unet.training)  # new modules start in train mode: dropout would act in an eval-mode U-Net
        down, up = layer.lora_A[name].float(), layer.lora_B[name].float()
        r = ranks[module_name]
        with torch.no_grad():
            down.weight.copy_(torch.randn(down.weight.shape, generator=generator) / r)
            up.weight.zero_()
        if placement == "release" and dropout:
            up.register_forward_hook(_dropout_after(dropout))
    for parameter in adapter.parameters():
        parameter.requires_grad_(False)
    return adapter


def _dropout_after(probability: float):
    return lambda up, args, output: nn.functional.dropout(output, probability, up.training)


def _eject(unet: nn.Module, adapter: LoraAdapter) -> None:
    for name, layer in adapter.layers.items():
        layer._active_adapter = [other for other in layer._active_adapter if other != adapter.name]
        layer.delete_adapter(adapter.name)
        layer._disable_adapters = not layer._active_adapter
        if not layer.lora_A:
            unet.set_submodule(name, layer.base_layer)
    unet.peft_config.pop(adapter.name)
    if not unet.peft_config:
        del unet.peft_config


@contextlib.contextmanager
def active(
    adapters: Iterable[LoraAdapter], on: Iterable[LoraAdapter] = (), trainable: Iterable[LoraAdapter] = ()
) -> Iterator[None]:
    """Inside the block, of `adapters` those in `on` act and those in `trainable` collect gradients; all others do
    neither. On exit everything is as before.

    Run a pass's backward inside the same block as its forward: activation checkpointing recomputes with whatever is
    active then. Costs under a millisecond (no walk over the U-Net's modules).
    """
    adapters, on, trainable = list(adapters), list(on), list(trainable)
    names: dict[LoraLayer, list[str]] = {layer: [] for adapter in adapters for layer in adapter.layers.values()}
    for adapter in on:
        for layer in adapter.layers.values():
            names[layer].append(adapter.name)
    before = [(layer, layer._active_adapter, layer._disable_adapters) for layer in names]
    wanted = [(adapter, adapter in trainable) for adapter in adapters]
    changed = [p for adapter, flag in wanted for p in adapter.parameters() if p.requires_grad != flag]
    try:
        for layer, acting in names.items():
            _switch(layer, acting, not acting)
        for parameter in changed:
            parameter.requires_grad = not parameter.requires_grad
        yield
    finally:
        for layer, acting, off in before:
            _switch(layer, acting, off)
        for parameter in changed:
            parameter.requires_grad = not parameter.requires_grad


def _switch(layer: LoraLayer, acting: list[str], off: bool) -> None:
    vars(layer).update(_active_adapter=acting, _disable_adapters=off)  # nn.Module's own __setattr__ is ten times slower


def pairs(state: Mapping[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
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


def merge(
    unet: nn.Module,
    state: Mapping[str, torch.Tensor],
    scale: float = 1.0,
    alpha_over_rank: float | Mapping[str, float] = 1.0,
) -> Patch:
    """Add scale * alpha/rank * up @ down to the weights that `state` names; sampling then costs nothing extra.

    Computed in fp32, stored in the weight's own dtype. Several merges add up (rounded once) and may be removed in any
    order; when the last is gone the original tensors are back, bit for bit. A scale of 0 changes nothing.
    `alpha_over_rank` is one number or one per module. Layers that carry peft adapters are merged in their base.
    Raises UserError, changing nothing, when a module is missing or a shape differs.
    """
    modules = dict(unet.named_modules())
    linears, deltas = [], []
    for name, (down, up) in pairs(state).items():
        module = modules.get(name)
        module = module.base_layer if isinstance(module, LoraLayer) else module
        if not isinstance(module, nn.Linear):
            near = difflib.get_close_matches(name, modules, n=3, cutoff=0.3)
            raise UserError(f"adapter: this U-Net has no linear layer {name}; nearest: {', '.join(near) or 'none'}")
        if (up.shape[0], down.shape[1]) != module.weight.shape or up.shape[1] != down.shape[0]:
            raise UserError(
                f"adapter: {name} is made for a weight [{up.shape[0]}, {down.shape[1]}], this U-Net has"
                f" {list(module.weight.shape)}: use the U-Net width it was trained with"
            )
        ratio = alpha_over_rank if isinstance(alpha_over_rank, int | float) else alpha_over_rank[name]
        linears.append(module)
        deltas.append((scale * ratio, down, up))
    with contextlib.ExitStack() as undo:  # should memory run out halfway, the U-Net is as it was
        for linear, delta in zip(linears, deltas, strict=True):
            if delta[0]:
                undo.callback(_add_delta(linear, delta))
        return Patch([undo.pop_all().close])


def _add_delta(linear: nn.Linear, delta: tuple[float, torch.Tensor, torch.Tensor]):
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
