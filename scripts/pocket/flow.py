"""The objective that PocketScope-DiT is pretrained with: flow matching on pre-encoded clips.

x = (1 - sigma) z + sigma noise, the target is noise - z and the timestep 1000 sigma (Lipman et al. 2023, as Wan uses
it), with sigma = s u / (1 + (s - 1) u), u uniform and s the scheduler's shift. Latents are [b c f h w].
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import nn

from models.hooks import Patch, wrap_forward
from scripts.pocket.abilities import token_ids
from scripts.pocket.probe import motion_probe
from scripts.pocket.wan_parts import encode_captions
from scripts.pocket.world_data import draw_clips

LONGEST_PADDING = 40.0  # WanPipeline pads to 512 tokens by default: up to so many times as many as are trained on


class Padding(Patch):
    """Lets every padding token of the prompt count as several.

    Wan's cross-attention has no mask, so a prompt padded to 512 tokens is another prompt than one padded to 24. All
    padding tokens are alike, and n of them act as one whose logit is raised by log(n): training on random counts costs
    nothing and makes the model deaf to the padding.
    """

    def __init__(self, transformer: nn.Module):
        self.bias: torch.Tensor | None = None  # [b 1 1 n], added to the logits of cross-attention

        def biased(forward, hidden_states, text, mask=None, rotary=None):
            return forward(hidden_states, text, self.bias, rotary)

        super().__init__([wrap_forward(block.attn2, biased) for block in transformer.blocks])

    def set(self, padded: torch.Tensor, times: torch.Tensor | None) -> None:
        """Count each padding token of `padded` [b n] (bool) as `times` [b] tokens; None counts each once."""
        self.bias = None if times is None else (padded * times.log()[:, None])[:, None, None]


class FlowMatching:
    """The velocity's squared error, weighted to the object, 10 % uncaptioned, padding of any length.

    `world` holds latents [n c f h w], weights [n f h w] and captions [n tokens]; the VAE's mean and deviation are
    taken out of the latents once, here.
    """

    def __init__(self, parts: dict, world: dict[str, torch.Tensor], dtype: torch.dtype, compiled: bool):
        self.parts, self.dtype, self.device = parts, dtype, parts["transformer"].device
        self.padding = Padding(parts["transformer"])
        self.transformer = torch.compile(parts["transformer"]) if compiled else parts["transformer"]
        mean, std = (torch.tensor(parts["vae"].config[f"latents_{name}"]) for name in ("mean", "std"))
        normal = (world["latents"] - mean[:, None, None, None]) / std[:, None, None, None]
        self.world, self.shift = world | {"latents": normal}, parts["scheduler"].config.flow_shift
        self.empty = token_ids(parts["tokenizer"], [""])

    def loss(self, batch: int, single: bool, rng: torch.Generator) -> torch.Tensor:
        """The loss of one batch; with `single` of one frame of each clip."""
        latents, weights, captions = draw_clips(self.world, batch, single, self.empty, rng)
        times = LONGEST_PADDING ** torch.rand(batch, generator=rng)
        sigmas = self.shifted(torch.rand(batch, generator=rng))
        return self.error(latents, weights, captions, sigmas, torch.randn(latents.shape, generator=rng), times)

    def shifted(self, u: torch.Tensor) -> torch.Tensor:
        """Noise levels in 0..1 from uniform numbers: the scheduler's shift spends more of them on much noise."""
        return self.shift * u / (1 + (self.shift - 1) * u)

    def error(self, latents, weights, captions, sigmas, noise, times=None) -> torch.Tensor:
        """Weighted squared error of the velocity at noise levels `sigmas` [b]; see `Padding.set` for `times`."""
        share = sigmas[:, None, None, None, None]
        noisy, target = (1 - share) * latents + share * noise, noise - latents
        noisy, target, weights, steps, captions = (
            x.to(self.device) for x in (noisy, target, weights, 1000 * sigmas, captions)
        )
        padded = captions.eq(self.parts["tokenizer"].pad_token_id)
        self.padding.set(padded, None if times is None else times.to(self.device))
        text = encode_captions(self.parts["text_encoder"], captions)
        with torch.autocast(self.device.type, self.dtype) if self.dtype != torch.float32 else nullcontext():
            predicted = self.transformer(noisy, steps, text).sample
        self.padding.set(padded, None)
        return (weights[:, None] * (predicted.float() - target).square()).mean()

    def probe(self) -> float:
        """`motion_probe` at noise levels 0.7 to 0.95."""
        levels = lambda count, rng: 0.7 + 0.25 * torch.rand(count, generator=rng)
        return motion_probe(self.parts["tokenizer"], self.world, self.error, levels)
