"""Reference files of one model's forward pass, LoRAs, inversion and sampling. Read by scripts/parity.py.

Every case is a generator of rows over one file (scripts/authors/reference.py) and compares what the file holds; sizes,
ranks, presets and numbers of steps are read from it. Training has a file of its own, scripts/authors/training.py.
"""

import math
import re
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from types import SimpleNamespace

import torch
from einops import rearrange

from configs.errors import UserError
from data.cache import read_folder
from infer.inversion import ddim_invert, make_inverse
from infer.noise import blend
from infer.sampler import classifier_free_guidance, sample
from models.backbones.unet3d import PRESETS
from models.customization import customize
from models.files.checkpoint import load_checkpoint
from models.highway import HighwaySettings, attach_highway
from models.hooks import bypass_single_frames
from models.lora import active, add_adapter
from models.merge import merge
from models.targets import targets
from scripts.authors.reference import ReferenceFile, Row

LATENTS = 2e-5  # relative to the largest value, after many passes
EXACT = 1e-6  # arithmetic without a network
UNGUARDED = ("mid_block.temp_convs.0",)  # runs at one frame in the release without gradient checkpointing
USUAL_STRIDE = 20  # timesteps between the steps of the release's 50-step inversion
ODD_TIMESTEP = 333  # of sample_odd, which the file does not say
# (s1, s2, b1, b2) behind the keys of an ah_ file; the last is the only one that touches hidden states
AH_SCALES = {
    "ah_noscale": (1, 1, 1, 1),
    "ah_no_infer_kwarg": (1, 1, 1, 1),
    "ah_s1": (1.1, 1, 1, 1),
    "ah_s1s2": (1.1, 0.9, 1, 1),
    "ah_all": (1.1, 0.9, 1.2, 1.3),
}
INFER_KEY = re.compile(r"infer_(noscale|s\d+)_(s\d+)")


def unet_case(ref: ReferenceFile) -> Iterator[Row]:
    """The plain U-Net, and one frame with all, all but one, or no temporal layers bypassed."""
    unet = ref.unet()
    for key in ("out", "out_f64", "out_gradckpt", "out_stock018"):
        if key in ref.data:
            yield ref.row(key, ref.forward(unet))
    if "out_odd" in ref.data:
        with torch.no_grad():
            text = ref.data["text"][: len(ref.data["sample_odd"])]
            yield ref.row("out_odd", unet(ref.data["sample_odd"], ODD_TIMESTEP, text).sample)
    if "out_stock018_one_frame" in ref.data:
        yield ref.row("out_stock018_one_frame", ref.forward(unet, "sample_one_frame"))
    for key, keep in ("out_one_frame_gradckpt", ()), ("out_one_frame", UNGUARDED):
        if key in ref.data:
            with bypass_single_frames(unet, keep):
                yield ref.row(key, ref.forward(unet, "sample_one_frame"))


def highway_case(ref: ReferenceFile) -> Iterator[Row]:
    """The highway in the release's scope, for each set of scales; and its wiring table, row by row."""
    unet = ref.unet()
    for key in sorted(AH_SCALES.keys() & ref.data.keys()):
        with attach_highway(unet, "release", scales=AH_SCALES[key]):
            yield ref.row(key, ref.forward(unet))
    if ref.has_settings(f"{ref.stem}_wiring"):
        wiring = ref.settings(f"{ref.stem}_wiring")
        # the table does not say which of the scales it was written at: its factors do
        wrong = min(differing_rows(unet, scales, wiring) for scales in AH_SCALES.values())
        yield Row("wiring (rows that differ)", 0, wrong)


def differing_rows(unet, scales: tuple[float, ...], wiring: list[dict]) -> int:
    """How many rows of the release's wiring table are not ours at `scales`, in the columns that the table has."""
    with attach_highway(unet, "release", scales=scales) as highway:
        pairs = list(zip_longest(highway.skips, wiring))
    return sum(
        skip is None or row is None or any(getattr(skip, name, None) != value for name, value in row.items())
        for skip, row in pairs
    )


