"""Frames out of a video file: through decord, or through PyAV where decord has no wheel (Linux on ARM).

Both give the same numbers: frames in the file's order, upright as its metadata say, RGB by a bilinear swscale. A
decoder knows `count`, `fps` and `size` (width, height in pixels) and gives `frames(indices, size)`, uint8 [f h w c].
Scaling to `size` spares work; a decoder that cannot gives the frames at the video's own.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import imageio.v3 as imageio
import numpy as np

from configs.errors import UserError

if TYPE_CHECKING:
    import av

UNDECODABLE: tuple[type[Exception], ...] = (RuntimeError, OSError, IndexError)
try:
    import decord

    decord.logging.set_level(decord.logging.QUIET)  # its errors arrive as exceptions; ffmpeg would print them again
    UNDECODABLE += (decord.DECORDError,)
except ImportError:
    if find_spec("av") is None:
        raise
    decord = None


class DecordDecoder:
    """decord finds frames by number; asked for another size, it scales while decoding, as the release does.

    It fails at a few small widths, 1 to 4, 6, 8, 12, 16, 24, 48 and 72: it takes the padding that ends each row there,
    up to a multiple of 32 pixels, for more channels. Such a `size` is not scaled to, and such a video is left to PyAV.
    """

    def __init__(self, path: Path):
        self.path = str(path)
        self._reader = decord.VideoReader(self.path)
        self.count, self.fps = len(self._reader), float(self._reader.get_avg_fps())

    @property
    def size(self) -> tuple[int, int]:
        _, height, width, _ = self._unscaled([0]).shape
        return width, height

    def frames(self, indices: Sequence[int], size: tuple[int, int] | None = None) -> np.ndarray:
        if size is not None and size != self.size:
            scaled = _batch(decord.VideoReader(self.path, width=size[0], height=size[1]), indices)
            if scaled is not None:
                return scaled
        return self._unscaled(indices)

    def _unscaled(self, indices: Sequence[int]) -> np.ndarray:
        frames = _batch(self._reader, indices)
        if frames is not None:
            return frames
        try:
            return AvDecoder(self.path).frames(indices)
        except ImportError:
            width = imageio.immeta(self.path, plugin="FFMPEG")["size"][0]
            raise UserError(
                f"{self.path}: {width} pixels wide, which decord cannot decode; scale it, for example with"
                " `ffmpeg -i IN -vf scale=96:-2 OUT.mp4`, or `pip install av`, which can"
            ) from None


def _batch(reader: "decord.VideoReader", indices: Sequence[int]) -> np.ndarray | None:
    """uint8 [f h w c], or None where the frames have a width that decord fails at."""
    try:
        return reader.get_batch(list(indices)).asnumpy()
    except decord.DECORDError as error:
        if "size must exactly match" not in str(error):
            raise
        return None


class AvDecoder:
    """PyAV decodes from the start to the last frame that is wanted."""

    def __init__(self, path: Path | str):
        self.path = str(path)
        with _opened(self.path) as container:
            if not container.streams.video:
                raise RuntimeError("no video stream")
            stream = container.streams.video[0]
            decoded = container.decode(stream)
            first = next(decoded, None)  # the frames know how they are turned, their stream does not
            on_its_side = first is not None and _quarters(first) % 2
            self.size = (stream.height, stream.width) if on_its_side else (stream.width, stream.height)
            self.fps = float(stream.average_rate or 0) or float("nan")
            self.count = stream.frames or (first is not None) + sum(1 for _ in decoded)

    def frames(self, indices: Sequence[int], size: tuple[int, int] | None = None) -> np.ndarray:
        width, height = size or self.size
        wanted, found = set(indices), {}
        with _opened(self.path) as container:
            for number, frame in enumerate(container.decode(container.streams.video[0])):
                if number in wanted:
                    turns = _quarters(frame)
                    wide, high = (height, width) if turns % 2 else (width, height)
                    scaled = frame.reformat(width=wide, height=high, format="rgb24", interpolation="BILINEAR")
                    found[number] = np.rot90(scaled.to_ndarray(), turns)
                if len(found) == len(wanted):
                    break
        if lost := sorted(wanted - found.keys()):
            raise RuntimeError(f"frame {lost[0]} cannot be decoded")
        return np.stack([found[number] for number in indices])


@contextmanager
def _opened(path: str) -> Iterator["av.container.InputContainer"]:
    """A file for PyAV, whose errors become those of UNDECODABLE; it is imported here, as it is seldom needed."""
    import av

    try:
        with av.open(path) as container:
            yield container
    except (av.error.FFmpegError, ValueError) as error:
        raise RuntimeError(str(error)) from error


def _quarters(frame: "av.VideoFrame") -> int:
    """Counterclockwise quarter turns that set a frame upright; as in decord none where it is turned by less."""
    return 0 if frame.rotation % 90 else frame.rotation // 90


Decoder = DecordDecoder if decord else AvDecoder
