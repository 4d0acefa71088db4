"""How PocketScope-DiT is made and measured: `python scripts/pretrain_pocketscope.py --model dit`.

Three phases: the VAE; single frames, which are clips of one latent frame to a transformer; then video. Latents are
[b c f h w].
"""

from __future__ import annotations

import copy
import json
import sys
from argparse import Namespace
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, WanPipeline

from configs.errors import UserError
from data.world import vocabulary
from infer.pictures import contact_sheet, strip
from scripts.pocket import wan_abilities as abilities
from scripts.pocket.abilities import fresh_prompts, measure_detectors
from scripts.pocket.flow import FlowMatching
from scripts.pocket.phases import Phases
from scripts.pocket.trainer import Phase
from scripts.pocket.wan_parts import FrameCodec, build, skip_earlier_frames
from scripts.pocket.world_data import encode_world

PHASES = {
    "vae": Phase(steps=1000, batch=16, lr=1.5e-3, ema=0.995, decay_from=0.4),
    "frames": Phase(steps=300, batch=128, lr=2e-3, ema=0.99, decay_from=0.6, decay_to=0.3),
    "video": Phase(steps=1600, batch=24, lr=1.2e-3, ema=0.998, decay_from=0.75),
}
NATIVE = {  # the folder's sampling.json
    "width": 64,
    "height": 64,
    "num_frames": 8,
    "num_steps": abilities.SAMPLE_STEPS,
    "guidance_scale": abilities.GUIDANCE,
    "noise_prior": 0.0,
    # motion guidance: chosen on the orbit with the first eight prompts of pocket_paths.txt
    "guide_steps": 8,
    "guide_updates": 1,
    "guide_rate": 0.2,
    "guide_target": "clean_latent",
}


@torch.no_grad()
def measure_latents(vae: AutoencoderKLWan, frames: torch.Tensor) -> None:
    """Write the latents' mean and deviation into the VAE's configuration, from where every Wan pipeline reads them."""
    latents = torch.cat([FrameCodec(vae).encode(part).latent_dist.mean for part in frames.split(64)])
    mean, std = (statistic.tolist() for statistic in (latents.mean((0, 2, 3)), latents.std((0, 2, 3))))
    vae.register_to_config(latents_mean=mean, latents_std=std)


def export(parts: dict, folder: Path) -> None:
    """Write the pipeline folder, fp16 safetensors, and the model's native sampling. The parts in memory stay."""
    pipe = WanPipeline(**{key: copy.deepcopy(part) for key, part in parts.items()}).to(dtype=torch.float16)
    pipe.save_pretrained(folder, safe_serialization=True)
    (folder / "sampling.json").write_text(json.dumps(NATIVE, indent=2) + "\n", encoding="utf-8")


def pretrain(args: Namespace) -> bool:
    """All phases; False when a signal ended it early, with the state saved."""
    run = Phases(args, PHASES, clips=8_000, frames=6_000, save_every=100)
    parts = build(vocabulary(), args.seed)
    for name in ("vae", "transformer", "text_encoder"):
        parts[name].to(args.device)
    vae = parts["vae"]

    def train_transformer(name, flow, single=False) -> bool:
        loss = lambda rng: flow.loss(run.phases[name].batch, single, rng)
        sample = partial(abilities.measure, parts)
        return run.train_network(name, parts["transformer"], loss, sample, flow.probe, single=single)

    with skip_earlier_frames(vae):
        if not run.train_vae(vae, FrameCodec(vae)):
            return False
        vae.requires_grad_(False).eval()
        measure_latents(vae, run.some_frames())
        coded = parts | {"vae": FrameCodec(vae)}
        world = encode_world(coded, run.clips, args.seed, args.out / "latents.safetensors")
    flow = FlowMatching(parts, world, args.dtype, args.compile)
    with flow.padding:
        done = train_transformer("frames", flow, single=True) and train_transformer("video", flow)
    if done:
        export(parts, args.export)
    return done


def measure_shipped(args: Namespace) -> None:
    """Measure the model in `args.export` on fresh prompts; the last line of stdout is JSON."""
    if not (args.export / "model_index.json").exists():
        raise UserError(f"{args.export}: no model_index.json there; pretrain first or point --export at the model.")
    pipe = WanPipeline.from_pretrained(args.export, dtype=torch.float32).to(args.device)
    parts = {name: part for name, part in pipe.components.items() if part is not None}
    transformer = parts["transformer"]

    def report(what, facts):
        print(f"{what}: {facts}", file=sys.stderr, flush=True)

    report("detectors on rendered clips", measure_detectors(None, args.seed + 1))
    report("detectors on clips after the VAE", measure_detectors(FrameCodec(parts["vae"]), args.seed + 1))
    prompts = fresh_prompts(args.evaluate, args.seed)
    if args.ablate:
        for name in ("frame", "place", "frame or place"):
            with abilities.attend_only(transformer, name):
                report(f"attention only within the same {name}", abilities.measure(parts, prompts, args.seed)[0])
        found = abilities.heads_in_rendered_clips(str(args.export), args.device, args.seed)
        print(found, file=sys.stderr, flush=True)
        for name, heads in abilities.head_groups(found.is_temporal).items():
            with abilities.without_heads(transformer, heads):
                report(f"without {name}", abilities.measure(parts, prompts, args.seed)[0])
    facts, clips = abilities.measure(parts, prompts, args.seed)
    contact_sheet(args.out / "evaluate.png", [(p, strip(video, height=64)) for p, video in zip(prompts, clips)][:16])
    print(json.dumps(facts))