def lora_case(ref: ReferenceFile) -> Iterator[Row]:
    """LoRA files: module names in order, forwards with adapters switched on, merged, and under the highway."""
    name = ref.stem.removesuffix("_forward")
    folder, preset = ref.find(name, "lora_train", "infer_run"), None
    unet = ref.unet_for(folder)
    if ref.has_settings(f"{name}_targets"):
        listed = ref.settings(f"{name}_targets")
        names = {side: [layer["name"] for layer in listed[side]] for side in ("temporal", "spatial")}
        preset = next((p for p in PRESETS if targets(unet, p) == names["temporal"]), None)
        wrong = (preset is None) + (targets(unet, "appearance") != names["spatial"])
        yield Row("module names (lists that differ)", 0, wrong)
    checkpoint = load_checkpoint(folder, preset=preset, network=unet)
    for key in ref.data:
        if match := INFER_KEY.fullmatch(key):
            scales = (1.0 if match[1] == "noscale" else digits(match[1]), 1.0, 1.0, 1.0)
            with customize(unet, [(checkpoint, digits(match[2]))], highway=HighwaySettings("release", 1.0, scales)):
                yield ref.row(key, ref.forward(unet))
    if "temporal_half" in ref.data:
        with merge(unet, checkpoint.motion, 0.5):
            yield ref.row("temporal_half", ref.forward(unet))
    if not ref.data.keys() & {"off", "temporal_only", "both", "spatial_one_frame"}:
        return
    adapters = adapt(unet, checkpoint.preset, checkpoint.motion, checkpoint.appearance[0])
    for key, on in ("off", []), ("temporal_only", adapters[:1]), ("both", adapters):
        if key in ref.data:
            with active(adapters, on=on):
                yield ref.row(key, ref.forward(unet))
    if "spatial_one_frame" in ref.data:
        ref.data["first_frame"] = ref.data["sample"][:, :, :1]
        with active(adapters, on=adapters), bypass_single_frames(unet, UNGUARDED):
            yield ref.row("spatial_one_frame", ref.forward(unet, "first_frame"))


def digits(word: str) -> float:
    """The number a key spells without its point: s11 is 1.1, s05 is 0.5, s1 is 1."""
    return float(f"{word[1]}.{word[2:]}")


def adapt(unet, preset: str, *states: dict[str, torch.Tensor]):
    """A motion and an appearance adapter that hold `states`."""
    adapters = []
    for name, kind, state in zip(("motion", "appearance_0"), (preset, "appearance"), states, strict=True):
        rank = max(matrix.shape[0] for key, matrix in state.items() if "lora_A" in key)
        adapters.append(add_adapter(unet, name, kind, rank))
        adapters[-1].load_state_dict(state)
    return adapters


