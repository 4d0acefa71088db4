"""Graded measures of the toy world: how far a clip is from what its prompt asks for, and towards its reference.

The named readings of data/detectors.py say yes or no, and a model that is always right leaves nothing to compare. These
measures are numbers with a unit. Appearance: overlap of shapes (share), colour errors (RGB distance in levels of
0..255), noise, edges and flicker (levels). Motion: timing and speed (share of the travel). Leakage: the share of the
way from the prompt's appearance (0) to the reference's (1), so that a tint counts before it becomes another name.

Clips are uint8 RGB [f 3 h w], or taken apart (data/detectors.py: take_apart) where several functions read one clip;
images are float32 [f h w 3] and paths [f 2] in pixels of a 64-pixel canvas.

A frame without an object is not left out: it counts as the worst that could be there. Its colour is the one of all that
is farthest from the wanted one. Its edge error is the whole step from the ground to the wanted colour. For leakage, it
has the reference's own colour.
"""

from __future__ import annotations

from functools import cache
from itertools import combinations

import numpy as np
import torch

from data.detectors import CONTRAST, TINT, Layers, grown, in_corners, over_seen, take_apart
from data.shapes import coverage
from data.world import BACKGROUNDS, COLOURS, SHAPES

Clip = torch.Tensor | np.ndarray | Layers
RADII = np.arange(4.0, 18.0, 0.1)  # pixels of 64 that a shape is fitted with: what the world draws, and a margin
PERIOD = 12  # pixels of 64 after which every pattern of the world repeats
WAVES = [(1, 0), (0, 1), (1, 1), (1, -1)]  # the patterns' waves in x and y, in turns of a period


def appearance(clip: Clip, wanted: dict[str, str | None]) -> dict[str, float]:
    """How a clip departs from the shape, colour and background that `wanted` (data/world.py: parse_prompt) names.

    - shape_overlap: soft intersection over union, sum(min) / sum(max), of the object's coverage with that of the wanted
      shape of best radius at the same centre; mean over frames, 1 at best.
    - colour_error: RGB distance of the object's mean colour from the wanted one, mean over frames.
    - background_error: mean RGB distance of the ground's pixels from the wanted background.
    - background_noise: root mean square distance of the ground's pixels from the frame's own median; for plain
      backgrounds, a pattern counts as noise.
    - edge_error: root mean square, within two pixels of the object's edge, of what is left of the image after the
      best drawing of the object (wanted shape in the colours seen) and the mean of 3x3 pixels are taken away.
    - flicker: mean absolute change between neighbouring frames of pixels that are ground in both.
    - appearance_match: 1 - the mean of (1 - shape_overlap), colour_error and background_error, each divided by its mean
      between two different shapes, colours or grounds of the world. 1 is what the prompt names, 0 as far away as
      another scene.
    """
    layers = _apart(clip)
    shape, paint = wanted["shape"], np.array(COLOURS[wanted["colour"]], np.float32)
    wish = np.array(BACKGROUNDS[wanted["background"]], np.float32)
    overlaps, colours, noises, errors, edges = [], [], [], [], []
    grounds = ground_pixels(layers)
    farthest = np.where(paint < 128, 255, 0)
    for image, alpha, ground, core in zip(layers.image, layers.coverage, grounds, _cores(layers)):
        overlap, drawn = _best_drawing(alpha, shape)
        overlaps.append(overlap)
        seen = image[core].mean(0) if core.any() else None
        colours.append(np.linalg.norm((farthest if seen is None else seen) - paint))
        plain = image[ground] if ground.any() else image.reshape(-1, 3)
        errors.append(np.linalg.norm(plain - wish, axis=1).mean())
        noises.append(((plain - np.median(plain, axis=0)) ** 2).sum(1).mean())
        edges.append(_edge_residual(image, drawn, layers.ground, paint if seen is None else seen))
    both = grounds[1:] & grounds[:-1]
    change = np.abs(np.diff(layers.image, axis=0)).mean(-1)[both]
    parts = np.array([1 - np.mean(overlaps), np.mean(colours), np.mean(errors)])
    return {
        "appearance_match": float(1 - (parts / another_scene()).mean()),
        "shape_overlap": float(np.mean(overlaps)),
        "colour_error": float(np.mean(colours)),
        "background_error": float(np.mean(errors)),
        "background_noise": float(np.sqrt(np.mean(noises))),
        "edge_error": float(np.sqrt(np.mean(edges))),
        "flicker": float(change.mean()) if change.size else 0.0,
    }


