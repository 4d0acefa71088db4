"""LoRA adapters on a network's transformers: injection, switching on and off.

y = W x + scale * up(down(x)), scale = alpha / rank, down ~ N(0, std 1/rank), up = 0. A state is a dict of
"<module>.lora_A.weight" (down, [rank, in]) and "<module>.lora_B.weight" (up, [out, rank]), always fp32: the masters,
their gradients and the optimizer's moments are fp32, while the two matrix products run in the frozen base's precision.
"""

import contextlib
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn

from configs.errors import UserError
from models import backbones, merge
from models.dropout import drop
from models.hooks import Patch
from models.targets import APPEARANCE, targets


class Matrix(nn.Linear):
    """One of a LoRA's two matrices: its weight is an fp32 master, its product runs in the input's precision.

    peft would cast the input up instead, which takes the products off the tensor cores and keeps fp32 copies of every
    input for the backward pass. The gradient arrives in fp32 either way.
    """

    def __init__(self, weight: torch.Tensor):
        super().__init__(weight.shape[1], weight.shape[0], bias=False, device="meta")  # allocates and draws nothing
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.rows: torch.Tensor | None = None  # [out 1] of 0 and 1: only these act and learn (models/heads.py)
        self.dropout = 0.0  # of the product, in training

    @property
    def acting(self) -> torch.Tensor:
        """The weight without the rows that are kept from acting and learning."""
        return self.weight if self.rows is None else self.weight * self.rows

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        product = F.linear(x, self.acting.to(x.dtype))
        return drop(product, self.dropout) if self.dropout and self.training else product


class LoraAdapter(Patch):
    """One injected adapter. `layers` maps module names, in file order, to the peft layer that holds its two matrices.

    It is off and frozen until `active`, or a pass, switches it on; `remove()` takes it out of the network again.
    """

    kind = "lora"

    def __init__(
        self,
        network: nn.Module,
        name: str,
        preset: str,
        rank: int,
        alpha: float,
        layers: dict[str, LoraLayer],
        block_range: Sequence[float] | None = None,
    ):
        super().__init__([partial(_eject, network, name, layers)])
        self.network, self.name, self.layers = network, name, layers
        self.preset, self.block_range = preset, block_range
        self.rank, self.alpha = rank, alpha
        self.matrices = {}  # state key -> the nn.Linear whose weight it is
        for module, layer in layers.items():
            self.matrices[f"{module}.lora_A.weight"] = layer.lora_A[name]
            self.matrices[f"{module}.lora_B.weight"] = layer.lora_B[name]
        self._parameters = [linear.weight for linear in self.matrices.values()]

    def __str__(self) -> str:
        kind = backbones.kind_of(self.network)
        count, blocks = kind.count_blocks(self.layers), kind.APPEARANCE if self.preset == APPEARANCE else kind.MOTION
        size = sum(p.numel() for p in self.parameters())
        return f"{self.preset}: {len(self.layers)} layers, {count} {blocks}, {size:,} parameters"

    @property
    def scale(self) -> float:
        """alpha / rank, what a state of this adapter is multiplied with."""
        return self.alpha / self.rank

    def parameters(self) -> list[nn.Parameter]:
        """The fp32 masters, down then up for each layer, in file order."""
        return self._parameters

    def second_factors(self) -> list[nn.Parameter]:
        """B of every layer's B A: the masters that start at zero."""
        return self._parameters[1::2]

    def training(self) -> contextlib.AbstractContextManager:
        """Inside the block the adapter acts and its parameters collect gradients."""
        return active([self], on=[self], trainable=[self])

    def acting(self) -> contextlib.AbstractContextManager:
        """Inside the block the adapter acts and learns nothing."""
        return active([self], on=[self])

    def sampling(self, strength: float = 1.0, beside: object | None = None) -> Patch:
        """The adapter as sampling uses it; a context manager too. `beside` is the motion that it was trained with."""
        motion = beside if isinstance(beside, LoraAdapter) else self
        return attach_state(self.network, motion.preset, self.state_dict(), strength, self.scale, motion.layers)

    def info(self) -> dict[str, str | int | float]:
        """What a checkpoint's header must hold for the state to be read."""
        found = {"rank": self.rank, "alpha": self.alpha, "preset": self.preset}
        return found if self.block_range is None else found | {"block_range": " ".join(map(str, self.block_range))}

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
                " differ): was it trained with another preset or on another model?"
            )
        for key, linear in self.matrices.items():
            if state[key].shape != linear.weight.shape:
                raise UserError(
                    f"adapter {self.name}: {key} is {list(state[key].shape)} in the file and"
                    f" {list(linear.weight.shape)} here: use the model width and rank it was trained with"
                )
        with torch.no_grad():
            for key, linear in self.matrices.items():
                linear.weight.copy_(state[key])


