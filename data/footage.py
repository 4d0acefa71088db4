"""What is seen in the frames of a clip: cuts, how far things move, and bars around the picture.

Frames are uint8 RGB [f h w c], small ones: everything here is a share of the frame, and a hundred pixels show it.
Cuts are found by PySceneDetect, motion by OpenCV's dense optical flow (DIS, Kroeger et al. 2016).
"""

from dataclasses import dataclass

import cv2
import numpy as np
from scenedetect import FrameTimecode
from scenedetect.detectors import AdaptiveDetector

LEAST_SIDE = 16  # pixels of either side
FLOW_SIDE = 96  # pixels of the longer side that flow is computed at: jumps across a third of the frame are still seen
CHANGED = 16  # of 255: less is noise and compression
DARK, LIT = 24, 40  # of 255: a bar's brightest pixels, and the picture's median pixel where it begins
NARROWEST_BAR = 0.03  # of the frame


def cuts(frames: np.ndarray) -> list[int]:
    """Numbers of the frames that open another shot; `frames` are consecutive ones.

    A change counts where it stands out against the two frames before and after it, so that fast motion is none.
    """
    detector = AdaptiveDetector(min_scene_len=1)
    margin = detector.window_width
    padded = [frames[0]] * margin + list(frames) + [frames[-1]] * margin  # so that every frame has its neighbours
    found = []
    for number, frame in enumerate(padded):
        bgr = np.ascontiguousarray(frame[..., ::-1])
        found += detector.process_frame(FrameTimecode(number, fps=25.0), bgr)  # only its number matters
    return [cut.frame_num - margin for cut in found if 0 < cut.frame_num - margin < len(frames)]


@dataclass(frozen=True)
class Motion:
    """How a clip moves. `changed` is the largest share of pixels that ever differ from the first frame.

    `step` is how far things move from one frame to the next, in the frame's longer side: the median over the frames
    that move. `busy` is the share of pixels that change between two of them, and `lost` the share of those for which
    no place is found in the next frame, likewise.
    """

    changed: float
    step: float
    busy: float
    lost: float


def motion(frames: np.ndarray) -> Motion:
    """The motion in `frames`, those that a training sees."""
    small = [_small(frame) for frame in frames]
    changed = max((_changed(small[0], frame).mean() for frame in small[1:]), default=0.0)
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    rows, columns = np.mgrid[: small[0].shape[0], : small[0].shape[1]].astype(np.float32)
    steps, busy, lost = [], [], []
    for before, after in zip(small, small[1:]):
        moving = _changed(before, after)
        if not moving.any():
            continue
        shift = flow.calc(*(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (before, after)), None)
        found = cv2.remap(
            after, columns + shift[..., 0], rows + shift[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        steps.append(np.percentile(np.hypot(shift[..., 0], shift[..., 1])[moving], 90) / max(moving.shape))
        busy.append(moving.mean())
        lost.append(_changed(before, found)[moving].mean())
    return Motion(float(changed), *(float(np.median(values or [0])) for values in (steps, busy, lost)))


def _small(frame: np.ndarray) -> np.ndarray:
    """At most FLOW_SIDE pixels wide and high, and blurred: what is left of noise is below CHANGED.

    Sides of fewer than LEAST_SIDE pixels, which the flow cannot take, are stretched to as many.
    """
    zoom = min(1.0, FLOW_SIDE / max(frame.shape[:2]))
    height, width = (max(LEAST_SIDE, round(side * zoom)) for side in frame.shape[:2])
    if (height, width) != frame.shape[:2]:
        frame = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
    return cv2.blur(frame, (3, 3))


def _changed(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return cv2.absdiff(before, after).max(axis=2) > CHANGED


def bars(frames: np.ndarray) -> tuple[float, float, float, float] | None:
    """Black bars that stay on two opposite sides: the picture between them as (left, top, right, bottom), 0 to 1.

    None without any. A dark scene has none: where a bar ends the picture must begin at once.
    """
    brightest = frames.max(axis=(0, 3))  # [h w]
    top, bottom = _edges(brightest)
    left, right = _edges(brightest.T)
    return None if (left, top, right, bottom) == (0, 0, 1, 1) else (left, top, right, bottom)


def _edges(brightest: np.ndarray) -> tuple[float, float]:
    """Where the picture begins and ends along the first axis of `brightest`, as shares of it, without blurred edges."""
    lit = np.flatnonzero(np.percentile(brightest, 98, axis=1) >= DARK)
    if not lit.size:
        return 0.0, 1.0
    first, last, length = lit[0], lit[-1], len(brightest)
    narrow = min(first, length - 1 - last) < NARROWEST_BAR * length
    inside = (min(first + 1, last), max(last - 1, first))  # the row beside a bar mixes with it when frames are resized
    sharp = all(np.median(brightest[row]) >= LIT for row in inside)
    return (0.0, 1.0) if narrow or not sharp else ((first + 1) / length, last / length)