def inversion_case(ref: ReferenceFile) -> Iterator[Row]:
    """DDIM inversion with the empty prompt: end points, trajectory, single steps, the mix with noise."""
    backbone, data = ref.backbone(ref.pipeline()), ref.data
    empty = backbone.encode_text([""]).expand(data["latents"].shape[0], -1, -1)

    def invert(steps: int, trajectory: bool = False) -> torch.Tensor:
        denoise = classifier_free_guidance(backbone.predict, empty)
        return ddim_invert(denoise, backbone.scheduler, data["latents"], steps, trajectory=trajectory)

    lengths = sorted(int(key.removeprefix("inv")) for key in data if re.fullmatch(r"inv\d+", key))
    stride = single_step_stride(ref, backbone.scheduler.config)
    for steps in lengths:
        yield ref.row(f"inv{steps}", invert(steps), LATENTS, relative=True)
    for key in data:
        if match := re.fullmatch(r"trajectory(\d+)", key):
            yield ref.row(key, invert(int(match[1]), trajectory=True), LATENTS, relative=True)
        elif match := re.fullmatch(r"timesteps(\d+)", key):
            backbone.scheduler.set_timesteps(int(match[1]))
            yield ref.row(key, backbone.scheduler.timesteps.flip(0), 0)
        elif match := re.fullmatch(r"step_t(\d+)", key):
            step = make_inverse(backbone.scheduler, backbone.scheduler.config.num_train_timesteps // stride).step
            ours = step(data["eps"], int(match[1]), data["latents"]).prev_sample
            yield ref.row(key, ours, EXACT, relative=True)
        elif match := re.fullmatch(r"mix_([\d.]+)", key):
            ours = blend(data[f"inv{lengths[-1]}"], data["mix_noise"], prior=float(match[1]))
            yield ref.row(key, ours, EXACT, relative=True)
        elif match := re.fullmatch(r"inv(\d+)_infer_unet_ah", key):
            with attach_highway(backbone.network, "release", beta=1.0):
                yield ref.row(key, invert(int(match[1])), LATENTS, relative=True)


def single_step_stride(ref: ReferenceFile, schedule) -> int:
    """How many timesteps a step_t of this file crosses: those of the longest inversion in it that meets all of them."""
    named = (re.match(r"(?:inv|trajectory|timesteps)(\d+)", key) for key in ref.data)
    lengths = sorted({int(match[1]) for match in named if match})
    stamps = {int(key.removeprefix("step_t")) for key in ref.data if re.fullmatch(r"step_t\d+", key)}
    strides = [schedule.num_train_timesteps // steps for steps in reversed(lengths)]
    return next((s for s in strides if all((t - schedule.steps_offset) % s == 0 for t in stamps)), USUAL_STRIDE)


def infer_case(ref: ReferenceFile) -> Iterator[Row]:
    """One sampling command: prompt embeddings, initial noise, timesteps, latents, frames."""
    wanted, data = SimpleNamespace(**ref.settings()["defaults"]), ref.data
    backbone = ref.backbone(ref.pipeline(wanted.model))
    folder = ref.find(wanted.checkpoint_folder, Path(wanted.checkpoint_folder).name)
    checkpoint = load_checkpoint(folder, wanted.checkpoint_index, network=backbone.network)
    guided = wanted.guidance_scale > 1  # as in diffusers; without guidance there is no half for the negative prompt
    text = data["prompt_embeds"]
    negative, text = text.chunk(2) if guided else (text, text)
    prompts, negatives = as_many(wanted.prompt, len(text)), as_many(wanted.negative_prompt or "", len(text))
    yield ref.row("prompt_embeds", backbone.encode_text(negatives + prompts if guided else prompts))
    start = initial_latents(ref, folder, wanted.noise_prior)
    if "init_latents" in data and start is not None:
        yield ref.row("init_latents", start, EXACT, relative=True)
    start = data.get("init_latents", start)
    if start is None:
        raise UserError(f"{ref.path.name}: has neither init_latents nor the noise that they are mixed from")
    seen, first = [], []
    freeu = [float(s) for s in wanted.freeu.strip("[]").split(",")] if isinstance(wanted.freeu, str) else wanted.freeu
    with customize(
        backbone.network, [(checkpoint, wanted.lora_scale)], highway=HighwaySettings("release", 1.0, tuple(freeu))
    ):
        denoise = classifier_free_guidance(
            backbone.predict, text, negative, scale=wanted.guidance_scale if guided else 1.0
        )
        hook = backbone.network.register_forward_pre_hook(lambda _, args: first.append(args[0]))
        latents = sample(denoise, backbone.scheduler, start, steps=wanted.num_steps, on_timestep=seen.append)
        hook.remove()
    if "timesteps" in data:
        yield ref.row("timesteps", torch.tensor(seen), 0)
    if "traj_first" in data:
        after_first = (first[1] if len(first) > 1 else latents)[: len(text)]
        yield ref.row("traj_first", after_first.transpose(1, 2).flatten(0, 1), LATENTS, relative=True)
    if "final_latents" in data:
        yield ref.row("final_latents", latents, LATENTS, relative=True)
    if "frames" in data:
        yield from frame_rows(torch.stack([backbone.decode_video(clean[None]) for clean in latents]), data["frames"])


def as_many(words: str | list[str], count: int) -> list[str]:
    """`count` prompts from one or several, in turn."""
    words = [words] if isinstance(words, str) else list(words)
    return [words[i % len(words)] for i in range(count)]


def initial_latents(ref: ReferenceFile, folder: Path, prior: float) -> torch.Tensor | None:
    """The latents that sampling starts from, mixed from the file's noise; None where noise or inversion is missing."""
    noise = ref.data.get("noise")
    if noise is None or not prior:
        return noise
    cached = ref.find(str((folder / "cached_latents").resolve()), "cached_latents")
    inversion = read_folder(cached)[0].inversion
    # resizing loses variance in the release, not here
    alike = inversion is not None and inversion.shape[1:] == noise.shape[1:]
    return blend(inversion, noise, prior=prior) if alike else None


def frame_rows(ours: torch.Tensor, theirs: torch.Tensor) -> Iterator[Row]:
    """Frames uint8 [b f c h w] against [f h w c], or [f h (b w) c] as diffusers once laid out a batch."""
    b, f, _, h, w = ours.shape
    layout = "b f c h w -> f h (b w) c" if theirs.shape[:3] == (f, h, b * w) else "b f c h w -> b f h w c"
    ours = rearrange(ours, layout)
    if ours.numel() != theirs.numel():
        yield Row(f"frames: {list(ours.shape)} here, {list(theirs.shape)} in the file", 0, math.inf)
        return
    error = (ours.reshape(theirs.shape).int() - theirs.int()).abs()
    yield Row("frames, largest difference", 1, error.max().item())
    yield Row("frames, share that differs", 1e-3, (error > 0).float().mean().item())
