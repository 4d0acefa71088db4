"""Whether a checkpoint fits a model: every layer that it was trained on is there, at its width, and none is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from configs.errors import UserError
from models.backbones import architecture, kind_of
from models.files.tensors import State
from models.targets import APPEARANCE, targets

if TYPE_CHECKING:  # that file imports this one
    from models.files.checkpoint import Checkpoint


def check_fit(checkpoint: Checkpoint, network: nn.Module) -> None:
    """Raise UserError, naming both architectures, unless every layer of `checkpoint` is in `network` at its width."""
    for state in [checkpoint.motion, *checkpoint.appearance]:
        if state:
            _check_fit(state, network, checkpoint)


def _check_fit(state: State, network: nn.Module, checkpoint: Checkpoint) -> None:
    modules = dict(network.named_modules())
    carriers = kind_of(network).carriers(network) if checkpoint.kind == "embeddings" else []
    attentions = {f"{block.name}.query_key": block.self_attentions[0] for block in carriers}
    attentions |= {f"{attention}.value": attention for block in carriers for attention in block.self_attentions}
    asked = [_trained_width(name, tensor, attentions) for name, tensor in state.items()]  # (layer, its axis, width)
    layers = [getattr(modules.get(layer), "base_layer", modules.get(layer)) for layer, _, _ in asked]
    fits = all(
        isinstance(layer, nn.Linear) and layer.weight.shape[axis] == width
        for layer, (_, axis, width) in zip(layers, asked, strict=True)
    )
    preset = checkpoint.preset if state is checkpoint.motion else APPEARANCE
    if fits and checkpoint.kind == "lora" and preset is not None:  # all of a shallower model's layers are here, too
        shares = checkpoint.info.get("block_range") if state is checkpoint.motion else None
        expected = targets(network, preset, shares and [float(share) for share in shares.split()])
        fits = chose_layers(checkpoint) or {layer for layer, _, _ in asked} == set(expected)
    if fits and checkpoint.kind == "embeddings":  # likewise, and which of them were chosen is known to the file alone
        fits = checkpoint.info.get("carriers", str(len(carriers))) == str(len(carriers))
    if not fits:
        layer, _, width = asked[0]
        trained_on = checkpoint.info.get("architecture", f"a {layer} of width {width}")
        raise UserError(
            f"{checkpoint.path}: does not fit this model: trained on {trained_on}; the model has"
            f" {architecture(network)}; give the model it was trained on"
        )


def chose_layers(checkpoint: Checkpoint) -> bool:
    """Did patterns change the preset's layers? Then the file says which: nobody matches patterns out of a file."""
    config = checkpoint.config or {}
    return bool(config.get("include_patterns") or config.get("exclude_patterns"))


def _trained_width(name: str, tensor: torch.Tensor, attentions: dict[str, str]) -> tuple[str, int, int]:
    """The linear layer a tensor of a checkpoint asks for; embeddings ask for the to_q of their one of `attentions`."""
    if name.endswith(".weight"):
        axis = 0 if name.endswith("lora_B.weight") else 1
        return name.removesuffix(".weight").rsplit(".", 1)[0], axis, tensor.shape[axis]
    return f"{attentions.get(name, name)}.to_q", 1, tensor.shape[-1]
