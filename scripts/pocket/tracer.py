"""A small deterministic ray tracer in numpy: spheres, boxes, cylinders and cones on a plane, under one sun.

Made for the example clips of scripts/render_clips.py. Points and directions are float32 [n 3], metres, y up; colours
are linear light in 0..1; a frame is uint8 [h w c].
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

SUN = np.array([0.55, 0.75, -0.36], np.float32)  # unit length
FAR = 1e4

Colour = Callable[[np.ndarray], np.ndarray] | tuple[float, float, float]


@dataclass
class Solid:
    """A unit shape (radius or half side 1) stretched by `size`, turned by `heading` about y and moved to `place`."""

    shape: str
    place: tuple[float, float, float]
    size: tuple[float, float, float]
    colour: Colour
    heading: float = 0.0

    @property
    def turn(self) -> np.ndarray:
        """From the world's axes to its own; at heading h its +z points to (sin h, 0, cos h)."""
        c, s = np.cos(self.heading), np.sin(self.heading)
        return np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]], np.float32)

    def local(self, vectors: np.ndarray) -> np.ndarray:
        return (vectors @ self.turn.T) / np.array(self.size, np.float32)

    def hit(self, origin: np.ndarray, direction: np.ndarray) -> np.ndarray:
        """Distance along each ray (unit directions) to the solid, FAR where it is missed."""
        distance = np.full(len(origin), FAR, np.float32)
        offset = origin - np.array(self.place, np.float32)
        along = np.einsum("ij,ij->i", offset, direction)
        near = np.einsum("ij,ij->i", offset, offset) - along * along < np.square(self.size).sum()  # its outer sphere
        if near.any():
            distance[near] = INTERSECT[self.shape](self.local(offset[near]), self.local(direction[near]))
        return distance

    def surface(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Outward unit normals and colours at points of its surface."""
        p = self.local(points - np.array(self.place, np.float32))
        n = NORMAL[self.shape](p) / np.array(self.size, np.float32)
        n = n @ self.turn
        return n / np.linalg.norm(n, axis=1, keepdims=True), _paint(self.colour, p)


def _paint(colour: Colour, points: np.ndarray) -> np.ndarray:
    return colour(points) if callable(colour) else np.broadcast_to(np.array(colour, np.float32), points.shape)


def _nearest_root(
    a: np.ndarray, b: np.ndarray, c: np.ndarray, allowed: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """The smallest positive t with a t^2 + 2 b t + c = 0 that `allowed(t)`, else FAR."""
    a = np.where(np.abs(a) < 1e-9, 1e-9, a)
    root = np.sqrt(np.maximum(b * b - a * c, 0))
    best = np.full_like(b, FAR)
    for t in ((-b - root) / a, (-b + root) / a):
        best = np.where((b * b >= a * c) & (t > 1e-3) & allowed(t) & (t < best), t, best)
    return best


def _hit_sphere(o: np.ndarray, d: np.ndarray) -> np.ndarray:
    return _nearest_root((d * d).sum(1), (o * d).sum(1), (o * o).sum(1) - 1, np.isfinite)


def _hit_box(o: np.ndarray, d: np.ndarray) -> np.ndarray:
    d = np.where(np.abs(d) < 1e-9, 1e-9, d)
    one, two = (-1 - o) / d, (1 - o) / d
    enter, leave = np.minimum(one, two).max(1), np.maximum(one, two).min(1)
    return np.where((enter < leave) & (enter > 1e-3), enter, FAR)


def _hit_cap(o: np.ndarray, d: np.ndarray, height: float) -> np.ndarray:
    t = (height - o[:, 1]) / np.where(np.abs(d[:, 1]) < 1e-9, 1e-9, d[:, 1])
    x, z = o[:, 0] + t * d[:, 0], o[:, 2] + t * d[:, 2]
    return np.where((t > 1e-3) & (x * x + z * z <= 1), t, FAR)


def _hit_cylinder(o: np.ndarray, d: np.ndarray) -> np.ndarray:
    (ox, oy, oz), (dx, dy, dz) = o.T, d.T
    side = _nearest_root(
        dx * dx + dz * dz, ox * dx + oz * dz, ox * ox + oz * oz - 1, lambda t: np.abs(oy + t * dy) <= 1
    )
    return np.minimum(side, np.minimum(_hit_cap(o, d, 1), _hit_cap(o, d, -1)))


def _hit_cone(o: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Apex at y = 1, radius 1 at y = -1."""
    (ox, oy, oz), (dx, dy, dz) = o.T, d.T
    ky, kd = (1 - oy) / 2, -dy / 2
    side = _nearest_root(
        dx * dx + dz * dz - kd * kd,
        ox * dx + oz * dz - ky * kd,
        ox * ox + oz * oz - ky * ky,
        lambda t: np.abs(oy + t * dy) <= 1,
    )
    return np.minimum(side, _hit_cap(o, d, -1))


def _normal_box(p: np.ndarray) -> np.ndarray:
    return np.sign(p) * (np.abs(p) >= np.abs(p).max(1, keepdims=True) - 1e-4)


def _normal_cylinder(p: np.ndarray) -> np.ndarray:
    cap = np.abs(p[:, 1:2]) > 1 - 1e-3
    return np.where(cap, np.sign(p) * [0, 1, 0], p * [1, 0, 1]).astype(np.float32)


def _normal_cone(p: np.ndarray) -> np.ndarray:
    radius = np.linalg.norm(p[:, [0, 2]], axis=1)
    return np.stack([p[:, 0], radius / 2, p[:, 2]], 1) + 1e-6


INTERSECT = {"sphere": _hit_sphere, "box": _hit_box, "cylinder": _hit_cylinder, "cone": _hit_cone}
NORMAL = {"sphere": lambda p: p, "box": _normal_box, "cylinder": _normal_cylinder, "cone": _normal_cone}


@dataclass
class View:
    """A camera at `eye` looking at `at`; `focal` is in half image widths."""

    eye: tuple[float, float, float]
    at: tuple[float, float, float]
    focal: float


def trace(solids: list[Solid], ground: Colour, view: View, size: int, samples: int) -> np.ndarray:
    """One frame, uint8 [size size 3], samples x samples rays a pixel; sun with shadows, light from the sky, haze."""
    n = size * samples
    eye, forward = np.array(view.eye, np.float32), np.subtract(view.at, view.eye).astype(np.float32)
    forward /= np.linalg.norm(forward)
    right = np.cross([0, 1, 0], forward)
    right /= np.linalg.norm(right)
    grid = (2 * (np.arange(n, dtype=np.float32) + 0.5) / n - 1) / view.focal
    x, y = np.meshgrid(grid, -grid)
    direction = x.reshape(-1, 1) * right + y.reshape(-1, 1) * np.cross(forward, right) + forward
    direction = (direction / np.linalg.norm(direction, axis=1, keepdims=True)).astype(np.float32)
    colour = _light(solids, ground, np.broadcast_to(eye, direction.shape), direction)
    colour = colour.reshape(size, samples, size, samples, 3).mean((1, 3))
    return (255 * np.clip(colour, 0, 1) ** (1 / 2.2) + 0.5).astype(np.uint8)  # linear light -> sRGB-like


def _light(solids: list[Solid], ground: Colour, origin: np.ndarray, direction: np.ndarray) -> np.ndarray:
    down = np.where(direction[:, 1] < -1e-6, direction[:, 1], -1e-6)
    distance = np.where(direction[:, 1] < -1e-6, -origin[:, 1] / down, FAR)
    which = np.where(distance < FAR, len(solids), -1)  # -1: sky, len(solids): the ground
    for number, solid in enumerate(solids):
        t = solid.hit(origin, direction)
        which, distance = np.where(t < distance, number, which), np.minimum(t, distance)
    sky = _sky(direction)
    result = sky.copy()
    for number in np.unique(which[which >= 0]):
        here = which == number
        points = origin[here] + distance[here, None] * direction[here]
        if number == len(solids):
            normals, paint = np.broadcast_to(np.array([0, 1, 0], np.float32), points.shape), _paint(ground, points)
        else:
            normals, paint = solids[number].surface(points)
        start = points + 1e-2 * normals
        toward = np.broadcast_to(SUN, start.shape)
        lit = np.maximum(normals @ SUN, 0)
        for solid in solids:
            lit = lit * (solid.hit(start, toward) >= FAR)
        light = 0.95 * lit[:, None] * [1.0, 0.95, 0.85] + (0.3 + 0.15 * normals[:, 1:2]) * [0.75, 0.9, 1.1]
        haze = np.exp(-distance[here, None] / 220)
        result[here] = paint * light * haze + _sky(direction[here] * [1, 0, 1]) * (1 - haze)
    return result


def _sky(direction: np.ndarray) -> np.ndarray:
    height = np.clip(direction[:, 1:2], 0, 1) ** 0.6
    return (1 - height) * [0.72, 0.82, 0.9] + height * [0.16, 0.36, 0.75]
