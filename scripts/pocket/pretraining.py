"""Pretraining of PocketScope: the four phases of scripts/pretrain_pocketscope.py, and the measuring of what they made.

Latents are [b c f h w]; parts are those of a pipeline folder by name (scripts/pocket/architecture.py).
"""

import copy
import json
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from diffusers import TextToVideoSDPipeline
from diffusers.models.resnet import TemporalConvLayer
from torch import nn

from configs.errors import UserError
from data.world import vocabulary
from infer.pictures import contact_sheet, strip
from models.hooks import bypass_single_frames
from scripts.pocket.abilities import (
    GUIDANCE,
    SAMPLE_STEPS,
    TEMPORAL_PARTS,
    ablate,
    fresh_prompts,
    measure_detectors,
    measure_samples,
    token_ids,
)
from scripts.pocket.architecture import build, write_slow_tokenizer
from scripts.pocket.phases import Phases
from scripts.pocket.probe import motion_probe
from scripts.pocket.trainer import Phase
from scripts.pocket.world_data import draw_clips, encode_world

FADE_TO = 0.03  # at 0.12 the convolutions still carried three motions in four by themselves
PHASES = {
    "vae": Phase(steps=1000, batch=16, lr=1.5e-3, ema=0.995, decay_from=0.4),
    "frames": Phase(steps=500, batch=128, lr=1.5e-3, ema=0.99, decay_to=0.2, upper=0.3),
    "video": Phase(steps=800, batch=16, lr=1e-3, ema=0.998, decay_from=0.6, decay_to=0.3, upper=0.7),
    "fade": Phase(steps=1400, batch=16, lr=8e-4, ema=0.998, decay_from=0.8, upper=0.5),
}
NATIVE = {  # the folder's sampling.json
    "width": 64,
    "height": 64,
    "num_frames": 8,
    "num_steps": SAMPLE_STEPS,
    "guidance_scale": GUIDANCE,
    "noise_prior": 0.0,
    # motion guidance: chosen for data/examples/pocket_orbit.mp4, on the first eight prompts of pocket_paths.txt.
    # In 6 steps this comes as near to it as 10 guided ones of 20 at rate 0.3 (path error 10.7 and 10.6; 14.2 with
    # all of 6 at that rate). Two updates a step come nearer (7.0), but bring the reference's ground and colours.
    "guide_steps": SAMPLE_STEPS - 1,
    "guide_updates": 1,
    "guide_rate": 1.0,
    "guide_target": "clean_latent",
}


@torch.no_grad()
def normalise_latents(vae: nn.Module, frames: torch.Tensor) -> None:
    """Fold the latents' mean and deviation into the 1x1 convolutions around them, so that the scaling factor is 1."""
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in frames.split(64)])
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    after = vae.post_quant_conv  # first undo: y = W (std * z + mean) + b
    after.bias += after.weight[:, :, 0, 0] @ mean
    after.weight *= std[None, :, None, None]
    before, channels = vae.quant_conv, len(mean)  # its outputs are the means, then the log variances
    before.weight[:channels] /= std[:, None, None, None]
    before.bias[:channels] = (before.bias[:channels] - mean) / std
    before.bias[channels:] -= 2 * std.log()


