"""Analytic detectors for the toy world: what a clip shows, read from its pixels alone, without any learned part.

The background is the border's median colour (of its brighter half); the object is what has the colour that most of
the other pixels are nearest to; its shape and radius are the template of largest overlap; its path is the centroid
per frame. Frames are uint8 RGB [f 3 h w]; trajectories are (x, y) in pixels of a 64-pixel canvas, whatever the clip's
size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from configs.errors import UserError
from data.shapes import WINDOW_FRAME, WINDOW_PANE, coverage
from data.world import BACKGROUNDS, COLOURS, SHAPES

SUCCESS_RMSE = 6.0  # pixels of 64 (9.4 % of the canvas): a motion counts as transferred below this error, ...
SUCCESS_CORRELATION = 0.8  # ... above this correlation, and nearer to the reference than to what its words alone mean
TINT = 55.0  # RGB distance above which a colour is called none of the palette
FEWEST_PIXELS = 20  # a frame: fewer are no object
CONTRAST = 45.0  # RGB distance from the background above which a pixel belongs to something else


@dataclass(frozen=True)
class Reading:
    """What one clip shows; a name is None where nothing in the world matches."""

    background: str | None
    colour: str | None
    shape: str | None
    motion: str | None
    window: bool
    trajectory: np.ndarray  # [f 2]; NaN where the object is not seen
    size: np.ndarray  # [f] radius

    def matches(self, wanted: dict[str, str | None]) -> dict[str, bool]:
        """Which of the four wanted properties (see `world.parse_prompt`) the clip has; unnamed ones are left out."""
        return {
            key: getattr(self, key) == wanted[key]
            for key in ("background", "colour", "shape", "motion")
            if wanted.get(key)
        }


@dataclass(frozen=True)
class Layers:
    """A clip taken apart into its ground and its object, in RGB of 0..255."""

    image: np.ndarray  # float32 [f s s 3]
    ground: np.ndarray  # [3], the colour of the ground
    paint: np.ndarray | None  # [3], the colour of the object; None where there is no object
    colour: str | None  # its name
    coverage: np.ndarray  # [f s s], soft: how far a pixel is on the way from ground to paint
    window: bool


def take_apart(frames: torch.Tensor | np.ndarray) -> Layers:
    """Tell ground and object of a clip apart, uint8 [f 3 h w] with h = w. Raises UserError on another layout."""
    pixels = np.asarray(frames)
    if pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.dtype != np.uint8 or pixels.shape[2] != pixels.shape[3]:
        raise UserError(f"detectors: found frames {pixels.dtype} {list(pixels.shape)}; give uint8 [f 3 s s].")
    image = pixels.transpose(0, 2, 3, 1).astype(np.float32)  # [f s s 3]
    ground = _border_colour(image)
    owner, window = _colour_of_pixels(image, ground)
    counts = np.array([(owner == index).sum() for index in range(len(COLOURS))])
    if counts.max() < FEWEST_PIXELS * len(image):
        return _without_a_name(image, ground, window)
    best = int(counts.argmax())
    paint = np.median(image[owner == best], axis=0)
    return Layers(
        image, ground, paint, list(COLOURS)[best], _coverage_seen(image, ground, paint, owner == best), window
    )


def _without_a_name(image: np.ndarray, ground: np.ndarray, window: bool) -> Layers:
    """Layers of a clip whose object, where there is one, has no colour of the palette (a tint half way to another)."""
    brightness = (image @ ground) / max(ground @ ground, 1.0)
    darker = np.clip(brightness, 0.78, 1.0)[..., None] * ground  # ground under a pattern
    mine = (np.linalg.norm(image - darker, axis=-1) > CONTRAST) & ~in_corners(image.shape[1])
    if mine.sum() < FEWEST_PIXELS * len(image):
        return Layers(image, ground, None, None, np.zeros(image.shape[:3], np.float32), window)
    paint = np.median(image[mine], axis=0)
    return Layers(image, ground, paint, None, _coverage_seen(image, ground, paint, mine), window)


def in_corners(side: int) -> np.ndarray:
    """[s s]: True in the four corners where a window of the world may stand."""
    near = np.zeros(side, bool)
    near[: side // 3] = near[-(side // 3) :] = True
    return near[:, None] & near[None, :]


def grown(mask: np.ndarray, *axes: int) -> np.ndarray:
    """A mask of bool with the neighbours of what it holds along each of these axes, and no neighbours of those."""
    found = mask.copy()
    for axis in axes:
        into, held = np.moveaxis(found, axis, 0), np.moveaxis(mask, axis, 0)
        into[1:] |= held[:-1]
        into[:-1] |= held[1:]
    return found


def read_clip(frames: torch.Tensor | np.ndarray | Layers) -> Reading:
    """Read a clip, uint8 [f 3 h w] with h = w, or one taken apart. Raises UserError on another layout."""
    layers = frames if isinstance(frames, Layers) else take_apart(frames)
    background = _nearest(layers.ground, BACKGROUNDS)
    if layers.paint is None:
        nothing = np.full(len(layers.image), np.nan)
        return Reading(background, None, None, None, layers.window, np.stack([nothing] * 2, 1), nothing)
    shape, trajectory, size = _fit_shape(layers.coverage, layers.image.shape[1] / 64)
    motion = name_motion(trajectory, size)
    return Reading(background, layers.colour, shape, motion, layers.window, trajectory, size)


def name_motion(trajectory: np.ndarray, size: np.ndarray) -> str | None:
    """The known motion that a path [f 2] and radii [f] show; None where the object is lost in some frame.

    Rules, in pixels of 64, where growth is the last two frames' mean radius divided by that of the first two:
    - a direction is a net travel of at least 16 along one axis, steady in time (correlation above 0.9), with less than
      8 of spread across it;
    - grow (growth above 1.25) and shrink (below 0.8) stay within 8 and change steadily (correlation above 0.8);
    - still stays within 5, with a growth between 0.8 and 1.25;
    - anything else that moves by more than 6 wanders.
    """
    if not (np.isfinite(trajectory).all() and np.isfinite(size).all()):
        return None
    time = np.arange(len(size))
    spread = np.ptp(trajectory, axis=0)
    for axis, (back, forth) in enumerate((("left", "right"), ("up", "down"))):
        travel = trajectory[-1, axis] - trajectory[0, axis]
        steady = abs(_correlation(time, trajectory[:, axis])) > 0.9
        if abs(travel) >= 16 and steady and spread[1 - axis] < 8:
            return forth if travel > 0 else back
    ratio = size[-2:].mean() / size[:2].mean()
    if spread.max() < 8 and abs(_correlation(time, size)) > 0.8 and not 0.8 < ratio < 1.25:
        return "grow" if ratio > 1 else "shrink"
    if spread.max() < 5:
        return "still" if 0.8 < ratio < 1.25 else None
    return "wander" if spread.max() > 6 else None


def compare_paths(found: np.ndarray, reference: np.ndarray, known: np.ndarray | None = None) -> dict[str, float | bool]:
    """Trajectory error of `found` against `reference`, both [f 2] pixels of 64: rmse, correlation, success.

    Paths are compared each around its own mean, because a motion is the same motion in another place. `known` is the
    path of the motion that the caption names: a re-timing has been learned only where the video is nearer to it than to
    that. A frame without an object counts as an error of 64 px, and towards the correlation as one that goes the
    opposite way: the correlation of the other frames by their share, less the share of the lost ones.
    """
    lost = ~np.isfinite(found).all(1)
    rmse = _path_error(found, reference, lost)
    correlation = over_seen(_path_correlation, found, reference, worst=-1.0)
    success = rmse < SUCCESS_RMSE and correlation > SUCCESS_CORRELATION
    if known is not None:
        success &= rmse < _path_error(found, known, lost)
    return {"rmse": rmse, "correlation": correlation, "success": bool(success)}


def over_seen(
    measure: Callable[[np.ndarray, np.ndarray], float], found: np.ndarray, reference: np.ndarray, worst: float
) -> float:
    """`measure` of two paths [f 2] of which the first is lost in some frames (not finite): of the frames in which it is
    seen by their share, and `worst` by the share of the others. All of it is `worst` where fewer than two are seen.
    """
    seen = np.isfinite(found).all(1)
    if seen.sum() < 2:
        return worst
    share = float(seen.mean())
    return share * measure(found[seen], reference[seen]) + (1 - share) * worst


def _path_correlation(one: np.ndarray, other: np.ndarray) -> float:
    return _correlation(*((path - path.mean(0)).ravel() for path in (one, other)))


def _path_error(found: np.ndarray, path: np.ndarray, lost: np.ndarray) -> float:
    if lost.all():
        return 64.0
    offset = (found - path)[~lost].mean(0)
    error = np.where(lost, 64.0, np.linalg.norm(found - path - offset, axis=1))
    return float(np.sqrt((error**2).mean()))


def _border_colour(image: np.ndarray) -> np.ndarray:
    edge = max(2, image.shape[1] // 20)
    border = np.concatenate(
        [
            image[:, :edge].reshape(-1, 3),
            image[:, -edge:].reshape(-1, 3),
            image[:, :, :edge].reshape(-1, 3),
            image[:, :, -edge:].reshape(-1, 3),
        ]
    )
    brightness = border.sum(1)  # the brighter half: a pattern only darkens its background
    return np.median(border[brightness >= np.median(brightness)], axis=0)


def _nearest(colour: np.ndarray, palette: dict[str, tuple[int, int, int]]) -> str | None:
    distance = np.linalg.norm(np.array(list(palette.values())) - colour, axis=1)
    return list(palette)[int(distance.argmin())] if distance.min() < TINT else None


def _colour_of_pixels(image: np.ndarray, ground: np.ndarray) -> tuple[np.ndarray, bool]:
    """Index of the palette colour that each pixel [f s s] is nearest to (-1: background or window), and whether a
    window is seen. A pattern is a darker background, so the background's class is a line, not a point."""
    dark = ground * 0.78
    points = np.concatenate([np.array(list(COLOURS.values())), [ground, (ground + dark) / 2, dark]])
    points = np.concatenate([points, [WINDOW_FRAME, WINDOW_PANE]])
    owner = ((points**2).sum(1) - 2 * image @ points.T).argmin(-1)  # |x - p|^2 without |x|^2, in fewer operations
    owner[np.linalg.norm(image - ground, axis=-1) < CONTRAST] = len(COLOURS)
    first = len(COLOURS) + 3
    # The window stands in a corner and does not move: count its frame's colour in the least covered corner.
    size = image.shape[1]
    corners = [(slice(0, size // 3) if v == 0 else slice(-(size // 3), None)) for v in (0, 1)]
    share = max(
        np.median([(frame[row, column] == first).mean() for frame in owner]) for row in corners for column in corners
    )
    return np.where(owner < len(COLOURS), owner, -1), bool(share > 0.06)


def _coverage_seen(image: np.ndarray, ground: np.ndarray, paint: np.ndarray, mine: np.ndarray) -> np.ndarray:
    """Soft coverage [f s s]: how far each pixel near the object is on the way from the background to its colour."""
    way = paint - ground
    alpha = np.clip(((image - ground) @ way) / (way @ way), 0, 1)
    near = grown(grown(mine, 1), 2)  # and all eight neighbours: what else is between the two colours is noise
    return alpha * near


def _fit_shape(alpha: np.ndarray, zoom: float) -> tuple[str, np.ndarray, np.ndarray]:
    """Shape of the best mean overlap, centroid [f 2] and best radius [f], both in pixels of 64."""
    side = alpha.shape[1]
    y, x = (np.mgrid[0:side, 0:side] + 0.5) / zoom
    radii = np.arange(4.5, 17.5, 0.5)
    overlap = np.zeros((len(alpha), len(SHAPES), len(radii)))
    centres = np.full((len(alpha), 2), np.nan)
    for index, frame in enumerate(alpha):
        if frame.sum() < 20 * zoom**2:
            continue
        centre = np.array([np.median(x[frame > 0.5]), np.median(y[frame > 0.5])]) if (frame > 0.5).any() else None
        if centre is None:
            continue
        for _ in range(2):  # stray pixels far from the object must not pull its centroid
            local = frame * (np.hypot(x - centre[0], y - centre[1]) < 22)
            if local.sum() > 0:
                centre = np.array([(local * x).sum(), (local * y).sum()]) / local.sum()
        centres[index] = centre
        for number, shape in enumerate(SHAPES):
            template = coverage(shape, x - centre[0], y - centre[1], radii[:, None, None])
            shared = np.minimum(template, local).sum((1, 2))
            overlap[index, number] = shared / np.maximum(template, local).sum((1, 2))
    shape = int(overlap.max(2).mean(0).argmax())
    size = np.where(np.isfinite(centres[:, 0]), radii[overlap[:, shape].argmax(1)], np.nan)
    return SHAPES[shape], centres, size


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    norm = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / norm) if norm > 1e-6 else 0.0
