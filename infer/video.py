"""Writing and reading finished videos: mp4, gif or a folder of frames, all from uint8 [f c h w].

Files appear under their final name only when complete. Names are made from prompts by `safe_name`, which keeps any
prompt (slashes, a thousand characters, emoji) inside the output folder.
"""

import hashlib
import re
import unicodedata
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch

from configs.errors import UserError
from configs.files import atomic_path

FORMATS = ("mp4", "gif", "frames")


def safe_name(text: str, length: int = 60) -> str:
    """A file name stem of at most `length` + 9 characters for any text; different texts get different names."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    stem = re.sub(r"[^A-Za-z0-9]+", "_", plain).strip("_")[:length].strip("_")
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return stem if stem and stem.replace("_", " ") == text.rstrip(".") else f"{stem or 'prompt'}_{digest}"


def write_video(path: Path, frames: torch.Tensor, fps: int, quality: float = 8) -> Path:
    """Write uint8 [f c h w] to `path`: .mp4 (H.264), .gif, or a folder of PNG files when there is no suffix.

    `quality` runs from 0 to 10 (10 is lossless for mp4: H.264 in RGB). Returns `path`.
    """
    images = frames.permute(0, 2, 3, 1).contiguous().numpy()  # [f h w c]
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        if path.suffix == ".mp4":
            lossless = quality >= 10
            options = (
                {"codec": "libx264rgb", "pixelformat": "rgb24", "output_params": ["-crf", "0"]}
                if lossless
                else {"quality": quality, "macro_block_size": 2}
            )
            iio.imwrite(temporary, _even(images), extension=".mp4", plugin="FFMPEG", fps=fps, **options)
        elif path.suffix == ".gif":
            iio.imwrite(temporary, images, extension=".gif", duration=1000 / fps, loop=0)
        else:
            temporary.mkdir()
            for i, image in enumerate(images):
                iio.imwrite(temporary / f"{i:04d}.png", image)
    return path


def read_video(path: Path) -> torch.Tensor:
    """uint8 [f c h w] of an mp4, gif or folder of PNG files written by `write_video`. Raises UserError."""
    if path.is_dir():
        files = sorted(path.glob("*.png"))
        if not files:
            raise UserError(f"{path}: a folder without .png frames; point at a video or a folder of frames")
        try:
            images = np.stack([iio.imread(file, mode="RGB") for file in files])
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f"{path}: its frames can not be read ({str(error).strip()[:120]}); they must be whole and of one size"
            ) from None
        return torch.from_numpy(images).permute(0, 3, 1, 2)
    try:
        images = (
            iio.imread(path, plugin="FFMPEG") if path.suffix == ".mp4" else iio.imread(path, mode="RGB", index=None)
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: not a video that can be read ({str(error).strip()[:120]})") from None
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def _even(images: np.ndarray) -> np.ndarray:
    """H.264 needs even sides: repeat the last row or column of an odd one."""
    height, width = images.shape[1:3]
    return np.pad(images, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
