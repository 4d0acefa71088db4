"""A clip: frames cut from a video or image file, at the rate, length and size that training asks for.

Frames are uint8 RGB [f c h w]. Which frames are taken and how they are resized follow the authors' release: every
round(native fps / fps)-th frame, and antialiased bilinear resizing of whole frames, rounded back to uint8. Its
buckets are kept where they keep the aspect ratio inside the asked size; sizes go in steps the model can take.
"""

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil, inf
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from configs.errors import UserError, is_out_of_memory, printable
from configs.plain import shown_error
from data.decoder import UNDECODABLE, Decoder

VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".gif")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
# what Pillow raises for files that are cut short, altered, or hold more pixels than any picture
UNREADABLE = (OSError, ValueError, SyntaxError, TypeError, KeyError, IndexError, EOFError, struct.error, OverflowError)
UNREADABLE += (Image.DecompressionBombError,)
MOST_REPEATED = 2**31  # bytes of a gif's frames, and of those that it only shows again (small: SMALL_FRAME each)
SMALL_FRAME = 4096
AT_ONCE = 8  # frames that are resized together


class TooShort(UserError):
    """A file gives `found` frames at the rate and step of a cut that takes `asked`."""

    def __init__(self, sentence: str, found: int, asked: int):
        super().__init__(sentence)
        self.found, self.asked = found, asked


@dataclass(frozen=True)
class Clip:
    """Frames uint8 [f c h w] with their caption; they play at `fps`, `source` describes what was cut from where."""

    frames: torch.Tensor
    prompt: str
    name: str
    fps: float
    source: str = ""


@dataclass(frozen=True)
class Cut:
    """What to take from a file: `frames` frames of `width` x `height` pixels.

    They are every `step`-th of those that are sampled at `fps` frames a second (0: all of the file's). `start` counts
    the file's own frames from 0. `snap` is the multiple of pixels that bucketed sides are rounded up to; None stretches
    to exactly width x height (the release without use_bucketing).
    """

    width: int
    height: int
    frames: int
    fps: int = 0
    step: int = 1
    start: int = 0
    snap: int | None = 8


def pick_frames(path: Path, count: int, native_fps: float, cut: Cut) -> tuple[list[int], float]:
    """Indices into a file of `count` frames, and the rate in frames a second that they play at.

    Raises TooShort where the file has fewer frames than that, and UserError where it has none or no frame rate.
    """
    if count < 1 or not 0 < native_fps < inf:
        raise UserError(
            f"{path}: {count} frames at {native_fps:g} fps are nothing to train on; re-encode it, for example with"
            " `ffmpeg -i IN -r 24 OUT.mp4`"
        )
    nearest = native_fps / cut.fps if cut.fps else 1
    for skip in (round(nearest), int(nearest)):  # the next quicker rate where a clip just misses the nearest
        every = min(count, max(1, skip)) * cut.step
        indices = list(range(cut.start, count, every))[: cut.frames]
        if len(indices) == cut.frames:
            return indices, native_fps / every
    left = count - cut.start
    widest = (left - 1) // max(1, cut.frames - 1) // cut.step  # how many frames there is room to skip
    if left < 1:
        advice = f"lower train_data.sample_start_idx, the file has {count} frames"
    elif widest:
        advice = f"train_data.fps={ceil(native_fps / widest)} would do, or lower train_data.n_sample_frames"
    else:
        advice = "lower train_data.n_sample_frames or train_data.frame_step, or take a longer clip"
    raise TooShort(
        f"{path}: {len(indices)} frames where {cut.frames} are asked for ({count} in the file at {native_fps:g} fps, "
        f"taking every {_ordinal(every)} from frame {cut.start}); {advice}",
        len(indices),
        cut.frames,
    )


def _ordinal(number: int) -> str:
    """How many frames lead from one that is taken to the next, in words: "frame", "2nd frame", "11th frame"."""
    if number == 1:
        return "frame"
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{'th' if number % 100 in (11, 12, 13) else ending} frame"


