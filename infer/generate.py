"""From checkpoints and prompts to videos: resolve what was asked, customize the frozen model, sample, write.

What shaped training (preset, rank, highway, sizes) comes from the checkpoint; every flag that overrides it is printed.
One video per prompt and seed with a JSON sidecar that is enough to make it again, and a contact sheet of the first.
Noise comes from a CPU generator, so a seed means the same noise on every device. Memory does not grow with the number
of videos.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import torch
from diffusers import SchedulerMixin
from PIL import Image
from tqdm import tqdm

from configs.errors import UserError, shown
from configs.files import check_writable, sweep
from configs.plain import shown_error
from infer.guidance import GuidanceSettings, MotionGuidance
from infer.guide_clip import guide_latents
from infer.jobs import Part, read_parts
from infer.noise import initial_noise
from infer.pictures import MOST_ROWS, contact_sheet, strip
from infer.request import Request, read_request
from infer.sampler import classifier_free_guidance, is_inside, make_solver, sample, within
from infer.settings import Settings
from infer.sidecar import shared_record, write
from models.backbone import Backbone, choose_device, choose_dtype
from models.compiled import attach_quicker
from models.hooks import Patch
from models.threads import use_threads

ENCODED_AT_ONCE = 256  # jobs whose prompts are held as embeddings on the CPU, 0.3 MB each for ZeroScope, 8.4 for Wan
MOST_SEQUENCES = 65_535  # that CUDA's attention kernels take in one call: their grid's limit


def generate(args: argparse.Namespace, backbone: Backbone | None = None) -> Iterator[Path]:
    """Sample every (prompt, seed) that `args` (infer/options.py) asks for; yields each video's path once written.

    `backbone` is the loaded model of an earlier call (`load_backbone`), so that many requests load it once; it is left
    as it was. Raises UserError, before sampling, for anything in the request, the checkpoint or the model folder that
    cannot work, and for a `backbone` other than the one that the request asks for.
    """
    parts, device, folder = read_parts(args), choose_device(args.device), Path(args.output_dir)
    check_writable(folder)
    sweep(folder)
    request = read_request(parts[0].args)
    requests = [request, *(read_request(part.args, request.sources) for part in parts[1:])]
    dtype = choose_dtype(request.settings.precision, device)
    if backbone is None:
        backbone = Backbone.load(request.model, dtype, device, args.memory)
    else:
        _check_backbone(backbone, request.model, dtype, device, args.memory)
    use_threads(backbone.network, device, args.threads)
    towards = []  # every part is checked before the first is sampled
    for each in requests:
        size = latent_size(each.settings, backbone)
        if device.type == "cuda":
            check_batch(args.batch_size, each.settings, backbone.kind.sequences(*size[1:]))
        towards.append(guide_latents(each, backbone, args.clip))
    request.report()
    rows: list[tuple[str, Image.Image]] = []
    total = sum(len(part.jobs) * each.settings.num_steps for part, each in zip(parts, requests))
    bar = tqdm(total=total, desc="sample", unit="step", dynamic_ncols=True)
    with bar, _attention(backbone, args), _quicker(backbone, args):
        for number, (part, each, clip) in enumerate(zip(parts, requests, towards)):
            if number:
                bar.write(f"for the next {len(part.jobs)} videos: {_changed(each, request)}", file=sys.stderr)
            yield from _sample_part(part, each, backbone, clip, folder, rows, bar, first=number == 0)
    jobs = [job for part in parts for job in part.jobs]
    records = [shared_record(part.args, each, backbone) for part, each in zip(parts, requests)]
    made = [jobs, records[0] if len(records) == 1 else records]
    name = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:8]
    sheet = contact_sheet(folder / f"sheet_{name}.png", rows, more=len(jobs) - len(rows))
    print(f"contact sheet: {sheet}", file=sys.stderr)


def _changed(request: Request, first: Request) -> str:
    """What a line's options change of the first request's settings, in words."""
    new, old = request.settings.values, first.settings.values
    return ", ".join(f"{name} {shown(value)}" for name, value in new.items() if value != old.get(name)) or "as at first"


def _sample_part(
    part: Part, request: Request, backbone: Backbone, towards, folder: Path, rows: list, bar: tqdm, first: bool
) -> Iterator[Path]:
    """Sample and write the videos of one part; their strips go into `rows`."""
    settings, size = request.settings, latent_size(request.settings, backbone)
    record = shared_record(part.args, request, backbone)
    for number, (batch, text, negative) in enumerate(_batches(part.jobs, part.args.batch_size, settings, backbone)):
        began, cpu_began = time.perf_counter(), time.process_time()
        customization = request.customize(backbone.network, size)
        if first and number == 0:
            bar.write("\n".join(customization.notes) or "the plain model", file=sys.stderr)
        videos = sample_videos(
            backbone,
            customization,
            settings,
            text,
            negative,
            seeds=[seed for _, seed in batch],
            inversion=request.reference and request.reference.inversion,
            towards=towards,
            progress=partial(_advance, bar=bar, videos=len(batch)),
        )
        cost = {
            "seconds": round((time.perf_counter() - began) / len(batch), 3),
            "cpu_seconds": round((time.process_time() - cpu_began) / len(batch), 3),
            "forwards": forwards(settings, backbone.scheduler),
        }
        for (prompt, seed), frames in zip(batch, videos, strict=True):
            if len(rows) < MOST_ROWS:
                rows.append((f"{prompt}  (seed {seed})", strip(frames)))
            yield write(folder, prompt, seed, frames, record, cost)


def load_backbone(args: argparse.Namespace) -> Backbone:
    """The model that `generate(args)` would load, to be passed to it and to further calls for the same model."""
    device, request = choose_device(args.device), read_request(args)
    dtype = choose_dtype(request.settings.precision, device)
    return Backbone.load(request.model, dtype, device, args.memory)


def sample_videos(
    backbone: Backbone,
    customization: AbstractContextManager[Patch],
    settings: Settings,
    text: torch.Tensor,
    negative: torch.Tensor,
    *,
    seeds: list[int],
    inversion: torch.Tensor | None = None,
    towards: torch.Tensor | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
) -> list[torch.Tensor]:
    """One batch from noise to frames: a video, uint8 [f c h w] on the CPU, for every row of `text` [b n d] and seed.

    `customization` is on the U-Net inside its `with` block; phased LoRA integration takes it off before. `negative` is
    [1 n d]; `inversion` [1 c f h w] gives `settings.noise_prior` of the initial noise's variance, `towards` of the same
    size is the clip that `settings.motion_guidance()` steers to. Raises UserError when the latents do not stay finite.
    """
    text, negative = text.to(backbone.device), negative.to(backbone.device)
    shape = (1, backbone.network.config.in_channels, *latent_size(settings, backbone))
    noise = [
        initial_noise(
            shape,
            torch.Generator().manual_seed(seed),
            inversion,
            settings.noise_prior,
            settings.noise_strategy,
            cutoff=settings.noise_cutoff,
        )
        for seed in seeds
    ]
    denoise = classifier_free_guidance(
        backbone.predict,
        text,
        negative.expand(len(text), -1, -1),
        scale=settings.guidance_scale,
        rescale=settings.guidance_rescale,
    )
    if settings.guidance_interval is not None:
        denoise = within(settings.guidance_interval, denoise, classifier_free_guidance(backbone.predict, text))
    steer = None
    if (guidance := settings.motion_guidance()) is not None:
        empty = backbone.encode_text([""]).to(text).expand(len(text), -1, -1)
        denoise = MotionGuidance(
            towards,
            denoise,
            classifier_free_guidance(backbone.predict, empty),
            backbone.scheduler,
            guidance,
            list(seeds),
        )
        steer = denoise.steer
    threshold = settings.pli_threshold
    with customization as patch:
        latents = sample(
            denoise,
            backbone.scheduler,
            torch.cat(noise).to(backbone.device),
            steps=settings.num_steps,
            solver=settings.solver,
            on_timestep=None if threshold is None else lambda t: patch.remove() if t <= threshold else None,
            steer=steer,
            progress=progress,
        )
    return [backbone.decode_video(video[None]) for video in latents]


def forwards(settings: Settings, scheduler: SchedulerMixin) -> int:
    """How often the network sees each video: twice in a step with a guidance scale, more where motion is guided, and
    twice as often while the value highway acts, which phased integration takes off.
    """
    interval, unguided = settings.guidance_interval, settings.guidance_scale == 1
    highway, threshold = settings.highway(), settings.pli_threshold
    timesteps = make_solver(scheduler, settings.solver, settings.num_steps).timesteps
    each = [1 if unguided or not is_inside(interval, timestep) else 2 for timestep in timesteps]
    twice = highway is not None and highway.scope == "value"
    passes = [2 if twice and (threshold is None or timestep > threshold) else 1 for timestep in timesteps]
    return (settings.motion_guidance() or GuidanceSettings(steps=0)).forwards(each, passes)


def latent_size(settings: Settings, backbone: Backbone) -> tuple[int, int, int]:
    """Frames, height and width in latent pixels. Raises UserError for sizes that the model cannot take."""
    check_sides({f"--{side}": settings[side] for side in ("width", "height")}, backbone.sides)
    return backbone.latent_size(settings.num_frames, settings.height, settings.width)


def check_sides(sides: Mapping[str, int], factor: int) -> None:
    """Raise UserError for a side, by its flag or key and in pixels, that is not a multiple of `factor`."""
    for name, pixels in sides.items():
        if pixels % factor:
            nearest = max(1, round(pixels / factor)) * factor
            raise UserError(f"{name}: {pixels} is not a multiple of {factor}, which this model needs; use {nearest}")


def check_batch(batch: int, settings: Settings, sequences: int) -> None:
    """Raise UserError when attention would get more sequences than CUDA's kernels take in one call.

    A U-Net's temporal attention attends over the frames of each latent pixel by itself, so a video is height * width
    `sequences`, twice that under guidance: at 384 x 384 a batch of 15 is 69,120.
    """
    each = sequences * (1 if settings.guidance_scale == 1 else 2)
    if batch * each > MOST_SEQUENCES:
        most = MOST_SEQUENCES // each
        raise UserError(
            f"--batch-size: {batch} of {settings.width} x {settings.height} are {batch * each:,} sequences for "
            f"temporal attention, and CUDA's kernels take {MOST_SEQUENCES:,}; use "
            + (f"--batch-size {most}" if most else "a smaller --width and --height")
        )


def _batches(
    jobs: list[tuple[str, int]], size: int, settings: Settings, backbone: Backbone
) -> Iterator[tuple[list[tuple[str, int]], torch.Tensor, torch.Tensor]]:
    """Batches of jobs with their prompts' embeddings [b n d] and the negative prompt's [1 n d].

    The text encoder visits the device once for `ENCODED_AT_ONCE` jobs: once altogether, for all but huge requests.
    """
    window = size * max(1, ENCODED_AT_ONCE // size)
    for first in range(0, len(jobs), window):
        part = jobs[first : first + window]
        prompts = list(dict.fromkeys(prompt for prompt, _ in part))
        *embeddings, negative = backbone.encode_text([*prompts, settings.negative_prompt]).split(1)
        text = dict(zip(prompts, embeddings, strict=True))
        for start in range(0, len(part), size):
            batch = part[start : start + size]
            yield batch, torch.cat([text[prompt] for prompt, _ in batch]), negative


def _check_backbone(backbone: Backbone, model: str, dtype: torch.dtype, device: torch.device, memory: str) -> None:
    held, asked = (
        (str(Path(path).resolve()), str(kind).removeprefix("torch."), str(place), "memory " + waits)
        for path, kind, place, waits in (
            (backbone.path, backbone.dtype, backbone.device, backbone.memory),
            (model, dtype, device, memory),
        )
    )
    if held != asked:
        raise UserError(
            f"model: the loaded one is {' '.join(held)}, and the request asks for {' '.join(asked)}; load that one, or "
            "give --model, --precision, --device and --memory as loaded"
        )


@contextmanager
def _attention(backbone: Backbone, args: argparse.Namespace) -> Iterator[None]:
    """SDPA is what diffusers uses anyway; --xformers replaces it and must then really be there."""
    network = backbone.network
    before = network.attn_processors
    if args.xformers:
        try:
            network.enable_xformers_memory_efficient_attention()
        except (ImportError, ValueError, NotImplementedError) as error:
            raise UserError(
                f"--xformers: not usable here ({shown_error(error)}); leave it out: PyTorch's "
                "SDPA, the default, is as fast"
            ) from None
    elif args.sdp:
        network.set_attn_processor(backbone.kind.ATTENTION())
    try:
        yield
    finally:
        if args.xformers or args.sdp:
            network.set_attn_processor(dict(before))


def _quicker(backbone: Backbone, args: argparse.Namespace) -> Patch:
    """Both experts, where there are two, compiled or lean."""
    networks = filter(None, (backbone.network, backbone.second))
    device = backbone.device
    return Patch([attach_quicker(each, args.compile, device, training=False).remove for each in networks])


def _advance(timesteps: Iterable, bar: tqdm, videos: int) -> Iterator:
    for timestep in timesteps:
        yield timestep
        bar.update(videos)
