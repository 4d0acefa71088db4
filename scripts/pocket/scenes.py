"""The scenes of the example clips: a turning car, a dolly zoom, zooms in and out, placed by hand for the ray tracer.

A scene is a function of u in [0, 1], the share of the clip that has passed; it gives solids, the ground's colour and a
camera (scripts/pocket/tracer.py). Points are float32 [n 3], metres, y up; frames are uint8 [f h w c].
"""

import numpy as np

from scripts.pocket.tracer import Colour, Solid, View, trace

SIZE, SAMPLES = 384, 2  # pixels a side, rays a pixel's side
FRAMES, FPS = 33, 16  # two seconds: ZeroScope takes the first 16 of every second frame, Wan takes all


def _checks(points: np.ndarray, step: float, one: tuple, two: tuple) -> np.ndarray:
    odd = (np.floor(points[:, 0] / step) + np.floor(points[:, 2] / step)) % 2
    return np.where(odd[:, None] == 1, one, two).astype(np.float32)


def tree(x: float, z: float, tall: float, green: tuple[float, float, float] = (0.07, 0.3, 0.1)) -> list[Solid]:
    return [
        Solid("cylinder", (x, 0.2 * tall, z), (0.06 * tall, 0.2 * tall, 0.06 * tall), (0.25, 0.14, 0.07)),
        Solid("cone", (x, 0.6 * tall, z), (0.3 * tall, 0.4 * tall, 0.3 * tall), green),
    ]


def car(x: float, z: float, heading: float) -> list[Solid]:
    """A red hatchback that drives along its own +z."""
    c, s = np.cos(heading), np.sin(heading)

    def put(dx: float, y: float, dz: float) -> tuple[float, float, float]:
        return x + c * dx + s * dz, y, z - s * dx + c * dz

    def body(p: np.ndarray) -> np.ndarray:
        front, back = (p[:, 2] > 0.97), (p[:, 2] < -0.97)
        lamp = (np.abs(p[:, 0]) > 0.55) & (np.abs(p[:, 1] - 0.15) < 0.4)
        paint = np.where((front & lamp)[:, None], [1.0, 0.95, 0.6], [0.65, 0.04, 0.03])
        return np.where((back & lamp)[:, None], [0.9, 0.25, 0.02], paint)

    def cabin(p: np.ndarray) -> np.ndarray:
        pillar = (np.abs(np.abs(p[:, 2]) - 0.9) < 0.1) & (np.abs(p[:, 0]) > 0.99) | (np.abs(p[:, 2]) < 0.07)
        glass = (np.abs(p[:, 1]) < 0.75) & ~pillar
        return np.where(glass[:, None], [0.03, 0.07, 0.12], [0.65, 0.04, 0.03])

    parts = [
        Solid("box", put(0, 0.72, 0), (0.92, 0.36, 2.1), body, heading),
        Solid("box", put(0, 1.36, -0.25), (0.78, 0.3, 1.15), cabin, heading),
    ]
    for dx in (-0.88, 0.88):
        for dz in (-1.3, 1.3):
            parts += [
                Solid("sphere", put(dx, 0.4, dz), (0.14, 0.4, 0.4), (0.02, 0.02, 0.02), heading),
                Solid("sphere", put(1.12 * dx, 0.4, dz), (0.06, 0.2, 0.2), (0.6, 0.6, 0.62), heading),
            ]
    return parts


BEND = 8.0  # metres, radius of the road's right turn about (BEND, 0)


def bend_road(p: np.ndarray) -> np.ndarray:
    """Grass with a road that comes along +z, turns right through a quarter circle and leaves along +x."""
    x, z = p[:, 0], p[:, 2]
    arc = np.hypot(x - BEND, z)
    off = np.where(x > BEND, z - BEND, np.where(z < 0, -x, arc - BEND))
    along = np.where(x > BEND, 1.57 * BEND + x - BEND, np.where(z < 0, z, BEND * np.arctan2(z, BEND - x)))
    dash = (np.abs(off) < 0.1) & (along % 3 < 1.6)
    edge = np.abs(np.abs(off) - 2.9) < 0.1
    road = np.where((dash | edge)[:, None], [0.8, 0.8, 0.75], [0.11, 0.11, 0.12])
    return np.where((np.abs(off) < 3.2)[:, None], road, _checks(p, 4, (0.14, 0.3, 0.07), (0.16, 0.34, 0.08)))


