"""Appearance highway (AH): skip connections that leave the U-Net before the temporal transformers have acted.

In the base model layer j of a down block is resnet, temp_conv, attentions[j], temp_attentions[j], skip. With the
highway the skip starts after `attentions[j]` and is scaled by beta (paper, section on the appearance highway, Fig. 3,
Table 6). Hidden states and skips are [(b f) c h w].

The U-Net is not edited: `Highway` is a patch on the down blocks (where a skip starts) and the up blocks (its factor).
"""

import weakref
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import nn

from configs.errors import UserError
from models import backbones
from models.hooks import Patch, wrap_forward
from models.value_highway import ValueHighway, attach_value_highway

SCOPES = ("all", "release", "plain", "value")


class HighwaySettings(NamedTuple):
    """What `attach_highway` takes beside the U-Net. A model without highway has None in place of it."""

    scope: str = "all"
    beta: float = 1.1
    scales: Sequence[float] | None = None


class Skip(NamedTuple):
    """One row of the wiring table: where `up_blocks[up].resnets[layer]` gets its skip and what multiplies it."""

    up: int
    layer: int
    # both numbers of channels are read by name, from the authors' wiring table (scripts/authors/cases.py)
    hidden_channels: int
    skip_channels: int
    source: str
    moved: bool
    factor: float
    hidden_factor: float

    def __str__(self) -> str:
        return f"up_blocks.{self.up} layer {self.layer}: skip from {self.source}, x{self.factor:g}"


class Highway(Patch):
    """The attached highway. `skips` is the complete table of skip connections, in the order the decoder meets them."""

    def __init__(self, skips: list[Skip], undo: list[Callable[[], None]]):
        super().__init__(undo)
        self.skips = skips

    def __str__(self) -> str:
        moved = sum(skip.moved for skip in self.skips)
        factors = sorted({skip.factor for skip in self.skips} - {1.0})
        scaled = ", ".join(f"{sum(s.factor == f for s in self.skips)} scaled by {f:g}" for f in factors)
        return (
            f"highway: {moved} of {len(self.skips)} skips start before the temporal transformer, {scaled or 'unscaled'}"
        )


def attach_highway(
    unet: nn.Module, scope: str = "all", beta: float = 1.1, scales: Sequence[float] | None = None
) -> Highway | ValueHighway:
    """Attach the appearance highway to a UNet3DConditionModel and return the handle that takes it off again.

    scope "all": every attention skip is moved and multiplied by beta. "plain": multiplied, not moved (the control of
    Fig. 3). "release": the authors' code, which moves the attention skips of `up_blocks[1]` only and multiplies by
    width instead: `scales` = (s1, s2, b1, b2), default (beta, 1, 1, 1); in up blocks with attention, where the hidden
    state has the widest (second widest) width, s1 (s2) multiplies the skip and b1 (b2) boosts the hidden state.
    "value" is what a diffusion transformer has in its place (models/value_highway.py).
    One-frame passes have no temporal transformer to avoid: "all" and "plain" leave them untouched. Raises UserError
    for an unknown scope, for `scales` outside "release", and for a U-Net without temporal transformers.
    """
    if scope not in SCOPES:
        raise UserError(f"appearance_highway.scope: {scope!r} is unknown: choose one of {', '.join(SCOPES)}")
    check_highway(unet, scope)
    if scope == "value":
        return attach_value_highway(unet)
    if scales is not None and (scope != "release" or len(scales) != 4):
        raise UserError(
            f"appearance highway: scales (--freeu) are four numbers s1, s2, b1, b2 for the release scope;"
            f" found {list(scales)} with scope {scope}: use scope release, or beta"
        )
    skips = _wiring(unet, scope, (beta, 1.0, 1.0, 1.0) if scales is None else tuple(scales))
    if not any(".attentions." in s.source or ".temp_attentions." in s.source for s in skips):
        raise UserError(
            f"appearance highway: {type(unet).__name__} has no temporal transformer before a skip:"
            " use a ZeroScope or ModelScope U-Net (UNet3DConditionModel)"
        )
    moved = {skip.source for skip in skips if skip.moved}
    undo = []
    for d, block in enumerate(unet.down_blocks):
        layers = {j for j in range(len(block.resnets)) if f"down_blocks.{d}.attentions.{j}" in moved}
        if layers:
            undo.append(wrap_forward(block, _down_block(block, layers)))
    for u, block in enumerate(unet.up_blocks):
        rows = [skip for skip in skips if skip.up == u]
        if any(row.factor != 1 for row in rows):
            factors = [row.factor for row in reversed(rows)]  # the tuple of skips is consumed from its end
            undo.append(wrap_forward(block, _up_block(factors, every_length=scope == "release")))
        for row in rows:
            if row.hidden_factor != 1:
                undo.append(wrap_forward(block.resnets[row.layer], _scale_hidden(row)))
    return Highway(skips, undo)


