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
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import copy
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from configs.errors import UserError, shown
from configs.files import check_writable, sweep
from configs.plain import shown_error
from infer.batch import check_batch, forwards, latent_size, sample_videos
from infer.guide_clip import guide_latents
from infer.jobs import Part, read_parts
from infer.pictures import MOST_ROWS, contact_sheet, strip
from infer.request import Request, read_request
from infer.sampler import make_solver
from infer.settings import Settings
from infer.sidecar import shared_record, write
from models.backbone import Backbone, choose_device, choose_dtype
from models.compiled import WAIT, attach_quicker, check_compiling
from models.hooks import Patch
from models.outline import scheduler_of
from models.threads import use_threads

ENCODED_AT_ONCE = 256  # jobs whose prompts are held as embeddings on the CPU, 0.3 MB each for ZeroScope, 8.4 for Wan


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
    scheduler = scheduler_of(request.model)
    for each in requests:
        make_solver(scheduler, each.settings.solver, each.settings.num_steps)
    check_compiling(args.compile, device)
    if backbone is None:
        backbone = Backbone.load(request.model, dtype, device, args.memory)
    else:
        _check_backbone(backbone, request.model, dtype, device, args.memory)
    use_threads(backbone.network, device, args.threads)
    towards = []  # every part is checked before the first is sampled
    for part, each in zip(parts, requests):
        size = latent_size(each.settings, backbone)
        if device.type == "cuda":
            check_batch(min(args.batch_size, len(part.jobs)), each.settings, backbone.kind.sequences(*size[1:]))
        towards.append(guide_latents(each, backbone, args.clip))
    request.report(device)
    if args.compile != "off":
        print(WAIT, file=sys.stderr)
    records = [shared_record(part.args, each, backbone) for part, each in zip(parts, requests)]
    rows: list[tuple[str, Image.Image]] = []
    total = sum(len(part.jobs) * each.settings.num_steps for part, each in zip(parts, requests))
    bar = tqdm(total=total, desc="sample", unit="step", dynamic_ncols=True)
    with bar, _attention(backbone, args), _quicker(backbone, args):
        for number, (part, each, record, clip) in enumerate(zip(parts, requests, records, towards)):
            if number:
                bar.write(f"for the next {len(part.jobs)} videos: {_changed(each, request)}", file=sys.stderr)
            yield from _sample_part(part, each, record, backbone, clip, folder, rows, bar, first=number == 0)
    jobs = [job for part in parts for job in part.jobs]
    made = [jobs, records[0] if len(records) == 1 else records]
    name = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:8]
    sheet = contact_sheet(folder / f"sheet_{name}.png", rows, more=len(jobs) - len(rows))
    print(f"contact sheet: {sheet}", file=sys.stderr)


def _changed(request: Request, first: Request) -> str:
    """What a line's options change of the first request's settings, in words."""
    new, old = request.settings.values, first.settings.values
    return ", ".join(f"{name} {shown(value)}" for name, value in new.items() if value != old.get(name)) or "as at first"


def _sample_part(
    part: Part,
    request: Request,
    record: dict,
    backbone: Backbone,
    towards: torch.Tensor | None,
    folder: Path,
    rows: list,
    bar: tqdm,
    first: bool,
) -> Iterator[Path]:
    """Sample and write the videos of one part, each with its `record`; their strips go into `rows`."""
    settings, size = request.settings, latent_size(request.settings, backbone)
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
    held = _in_words(backbone.path, backbone.dtype, backbone.device, backbone.memory)
    asked = _in_words(model, dtype, device, memory)
    if held != asked:
        raise UserError(
            f"model: the loaded one is {held}, and the request asks for {asked}; load that one, or give --model, "
            "--precision, --device and --memory as loaded"
        )


def _in_words(model: str, dtype: torch.dtype, device: torch.device, memory: str) -> str:
    folder = Path(model)
    name = folder.resolve() if folder.is_dir() else model  # else a hub id
    return f"{name} in {str(dtype).removeprefix('torch.')} on {device}, memory {memory}"


@contextmanager
def _attention(backbone: Backbone, args: argparse.Namespace) -> Iterator[None]:
    """SDPA is what diffusers uses anyway; --xformers replaces it, in both experts, and must then really be there."""
    networks = [each for each in (backbone.network, backbone.second) if each is not None]
    # of a transformer diffusers writes the choice into its processors: copies keep what was before
    before = [{name: copy(each) for name, each in network.attn_processors.items()} for network in networks]
    try:
        for network in networks:
            if args.xformers:
                _take_xformers(network)
            elif args.sdp:
                network.set_attn_processor(backbone.kind.ATTENTION())
        yield
    finally:
        if args.xformers or args.sdp:
            for network, processors in zip(networks, before, strict=True):
                network.set_attn_processor(processors)


def _take_xformers(network: torch.nn.Module) -> None:
    try:
        network.enable_xformers_memory_efficient_attention()
    except (ImportError, ValueError, NotImplementedError) as error:
        raise UserError(
            f"--xformers: not usable here ({shown_error(error)}); leave it out: PyTorch's SDPA, the default, is as fast"
        ) from None


def _quicker(backbone: Backbone, args: argparse.Namespace) -> Patch:
    """Both experts, where there are two, compiled or lean."""
    networks = filter(None, (backbone.network, backbone.second))
    device = backbone.device
    return Patch([attach_quicker(each, args.compile, device, training=False).remove for each in networks])


def _advance(timesteps: Iterable, bar: tqdm, videos: int) -> Iterator:
    for timestep in timesteps:
        yield timestep
        bar.update(videos)
