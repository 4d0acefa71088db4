"""PocketScope-DiT's abilities: sampled by the stock WanPipeline, read by the analytic detectors.

Also what can be switched off in its self-attention: single heads, and attention between frames or places. Tokens are
ordered [f h w], sixteen (4x4) a frame. Clips are uint8 [f 3 h w].
"""

from __future__ import annotations

import torch
from diffusers import WanPipeline
from torch import nn

from data.detectors import read_clip
from data.world import parse_prompt
from models.hooks import Patch, wrap_forward
from scripts.pocket.abilities import FRAMES, LATENT_SIDE, summary
from scripts.pocket.architecture import TEXT_LENGTH

SAMPLE_STEPS, GUIDANCE = 12, 4.0
PLACES = (LATENT_SIDE // 2) ** 2  # tokens a frame


def fresh_noise(seed: int, index: int, frames: int = FRAMES) -> torch.Tensor:
    """The noise [4 f h w] of prompt number `index`; it depends on nothing else, so batches of any size agree."""
    rng = torch.Generator().manual_seed(seed * 1_000_003 + index)
    return torch.randn((4, frames, LATENT_SIDE, LATENT_SIDE), generator=rng)


def sample_clips(
    parts: dict,
    prompts: list[str],
    seed: int,
    steps: int = SAMPLE_STEPS,
    guidance: float = GUIDANCE,
    batch: int = 16,
    frames: int = FRAMES,
    text_length: int = TEXT_LENGTH,
) -> list[torch.Tensor]:
    """One clip per prompt. The latents are handed in: asked for eight frames, the pipeline would sample nine."""
    pipe = WanPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    clips = []
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        made = pipe(
            part,
            latents=torch.stack([fresh_noise(seed, start + i, frames) for i in range(len(part))]),
            height=8 * LATENT_SIDE,
            width=8 * LATENT_SIDE,
            num_frames=FRAMES,  # not read: the latents say it
            num_inference_steps=steps,
            guidance_scale=guidance,
            max_sequence_length=text_length,
            output_type="pt",
        ).frames
        clips += [(clip * 255).round().byte().cpu() for clip in made.float()]
    return clips


def measure(parts: dict, prompts: list[str], seed: int, steps: int = SAMPLE_STEPS, **options):
    """(shares of `summary`, clips): samples of the prompts as the detectors read them."""
    clips = sample_clips(parts, prompts, seed, steps, **options)
    return summary([read_clip(clip).matches(parse_prompt(prompt)) for clip, prompt in zip(clips, prompts)]), clips


def without_heads(transformer: nn.Module, layer: int, heads: list[int]) -> Patch:
    """Switch heads of one layer's self-attention off: what they would add to the output is zero."""
    attention = transformer.blocks[layer].attn1
    width = attention.inner_dim // attention.heads

    def silence(forward, hidden_states):  # [b tokens (heads width)]
        kept = torch.ones(attention.heads, 1, device=hidden_states.device, dtype=hidden_states.dtype)
        kept[heads] = 0
        return forward((hidden_states.unflatten(-1, (attention.heads, width)) * kept).flatten(-2))

    return Patch([wrap_forward(attention.to_out[0], silence)])


def allowed_pairs(name: str) -> torch.Tensor:
    """Which tokens may attend to which, bool [tokens tokens]: those of the same "frame", of the same "place" in any
    frame (all that a 3-D U-Net's temporal attention sees), or either ("frame or place")."""
    token = torch.arange(FRAMES * PLACES)
    frame = token[:, None] // PLACES == token[None] // PLACES
    place = token[:, None] % PLACES == token[None] % PLACES
    return {"frame": frame, "place": place, "frame or place": frame | place}[name]


def attend_only(transformer: nn.Module, name: str) -> Patch:
    """Restrict self-attention of every layer to `allowed_pairs(name)`."""
    allowed = allowed_pairs(name).to(transformer.device)

    def masked(forward, hidden_states, text=None, mask=None, rotary=None):
        return forward(hidden_states, text, allowed, rotary)

    return Patch([wrap_forward(block.attn1, masked) for block in transformer.blocks])
