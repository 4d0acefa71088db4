"""Pairs of clips of known relation in the toy world: the test set on which motion metrics are compared with the truth.

A reference clip is one of the world's motions; its partners show the same path in another appearance, another path in
the same appearance, and what lies between. Paths are [f 2], (x, y) in pixels of a 64-pixel canvas. The truth of a pair
is the motion of the object in its scene: a camera that pans over a still object shows no motion of the object.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from data.world import PATHS, RETIMINGS, WorldClip, render_path, sample_scene, trajectory_of

FRAMES = 16
MOTIONS = (*RETIMINGS, *PATHS, "wander")
RELATIONS = {  # name -> what the second clip shows
    "same path": "the reference's path in another appearance",
    "shifted": "the same path in another place and appearance",
    "re-timed": "the same places in the same order on another clock, in another appearance",
    "other speed": "the first half of the path, at half the speed, in another appearance",
    "reversed": "the path backwards in time, in another appearance",
    "mirrored": "the path with left and right swapped, in another appearance",
    "another path": "another motion in the reference's own appearance",
    "camera pan": "another object that stands still while the camera moves the whole picture along the path",
    "still": "another object that does not move",
}
CLOCKS = ("late_start", "pause", "speeding_up")  # clocks that visit every place once, in order
GRAIN, WAVES = 22.0, 24  # strength of the texture in grey levels of 255, and how many waves it is made of
SHIFT = 6.0  # pixels of 64 on each axis: the object stays inside the canvas


@dataclass(frozen=True)
class Shown:
    """A drawn clip with its truth: the object's path in the scene, and how far the camera shifts the picture."""

    clip: WorldClip
    path: np.ndarray
    camera: np.ndarray
    frames: torch.Tensor  # the clip's, uint8 [f c h w], with grain on object and ground for a tracker to hold on to

    def tracks(self, points: np.ndarray) -> torch.Tensor:
        """Exact tracklets [n f 2] of points [n 2] of the first frame: on the object they move and grow with it."""
        x, y = np.clip(points.astype(int), 0, self.clip.frames.shape[-1] - 1).T
        on_object = self.clip.mask[0].numpy()[y, x] > 0.5
        centre, radius = self.clip.trajectory.numpy(), self.clip.size.numpy()
        offset = (points - centre[0])[:, None] * (radius / radius[0])[None, :, None]
        still = points[:, None] + (self.camera - self.camera[0])[None]
        return torch.from_numpy(np.where(on_object[:, None, None], centre[None] + offset, still))


@dataclass(frozen=True)
class Pair:
    """A reference, its partner and their relation, with the two true errors between them (`truth`)."""

    motion: str
    seed: int
    relation: str
    reference: Shown
    shown: Shown
    path_error: float
    progress_error: float


def pairs(motion: str, seed: int, relations: tuple[str, ...] = tuple(RELATIONS)) -> Iterator[Pair]:
    """The pairs of one reference: `motion` in an appearance drawn from `seed`, with a pattern or a window."""
    scene = replace(sample_scene(1000 + seed, decorated=1.0), motion=motion, seed=seed, direction="right")
    partner = sample_scene(2000 + seed, decorated=1.0)
    for attempt in range(1, 100):  # another shape, colour and ground: nothing of the appearance is shared
        if all(getattr(partner, name) != getattr(scene, name) for name in ("shape", "colour", "background")):
            break
        partner = sample_scene(2000 + seed + 100 * attempt, decorated=1.0)
    partner = replace(partner, motion=motion, seed=seed + 500)
    dense, radius = trajectory_of(scene, 100 * (FRAMES - 1) + 1)
    other_motion = MOTIONS[(MOTIONS.index(motion) + 1 + seed % (len(MOTIONS) - 1)) % len(MOTIONS)]
    reference = _shown(scene, _at(dense, np.linspace(0, 1, FRAMES)), radius[0])
    for relation in relations:
        path, camera, appearance = _partner(relation, dense, seed), None, partner
        if relation == "another path":
            appearance = scene
            path = trajectory_of(replace(scene, motion=other_motion), FRAMES)[0]
        elif relation == "camera pan":
            middle = reference.path.mean(0, keepdims=True)
            path, camera = np.repeat(middle, FRAMES, 0), reference.path - middle
        shown = _shown(appearance, path, trajectory_of(appearance, FRAMES)[1][0], camera)
        yield Pair(motion, seed, relation, reference, shown, *truth(reference.path, shown.path))


