"""Frames out of a video file: through decord, or through PyAV where decord has no wheel (Linux on ARM).

Both give the same numbers: frames in the file's order, RGB by a bilinear swscale. A decoder knows `count`, `fps` and
`size` (width, height in pixels) and gives `frames(indices, size)`, uint8 [f h w c].
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

try:
    import decord

    decord.logging.set_level(decord.logging.QUIET)  # its errors arrive as exceptions; ffmpeg would print them again
    UNDECODABLE: tuple[type[Exception], ...] = (RuntimeError, OSError, IndexError, decord.DECORDError)
except ImportError:
    import av

    decord = None
    UNDECODABLE = (RuntimeError, OSError, IndexError, ValueError, av.error.FFmpegError)


class DecordDecoder:
    """decord finds frames by number; asked for another size, it scales while decoding, as the release does."""

    def __init__(self, path: Path):
        self.path = str(path)
        self._reader = decord.VideoReader(self.path)
        self.count, self.fps = len(self._reader), float(self._reader.get_avg_fps())

    @property
    def size(self) -> tuple[int, int]:
        height, width, _ = self._reader[0].shape
        return width, height

    def frames(self, indices: Sequence[int], size: tuple[int, int] | None = None) -> np.ndarray:
        scaled = size is not None and size != self.size
        reader = decord.VideoReader(self.path, width=size[0], height=size[1]) if scaled else self._reader
        return reader.get_batch(list(indices)).asnumpy()


class AvDecoder:
    """PyAV decodes from the start to the last frame that is wanted."""

    def __init__(self, path: Path):
        self.path = str(path)
        with av.open(self.path) as container:
            if not container.streams.video:
                raise RuntimeError("no video stream")
            stream = container.streams.video[0]
            self.size = stream.width, stream.height
            self.fps = float(stream.average_rate or 0) or float("nan")
            self.count = stream.frames or sum(1 for _ in container.decode(stream))

    def frames(self, indices: Sequence[int], size: tuple[int, int] | None = None) -> np.ndarray:
        width, height = size or self.size
        options = {"width": width, "height": height, "format": "rgb24", "interpolation": "BILINEAR"}
        wanted, found = set(indices), {}
        with av.open(self.path) as container:
            for number, frame in enumerate(container.decode(container.streams.video[0])):
                if number in wanted:
                    found[number] = frame.reformat(**options).to_ndarray()
                if len(found) == len(wanted):
                    break
        if lost := sorted(wanted - found.keys()):
            raise RuntimeError(f"frame {lost[0]} cannot be decoded")
        return np.stack([found[number] for number in indices])


Decoder = DecordDecoder if decord else AvDecoder
