"""Make PocketScope, the embedded text-to-video model, from nothing; or measure the shipped one.

    python scripts/pretrain_pocketscope.py                                      # two CPU cores: about two hours
    python scripts/pretrain_pocketscope.py --device cuda --dtype bf16 --batch 4 --compile
    python scripts/pretrain_pocketscope.py --evaluate 256 --seed 1              # only measures models/pocketscope

Five phases, each a noun of `PHASES`: the VAE, the latents of pre-rendered clips, single frames (temporal layers
bypassed), video, and the fade: the temporal convolutions are frozen and their output scaled down to `FADE_TO`, so
that they keep giving the order of frames while temporal attention takes over the motion. Ctrl-C or SIGTERM saves; the
same command goes on. Randomness is derived from (seed, phase, step). Latents are [b c f h w].
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import os
import signal
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import TextToVideoSDPipeline
from diffusers.models.resnet import TemporalConvLayer
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm import tqdm

from configs.errors import UserError, command
from data.detectors import read_clip
from data.world import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, parse_prompt, render, sample_scene, vocabulary
from models.blueprint import build
from models.hooks import bypass_single_frames

SHIPPED = Path(__file__).resolve().parents[1] / "models" / "pocketscope"
FADE_TO = 0.12
FOREGROUND = 6.0  # extra weight of the object's latents: unweighted, shape and motion explain under 1 % of the loss
GUIDANCE, SAMPLE_STEPS = 4.0, 20
OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up", "grow": "shrink", "shrink": "grow"}


@dataclass(frozen=True)
class Phase:
    """One stretch of training. `upper` is the share of timesteps drawn from the noisier half on top of uniform."""

    steps: int
    batch: int
    lr: float
    ema: float
    warmup: int = 40
    decay_from: float = 0.5  # where the cosine starts, as a share of the steps
    decay_to: float = 0.0  # what it ends at, as a share of lr
    upper: float = 0.0


PHASES = {
    "vae": Phase(steps=1000, batch=16, lr=1.5e-3, ema=0.995, decay_from=0.4),
    "frames": Phase(steps=500, batch=128, lr=1.5e-3, ema=0.99, decay_from=0.5, decay_to=0.2, upper=0.3),
    "video": Phase(steps=1100, batch=16, lr=1e-3, ema=0.998, decay_from=0.6, decay_to=0.2, upper=0.7),
    "fade": Phase(steps=900, batch=16, lr=8e-4, ema=0.998, decay_from=0.6, upper=0.5),
}


def generator(seed: int, phase: str, step: int) -> torch.Generator:
    """All randomness of one step. On the CPU, so that every device draws the same numbers."""
    key = np.random.SeedSequence([seed, list(PHASES).index(phase), step]).generate_state(2)
    return torch.Generator().manual_seed(int(key[0]) << 31 | int(key[1]))


# --- The VAE ----------------------------------------------------------------------------------------------------


def render_frames(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Single frames [n 3 64 64] uint8 and their masks [n 1 64 64], one from each of `count` scenes."""
    frames, masks = [], []
    for index in tqdm(range(count), desc="render", leave=False):
        clip = render(sample_scene(seed * 10_000_000 + index))
        frames.append(clip.frames[index % 8])
        masks.append(clip.mask[index % 8, None])
    return torch.stack(frames), (torch.stack(masks) * 255).byte()