def truth(reference: np.ndarray, path: np.ndarray) -> tuple[float, float]:
    """(path error, progress error) of `path` against `reference`, both [f 2].

    Path error: root mean square distance in pixels of 64, each path around its own mean (data/detectors.py's).
    Progress error: mean over frames of how much more or less way has been gone than in the reference, as a share of the
    reference's whole way; directions and places do not count.
    """
    apart = (path - path.mean(0)) - (reference - reference.mean(0))
    gone = [np.concatenate([[0], np.linalg.norm(np.diff(p, axis=0), axis=1).cumsum()]) for p in (reference, path)]
    return float(np.sqrt((apart**2).sum(1).mean())), float(np.abs(gone[1] - gone[0]).mean() / gone[0][-1])


def _partner(relation: str, dense: np.ndarray, seed: int) -> np.ndarray:
    """The partner's path [f 2] where it follows from the reference's, `dense` [many 2] over the whole clip."""
    time = np.linspace(0, 1, FRAMES)
    path = _at(dense, time)
    if relation == "re-timed":
        return _at(dense, np.interp(time, *RETIMINGS[CLOCKS[seed % len(CLOCKS)]]))
    if relation == "shifted":
        return path + SHIFT * np.array([(-1) ** seed, (-1) ** (seed // 2)])
    return {
        "reversed": path[::-1],
        "mirrored": path * [-1, 1] + [64, 0],
        "other speed": _at(dense, time / 2),
        "still": np.repeat(path[:1], FRAMES, 0),
    }.get(relation, path)


def _at(dense: np.ndarray, clock: np.ndarray) -> np.ndarray:
    whole = np.linspace(0, 1, len(dense))
    return np.stack([np.interp(clock, whole, dense[:, axis]) for axis in range(2)], 1)


def _shown(scene, path: np.ndarray, radius: float, camera: np.ndarray | None = None) -> Shown:
    clip = render_path(scene, path, np.full(FRAMES, radius), camera=camera)
    shift = np.zeros((FRAMES, 2)) if camera is None else camera
    return Shown(clip, path, shift, grained(clip, shift))


def grained(clip: WorldClip, camera: np.ndarray) -> torch.Tensor:
    """The clip's frames with a smooth random texture of its own on the object and another on the ground, uint8.

    The world's surfaces are plain, and no tracker can follow a point of a plain surface.
    """
    draws = np.random.default_rng([clip.scene.seed, 53])
    y, x = np.mgrid[0 : clip.frames.shape[2], 0 : clip.frames.shape[3]] + 0.5
    alpha = clip.mask.numpy()
    on_object, on_ground = (
        _texture(draws, x - place[:, 0, None, None], y - place[:, 1, None, None])
        for place in (clip.trajectory.numpy(), camera)
    )
    grain = alpha * on_object + (1 - alpha) * on_ground  # [f h w]
    frames = clip.frames.numpy() + GRAIN * grain[:, None]
    return torch.from_numpy(np.rint(frames).clip(0, 255).astype(np.uint8))


def _texture(draws: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A sum of waves of 3 to 16 pixels in all directions, of unit variance, at places x and y [f h w]."""
    (angles, phases), lengths = draws.uniform(0, 2 * np.pi, (2, WAVES)), draws.uniform(3, 16, WAVES)
    total = sum(
        np.sin(2 * np.pi * (np.cos(angle) * x + np.sin(angle) * y) / length + phase)
        for angle, phase, length in zip(angles, phases, lengths)
    )
    return total * np.sqrt(2 / WAVES)