def check_highway(network: nn.Module, scope: str, in_training: bool = False, motion: str = "lora") -> None:
    """Raise UserError for a scope that this kind of network, or this kind of `motion`, does not have, saying what there
    is in its place.
    """
    kind = backbones.kind_of(network)
    if scope == "value" and not kind.IN_PLACE_OF_SKIPS:
        raise UserError(f"appearance_highway.scope: value belongs to diffusion transformers; a {kind.NAME} has all")
    if scope == "value" and in_training:
        raise UserError("appearance_highway.use: the scope value acts in sampling only; set use=sampling")
    if scope == "value" and motion == "embeddings":
        raise UserError(
            "appearance_highway.scope: value takes Values past LoRAs, and Motion Inversion's embeddings are none; set"
            " appearance_highway.use=off (--highway off), and embeddings.sampling=drop_value leaves their Values out"
        )
    if scope != "value" and kind.IN_PLACE_OF_SKIPS:
        raise UserError(
            f"appearance_highway: a {kind.NAME} has no skip connections to move; what there is in its place:"
            f" {kind.IN_PLACE_OF_SKIPS}; set appearance_highway.use=off (--highway off)"
        )


def _wiring(unet: nn.Module, scope: str, scales: tuple[float, ...]) -> list[Skip]:
    """The skip table, read from the model's own modules: nothing depends on a width or on a number of layers."""
    stack = ["transformer_in"]  # the order in which the encoder hands skips over; the decoder takes from the end
    for d, block in enumerate(unet.down_blocks):
        last = "temp_attentions" if hasattr(block, "temp_attentions") else "temp_convs"
        stack += [f"down_blocks.{d}.{last}.{j}" for j in range(len(block.resnets))]
        stack += [f"down_blocks.{d}.downsamplers.{j}" for j in range(len(block.downsamplers or []))]
    widths = sorted(set(unet.config.block_out_channels), reverse=True)
    s1, s2, b1, b2 = scales
    by_width = dict(zip(widths, ((s1, b1), (s2, b2)), strict=False))
    hidden = unet.config.block_out_channels[-1]
    skips = []
    for u, block in enumerate(unet.up_blocks):
        for layer, resnet in enumerate(block.resnets):
            source = stack.pop()
            attention = ".temp_attentions." in source
            factor, hidden_factor = (s1 if attention else 1.0), 1.0
            if scope == "release":
                factor, hidden_factor = by_width.get(hidden, (1.0, 1.0)) if hasattr(block, "attentions") else (1.0, 1.0)
            moved = attention and (scope == "all" or (scope == "release" and u == 1))
            if moved:
                source = source.replace(".temp_attentions.", ".attentions.")
            width = resnet.in_channels - hidden
            skips.append(Skip(u, layer, hidden, width, source, moved, factor, hidden_factor))
            hidden = resnet.out_channels
    return skips


def _down_block(block: nn.Module, layers: set[int]) -> Callable:
    """CrossAttnDownBlock3D's forward with the skips of `layers` taken before the temporal transformer.

    Written out rather than captured by hooks, so that nothing is kept between calls: activation checkpointing and
    torch.compile then see an ordinary function.
    """
    reference = weakref.ref(block)  # the block holds this function: a strong reference would keep a dropped model

    def forward(
        _base,
        hidden_states,
        temb=None,
        encoder_hidden_states=None,
        attention_mask=None,
        num_frames=1,
        cross_attention_kwargs=None,
    ):
        # diffusers 0.42: CrossAttnDownBlock3D ignores attention_mask
        block = reference()
        skips = ()
        context = {"cross_attention_kwargs": cross_attention_kwargs, "return_dict": False}
        for j, resnet in enumerate(block.resnets):
            x = block.temp_convs[j](resnet(hidden_states, temb), num_frames=num_frames)
            x = block.attentions[j](x, encoder_hidden_states=encoder_hidden_states, **context)[0]
            hidden_states = block.temp_attentions[j](x, num_frames=num_frames, **context)[0]
            # at one frame without the bypass the temporal layers still run: keep the base model's skip there
            skips += (x if j in layers and num_frames > 1 else hidden_states,)
        for downsampler in block.downsamplers or ():
            hidden_states = downsampler(hidden_states)
            skips += (hidden_states,)
        return hidden_states, skips

    return forward


def _up_block(factors: list[float], every_length: bool) -> Callable:
    def forward(base, *args, res_hidden_states_tuple, num_frames=1, **kwargs):
        if num_frames > 1 or every_length:  # the release scales one-frame passes too
            res_hidden_states_tuple = tuple(
                skip if factor == 1 else skip * factor
                for skip, factor in zip(res_hidden_states_tuple, factors, strict=True)
            )
        return base(*args, res_hidden_states_tuple=res_hidden_states_tuple, num_frames=num_frames, **kwargs)

    return forward


def _scale_hidden(row: Skip) -> Callable:
    """FreeU's second version, as the release runs it: the first half of the channels is multiplied by a map between 1
    and b that follows the mean over channels, stretched to 0..1 for each image."""

    def forward(base, hidden_and_skip, *args, **kwargs):  # [(b f) hidden+skip h w]
        mean = hidden_and_skip[:, : row.hidden_channels].mean(1, keepdim=True)
        low, high = mean.amin((2, 3), keepdim=True), mean.amax((2, 3), keepdim=True)
        weight = (mean - low) / (high - low).clamp_min(torch.finfo(mean.dtype).tiny)  # one pixel: high is low
        first, rest = hidden_and_skip.tensor_split([row.hidden_channels // 2], dim=1)
        return base(torch.cat([first * ((row.hidden_factor - 1) * weight + 1), rest], dim=1), *args, **kwargs)

    return forward
