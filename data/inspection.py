"""What training will see of a clip, before anything is trained: a plan, and warnings that say what to do.

`inspect_video` looks at small versions of a clip's frames (data/footage.py), a second of work for 1080p. What it gives
is printed by `train.py --dry-run` and at the head of every run, and shown on any page that wants to.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

import numpy as np

from configs.errors import printable
from data import footage
from data.clips import Cut, bucket, decodable, open_video, pick_frames

WATCHED_SIDE = 256  # pixels of the longer side that frames are decoded at
MOST_WATCHED = 400  # frames; of a longer stretch evenly spaced ones
STILL = 0.005  # share of pixels that differ from the first frame at any time
FAST_STEP = 0.25  # of the picture, from one frame to the next
FAST_LOST, FAST_BUSY = 0.9, 0.25  # share of the moving pixels that cannot be followed, where so much moves at once
PACES = (0.6, 1.7)  # playing slower or faster than this is reported
FARTHEST_SHAPE, FARTHEST_STRETCH, FARTHEST_SIZE, FARTHEST_ZOOM = 2.0, 1.25, 2.0, 1.5


@dataclass(frozen=True)
class Finding:
    """A reason why a clip may not teach what it should, and what to do; `kind` names it in one word."""

    kind: str  # "cut" | "still" | "fast" | "bars" | "pace" | "small" | "stretched" | "shape" | "size"
    found: str
    advice: str

    def __str__(self) -> str:
        return f"{self.found}; {self.advice}"


@dataclass(frozen=True)
class Inspection:
    """A clip as training will cut it. Times are in seconds, rates in frames a second, sizes (width, height) in pixels.

    `taken` are the numbers of the frames that are taken, `rate` is the rate that they were shot at, and `plays_at` the
    one at which the model's videos are played.
    """

    path: Path
    count: int
    fps: float
    size: tuple[int, int]
    taken: tuple[int, ...]
    rate: float
    plays_at: float
    trained: tuple[int, int]
    findings: tuple[Finding, ...] = ()

    @property
    def seconds(self) -> float:
        """Length of the whole file."""
        return self.count / self.fps

    @property
    def span(self) -> float:
        """Length of what is taken."""
        return len(self.taken) / self.rate

    @property
    def pace(self) -> float:
        """How fast the motion plays in the model's videos: 1 is as fast as in the clip."""
        return self.plays_at / self.rate

    def lines(self) -> list[str]:
        """The plan on one line, then a line for each warning."""
        speed = "as fast as in the clip" if abs(self.pace - 1) < 0.05 else f"{self.pace:.2g} times the clip's speed"
        plan = (
            f"plan: {self.path}: {self.seconds:.1f} s at {self.fps:.4g} fps, {_sides(self.size)}; {len(self.taken)} "
            f"frames of {self.span:.1f} s from second {self.taken[0] / self.fps:.1f} on, at {_sides(self.trained)}; "
            f"videos play at {self.plays_at:.4g} fps, {speed}"
        )
        return [printable(plan), *(printable(f"warning: {self.path.name}: {finding}") for finding in self.findings)]


def inspect_video(path: str | Path, cut: Cut, plays_at: float, native: tuple[int, int] | None = None) -> Inspection:
    """What is taken of the video file `path`, and what speaks against it.

    `plays_at` is the rate of the model's own videos, `native` the size that it was trained for, where that is known.
    Raises UserError as reading the clip will.
    """
    path = Path(path)
    with decodable(path):
        video = open_video(path)
        taken, rate = pick_frames(path, video.count, video.fps, cut)
        width, height = video.size
        watched = _watched(taken)
        zoom = min(1.0, WATCHED_SIDE / max(width, height))
        wide = 32 * max(1, round(width * zoom / 32))  # decord fails at some other small widths, such as 72
        frames = video.frames(watched, (wide, max(2, round(height * zoom))))
    trained = bucket(width, height, cut)
    plan = Inspection(path, video.count, video.fps, (width, height), tuple(taken), rate, plays_at, trained)
    findings = [*_seen(plan, np.asarray(watched), frames), *_measured(plan, cut, native)]
    return replace(plan, findings=tuple(findings))


def _watched(taken: list[int]) -> list[int]:
    """The frames from the first to the last that is taken, at most `MOST_WATCHED` and those that are taken.

    Those in between count because a cut is found between neighbours.
    """
    every = ceil((taken[-1] + 1 - taken[0]) / MOST_WATCHED)
    return sorted({*range(taken[0], taken[-1] + 1, every), *taken})