def vae_loss(vae: nn.Module, frames: torch.Tensor, masks: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """L1 weighted to the object, L1 of the error averaged over 4 and 16 pixels (a tint is small in every pixel but
    turns a background's name), and a whisper of KL. Frames are in -1..1."""
    posterior = vae.encode(frames).latent_dist
    error = vae.decode(posterior.mean + posterior.std * noise).sample - frames
    weight = 1 + 3 * masks
    loss = (weight * error.abs()).mean() / weight.mean()
    for size, share in ((4, 2.0), (16, 4.0)):
        loss = loss + share * F.avg_pool2d(error, size).abs().mean()
    return loss + 1e-6 * posterior.kl().mean()


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


@torch.no_grad()
def measure_detectors(vae: nn.Module | None, seed: int, count: int = 128) -> dict[str, float]:
    """Accuracy of the detectors on fresh rendered clips, after the VAE if one is given."""
    hits = []
    for index in range(count):
        clip = render(sample_scene(seed * 10_000_000 + 5_000_000 + index, decorated=0.0))
        frames = clip.frames
        if vae is not None:
            pixels = frames.to(vae.device, vae.dtype) / 127.5 - 1
            frames = to_uint8(vae.decode(vae.encode(pixels).latent_dist.mean).sample)
        hits.append(read_clip(frames).matches(parse_prompt(clip.prompt)))
    return summary(hits)


def to_uint8(pixels: torch.Tensor) -> torch.Tensor:
    return ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().byte().cpu()


def summary(hits: list[dict[str, bool]]) -> dict[str, float]:
    """Share of clips with each property right, with all right, and their number."""
    keys = ("background", "colour", "shape", "motion")
    shares = {key: round(float(np.mean([hit[key] for hit in hits])), 4) for key in keys}
    return shares | {"all": round(float(np.mean([all(hit.values()) for hit in hits])), 4), "n": len(hits)}


# --- Latents ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def encode_world(parts: dict, count: int, seed: int, path: Path) -> dict[str, torch.Tensor]:
    """Render and encode `count` clips once: latents [n 4 8 8 8], loss weights [n 8 8 8], captions [n 24] as ids."""
    if path.exists():
        return load_file(path)
    vae, tokenizer, kept = parts["vae"], parts["tokenizer"], {"latents": [], "weights": [], "captions": []}
    for start in tqdm(range(0, count, 8), desc="encode clips"):
        clips = [render(sample_scene(seed * 10_000_000 + i)) for i in range(start, min(start + 8, count))]
        pixels = torch.cat([clip.frames for clip in clips]).to(vae.device, vae.dtype) / 127.5 - 1
        latents = vae.encode(pixels).latent_dist.mean.float().cpu().unflatten(0, (len(clips), -1))
        masks = F.max_pool2d(torch.stack([clip.mask for clip in clips]), 8)
        kept["latents"].append(latents.transpose(1, 2))
        kept["weights"].append((1 + FOREGROUND * masks) / (1 + FOREGROUND * masks).mean((1, 2, 3), keepdim=True))
        kept["captions"].append(token_ids(tokenizer, [clip.prompt for clip in clips]))
    world = {name: torch.cat(tensors).contiguous() for name, tensors in kept.items()}
    write(world, path)
    return world


def token_ids(tokenizer, captions: list[str]) -> torch.Tensor:
    return tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids


# --- Diffusion --------------------------------------------------------------------------------------------------


class Diffusion:
    """The training objective on pre-encoded clips: v-prediction, weighted to the foreground, 10 % without caption."""

    def __init__(self, parts: dict, world: dict[str, torch.Tensor], device: str, dtype: torch.dtype, compiled: bool):
        self.parts, self.world, self.device, self.dtype = parts, world, device, dtype
        self.unet = torch.compile(parts["unet"]) if compiled else parts["unet"]
        self.alphas = parts["scheduler"].alphas_cumprod
        self.empty = token_ids(parts["tokenizer"], [""])
        # Directions and their opposites, for the probe.
        ids = world["captions"]
        self.pairs = []
        for motion, other in OPPOSITE.items():
            a, b = (token_ids(parts["tokenizer"], [MOTIONS[name]])[0] for name in (motion, other))
            differs = a.ne(b).nonzero()[0, 0]
            rows = ids.eq(a[differs]).any(1).nonzero()[:6, 0]
            self.pairs.append((rows, int(a[differs]), int(b[differs])))

    def loss(self, phase: Phase, single: bool, rng: torch.Generator, batch: int) -> torch.Tensor:
        rows = torch.randint(len(self.world["latents"]), (batch,), generator=rng)
        frames = torch.randint(8, (batch,), generator=rng)
        latents, weights = self.world["latents"][rows], self.world["weights"][rows]
        if single:  # one frame of each clip: [b c f h w] -> [b c 1 h w]
            pick = torch.arange(batch)
            latents, weights = latents[pick, :, frames, None].flatten(2, 3).unsqueeze(2), weights[pick, frames, None]
        captions = self.world["captions"][rows]
        captions = torch.where(torch.rand(batch, 1, generator=rng) < 0.1, self.empty, captions)
        upper = torch.rand(batch, generator=rng) < phase.upper
        steps = torch.randint(1000, (batch,), generator=rng)
        steps = torch.where(upper, 500 + steps // 2, steps)
        noise = torch.randn(latents.shape, generator=rng)
        return self.error(latents, weights, captions, steps, noise)

    def error(self, latents, weights, captions, steps, noise) -> torch.Tensor:
        alpha = self.alphas[steps].view(-1, 1, 1, 1, 1)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        target = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
        with torch.no_grad():
            text = self.parts["text_encoder"](captions.to(self.device))[0]
        noisy, target, weights, steps = (x.to(self.device) for x in (noisy, target, weights, steps))
        on = torch.autocast(self.device, self.dtype) if self.dtype != torch.float32 else nullcontext()
        with on:
            predicted = self.unet(noisy, steps, text).sample
        return (weights[:, None] * (predicted.float() - target).square()).mean()

    @torch.no_grad()
    def probe(self) -> float:
        """Loss increase when the motion word is swapped for its opposite, at timesteps 700 to 950. Below about 0.01
        the model has not learned motion; the loss itself hardly shows it."""
        rng = torch.Generator().manual_seed(0)
        increase = []
        for rows, word, other in self.pairs:
            if not len(rows):
                continue
            latents, weights, captions = (self.world[key][rows] for key in ("latents", "weights", "captions"))
            noise = torch.randn(latents.shape, generator=rng)
            steps = torch.randint(700, 950, (len(rows),), generator=rng)
            swapped = torch.where(captions == word, other, captions)
            right = self.error(latents, weights, captions, steps, noise)
            increase.append(float(self.error(latents, weights, swapped, steps, noise) - right))
        return float(np.mean(increase)) if increase else float("nan")


def fade_factor(step: int, steps: int) -> float:
    """The convolutions' scale: 1 -> FADE_TO linearly over the first 60 % of the phase, then held."""
    return 1 + (FADE_TO - 1) * min(1.0, step / (0.6 * steps))


# --- The loop ---------------------------------------------------------------------------------------------------


class Trainer:
    """Runs one phase to its end or to the signal to stop; the state file holds everything the next step needs."""

    def __init__(self, folder: Path, seed: int, save_every: int):
        self.folder, self.seed, self.save_every, self.stopped = folder, seed, save_every, False
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, self._stop)

    def _stop(self, *_):
        self.stopped = True

    def run(self, name: str, phase: Phase, model: nn.Module, loss, before=None, report=None, every: int = 0) -> bool:
        """Train `model` on `loss(step generator)`; True when the phase is complete, with the averaged weights in
        the model. `before(step)` may change the model, `report(step)` measures it with the averaged weights."""
        result, state = self.folder / f"{name}.safetensors", self.folder / "state.safetensors"
        if result.exists():
            model.load_state_dict(load_file(result))
            return True
        trained = {key: value for key, value in model.named_parameters() if value.requires_grad}
        average = {key: value.detach().clone() for key, value in trained.items()}
        optimizer = torch.optim.AdamW(trained.values(), lr=phase.lr, betas=(0.9, 0.99), weight_decay=0.0)
        start = self._restore(state, name, model, trained, average, optimizer)
        bar = tqdm(range(start, phase.steps), initial=start, total=phase.steps, desc=name, mininterval=5)
        clock, smooth = time.time(), None
        for step in bar:
            for group in optimizer.param_groups:
                group["lr"] = phase.lr * schedule(step, phase)
            if before:
                before(step)
            value = loss(generator(self.seed, name, step))
            if not torch.isfinite(value):
                raise UserError(f"{name}: the loss is {value.item()} at step {step}; lower the learning rate.")
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(trained.values(), 1.0)
            optimizer.step()
            decay = min(phase.ema, (step + 1) / (step + 10))
            with torch.no_grad():
                torch._foreach_lerp_(list(average.values()), list(trained.values()), 1 - decay)
            smooth = value.item() if smooth is None else 0.97 * smooth + 0.03 * value.item()
            bar.set_postfix(loss=f"{smooth:.4f}", s=f"{(time.time() - clock) / (step - start + 1):.2f}", refresh=False)
            last = step + 1 == phase.steps
            if report and not self.stopped and (last or every and (step + 1) % every == 0):
                with averaged(trained, average):
                    report(step + 1)
            if self.stopped or (step + 1) % self.save_every == 0 or last:
                self._save(state, name, step + 1, model, average, optimizer)
            if self.stopped:
                return False
        with torch.no_grad():
            for key, value in trained.items():
                value.copy_(average[key])
        write({key: value.cpu() for key, value in model.state_dict().items()}, result)
        state.unlink(missing_ok=True)
        return True

    def _save(self, path, name, step, model, average, optimizer):
        tensors = {f"model/{key}": value for key, value in model.state_dict().items()}
        tensors |= {f"average/{key}": value for key, value in average.items()}
        for index, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{key}": torch.as_tensor(value) for key, value in moments.items()}
        write({key: value.cpu() for key, value in tensors.items()}, path, {"phase": name, "step": str(step)})

    def _restore(self, path, name, model, trained, average, optimizer) -> int:
        if not path.exists():
            return 0
        with safe_open(path, "pt") as file:
            meta = file.metadata()
        if meta["phase"] != name:
            raise UserError(f"{path} is at phase {meta['phase']}, but {name} has no result; delete the folder.")
        tensors = load_file(path)
        part = lambda prefix: {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        model.load_state_dict(part("model/"))
        for key, value in part("average/").items():
            average[key].copy_(value)
        moments: dict[int, dict] = {}
        for key, value in part("optimizer/").items():
            index, moment = key.split("/")
            moments.setdefault(int(index), {})[moment] = value
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
        return int(meta["step"])


def schedule(step: int, phase: Phase) -> float:
    """Learning rate as a share of the phase's: a linear warm-up, a plateau, a cosine down to `decay_to`."""
    late = (step / phase.steps - phase.decay_from) / (1 - phase.decay_from)
    cosine = 0.5 * (1 + np.cos(np.pi * min(max(late, 0.0), 1.0)))
    return min(1.0, (step + 1) / phase.warmup) * (phase.decay_to + (1 - phase.decay_to) * cosine)


class averaged:
    """While inside, the parameters hold their running average."""

    def __init__(self, trained, average):
        self.trained, self.average = trained, average

    def __enter__(self):
        self.kept = {key: value.detach().clone() for key, value in self.trained.items()}
        self._copy(self.average)

    def __exit__(self, *_):
        self._copy(self.kept)

    @torch.no_grad()
    def _copy(self, source):
        for key, value in self.trained.items():
            value.copy_(source[key])


def write(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    temporary = path.with_suffix(".part")
    save_file({key: value.contiguous() for key, value in tensors.items()}, temporary, metadata)
    os.replace(temporary, path)


# --- Measuring and shipping ---------------------------------------------------------------------------------------


def fresh_prompts(count: int, seed: int) -> list[str]:
    """Undecorated captions, every motion equally often: n prompts that no training clip's seed shares."""
    rng = np.random.default_rng([seed, 99])
    order = itertools.islice(itertools.cycle(MOTIONS.values()), count)
    return [
        f"a {rng.choice(list(COLOURS))} {rng.choice(SHAPES)} {verb} over a {rng.choice(list(BACKGROUNDS))} background"
        for verb in order
    ]


@torch.no_grad()
def sample_clips(pipe: TextToVideoSDPipeline, prompts: list[str], seed: int, steps: int, guidance: float, size=16):
    """Clips uint8 [f 3 h w], one per prompt, drawn in batches."""
    pipe.set_progress_bar_config(disable=True)
    clips = []
    for start in range(0, len(prompts), size):
        part = prompts[start : start + size]
        rngs = [torch.Generator().manual_seed(seed * 1_000_003 + start + i) for i in range(len(part))]
        video = pipe(part, num_frames=8, height=64, width=64, num_inference_steps=steps, guidance_scale=guidance,
                     generator=rngs, output_type="pt").frames  # [b f c h w] in 0..1
        clips += list((video * 255).round().clamp(0, 255).byte().cpu())
    return clips


def measure(pipe, prompts: list[str], seed: int, steps: int = SAMPLE_STEPS, guidance: float = GUIDANCE):
    """(summary, clips) of samples read by the detectors."""
    clips = sample_clips(pipe, prompts, seed, steps, guidance)
    return summary([read_clip(c).matches(parse_prompt(p)) for c, p in zip(clips, prompts)]), clips


def sheet(clips: list[torch.Tensor], path: Path) -> None:
    rows = [torch.cat(list(clip), dim=2) for clip in clips]  # [c h (f w)]
    Image.fromarray(torch.cat(rows, dim=1).permute(1, 2, 0).numpy()).save(path)


def export(parts: dict, folder: Path) -> None:
    """Write the pipeline folder, fp16 safetensors, and the model's native sampling. The parts in memory stay."""
    pipe = TextToVideoSDPipeline(**{key: copy.deepcopy(part) for key, part in parts.items()}).to(dtype=torch.float16)
    pipe.save_pretrained(folder, safe_serialization=True)
    native = {"width": 64, "height": 64, "num_frames": 8, "num_steps": SAMPLE_STEPS, "guidance_scale": GUIDANCE,
              "noise_prior": 0.0}
    (folder / "sampling.json").write_text(json.dumps(native, indent=2) + "\n")


def pretrain(args) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    parts = build(vocabulary(), args.seed)
    for name in ("vae", "unet", "text_encoder"):
        parts[name].to(args.device)
    vae, unet = parts["vae"], parts["unet"]
    phases, clips, frames = PHASES, 10_000, 6_000
    if args.smoke:
        phases = {key: Phase(3, 4, phase.lr, phase.ema, warmup=1) for key, phase in PHASES.items()}
        clips, frames = 48, 32
    trainer = Trainer(args.out, args.seed, save_every=150)
    log = lambda name, step, facts: print(json.dumps({"phase": name, "step": step} | facts), flush=True)

    if not (args.out / "vae.safetensors").exists():
        images, masks = render_frames(frames, args.seed)

        def loss(rng):
            rows = torch.randint(len(images), (phases["vae"].batch * args.batch,), generator=rng)
            pixels, object_ = images[rows] / 127.5 - 1, masks[rows] / 255
            noise = torch.randn((len(rows), 4, 8, 8), generator=rng)
            return vae_loss(vae, *(x.to(args.device) for x in (pixels, object_, noise)))

        checks = 4 if args.smoke else 64
        report = lambda step: log("vae", step, measure_detectors(vae, args.seed, checks))
        if not trainer.run("vae", phases["vae"], vae, loss, report=report, every=250):
            return
    else:
        trainer.run("vae", phases["vae"], vae, None)
    vae.requires_grad_(False).eval()
    normalise_latents(vae, render_frames(512 if not args.smoke else 32, args.seed)[0].to(args.device) / 127.5 - 1)

    world = encode_world(parts, clips, args.seed, args.out / "latents.safetensors")
    diffusion = Diffusion(parts, world, args.device, args.dtype, args.compile)
    prompts = fresh_prompts(3 if args.smoke else 24, args.seed)

    def report(name):
        def run(step):
            pipe = TextToVideoSDPipeline(**parts)
            facts, made = measure(pipe, prompts, args.seed, steps=2 if args.smoke else 12)
            sheet(made[:8], args.out / f"{name}_{step:05d}.png")
            log(name, step, facts | {"probe": round(diffusion.probe(), 4)})

        return run

    batch = lambda name: phases[name].batch * args.batch
    with bypass_single_frames(unet):
        if not trainer.run("frames", phases["frames"], unet,
                           lambda rng: diffusion.loss(phases["frames"], True, rng, batch("frames"))):
            return
    if not trainer.run("video", phases["video"], unet,
                       lambda rng: diffusion.loss(phases["video"], False, rng, batch("video")),
                       report=report("video"), every=250):
        return
    if not (args.out / "fade.safetensors").exists():
        export(parts, args.export)
    anchors = {}
    for name, module in unet.named_modules():
        if isinstance(module, TemporalConvLayer):
            module.requires_grad_(False)
            anchors |= {p: p.detach().clone() for p in module.conv4[-1].parameters()}

    @torch.no_grad()
    def before(step):
        for parameter, full in anchors.items():
            parameter.copy_(full * fade_factor(step, phases["fade"].steps))

    if not trainer.run("fade", phases["fade"], unet,
                       lambda rng: diffusion.loss(phases["fade"], False, rng, batch("fade")),
                       before=before, report=report("fade"), every=250):
        return
    export(parts, args.export)


def evaluate(args) -> None:
    """Measure the model in `args.export` on fresh prompts; the last line of stdout is JSON."""
    if not (args.export / "model_index.json").exists():
        raise UserError(f"{args.export}: no model_index.json there; pretrain first or point --export at the model.")
    pipe = TextToVideoSDPipeline.from_pretrained(args.export, dtype=torch.float32).to(args.device)
    for where, vae in (("rendered", None), ("after the VAE", pipe.vae)):
        print(f"detectors, {where}: {measure_detectors(vae, args.seed + 1)}", file=sys.stderr)
    facts, clips = measure(pipe, fresh_prompts(args.evaluate, args.seed), args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    sheet(clips[:16], args.out / "evaluate.png")
    print(json.dumps(facts))


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/pretrain"), help="state, logs and sample sheets")
    parser.add_argument("--export", type=Path, default=SHIPPED, help="the pipeline folder to write or measure")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "bf16"), help="autocast of the U-Net")
    parser.add_argument("--batch", type=int, default=1, help="multiplies every phase's batch; for a GPU")
    parser.add_argument("--compile", action="store_true", help="torch.compile the U-Net")
    parser.add_argument("--smoke", action="store_true", help="three tiny steps of every phase")
    parser.add_argument("--evaluate", type=int, metavar="N", help="only measure the model on N fresh prompts")
    args = parser.parse_args(argv)
    args.dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[args.dtype]
    if args.evaluate is not None and args.evaluate < 1:
        raise UserError(f"--evaluate: found {args.evaluate}; give a number of prompts of at least 1.")
    evaluate(args) if args.evaluate else pretrain(args)


if __name__ == "__main__":
    main()
