"""One batch of videos: from noise to frames, the sizes that it may have, and how many forwards it takes.

Previews of a training and inference both sample with `sample_videos`.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager

import torch
from diffusers import SchedulerMixin

from configs.errors import UserError
from infer.guidance import GuidanceSettings, MotionGuidance
from infer.noise import initial_noise
from infer.sampler import Denoiser, classifier_free_guidance, is_inside, make_solver, sample, within
from infer.settings import Settings
from models.backbone import Backbone
from models.hooks import Patch

MOST_SEQUENCES = 65_535  # that CUDA's attention kernels take in one call: their grid's limit


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

    `customization` is on the network inside its `with` block; phased LoRA integration takes it off before. `negative`
    is [1 n d]; `inversion` [1 c f h w] gives `settings.noise_prior` of the initial noise's variance, `towards` of the
    same size is the clip that `settings.motion_guidance()` steers to. Raises UserError when the latents do not stay
    finite.
    """
    threshold = settings.pli_threshold
    with customization as patch:  # first, so that nothing raised below leaves it on a model that others share
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
        denoise, steer = _denoiser(backbone, settings, text, negative, seeds, towards)
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
    return backbone.decode_videos(latents)


def _denoiser(
    backbone: Backbone,
    settings: Settings,
    text: torch.Tensor,
    negative: torch.Tensor,
    seeds: list[int],
    towards: torch.Tensor | None,
) -> tuple[Denoiser, Callable | None]:
    """(the prediction under every kind of guidance that `settings` ask for, what moves the latents before a step)."""
    text, negative = text.to(backbone.device), negative.to(backbone.device)
    denoise = classifier_free_guidance(
        backbone.predict,
        text,
        negative.expand(len(text), -1, -1),
        scale=settings.guidance_scale,
        rescale=settings.guidance_rescale,
    )
    if settings.guidance_interval is not None:
        denoise = within(settings.guidance_interval, denoise, classifier_free_guidance(backbone.predict, text))
    if (guidance := settings.motion_guidance()) is None:
        return denoise, None
    empty = backbone.encode_text([""]).to(text).expand(len(text), -1, -1)
    unprompted = classifier_free_guidance(backbone.predict, empty)
    guided = MotionGuidance(towards, denoise, unprompted, backbone.scheduler, guidance, list(seeds))
    return guided, guided.steer


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
    advice = "--batch-size {}", "a smaller --width and --height"
    check_sequences("--batch-size", batch, each, (settings.width, settings.height), advice)


def check_sequences(name: str, count: int, each: int, size: tuple[int, int], advice: tuple[str, str]) -> None:
    """Raise UserError where `count` videos of `each` sequences are more than CUDA's kernels take in one call.

    `name` is the flag or key that gives the count, `size` the videos' width and height. `advice` says what to use where
    fewer videos would do, with a place for their number, and where not even one would.
    """
    if count * each > MOST_SEQUENCES:
        fewer, smaller = advice
        most = MOST_SEQUENCES // each
        raise UserError(
            f"{name}: {count} of {size[0]} x {size[1]} are {count * each:,} sequences for temporal attention, and "
            f"CUDA's kernels take {MOST_SEQUENCES:,}; use {fewer.format(most) if most else smaller}"
        )
