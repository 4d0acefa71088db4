"""The seconds of a clip that training will see: from a start and a length to the two keys that cut them.

Trimming writes no new file. It becomes `train_data.sample_start_idx` and `train_data.fps`, so the same seconds are cut
by the same command in a terminal.
"""

from dataclasses import dataclass
from math import ceil
from pathlib import Path

from configs.errors import UserError
from data.clips import Cut, decodable, open_video, pick_frames


@dataclass(frozen=True)
class Length:
    """How long a clip is: frames, and frames a second."""

    count: int
    fps: float

    @property
    def seconds(self) -> float:
        return self.count / self.fps


@dataclass(frozen=True)
class Excerpt:
    """What is cut: the first frame, counted from 1, and the rate asked for; `taken` are frame numbers from 0."""

    start: int
    fps: int
    taken: tuple[int, ...]
    rate: float

    def words(self) -> list[str]:
        return [f"train_data.sample_start_idx={self.start}", f"train_data.fps={self.fps}"]


def measure(path: Path) -> Length:
    """The length of a video file. Raises UserError for what is none, or is damaged."""
    with decodable(path):
        video = open_video(path)
        found = Length(video.count, float(video.fps))
        video.frames([0])
    if not (found.count >= 2 and 0 < found.fps <= 1000):
        raise UserError(
            f"{path}: {found.count} frames at {found.fps:g} fps show no motion; give a video of a second or more"
        )
    return found


def default_seconds(length: Length, frames: int, fps: int) -> float:
    """As long as `frames` frames last at the recipe's rate `fps`, at most the whole clip."""
    return min(length.seconds, frames / (fps or length.fps))


def choose(path: Path, length: Length, first: float, seconds: float, frames: int) -> Excerpt:
    """The widest cut of `frames` frames inside the `seconds` from second `first` on.

    Raises UserError where so few seconds hold too few frames, saying how many would do.
    """
    start = min(max(0, round(first * length.fps)), length.count - 1)
    end = min(length.count, ceil(start + seconds * length.fps - 1e-6))  # the first frame that is not taken
    fitting = []
    for fps in range(1, max(1, ceil(length.fps)) + 1):
        try:
            taken, rate = pick_frames(path, length.count, length.fps, Cut(8, 8, frames, fps, start=start))
        except UserError:
            continue
        if taken[-1] < end:
            fitting.append(Excerpt(start + 1, fps, tuple(taken), rate))
    if not fitting:
        found = end - start
        advice = (
            f"take {ceil(10 * frames / length.fps) / 10:g} seconds or more"
            if length.count - start >= frames
            else f"begin earlier: the whole clip has {length.count} frames"
            if length.count >= frames
            else "give a longer clip"
        )
        raise UserError(
            f"{path.name}: {found} frame{'s' * (found != 1)} in these {seconds:.1f} seconds, and training takes "
            f"{frames}; {advice}"
        )
    return min(fitting, key=lambda cut: (-cut.taken[-1], abs(cut.fps - cut.rate)))