class Diffusion:
    """The objective on pre-encoded clips: the scheduler's target, weighted to the foreground, 10 % uncaptioned."""

    def __init__(self, parts: dict, world: dict[str, torch.Tensor], dtype: torch.dtype, compiled: bool):
        self.parts, self.world, self.dtype, self.device = parts, world, dtype, parts["unet"].device
        self.unet = torch.compile(parts["unet"]) if compiled else parts["unet"]
        self.empty = token_ids(parts["tokenizer"], [""])

    def loss(self, phase: Phase, single: bool, rng: torch.Generator) -> torch.Tensor:
        """The loss of one batch; with `single` of one frame of each clip."""
        latents, weights, captions = draw_clips(self.world, phase.batch, single, self.empty, rng)
        upper = torch.rand(phase.batch, generator=rng) < phase.upper
        steps = torch.randint(1000, (phase.batch,), generator=rng)
        steps = torch.where(upper, 500 + steps // 2, steps)
        return self.error(latents, weights, captions, steps, torch.randn(latents.shape, generator=rng))

    def error(self, latents, weights, captions, steps, noise) -> torch.Tensor:
        """Weighted squared error of the prediction at `steps` [b]."""
        scheduler = self.parts["scheduler"]
        noisy, target = scheduler.add_noise(latents, noise, steps), scheduler.get_velocity(latents, noise, steps)
        with torch.no_grad():
            text = self.parts["text_encoder"](captions.to(self.device))[0]
        noisy, target, weights, steps = (x.to(self.device) for x in (noisy, target, weights, steps))
        with torch.autocast(self.device.type, self.dtype) if self.dtype != torch.float32 else nullcontext():
            predicted = self.unet(noisy, steps, text).sample
        return (weights[:, None] * (predicted.float() - target).square()).mean()

    def probe(self) -> float:
        """See `motion_probe`; at timesteps 700 to 950."""
        levels = lambda count, rng: torch.randint(700, 950, (count,), generator=rng)
        return motion_probe(self.parts["tokenizer"], self.world, self.error, levels)


def fade_factor(step: int, steps: int) -> float:
    """The temporal convolutions' scale: 1 -> FADE_TO linearly over the first 80 % of the phase, then held."""
    return 1 + (FADE_TO - 1) * min(1.0, step / (0.8 * steps))


class Fade:
    """Freezes the temporal convolutions of `unet`; `set(factor)` scales the output of each."""

    def __init__(self, unet: nn.Module):
        convolutions = [module for module in unet.modules() if isinstance(module, TemporalConvLayer)]
        for module in convolutions:
            module.requires_grad_(False)
        last = [parameter for module in convolutions for parameter in module.conv4[-1].parameters()]
        self.full = [(parameter, parameter.detach().clone()) for parameter in last]

    @torch.no_grad()
    def set(self, factor: float) -> None:
        for parameter, full in self.full:
            parameter.copy_(full * factor)


def write_pipeline(parts: dict, folder: Path) -> None:
    """Write the pipeline folder, fp16 safetensors, and the model's native sampling. The parts in memory stay."""
    pipe = TextToVideoSDPipeline(**{key: copy.deepcopy(part) for key, part in parts.items()}).to(dtype=torch.float16)
    pipe.save_pretrained(folder, safe_serialization=True)
    write_slow_tokenizer(folder / "tokenizer")
    (folder / "sampling.json").write_text(json.dumps(NATIVE, indent=2) + "\n", encoding="utf-8")


def pretrain(args) -> bool:
    """All phases; False when a signal ended it early, with the state saved."""
    run = Phases(args, PHASES, clips=10_000, frames=6_000, save_every=150)
    parts = build(vocabulary(), args.seed)
    for name in ("vae", "unet", "text_encoder"):
        parts[name].to(args.device)
    vae, unet = parts["vae"], parts["unet"]

    def train_unet(name, diffusion, single=False, before=lambda step: None) -> bool:
        loss = lambda rng: diffusion.loss(run.phases[name], single, rng)
        sample = partial(measure_samples, parts)
        return run.train_network(name, unet, loss, sample, diffusion.probe, single=single, before=before)

    if not run.train_vae(vae, vae):
        return False
    vae.requires_grad_(False).eval()
    normalise_latents(vae, run.some_frames())
    world = encode_world(parts, run.clips, args.seed, args.out / "latents.safetensors")
    diffusion = Diffusion(parts, world, args.dtype, args.compile)
    with bypass_single_frames(unet):
        if not train_unet("frames", diffusion, single=True):
            return False
    if not train_unet("video", diffusion):
        return False
    if not run.trainer.done("fade", run.phases["fade"]):
        write_pipeline(parts, args.export)  # usable while the last phase goes on
    fade, steps = Fade(unet), run.phases["fade"].steps
    if not train_unet("fade", diffusion, before=lambda step: fade.set(fade_factor(step, steps))):
        return False
    write_pipeline(parts, args.export)
    return True


def measure_shipped(args) -> None:
    """Measure the model in `args.export` on fresh prompts; the last line of stdout is JSON."""
    if not (args.export / "model_index.json").exists():
        raise UserError(f"{args.export}: no model_index.json there; pretrain first or point --export at the model.")
    parts = TextToVideoSDPipeline.from_pretrained(args.export, dtype=torch.float32).to(args.device).components
    for where, vae in (("rendered clips", None), ("clips after the VAE", parts["vae"])):
        print(f"detectors on {where}: {measure_detectors(vae, args.seed + 1)}", file=sys.stderr)
    prompts = fresh_prompts(args.evaluate, args.seed)
    for part in TEMPORAL_PARTS if args.ablate else ():
        with ablate(parts["unet"], part):
            print(f"without {part}: {measure_samples(parts, prompts, args.seed)[0]}", file=sys.stderr)
    facts, clips = measure_samples(parts, prompts, args.seed)
    contact_sheet(args.out / "evaluate.png", [(p, strip(video, height=64)) for p, video in zip(prompts, clips)][:16])
    print(json.dumps(facts))