def _seen(plan: Inspection, watched: np.ndarray, frames: np.ndarray) -> Iterator[Finding]:
    """What the frames show: cuts, motion, bars."""
    if len(plan.taken) == 1:
        return
    if found := footage.cuts(frames):
        at = int(watched[found[0]])
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        yield Finding("cut", f"a cut at second {at / plan.fps:.2f} (frame {at}){more}", _around(plan, at))
    moved = footage.motion(frames[np.isin(watched, plan.taken)])
    if moved.changed < STILL:
        yield Finding(
            "still",
            f"hardly any motion ({100 * moved.changed:.1f} % of the picture ever changes)",
            "take another part (train_data.sample_start_idx), a longer one (a lower train_data.fps), or another clip",
        )
    elif not found and _is_fast(moved):
        what = f"things jump {100 * moved.step:.0f} % of the picture" if moved.step > FAST_STEP else "nothing matches"
        advice = f"take frames more often: train_data.fps={round(2 * plan.rate)}, or 0 for every frame"
        if plan.fps < 1.5 * plan.rate:
            advice = "the file has no frames in between, so take a slower clip"
        yield Finding("fast", f"motion faster than the frames show: {what} from one frame to the next", advice)
    if picture := footage.bars(frames):
        left, top, right, bottom = picture
        x, y = (2 * -(-place // 2) for place in (left * plan.size[0], top * plan.size[1]))
        w, h = (2 * (edge // 2) for edge in (right * plan.size[0] - x, bottom * plan.size[1] - y))
        yield Finding(
            "bars",
            f"black bars around the picture ({100 * (1 - (right - left) * (bottom - top)):.0f} % of it)",
            f"cut them off, or they will be learned: `ffmpeg -i IN -vf crop={w:.0f}:{h:.0f}:{x:.0f}:{y:.0f} OUT.mp4`",
        )


def _is_fast(moved: footage.Motion) -> bool:
    return moved.step > FAST_STEP or (moved.lost > FAST_LOST and moved.busy > FAST_BUSY)


def _around(plan: Inspection, cut: int) -> str:
    """How to train on one side of the cut: start after it if the file goes on long enough, else end before it."""
    span = plan.taken[-1] - plan.taken[0]
    if cut + span < plan.count:
        return f"begin after it: train_data.sample_start_idx={cut + 1}"
    before = sum(number < cut for number in plan.taken)
    if before >= 2:
        return f"end before it: train_data.n_sample_frames={before}, or cut the file there"
    return "cut the file there"


def _measured(plan: Inspection, cut: Cut, native: tuple[int, int] | None) -> Iterator[Finding]:
    """What sizes and rates say, without a look at the frames."""
    (width, height), (wide, high) = plan.size, plan.trained
    if len(plan.taken) > 1 and not PACES[0] <= plan.pace <= PACES[1]:
        slow = plan.pace < 1
        yield Finding(
            "pace",
            f"the model's videos show the motion {1 / plan.pace if slow else plan.pace:.2g} times "
            f"{'slower' if slow else 'faster'} than the clip",
            f"set train_data.fps={plan.plays_at:.0f}, or play what is sampled at --fps {max(1, round(plan.rate))}",
        )
    stretch = _ratio(width / height, wide / high)
    if stretch > FARTHEST_STRETCH:
        nearer = "set train_data.use_bucketing=true, or a width and height of the clip's shape"
        yield Finding(
            "stretched",
            f"{_sides(plan.size)} is stretched to {_sides(plan.trained)}",
            nearer if cut.snap is None else f"crop the clip to the shape of {_sides(plan.trained)} around what moves",
        )
    if (zoom := max(wide / width, high / height)) > FARTHEST_ZOOM:
        yield Finding(
            "small",
            f"{_sides(plan.size)} is enlarged {zoom:.2g} times to {_sides(plan.trained)}, and blur would be learned",
            "take a larger version of the clip, or a smaller train_data.width and height",
        )
    target = native or (cut.width, cut.height)
    of_whom = "the model was made for" if native else "was asked for"
    if (shape := _ratio(wide / high, target[0] / target[1])) > FARTHEST_SHAPE:
        side = "wide" if wide / high > target[0] / target[1] else "high"
        yield Finding(
            "shape",
            f"{_sides(plan.trained)} is in shape {shape:.2g} times as {side} as the {_sides(target)} that {of_whom}",
            "crop the clip around what moves",
        )
    if native and (size := _ratio(wide * high, native[0] * native[1])) > FARTHEST_SIZE:
        more = "more" if wide * high > native[0] * native[1] else "fewer"
        yield Finding(
            "size",
            f"{_sides(plan.trained)} has {size:.2g} times {more} pixels than the {_sides(native)} that {of_whom}",
            f"set train_data.width={native[0]} train_data.height={native[1]}",
        )


def _ratio(one: float, other: float) -> float:
    return max(one / other, other / one)


def _sides(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
