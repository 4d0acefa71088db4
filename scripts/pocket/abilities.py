"""PocketScope's abilities, measured: fresh prompts, samples through the shared sampler, the analytic detectors.

Also the accuracy of the detectors themselves, on rendered clips and on clips that went through a VAE: this is the
ceiling of any accuracy reported with them. Parts are those of a pipeline folder by name: unet, vae, text_encoder,
tokenizer, scheduler. Clips are uint8 [f 3 h w].
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from diffusers.models.resnet import TemporalConvLayer
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel

from data.detectors import read_clip
from data.world import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, parse_prompt, render, sample_scene
from infer.sampler import classifier_free_guidance, sample
from models.backbone import predictor
from models.hooks import Patch, wrap_forward

SAMPLE_STEPS, GUIDANCE = 6, 4.0
FRAMES, LATENT_SIDE = 8, 8
TEMPORAL_PARTS = {"temporal attention": TransformerTemporalModel, "temporal convolutions": TemporalConvLayer}


def fresh_prompts(count: int, seed: int) -> list[str]:
    """Captions without decoration, every known motion equally often, the appearance drawn from `seed`."""
    rng = np.random.default_rng([seed, 99])
    return [
        f"a {rng.choice(list(COLOURS))} {rng.choice(SHAPES)} {verb} over a {rng.choice(list(BACKGROUNDS))} background"
        for verb in itertools.islice(itertools.cycle(MOTIONS.values()), count)
    ]


def token_ids(tokenizer, captions: list[str]) -> torch.Tensor:
    """Token ids [n length], padded to the tokenizer's length."""
    return tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids


@torch.no_grad()
def sample_clips(parts: dict, prompts: list[str], seed: int, steps: int, guidance: float, batch: int = 16):
    """One clip per prompt. The noise of prompt i depends on (seed, i) alone."""
    unet, vae, device = parts["unet"], parts["vae"], parts["unet"].device
    embed = lambda captions: parts["text_encoder"](token_ids(parts["tokenizer"], captions).to(device))[0]
    clips = []
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        shape = (4, FRAMES, LATENT_SIDE, LATENT_SIDE)
        noise = [
            torch.randn(shape, generator=torch.Generator().manual_seed(seed * 1_000_003 + start + i))
            for i in range(len(part))
        ]
        denoise = classifier_free_guidance(predictor(unet), embed(part), embed([""] * len(part)), scale=guidance)
        latents = sample(denoise, parts["scheduler"], torch.stack(noise).to(device), steps=steps)
        latents = latents.transpose(1, 2).to(vae.dtype) / vae.config.scaling_factor  # [b f c h w]
        clips += [to_uint8(vae.decode(frames).sample) for frames in latents]
    return clips


def measure_samples(parts: dict, prompts: list[str], seed: int, steps: int = SAMPLE_STEPS, guidance: float = GUIDANCE):
    """(shares of `summary`, clips): what the detectors read in samples of the prompts."""
    clips = sample_clips(parts, prompts, seed, steps, guidance)
    return summary([read_clip(clip).matches(parse_prompt(prompt)) for clip, prompt in zip(clips, prompts)]), clips


def ablate(unet, part: str) -> Patch:
    """Switch one of `TEMPORAL_PARTS` off: its layers pass their input on. Shows which of them carries the motion."""

    def pass_on(forward, hidden_states, *args, **kwargs):
        return (hidden_states,) if "return_dict" in kwargs else hidden_states

    return Patch([wrap_forward(m, pass_on) for m in unet.modules() if isinstance(m, TEMPORAL_PARTS[part])])


@torch.no_grad()
def measure_detectors(vae, seed: int, count: int = 128) -> dict[str, float]:
    """Accuracy of the detectors on fresh rendered clips, after encoding and decoding by `vae` unless it is None."""
    hits = []
    for index in range(count):
        clip = render(sample_scene(seed * 10_000_000 + 5_000_000 + index, decorated=0.0))
        frames = clip.frames
        if vae is not None:
            pixels = frames.to(vae.device, vae.dtype) / 127.5 - 1
            frames = to_uint8(vae.decode(vae.encode(pixels).latent_dist.mean).sample)
        hits.append(read_clip(frames).matches(parse_prompt(clip.prompt)))
    return summary(hits)


def summary(hits: list[dict[str, bool]]) -> dict[str, float]:
    """Share of clips with each property right, with all right, and their number."""
    keys = ("background", "colour", "shape", "motion")
    shares = {key: round(float(np.mean([hit[key] for hit in hits])), 4) for key in keys}
    return shares | {"all": round(float(np.mean([all(hit.values()) for hit in hits])), 4), "n": len(hits)}


def to_uint8(pixels: torch.Tensor) -> torch.Tensor:
    """-1..1 to 0..255, on the CPU."""
    return ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().byte().cpu()
