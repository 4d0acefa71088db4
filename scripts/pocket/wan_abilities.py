"""PocketScope-DiT's abilities: sampled by the stock WanPipeline, read by the analytic detectors.

Also what can be switched off in its self-attention: heads, and attention between frames or places. Tokens are ordered
[f h w], sixteen (4x4) a frame. Clips are uint8 [f 3 h w].
"""

from __future__ import annotations

import torch
from diffusers import WanPipeline
from torch import nn

from data.cache import CachedClip
from data.detectors import read_clip
from data.world import parse_prompt, render, sample_scene
from models.backbone import Backbone
from models.heads import Heads, classify
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


def without_heads(transformer: nn.Module, off: torch.Tensor) -> Patch:
    """Switch heads of self-attention off, `off` bool [layers heads]: what they would add to the output is zero."""

    def silence(kept):
        def wrapper(forward, hidden_states):  # [b tokens (heads width)]
            heads = hidden_states.unflatten(-1, (len(kept), -1)) * kept.to(hidden_states)[:, None]
            return forward(heads.flatten(-2))

        return wrapper

    blocks = zip(transformer.blocks, ~off, strict=True)
    return Patch([wrap_forward(block.attn1.to_out[0], silence(kept)) for block, kept in blocks])


def head_groups(temporal: torch.Tensor) -> dict[str, torch.Tensor]:
    """Heads to switch off together, by name: the temporal ones, the others, and the heads of each layer.

    Both `temporal` and each group are bool [layers heads].
    """
    layers = torch.eye(len(temporal), dtype=torch.bool)[:, :, None].expand(-1, -1, temporal.shape[1])
    kinds = {f"the {temporal.sum()} temporal heads": temporal, f"the {(~temporal).sum()} spatial heads": ~temporal}
    return kinds | {f"the heads of layer {number}": layer for number, layer in enumerate(layers)}


def heads_in_rendered_clips(model: str, device: torch.device | str, seed: int, clips: int = 8) -> Heads:
    """Which heads are temporal, by what they see in rendered clips (models/heads.py)."""
    backbone = Backbone.load(model, device=device)
    scenes = [render(sample_scene(seed * 10_000_000 + index, decorated=0.0)) for index in range(clips)]
    encoded = [
        CachedClip(
            backbone.encode_video(scene.frames), backbone.encode_text([scene.prompt]), None, scene.prompt, "rendered"
        )
        for scene in scenes
    ]
    return classify(backbone, encoded, torch.Generator().manual_seed(seed))


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
