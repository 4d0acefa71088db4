"""The clip that motion guidance steers towards: a video file, or the reference clip of the run that is sampled from.

Its latents must have the size of the videos: a file is scaled to it, and refused when its length or shape differs. The
shape differs where a training on the file would cut it to another size than that of the videos.
"""

from dataclasses import replace
from pathlib import Path

import torch

from configs.errors import UserError
from configs.paths import locate
from data.clips import Cut, TooShort, bucket, read_video, resize
from infer.request import Request, choose_reference, reference_clips
from infer.settings import RUN_REFERENCE
from models.backbone import Backbone

SAME_SHAPE = 0.02  # how far a clip's aspect ratio may be from the videos'


def guide_latents(request: Request, backbone: Backbone, number: int | None) -> torch.Tensor | None:
    """Latents [1 c f h w] of the clip that `request` is guided by; None without guidance. `number` is --clip's.

    Raises UserError for a clip that is missing, too short, of another shape, or of a single frame.
    """
    settings = request.settings
    if settings.motion_guidance() is None:
        return None
    if settings.num_frames < 2:
        raise UserError("--guide: a video of one frame has no motion to guide; use --num-frames 2 or more")
    if settings.guide != RUN_REFERENCE:
        return backbone.encode_video(_frames(settings.guide, settings, backbone.snap))
    clip = choose_reference(reference_clips(request.sources), number)
    if clip is None:
        raise UserError(
            "--guide: no clip was given, and no cached_latents lie beside the checkpoint; give --guide CLIP, or "
            "--checkpoint_folder RUN of train.py"
        )
    latents, factor = clip.latents, backbone.vae_factor
    wanted = backbone.latent_size(settings.num_frames, settings.height, settings.width)
    has = tuple(latents.shape[2:])
    if has != wanted:
        flags = "" if has[1:] == wanted[1:] else f" (--width {has[2] * factor} --height {has[1] * factor})"
        raise UserError(
            f"--guide: the run's reference clip has {_words(has, factor)}, and the videos have "
            f"{_words(wanted, factor)}; sample at its size{flags}, or give a --guide CLIP"
        )
    return latents


def _frames(name: str, settings, snap: int) -> torch.Tensor:
    """The clip's frames, uint8 [f c h w], at the videos' frame rate, length and size; `snap` is the model's."""
    path, width, height = locate(name), settings.width, settings.height
    cut = Cut(width=width, height=height, frames=settings.num_frames, fps=settings.fps, snap=1)
    try:
        frames = read_video(Path(path), cut, "").frames
    except TooShort as error:  # its own advice is a training's
        raise UserError(
            f"--guide: {path}: {error.found} frames where {error.asked} are asked for at {settings.fps} frames a "
            "second; give a longer clip, a higher --fps, or a smaller --num-frames"
        ) from None
    except UserError as error:
        raise UserError(f"--guide: {error}") from None
    high, wide = frames.shape[-2:]
    trained = bucket(wide, high, replace(cut, snap=snap))  # what a training would make of it
    if abs(wide * height / (high * width) - 1) > SAME_SHAPE and trained != (width, height):
        raise UserError(
            f"--guide: {name} fits the videos' {width} x {height} as {wide} x {high} pixels, so its shape is another; "
            f"crop it, or sample in its shape: --width {trained[0]} --height {trained[1]}"
        )
    return resize(frames, width, height)


def _words(size: tuple[int, ...], factor: int) -> str:
    frames, height, width = size
    return f"{frames} latent frames of {width * factor} x {height * factor} pixels"
