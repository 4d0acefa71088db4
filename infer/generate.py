"""From checkpoints and prompts to videos: resolve what was asked, customize the frozen model, sample, write.

What shaped training (preset, rank, highway, sizes) comes from the checkpoint; every flag that overrides it is printed.
One video per prompt and seed with a JSON sidecar that is enough to make it again, and a contact sheet of all. Noise
comes from a CPU generator, so a seed means the same noise on every device.
"""

import argparse
import hashlib
import json
import secrets
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import diffusers
import torch
from tqdm import tqdm

from configs.errors import UserError
from configs.files import atomic_path, check_writable
from infer import options
from infer.noise import initial_noise
from infer.pictures import contact_sheet
from infer.request import Settings, Source, find_sources, model_path, reference_clip, resolve
from infer.sampler import guide, sample
from infer.video import safe_name, write_video
from models import methods
from models.backbone import Backbone, choose_device, choose_dtype
from models.highway import HighwaySettings


def generate(args: argparse.Namespace) -> Iterator[Path]:
    """Sample every (prompt, seed) that `args` (infer/options.py) asks for; yields each video's path once written.

    Raises UserError for anything in the request, the checkpoint or the model folder that can not work, before sampling.
    """
    prompts = options.read_prompts(args)
    seeds = [secrets.randbelow(2**31)] if args.seed is None else args.seed
    jobs = [(prompt, seed + i) for prompt in prompts for seed in seeds for i in range(args.repeat_num)]
    device, folder = choose_device(args.device), Path(args.output_dir)
    check_writable(folder)
    sources = find_sources(args)
    model = model_path(args, sources)
    settings = resolve(args, sources, model)
    backbone = Backbone.load(model, choose_dtype(settings.precision, device), device)
    _choose_attention(backbone.unet, args)
    shape = _latent_shape(settings, backbone)
    reference = reference_clip(args, sources, settings)
    settings.report(model, sources)
    text = {prompt: backbone.encode_text([prompt]) for prompt in dict.fromkeys(prompts)}
    negative = backbone.encode_text([settings.negative_prompt])
    record = _record(args, settings, sources, backbone, reference)

    rows = []
    with tqdm(total=len(jobs) * settings.num_steps, desc="sample", unit="step", dynamic_ncols=True) as bar:
        for start in range(0, len(jobs), args.batch_size):
            batch = jobs[start : start + args.batch_size]
            noise = [
                initial_noise(
                    shape,
                    torch.Generator().manual_seed(seed),
                    reference and reference.inversion,
                    settings.noise_prior,
                    settings.noise_strategy,
                    cutoff=settings.noise_cutoff,
                )
                for _, seed in batch
            ]
            began = time.perf_counter()
            with _customized(backbone.unet, sources, settings, shape[2:]) as customization:
                if start == 0:
                    bar.write("\n".join(customization.notes) or "the plain model", file=sys.stderr)
                denoise = guide(
                    backbone.predict,
                    torch.cat([text[prompt] for prompt, _ in batch]),
                    negative.expand(len(batch), -1, -1),
                    scale=settings.guidance_scale,
                    rescale=settings.guidance_rescale,
                )
                latents = sample(
                    denoise,
                    backbone.scheduler,
                    torch.cat(noise).to(device),
                    steps=settings.num_steps,
                    progress=partial(_advance, bar=bar, videos=len(batch)),
                    on_timestep=lambda t: customization.remove() if t <= settings.pli_threshold else None,
                )
            seconds = (time.perf_counter() - began) / len(batch)
            for (prompt, seed), clean in zip(batch, latents):
                frames = backbone.decode_video(clean[None])
                rows.append((f"{prompt}  (seed {seed})", frames))
                yield _write(folder, prompt, seed, frames, args, record, seconds)
    name = hashlib.sha256(json.dumps([jobs, record], sort_keys=True).encode()).hexdigest()[:8]
    print(f"contact sheet: {contact_sheet(folder / f'sheet_{name}.png', rows)}", file=sys.stderr)