def car_turn(u: float) -> tuple[list[Solid], Colour, View]:
    """u in [0, 1]: the car comes towards the camera's left and leaves to the right, through the whole bend."""
    along = -0.5 + u * (1.57 * BEND + 2.0)
    lane = BEND - 1.4  # drives on the inner lane
    if along < 0:
        x, z, heading = 1.4, along, 0.0
    elif along < 1.57 * BEND:
        heading = along / BEND
        x, z = BEND - lane * np.cos(heading), lane * np.sin(heading)
    else:
        x, z, heading = BEND + along - 1.57 * BEND, lane, np.pi / 2
    trees = [
        tree(*spot)
        for spot in ((-6, 4, 4.5), (-5, 12, 5.5), (2, 14, 5), (9, 15, 6), (16, 14, 4.5), (-9, -3, 5), (22, 16, 6))
    ]
    solids = car(x, z, heading) + [solid for parts in trees for solid in parts]
    return solids, bend_road, View((8.6, 4.4, -2.2), (5.4, 0.2, 4.6), 1.12)


def dolly_zoom(u: float) -> tuple[list[Solid], Colour, View]:
    """The camera backs away while its lens closes in: the figure keeps its size, the colonnade behind it swells."""
    distance = 3.2 + 10.8 * u
    stone = (0.62, 0.56, 0.47)
    figure = [
        Solid("cylinder", (0, 0.25, 0), (0.55, 0.25, 0.55), (0.3, 0.3, 0.33)),
        Solid("sphere", (0, 0.95, 0), (0.5, 0.62, 0.32), (0.06, 0.2, 0.5)),
        Solid("cylinder", (0, 1.5, 0), (0.12, 0.15, 0.12), (0.75, 0.5, 0.38)),
        Solid("sphere", (0, 1.82, 0), (0.25, 0.31, 0.27), (0.75, 0.5, 0.38)),
        Solid("sphere", (0, 1.92, 0.04), (0.265, 0.26, 0.28), (0.12, 0.06, 0.03)),
    ]
    columns = []
    for z in range(3, 28, 4):
        for x in (-2.6, 2.6):
            columns += [
                Solid("cylinder", (x, 1.6, z), (0.32, 1.6, 0.32), stone),
                Solid("box", (x, 3.3, z), (0.45, 0.12, 0.45), stone),
                Solid("box", (x, 0.1, z), (0.45, 0.1, 0.45), stone),
            ]
    temple = [
        Solid("box", (0, 2.0, 34), (4.5, 2.0, 1), (0.55, 0.3, 0.2)),
        Solid("cone", (0, 5.2, 34), (6, 1.2, 2), (0.4, 0.13, 0.1)),
        Solid("box", (0, 1.2, 32.9), (1.0, 1.2, 0.2), (0.06, 0.04, 0.03)),
    ]
    return (
        figure + columns + temple,
        lambda p: _checks(p, 1.2, (0.5, 0.46, 0.4), (0.27, 0.25, 0.23)),
        View((0, 1.55, -distance), (0, 1.35, 0), 0.42 * distance),
    )