def bucket(width: int, height: int, cut: Cut) -> tuple[int, int]:
    """The size in pixels (width, height) for a clip of the given size: its aspect ratio inside the asked size.

    Sides are rounded up to multiples of `cut.snap`, at most the asked ones: 16:9 at 384x384 becomes 384x256 in steps of
    64, as in the release.
    """
    if cut.snap is None:
        return cut.width, cut.height
    scale = min(cut.width / width, cut.height / height)

    def side(length: int, most: int) -> int:
        return min(most, max(1, ceil(round(length * scale, 3) / cut.snap)) * cut.snap)

    return side(width, cut.width), side(height, cut.height)


def resize(frames: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """uint8 [f c h w] to the given size in pixels: antialiased bilinear, rounded.

    A few frames at a time, because 81 of a 4K clip would take 8 GB in fp32.
    """
    if frames.shape[-2:] == (height, width):
        return frames

    def resized(part: torch.Tensor) -> torch.Tensor:
        found = F.interpolate(part.float(), size=(height, width), mode="bilinear", antialias=True, align_corners=False)
        return found.round().clamp(0, 255).to(torch.uint8)

    return torch.cat([resized(part) for part in frames.split(AT_ONCE)])


def read_video(path: str | Path, cut: Cut, prompt: str) -> Clip:
    """The cut of a video file (mp4 and the like through data/decoder.py, gif through imageio).

    Raises UserError when the file is missing, empty, unreadable or truncated, TooShort when it is too short.
    """
    path = _present(Path(path))
    with decodable(path):
        video = open_video(path)
        indices, rate = pick_frames(path, video.count, video.fps, cut)
        picked = video.frames(indices, (cut.width, cut.height) if cut.snap is None else None)
    return _clip(path, picked, cut, prompt, rate, _describe(indices, video.count))


def open_video(path: Path) -> "Decoder | Gif":
    """What gives a video's `count`, `fps`, `size` and `frames(indices, size)`; use it inside `decodable`.

    Raises UserError when the file is missing, empty or an image.
    """
    path = _present(path)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        raise UserError(
            f"{path}: is an image, and a motion needs a video; for the appearance alone use dataset_types=[image]"
            f" train_data.image_dir={path}"
        )
    return Gif(path) if path.suffix.lower() == ".gif" else Decoder(path)


@contextmanager
def decodable(path: Path) -> Iterator[None]:
    """Whatever a decoder raises inside the block becomes one sentence about the file."""
    try:
        yield
    except UNDECODABLE as error:
        if is_out_of_memory(error):
            raise
        reason = printable((str(error).strip().splitlines() or ["no reason given"])[-1])[:160]
        raise UserError(
            f"{path}: not a video that can be decoded ({reason}); re-encode it, for example with"
            " `ffmpeg -i IN -c:v libx264 OUT.mp4`"
        ) from None


class Gif:
    """A gif as a decoder: all of its frames are held, since they build on each other.

    A gif says of each frame how long it stays, and writers merge equal neighbours into one frame that stays longer. So
    a frame counts as many times as the shortest stay fits into its own, and all play at the rate of the shortest.
    Raises UserError for what is no gif, and for stays so unequal that the repeated frames would fill the memory.
    """

    def __init__(self, path: Path):
        frames, stays = [], []  # uint8 [h w c], and milliseconds
        try:
            with imageio.imopen(path, "r", plugin="pillow") as file:
                kind = file.properties()
                if not kind.is_batch:
                    high, wide = kind.shape[:2]
                    raise UserError(f"{path}: not a gif but a picture of {wide}x{high} pixels; save it as gif or mp4")
                for number, frame in enumerate(file.iter(mode="RGB")):
                    if (number + 1) * frame.nbytes > MOST_REPEATED:
                        raise UserError(
                            f"{path}: {number + 1} frames of {frame.shape[1]}x{frame.shape[0]} pixels and more, too "
                            "many to hold in memory; cut or scale it, or save it as mp4"
                        )
                    frames.append(frame)
                    stays.append(file.metadata(index=number).get("duration") or 100)  # 100 is what browsers take for 0
            self._frames = np.stack(frames)  # [f h w c]
        except (*UNREADABLE, AttributeError) as error:  # imageio's, of frames with and without a colour table
            reason = shown_error(error)
            raise UserError(f"{path}: not a gif that can be read ({reason}); save it again or as mp4") from None
        shortest = min(stays)
        times = [round(stay / shortest) for stay in stays]
        self.count, self.fps = sum(times), 1000 / shortest
        self.size = self._frames.shape[2], self._frames.shape[1]
        if (self.count - len(frames)) * max(frames[0].nbytes, SMALL_FRAME) > MOST_REPEATED:
            raise UserError(
                f"{path}: its frames stay from {shortest:g} to {max(stays):g} ms, which at an even rate are"
                f" {self.count} frames of {self.size[0]}x{self.size[1]}, too many to hold in memory; save it again at"
                " one rate, or as mp4"
            )
        self._shown = np.repeat(np.arange(len(frames)), times)  # which of the stored frames each counted one is

    def frames(self, indices: Sequence[int], size: tuple[int, int] | None = None) -> np.ndarray:
        """uint8 [f h w c] at the gif's own size: `size`, which lets a decoder of video work faster, is ignored."""
        return self._frames[self._shown[list(indices)]]


def read_image(path: str | Path, cut: Cut, prompt: str) -> Clip:
    """An image, upright as its EXIF says, as a clip of one frame. Raises UserError when it is missing or unreadable."""
    path = _present(Path(path))
    try:
        with Image.open(path) as image:  # of an animation the first frame; imageio would turn grey pictures wrongly
            pixels = np.array(ImageOps.exif_transpose(image).convert("RGB"))  # [h w c]
    except UNREADABLE as error:
        raise UserError(
            f"{path}: not an image that can be read ({shown_error(error)}); save it as png or jpg"
        ) from None
    return _clip(path, pixels[None], cut, prompt, 1.0, "1 image")


def _present(path: Path) -> Path:
    if not str(path).isprintable():  # decoders print the names of what they cannot open, as they are
        raise UserError(f"{path}: holds a character that acts on a terminal; rename the file or its folder")
    if not path.is_file():
        frames = "; of numbered frames `ffmpeg -framerate 8 -i FOLDER/%04d.png clip.mp4` makes one"
        raise UserError(
            f"{path}: {'a folder where a file is needed' if path.is_dir() else 'no such file'}; point it at a clip"
            + (frames if path.is_dir() and any(path.glob("*.png")) else "")
        )
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty (0 bytes); copy or download it again")
    return path


def _clip(path: Path, frames: np.ndarray, cut: Cut, prompt: str, fps: float, taken: str) -> Clip:
    if frames.ndim != 4 or frames.shape[3] != 3:
        raise UserError(f"{path}: its frames are {list(frames.shape)}, not RGB [f h w 3]; save it as mp4 or png")
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)  # [f h w c] -> [f c h w]
    native = f"{pixels.shape[3]}x{pixels.shape[2]}"
    width, height = bucket(pixels.shape[3], pixels.shape[2], cut)
    pixels = resize(pixels, width, height).contiguous()
    size = f"{width}x{height}" if native == f"{width}x{height}" else f"{native} -> {width}x{height}"
    return Clip(pixels, prompt, path.stem, fps, f"{path}: {taken}, {size}, {fps:g} fps")


def _describe(indices: list[int], count: int) -> str:
    step = indices[1] - indices[0] if len(indices) > 1 else 1
    left = len(range(indices[-1] + step, count, step))
    rest = f", the {left} after them dropped (one clip is cut from a file)" if left else ""
    return f"{len(indices)} frames {indices[0]}..{indices[-1]} by {step} of {count}{rest}"