def _customized(unet, sources: list[Source], settings: Settings, latent_size: tuple[int, int, int]):
    """The adapters of all sources on the plain U-Net. PLI takes them off at its threshold."""
    motions = [(s.checkpoint, s.strength) for s in sources if s.part == "motion"]
    appearances = [(s.checkpoint, s.clip, s.strength) for s in sources if s.part == "appearance"]
    highway = None if settings.highway == "off" else HighwaySettings(settings.highway, settings.beta, settings.freeu)
    return methods.customize(unet, motions, appearances, highway, settings.embedding_sampling, latent_size)


def _latent_shape(settings: Settings, backbone: Backbone) -> tuple[int, int, int, int, int]:
    factor = backbone.vae_factor
    for side in ("width", "height"):
        if settings[side] % factor:
            raise UserError(
                f"--{side}: {settings[side]} is not a multiple of {factor}, which this model's VAE needs; "
                f"use {max(1, round(settings[side] / factor)) * factor}"
            )
    return (
        1,
        backbone.unet.config.in_channels,
        settings.num_frames,
        settings.height // factor,
        settings.width // factor,
    )


def _choose_attention(unet, args: argparse.Namespace) -> None:
    """SDPA is what diffusers uses anyway; --xformers replaces it and must then really be there."""
    if args.xformers:
        try:
            unet.enable_xformers_memory_efficient_attention()
        except (ImportError, ValueError, NotImplementedError) as error:
            raise UserError(
                f"--xformers: not usable here ({str(error).splitlines()[0][:120]}); leave it out: PyTorch's "
                "SDPA, the default, is as fast"
            ) from None
    elif args.sdp:
        unet.set_attn_processor(diffusers.models.attention_processor.AttnProcessor2_0())


def _record(args, settings: Settings, sources: list[Source], backbone: Backbone, reference) -> dict:
    """The part of the sidecar that all videos of one call share."""
    return {
        "model": backbone.path,
        "model_fingerprint": backbone.fingerprint(),
        "settings": settings.values,
        "origins": settings.origins,
        "sources": [source.record() for source in sources],
        "reference": reference and {"prompt": reference.prompt, "name": reference.name},
        "file": {"format": args.format, "quality": args.quality},
        "attention": "xformers" if args.xformers else "sdpa",
        "config": sources[0].checkpoint.config if sources else None,
        "device": str(backbone.device),
        "precision": str(backbone.dtype).removeprefix("torch."),
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
    }


def _write(folder: Path, prompt: str, seed: int, frames: torch.Tensor, args, record: dict, seconds: float) -> Path:
    """Video and sidecar. A video of other settings under the same name is kept: the new one gets a number."""
    suffix = {"mp4": ".mp4", "gif": ".gif", "frames": ""}[args.format]
    stem, number = f"{safe_name(prompt)}_seed{seed}", 1
    sidecar = {"prompt": prompt, "seed": seed, **record}
    while True:
        path = folder / f"{stem}{f'_{number}' if number > 1 else ''}{suffix}"
        notes = folder / f"{path.name.removesuffix(suffix) if suffix else path.name}.json"
        if not notes.exists() or _same(notes, sidecar):
            break
        number += 1
    write_video(path, frames, fps=record["settings"]["fps"], quality=args.quality)
    with atomic_path(notes) as temporary:
        temporary.write_text(json.dumps({"video": path.name, **sidecar, "seconds": round(seconds, 3)}, indent=2))
    return path


def _same(notes: Path, sidecar: dict) -> bool:
    try:
        written = json.loads(notes.read_text())
    except ValueError:
        return False
    return {key: written.get(key) for key in sidecar} == json.loads(json.dumps(sidecar))


def _advance(timesteps, bar: tqdm, videos: int) -> Iterator:
    for timestep in timesteps:
        yield timestep
        bar.update(videos)