def lighthouse(_: float) -> tuple[list[Solid], Colour]:
    def bands(p: np.ndarray) -> np.ndarray:
        return np.where(((p[:, 1] * 3) % 2 < 1)[:, None], [0.75, 0.06, 0.05], [0.85, 0.85, 0.82])

    def shore(p: np.ndarray) -> np.ndarray:
        wave = np.sin(1.3 * p[:, 0] + 2 * np.sin(0.4 * p[:, 2])) * np.sin(0.9 * p[:, 2]) > 0.75
        sea = np.where(wave[:, None], [0.25, 0.45, 0.55], [0.05, 0.22, 0.36])
        radius = np.hypot(p[:, 0], 0.8 * (p[:, 2] - 1))
        return np.where((radius < 6)[:, None], [0.16, 0.34, 0.1], np.where((radius < 7)[:, None], [0.7, 0.6, 0.4], sea))

    house = [
        Solid("box", (-2.6, 0.7, 0.5), (1.1, 0.7, 0.9), (0.8, 0.74, 0.6)),
        Solid("cone", (-2.6, 1.9, 0.5), (1.9, 0.5, 1.7), (0.45, 0.14, 0.08)),
        Solid("box", (-2.6, 0.45, -0.42), (0.22, 0.45, 0.04), (0.2, 0.1, 0.05)),
        Solid("box", (-3.2, 0.8, -0.42), (0.2, 0.2, 0.04), (0.9, 0.75, 0.3)),
    ]
    tower = [
        Solid("cylinder", (0, 2.6, 1), (0.8, 2.6, 0.8), bands),
        Solid("cylinder", (0, 5.3, 1), (1.05, 0.1, 1.05), (0.15, 0.15, 0.17)),
        Solid("cylinder", (0, 5.8, 1), (0.5, 0.4, 0.5), (1.0, 0.9, 0.45)),
        Solid("cone", (0, 6.6, 1), (0.7, 0.4, 0.7), (0.6, 0.06, 0.05)),
    ]
    boat = [
        Solid("box", (9, 0.3, 8), (1.4, 0.3, 0.5), (0.5, 0.25, 0.1)),
        Solid("cone", (9, 2.2, 8), (1.0, 1.6, 0.1), (0.9, 0.9, 0.88)),
    ]
    return house + tower + boat + tree(3.2, -0.5, 2.2) + tree(3.9, 1.8, 2.8) + tree(-4.6, 2.4, 2.6), shore


def desert(_: float) -> tuple[list[Solid], Colour]:
    def steps(p: np.ndarray) -> np.ndarray:
        return np.where(((p[:, 1] * 8) % 2 < 0.25)[:, None], [0.4, 0.26, 0.12], [0.72, 0.52, 0.27])

    def sand(p: np.ndarray) -> np.ndarray:
        ripple = np.sin(2.2 * p[:, 2] + 1.5 * np.sin(0.5 * p[:, 0]))[:, None]
        return np.array([0.68, 0.5, 0.28]) * (1 + 0.1 * ripple)

    pyramids = [
        Solid("cone", (x, tall / 2, z), (tall, tall / 2, tall), steps)
        for x, z, tall in ((0, 12, 6), (-9, 17, 4), (10, 20, 5))
    ]
    oasis = [Solid("cylinder", (-1.6, 0.02, 1.5), (2.0, 0.02, 1.2), (0.06, 0.3, 0.42))]
    tent = [
        Solid("cone", (1.9, 0.8, 0), (1.1, 0.8, 1.1), (0.7, 0.1, 0.08)),
        Solid("cone", (1.9, 1.25, 0), (0.5, 0.36, 0.5), (0.92, 0.85, 0.7)),
        Solid("box", (1.7, 0.3, -0.95), (0.2, 0.3, 0.1), (0.08, 0.03, 0.02)),
    ]
    greens = (
        tree(-3.2, 2.2, 2.0, (0.12, 0.35, 0.08))
        + tree(-0.4, 3.0, 2.4, (0.12, 0.35, 0.08))
        + tree(3.6, 2.6, 1.8, (0.12, 0.35, 0.08))
    )
    return pyramids + oasis + tent + greens, sand


def zoom_in(u: float) -> tuple[list[Solid], Colour, View]:
    """A real zoom: the camera stands still and only its focal length grows, to three times."""
    return *lighthouse(u), View((3, 3.2, -17), (-0.4, 3.1, 1), 1.5 * 3**u)


def zoom_out(u: float) -> tuple[list[Solid], Colour, View]:
    """The same backwards, over another scene."""
    return *desert(u), View((-2, 2.4, -11), (1.2, 1.2, 1), 4.2 * 3**-u)


CLIPS = {"car_turn": car_turn, "dolly_zoom": dolly_zoom, "zoom_in": zoom_in, "zoom_out": zoom_out}


def render_clip(name: str, frames: int = FRAMES, size: int = SIZE, samples: int = SAMPLES) -> np.ndarray:
    """Frames uint8 [f h w c] of one clip, evenly spread over its motion."""
    return np.stack([trace(*CLIPS[name](number / (frames - 1)), size, samples) for number in range(frames)])