def add_adapter(
    network: nn.Module,
    name: str,
    preset: str,
    rank: int,
    *,
    alpha: float | None = None,
    dropout: float = 0.0,
    placement: str = "release",
    block_range: Sequence[float] | None = None,
    generator: torch.Generator | None = None,
    names: list[str] | None = None,
) -> LoraAdapter:
    """Inject a LoRA adapter called `name` (no dots) and return it, switched off and frozen.

    Several adapters may sit on one network, also on the same layers: they act in parallel, each on the layer's input.
    `alpha` defaults to `rank`; a layer narrower than `rank` gets the rank it can have at the same scale alpha / rank.
    `placement` of the dropout: "release" after up, "peft" before down. `generator` (CPU) draws the down matrices;
    without one they come from torch's global generator. `names` are the layers to adapt where patterns changed the
    preset's (models/targets.py). Raises UserError when the network lacks the preset's layers.
    Source: release and MotionDirector LoRA code (scale 1, down std 1/rank, up 0).
    """
    names = targets(network, preset, block_range) if names is None else names
    alpha = float(rank if alpha is None else alpha)
    modules = dict(network.named_modules())
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
    before = {m: m.active_adapters for m in modules.values() if isinstance(m, LoraLayer)}
    grads = {p: p.requires_grad for n, p in network.named_parameters() if ".lora_" in n}
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():  # peft's own initial values are overwritten
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters are intended
        inject_adapter_in_model(config, network, name)
    for parameter, flag in grads.items():  # peft switches every other adapter off: switch back
        parameter.requires_grad_(flag)
    layers = {n: network.get_submodule(n) for n in names}
    for module in network.modules():
        if isinstance(module, LoraLayer):
            _switch(module, before.get(module, []))
    for module_name, layer in layers.items():
        weight, r = layer.base_layer.weight, ranks[module_name]
        down = torch.randn(r, layer.in_features, generator=generator) / r
        layer.lora_A[name] = Matrix(down.to(weight.device))
        layer.lora_B[name] = Matrix(torch.zeros(layer.out_features, r, device=weight.device))
        layer.cast_input_dtype_enabled = False  # see Matrix
        layer.train(network.training)  # new modules start in train mode: dropout would act in an eval-mode network
        if placement == "release":
            layer.lora_B[name].dropout = dropout
    adapter = LoraAdapter(network, name, preset, rank, alpha, layers, block_range)
    if has_pure_norm(network, preset):
        adapter.on_remove(backbones.kind_of(network).pure_norm(network, layers).remove)
    return adapter


def has_pure_norm(network: nn.Module, preset: str | None) -> bool:
    """Whether adapters of `preset` act after the QK-norm of the base model's queries and keys."""
    return preset in backbones.kind_of(network).PURE_NORM


def attach_state(
    network: nn.Module,
    preset: str | None,
    state: Mapping[str, torch.Tensor],
    strength: float = 1.0,
    scale: float = 1.0,
    normed: Iterable[str] | None = None,
) -> Patch:
    """A trained state on a plain network for sampling, as it acted in training; see `merge.attach_lora`.

    `preset` is that of the run's motion, which decides on the QK-norm of appearance adapters too: they learned under
    the same one. `normed` are the motion's layers; give them where `state` is an appearance adapter.
    """
    if not has_pure_norm(network, preset):
        return merge.attach_lora(network, state, strength, scale)
    with contextlib.ExitStack() as patches:
        layers = merge.pairs(state) if normed is None else normed
        patches.enter_context(backbones.kind_of(network).pure_norm(network, layers))
        patches.enter_context(merge.attach_lora(network, state, strength, scale, beside=True))
        return Patch([patches.pop_all().close])


def _eject(network: nn.Module, adapter: str, layers: dict[str, LoraLayer]) -> None:
    for name, layer in layers.items():
        _switch(layer, [other for other in layer.active_adapters if other != adapter])
        layer.delete_adapter(adapter)
        if not layer.lora_A:
            network.set_submodule(name, layer.base_layer)
    network.peft_config.pop(adapter)
    if not network.peft_config:
        del network.peft_config


@contextlib.contextmanager
def active(
    adapters: Iterable[LoraAdapter], on: Iterable[LoraAdapter] = (), trainable: Iterable[LoraAdapter] = ()
) -> Iterator[None]:
    """Switch `adapters` for the length of the block; all others stay as they are. On exit everything is as before.

    `on`: adapters applied in the forward pass. `trainable`: adapters that receive gradients. Run a pass's backward
    inside the same block as its forward: activation checkpointing recomputes with whatever is active then. Costs under
    a millisecond (no walk over the network's modules).
    """
    adapters, on, trainable = list(adapters), list(on), list(trainable)
    named = {adapter.name for adapter in adapters}
    before = {layer: layer.active_adapters for adapter in adapters for layer in adapter.layers.values()}
    after = {layer: [name for name in acting if name not in named] for layer, acting in before.items()}
    for adapter in on:
        for layer in adapter.layers.values():
            after[layer].append(adapter.name)
    wanted = [(adapter, adapter in trainable) for adapter in adapters]
    changed = [p for adapter, flag in wanted for p in adapter.parameters() if p.requires_grad != flag]
    try:
        for layer, acting in after.items():
            _switch(layer, acting)
        for parameter in changed:
            parameter.requires_grad = not parameter.requires_grad
        yield
    finally:
        for layer, acting in before.items():
            _switch(layer, acting)
        for parameter in changed:
            parameter.requires_grad = not parameter.requires_grad


def _switch(layer: LoraLayer, acting: list[str]) -> None:
    """Let the adapters named in `acting` act in this layer; with none it is its base layer, to the bit.

    The one place that knows a private name of peft (tested with 0.21.2): its public `set_adapter` also changes which
    parameters get gradients, and refuses an empty list. nn.Module's own __setattr__ would be ten times slower.
    """
    vars(layer)["_active_adapter"] = acting