@cache
def another_scene() -> tuple[float, float, float]:
    """What 1 - shape_overlap, colour_error and background_error are between two scenes that share nothing, on average.

    They follow from the world itself: all pairs of its shapes, colours and grounds.
    """
    y, x = np.mgrid[0:64, 0:64] + 0.5
    drawn = {shape: coverage(shape, x - 32, y - 32, 11.0) for shape in SHAPES}
    overlaps = [_best_drawing(drawn[one], other)[0] for one in SHAPES for other in SHAPES if one != other]
    apart = [
        np.mean([np.linalg.norm(np.subtract(*pair)) for pair in combinations(palette.values(), 2)])
        for palette in (COLOURS, BACKGROUNDS)
    ]
    return float(1 - np.mean(overlaps)), float(apart[0]), float(apart[1])


def timing(found: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Is the object there at the right time? Both paths [f 2]; place and size of the motion do not count.

    - motion_quality: 100 x the mean cosine between both displacements from frame to frame, over the frames in which the
      reference moves by half a pixel or more: motion fidelity (infer/measure/motion_fidelity.py) of the object alone.
    - timing_error: mean distance of the two paths after each is centred and divided by its own widest extent, so that
      on a straight line this is the error of the clock as a share of the travel.
    - speed_error: half the sum of |share of the travel between two frames, found minus reference|: 0 for the same
      profile of speed, 1 when everything happens at other moments. A still object has no profile and scores 1 against
      one that moves.

    Frames in which the object is lost count by their share as -100, 1 and 1.
    """
    return {
        "motion_quality": over_seen(_motion_quality, found, reference, worst=-100.0),
        "timing_error": over_seen(_timing_error, found, reference, worst=1.0),
        "speed_error": over_seen(_speed_error, found, reference, worst=1.0),
    }


def _motion_quality(found: np.ndarray, reference: np.ndarray) -> float:
    return 100 * _mean_cosine(np.diff(found, axis=0), np.diff(reference, axis=0))


def _timing_error(found: np.ndarray, reference: np.ndarray) -> float:
    return float(np.linalg.norm(_unit(found) - _unit(reference), axis=1).mean())


def _speed_error(found: np.ndarray, reference: np.ndarray) -> float:
    speeds = [np.linalg.norm(np.diff(path, axis=0), axis=1) for path in (found, reference)]
    still = [speed.sum() < 1.0 for speed in speeds]
    if any(still):
        return 0.0 if all(still) else 1.0
    one, other = (speed / speed.sum() for speed in speeds)
    return float(np.abs(one - other).sum() / 2)


def leakage(shown: Clip, wanted: dict[str, str | None], reference: Clip) -> dict[str, float | None]:
    """How far a clip is drawn from what its prompt names (0) to its reference's appearance (1); negative is away.

    - colour_pull, ground_pull: (seen - prompt) . (reference - prompt) / |reference - prompt|^2 in RGB; for the colour,
      1 in a frame without an object.
    - pattern_pull: strength of the world's pattern waves in the ground against their strength in the reference,
      whatever their phase; only where the reference has a pattern and the prompt none.
    - window_pull: over the pixels of the reference's window, share of the way from the clip's own ground to them; only
      where the reference has a window and the prompt none.
    - appearance_pull: the mean of those that can be measured.

    None where there is no way to measure: prompt and reference name one colour, or the reference lacks the thing.
    """
    clip, other = _apart(shown), _apart(reference)
    paint = np.array(COLOURS[wanted["colour"]], np.float32)
    wish = np.array(BACKGROUNDS[wanted["background"]], np.float32)
    pulls: dict[str, float | None] = {
        "colour_pull": _share_of_way(other.paint if clip.paint is None else clip.paint, paint, other.paint),
        "ground_pull": _share_of_way(clip.ground, wish, other.ground),
        "pattern_pull": None,
        "window_pull": None,
    }
    if pulls["colour_pull"] is not None:
        shown_in = _cores(clip).any((1, 2)).mean()  # share of the frames
        pulls["colour_pull"] = float(shown_in * pulls["colour_pull"] + 1 - shown_in)
    mine, theirs = _scenery(clip), _scenery(other)
    away = np.linalg.norm(theirs - other.ground, axis=-1)
    if other.window and not wanted["window"]:
        there = np.isfinite(mine).all(-1) & (np.nan_to_num(away) > CONTRAST) & in_corners(len(away))
        way = theirs[there] - clip.ground
        pulls["window_pull"] = (
            float(((mine[there] - clip.ground) * way).sum() / (way**2).sum()) if there.any() else None
        )
    strength = _waves(theirs, other)
    if strength is not None and np.linalg.norm(strength) > 0.03 and not other.window and not wanted["pattern"]:
        found = _waves(mine, clip)
        pulls["pattern_pull"] = None if found is None else float(found @ strength / (strength @ strength))
    measured = [pull for pull in pulls.values() if pull is not None]
    return {"appearance_pull": float(np.mean(measured)) if measured else None, **pulls}


def ground_pixels(layers: Layers) -> np.ndarray:
    """[f s s]: True where a frame shows ground, two pixels or more away from its object."""
    covered = layers.coverage > 0.05
    return ~grown(grown(covered, 1, 2), 1, 2)


def _cores(layers: Layers) -> np.ndarray:
    """[f s s]: True where a pixel is the object's alone; a frame without one has lost its object."""
    return layers.coverage > 0.9


def _apart(clip: Clip) -> Layers:
    return clip if isinstance(clip, Layers) else take_apart(clip)


def _best_drawing(alpha: np.ndarray, shape: str) -> tuple[float, np.ndarray]:
    """(overlap, coverage [s s]) of `shape` at the object's centroid with the radius that fits best."""
    total = alpha.sum()
    if total < 1:
        return 0.0, np.zeros_like(alpha)
    zoom = len(alpha) / 64
    y, x = (np.mgrid[0 : len(alpha), 0 : len(alpha)] + 0.5) / zoom
    centre = (alpha * x).sum() / total, (alpha * y).sum() / total

    def best_of(radii: np.ndarray) -> tuple[float, np.ndarray, float]:
        drawings = coverage(shape, x - centre[0], y - centre[1], radii[:, None, None])
        overlaps = np.minimum(drawings, alpha).sum((1, 2)) / np.maximum(drawings, alpha).sum((1, 2))
        best = int(overlaps.argmax())
        return float(overlaps[best]), drawings[best], float(radii[best])

    *_, near = best_of(RADII[::10])  # pixel by pixel, then by tenths: a quarter of the drawings
    return best_of(RADII[np.abs(RADII - near) < 1])[:2]


def _edge_residual(image: np.ndarray, drawn: np.ndarray, ground: np.ndarray, paint: np.ndarray) -> float:
    """Mean square of the fine detail that the drawing does not explain, in a ring around its edge."""
    ring = _blur(np.abs(np.gradient(drawn, axis=0)) + np.abs(np.gradient(drawn, axis=1))) > 1e-3
    if not ring.any():
        return float(((paint - ground) ** 2).mean())
    residual = image - (ground + drawn[..., None] * (paint - ground))
    fine = residual - _blur(residual)
    return float((fine[ring] ** 2).mean())


def _blur(image: np.ndarray) -> np.ndarray:
    """Mean over 3x3 pixels, edges repeated; [s s] or [s s c]."""
    padded = np.pad(image, [(1, 1), (1, 1)] + [(0, 0)] * (image.ndim - 2), mode="edge")
    size = image.shape[0], image.shape[1]
    return sum(padded[i : i + size[0], j : j + size[1]] for i in range(3) for j in range(3)) / 9


def _mean_cosine(found: np.ndarray, reference: np.ndarray) -> float:
    """Over the displacements [f 2] of at least half a pixel in the reference; 1 where it has none and neither moves."""
    lengths = np.linalg.norm(found, axis=1), np.linalg.norm(reference, axis=1)
    moves = lengths[1] >= 0.5
    if not moves.any():
        return float(lengths[0].max() < 0.5)
    cosines = (found * reference).sum(1)[moves] / np.maximum(lengths[0] * lengths[1], 1e-9)[moves]
    return float(cosines.mean())


def _unit(path: np.ndarray) -> np.ndarray:
    return (path - path.mean(0)) / max(np.ptp(path, axis=0).max(), 1.0)


def _share_of_way(seen: np.ndarray, start: np.ndarray, end: np.ndarray | None) -> float | None:
    if end is None or np.linalg.norm(end - start) < TINT:
        return None
    way = end - start
    return float((seen - start) @ way / (way @ way))


def _scenery(layers: Layers) -> np.ndarray:
    """[s s 3]: the median over frames of what lies behind the object; NaN where it is never seen."""
    image = np.where(ground_pixels(layers)[..., None], layers.image, np.nan)
    seen = np.isfinite(image).any(0)
    return np.where(seen, np.nanmedian(np.where(seen, image, 0.0), axis=0), np.nan)


def _waves(scenery: np.ndarray, layers: Layers) -> np.ndarray | None:
    """Amplitudes [4] of the patterns' waves in the ground's darkness, by least squares over the pixels seen."""
    seen = np.isfinite(scenery).all(-1)
    if seen.sum() < 8 * len(WAVES):
        return None
    side = len(scenery)
    y, x = (np.argwhere(seen).T + 0.5) / (side / 64)
    turns = [2 * np.pi * (across * x + down * y) / PERIOD for across, down in WAVES]
    basis = np.stack([np.ones(len(x)), *(wave for turn in turns for wave in (np.cos(turn), np.sin(turn)))], 1)
    brightness = scenery[seen] @ layers.ground
    darkness = 1 - brightness / max(np.percentile(brightness, 95), 1.0)  # a pattern only darkens, black not even that
    fitted = np.linalg.lstsq(basis, darkness, rcond=None)[0][1:]
    return np.hypot(fitted[::2], fitted[1::2])
