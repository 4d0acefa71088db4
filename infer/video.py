"""Writing and reading finished videos: mp4, gif or a folder of frames, all from uint8 [f c h w].

Files appear under their final name only once their frames were read back. Names are made from prompts by `safe_name`,
which keeps any prompt (slashes, a thousand characters, emoji) inside the output folder.
"""

import hashlib
import os
import re
import unicodedata
from pathlib import Path

import imageio.v3 as iio
import imageio_ffmpeg
import numpy as np
import torch
from PIL import Image, ImageSequence

from configs.errors import UserError, printable
from configs.files import atomic_path
from configs.signals import held
from data.clips import IMAGE_SUFFIXES, UNREADABLE, Gif


def safe_name(text: str, length: int = 60) -> str:
    """A file name stem of at most `length` + 9 characters for any text; different texts get different names."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    stem = re.sub(r"[^A-Za-z0-9]+", "_", plain).strip("_")[:length].strip("_")
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return stem if stem and stem.replace("_", " ") == text else f"{stem or 'prompt'}_{digest}"


def write_video(path: Path, frames: torch.Tensor, fps: int, quality: float = 8) -> Path:
    """Write uint8 [f c h w] to `path`: .mp4 (H.264), .gif, or a folder of PNG files when there is no suffix.

    `quality` runs from 0 to 10 (10 is lossless for mp4: H.264 in RGB). Returns `path`. Raises UserError, leaving
    nothing, where what was written does not read back, and NoSpace where the reason is a full disk.
    """
    images = frames.permute(0, 2, 3, 1).contiguous().numpy()  # [f h w c]
    images = _even(images) if path.suffix == ".mp4" else images
    try:
        with atomic_path(path) as temporary:
            _encode(temporary, images, fps, quality)
            _check_written(temporary, images, fps)
    except _Broken as error:
        raise UserError(
            f"{path}: the video could not be written ({error}); nothing of it was kept: try another format, or"
            " reinstall imageio-ffmpeg"
        ) from None
    return path


class _Broken(Exception):
    """The encoder gave up, or what it left does not read back."""


def _encode(path: Path, images: np.ndarray, fps: int, quality: float) -> None:
    try:
        if path.suffix == ".mp4":
            lossless = quality >= 10
            options = (
                {"codec": "libx264rgb", "pixelformat": "rgb24", "output_params": ["-crf", "0"]}
                if lossless
                else {"quality": quality, "output_params": ["-movflags", "+faststart"]}
            )
            options["macro_block_size"] = 2  # imageio would scale the frames to multiples of 16
            options["ffmpeg_log_level"] = "fatal"  # of a full disk it would print six lines beside our one
            with held():  # an ffmpeg that is left in its first moments makes the file anew after it was removed
                iio.imwrite(path, images, extension=".mp4", plugin="FFMPEG", fps=fps, **options)
        elif path.suffix == ".gif":
            first, *others = map(Image.fromarray, images)  # imageio would print the traceback of a full disk
            first.save(path, format="GIF", save_all=True, append_images=others, duration=_stay(fps), loop=0)
        else:
            path.mkdir()
            for i, image in enumerate(images):
                Image.fromarray(image).save(path / f"{i:04d}.png")
    except OSError as error:
        if error.errno is not None:
            raise
        raise _Broken(_reason(error)) from error  # of ffmpeg, with its command and all that it printed


def _stay(fps: float) -> int:
    """Milliseconds that each frame of a gif stays: whole hundredths of a second, all that a gif can say.

    Pillow merges equal neighbours into one frame that stays for their sum, and would cut a fraction off the sum only.
    """
    return 10 * max(1, round(100 / fps))


def _check_written(path: Path, images: np.ndarray, fps: float) -> None:
    """Read back what an encoder left of `images` [f h w c]: ffmpeg on a full disk ends early without an error."""
    count, height, width = images.shape[:3]
    if path.suffix == ".mp4":
        try:
            decoded = imageio_ffmpeg.read_frames(path)  # what is known of the video, then its frames
            size = next(decoded)["size"]
            found = sum(1 for _ in decoded)
        except (RuntimeError, OSError, ValueError) as error:
            raise _Broken(f"what ffmpeg wrote cannot be read: {_reason(error)}") from error
        if found != count or not _boxes_are_whole(path):
            raise _Broken(f"ffmpeg wrote {found} of {count} frames, or not their end")
        if size != (width, height):
            raise _Broken(f"ffmpeg wrote frames of {size[0]}x{size[1]} in place of {width}x{height}")
    elif path.suffix == ".gif":
        with open(path, "rb") as file:
            if file.seek(0, os.SEEK_END) == 0 or (file.seek(-1, os.SEEK_END) and file.read() != b";"):
                raise _Broken("the gif ends early")
        try:
            with Image.open(path) as gif:
                found = sum(frame.info.get("duration", 0) for frame in ImageSequence.Iterator(gif)) / _stay(fps)
        except UNREADABLE as error:
            raise _Broken(f"the gif cannot be read: {_reason(error)}") from error
        if found != count:
            raise _Broken(f"the gif plays {found:g} of {count} frames")
    elif (written := sum(1 for _ in path.glob("*.png"))) != count:
        raise _Broken(f"{written} of {count} frames were written")


def _boxes_are_whole(path: Path) -> bool:
    """An mp4 is a row of boxes that begin with their length: do they end where the file does?"""
    with open(path, "rb") as file:
        end, place = file.seek(0, os.SEEK_END), 0
        while place < end:
            file.seek(place)
            length = int.from_bytes(file.read(4))
            if length == 1:  # too long for four bytes: eight more follow the box's name
                file.seek(place + 8)
                length = int.from_bytes(file.read(8))
            if length < 8:
                return False
            place += length
    return place == end


def read_frames(path: Path) -> torch.Tensor:
    """uint8 [f c h w] of an mp4, gif or folder of PNG files written by `write_video`. Raises UserError."""
    if path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir():
        raise UserError(f"{path}: is an image where a video is needed; point at a video or a folder of frames")
    if path.exists() and not path.is_dir() and not path.is_file():  # ffmpeg would wait for somebody to write into it
        raise UserError(f"{path}: neither a file nor a folder; point at a video or a folder of frames")
    try:
        if path.is_dir():
            if not (files := sorted(path.glob("*.png"))):
                raise UserError(f"{path}: a folder without .png frames; point at a video or a folder of frames")
            images = np.stack([iio.imread(file, plugin="pillow", mode="RGB", index=0) for file in files])
        elif path.suffix.lower() == ".gif":
            gif = Gif(path)
            images = gif.frames(range(gif.count))
        else:
            images = iio.imread(path, plugin="FFMPEG")
        if images.ndim != 4 or not images.size or images.shape[3] != 3:
            raise ValueError(f"frames of the shape {list(images.shape[1:])}")
    except (*UNREADABLE, RuntimeError) as error:
        whole = "its frames cannot be read" if path.is_dir() else "not a video that can be read"
        advice = "they must be whole and of one size" if path.is_dir() else "sample or copy it again"
        raise UserError(f"{path}: {whole} ({_reason(error)}); {advice}") from None
    return torch.from_numpy(images).permute(0, 3, 1, 2)  # [f h w c] -> [f c h w]


def _reason(error: Exception) -> str:
    """The last line that a library printed, without its control characters."""
    return printable((str(error).strip().splitlines() or [type(error).__name__])[-1])[:120]


def _even(images: np.ndarray) -> np.ndarray:
    """H.264 needs even sides: repeat the last row or column of an odd one."""
    height, width = images.shape[1:3]
    return np.pad(images, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
