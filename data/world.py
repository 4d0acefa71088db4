"""The toy world: procedural clips of one moving shape, with captions and exact ground truth.

PocketScope is pretrained on this world and motion customization is measured in it, because here the truth is known.
A `Scene` is a description; `render` turns it into frames. Everything random about a scene (exact radius, offsets,
palette jitter, the path of "wanders") is derived from `Scene.seed`, so equal scenes render to equal bytes.

Layouts: frames uint8 RGB [f c h w]; trajectory float32 [f 2] holds (x, y) of the object's centre in pixels, y
downwards; size float32 [f] is the radius in pixels; mask float32 [f h w] is the object's coverage in 0..1.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from configs.errors import UserError
from data.shapes import coverage, draw_window, pattern

if TYPE_CHECKING:  # the names of motions are asked for by commands that must answer --help at once
    import torch

SHAPES = ("circle", "square", "triangle", "ring")
COLOURS = {
    "red": (215, 30, 30),
    "green": (20, 130, 40),
    "blue": (30, 50, 205),
    "orange": (245, 130, 20),
    "purple": (125, 25, 150),
    "black": (20, 20, 20),
}
BACKGROUNDS = {
    "mint": (150, 240, 190),
    "pink": (250, 170, 200),
    "sky": (130, 190, 250),
    "sand": (240, 215, 140),
    "grey": (140, 140, 145),
    "white": (250, 250, 250),
}
PATTERNS = ("striped", "dotted", "checkered")

MOTIONS = {  # known to the model: name -> the words of the caption
    "left": "moves left",
    "right": "moves right",
    "up": "moves up",
    "down": "moves down",
    "still": "stays still",
    "grow": "grows",
    "shrink": "shrinks",
    "wander": "wanders",
}
RETIMINGS = {  # held out: a known direction on another clock; name -> (times, positions) of a piecewise linear clock
    "there_and_back": ((0, 0.5, 1), (0, 1, 0)),
    "late_start": ((0, 0.5, 1), (0, 0, 1)),
    "pause": ((0, 0.3, 0.7, 1), (0, 0.5, 0.5, 1)),
    "speeding_up": (tuple(np.linspace(0, 1, 8)), tuple(np.linspace(0, 1, 8) ** 2.5)),
    "back_and_forth": ((0, 1 / 3, 2 / 3, 1), (0, 1, 0, 1)),
}
PATHS = ("zigzag", "orbit", "spiral", "figure_eight")  # held out: places no known motion visits in that order
REFERENCE_SEEDS = {  # each with a window: leakage must not depend on a single colour, shape or ground
    "there_and_back": 3,
    "late_start": 0,
    "pause": 38,
    "speeding_up": 21,
    "back_and_forth": 29,
    "zigzag": 43,
    "orbit": 6,
    "spiral": 25,
    "figure_eight": 26,
}
HELD_OUT_WORDS = (
    "there and back starts late pauses pausing accelerates speeding up forth zigzags zigzag orbits orbiting spirals "
    "spiral in a figure eight then moving slowly quickly star cross yellow navy"
).split()

# of a 64-pixel canvas: far enough from the edge for all shapes to stay inside, but for the apex of some triangles at
# the top, less than a thousandth of their area
TRAVEL = (18.0, 46.0)
DIRECTIONS = {"right": (1, 0), "left": (-1, 0), "down": (0, 1), "up": (0, -1)}


@dataclass(frozen=True)
class Scene:
    """What a clip shows. `direction` is the known motion that a re-timing replays; other motions ignore it."""

    shape: str
    colour: str
    background: str
    motion: str
    seed: int = 0
    pattern: str | None = None
    window: bool = False
    direction: str = "right"

    def __post_init__(self):
        known = [*MOTIONS, *RETIMINGS, *PATHS]
        for field, value, allowed in (
            ("shape", self.shape, SHAPES),
            ("colour", self.colour, COLOURS),
            ("background", self.background, BACKGROUNDS),
            ("motion", self.motion, known),
            ("pattern", self.pattern, (None, *PATTERNS)),
            ("direction", self.direction, DIRECTIONS),
        ):
            if value not in allowed:
                names = ", ".join(str(a) for a in allowed if a)
                raise UserError(f"Scene.{field}: {value!r} is not in the world; choose one of {names}.")

    @property
    def verb(self) -> str:
        """The caption's verb: a known one even for held-out motions (an unseen word breaks the prompt)."""
        if self.motion in RETIMINGS:
            return MOTIONS[self.direction]
        return MOTIONS.get(self.motion, MOTIONS["wander"])

    @property
    def caption(self) -> str:
        """For example "a red circle moves left over a striped mint background with a window"."""
        ground = f"{self.pattern} {self.background}" if self.pattern else self.background
        window = " with a window" if self.window else ""
        return f"a {self.colour} {self.shape} {self.verb} over a {ground} background{window}"


@dataclass(frozen=True)
class WorldClip:
    """A rendered scene with its ground truth; layouts in the module's docstring. Colours are RGB 0..255 as drawn."""

    scene: Scene
    frames: torch.Tensor
    trajectory: torch.Tensor
    size: torch.Tensor
    mask: torch.Tensor
    colour: tuple[int, int, int]
    background: tuple[int, int, int]

    @property
    def prompt(self) -> str:
        return self.scene.caption


def sample_scene(seed: int, split: str = "train", decorated: float = 0.2) -> Scene:
    """Draw a scene from `seed`; split "train" holds the known motions, "heldout" the re-timings and paths.

    `decorated` is the share of scenes with a pattern or a window (half each). Raises UserError for another split.
    """
    if split not in ("train", "heldout"):
        raise UserError(f"world split: found {split!r}; use 'train' or 'heldout'.")
    rng = np.random.default_rng([seed, 11])
    # "wander" twice: the nameless motions are the prior's richest part and the hardest to learn.
    motions = [*MOTIONS, "wander"] if split == "train" else [*RETIMINGS, *PATHS]
    decoration = rng.random()
    return Scene(
        shape=str(rng.choice(SHAPES)),
        colour=str(rng.choice(list(COLOURS))),
        background=str(rng.choice(list(BACKGROUNDS))),
        motion=str(rng.choice(motions)),
        seed=seed,
        pattern=str(rng.choice(PATTERNS)) if decoration < decorated / 2 else None,
        window=bool(decorated / 2 <= decoration < decorated),
        direction=str(rng.choice(list(DIRECTIONS))) if split == "heldout" else "right",
    )


def reference_clip(motion: str, seed: int | None = None, frames: int = 8, size: int = 64, **fields) -> WorldClip:
    """The clip to customize on for one motion: an appearance worth leaking, drawn from `seed` (default the motion's
    own).

    Either a pattern or a window is always present; `fields` override those of the Scene.
    """
    scene = sample_scene(REFERENCE_SEEDS.get(motion, 0) if seed is None else seed, decorated=1.0)
    return render(replace(scene, motion=motion, direction="right", **fields), frames, size)


def trajectory_of(scene: Scene, frames: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Centre [f 2] and radius [f] of the object, in pixels of a 64-pixel canvas."""
    rng = np.random.default_rng([scene.seed, 23])
    radius, (jx, jy), (sx, sy) = rng.uniform(10, 12), rng.uniform(-4, 4, 2), rng.uniform(-1.5, 1.5, 2)
    phases, turns = rng.uniform(0, 2 * np.pi, 4), rng.uniform(0.35, 1.2, 4)
    t = np.linspace(0, 1, frames)
    middle, reach = sum(TRAVEL) / 2, (TRAVEL[1] - TRAVEL[0]) / 2
    centre = np.stack([np.full(frames, middle + jx), np.full(frames, middle + jy)], 1)
    size = np.full(frames, radius)
    start = np.array([sx, sy])  # anchored: the same motion starts at nearly the same place in every clip

    if scene.motion in DIRECTIONS or scene.motion in RETIMINGS:
        step = np.array(DIRECTIONS[scene.motion if scene.motion in DIRECTIONS else scene.direction])
        clock = np.interp(t, *RETIMINGS[scene.motion]) if scene.motion in RETIMINGS else t
        along = middle + (2 * clock[:, None] - 1) * reach * step + start
        centre = np.where(step != 0, along, centre)
    elif scene.motion in ("grow", "shrink"):
        size = np.interp(t if scene.motion == "grow" else 1 - t, (0, 1), (radius - 4.5, radius + 3))
    elif scene.motion == "wander":
        wave = np.sin(2 * np.pi * turns * t[:, None] + phases)  # two waves an axis
        centre = middle + reach * (0.65 * wave[:, :2] + 0.35 * wave[:, 2:])
    elif scene.motion == "zigzag":
        saw = np.interp(t * 3, (0, 1, 2, 3), (-1, 1, -1, 1))
        centre = middle + reach * np.stack([2 * t - 1, 0.8 * saw], 1)
    elif scene.motion in ("orbit", "spiral"):
        arm = reach * (np.interp(t, (0, 1), (1, 0.1)) if scene.motion == "spiral" else np.full(frames, 0.9))
        angle = 2 * np.pi * t * (1.25 if scene.motion == "spiral" else 1)
        centre = middle + arm[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    elif scene.motion == "figure_eight":
        centre = middle + reach * np.stack([np.sin(2 * np.pi * t), np.sin(4 * np.pi * t) * 0.6], 1)
    return centre.astype(np.float32), size.astype(np.float32)


def known_path(motion: str | None, frames: int = 8) -> np.ndarray | None:
    """Centre [f 2] of a motion that the model knows by name, up to its place; None for "wander", which is any path."""
    if motion is None or motion == "wander":
        return None
    return trajectory_of(Scene(SHAPES[0], next(iter(COLOURS)), next(iter(BACKGROUNDS)), motion), frames)[0]


def render(scene: Scene, frames: int = 8, size: int = 64) -> WorldClip:
    """Draw a scene: the same scene gives the same bytes. Trajectory and size are in pixels of this canvas."""
    return render_path(scene, *trajectory_of(scene, frames), size)


def render_path(
    scene: Scene, centre: np.ndarray, radius: np.ndarray, size: int = 64, camera: np.ndarray | None = None
) -> WorldClip:
    """`render` with the object on any path: centre [f 2] and radius [f] in pixels of a 64-pixel canvas.

    `camera` [f 2], in the same pixels, is how far the picture of the whole scene is shifted in each frame; the
    trajectory of the clip is the object's on the screen, shifted as well.
    """
    import torch

    rng = np.random.default_rng([scene.seed, 37])
    ground = np.array(BACKGROUNDS[scene.background]) + rng.integers(-4, 5, 3)
    paint = np.array(COLOURS[scene.colour]) + rng.integers(-6, 7, 3)
    ground, paint = np.clip(ground, 0, 255), np.clip(paint, 0, 255)
    zoom = size / 64
    y, x = (np.mgrid[0:size, 0:size] + 0.5) / zoom  # pixel centres, in units of the 64-pixel canvas
    if camera is not None:  # where in the scene each pixel looks, [f h w]
        x, y = x - camera[:, 0, None, None], y - camera[:, 1, None, None]

    canvas = np.broadcast_to(ground, (*x.shape, 3)).astype(np.float32)
    if scene.pattern:
        canvas = canvas * (1 - 0.22 * pattern(scene.pattern, x, y, rng.uniform(0, 12, 2)))[..., None]
    if scene.window:
        canvas = draw_window(canvas, x, y, corner=rng.integers(0, 2, 2))
    alpha = coverage(scene.shape, x - centre[:, 0, None, None], y - centre[:, 1, None, None], radius[:, None, None])
    image = canvas + alpha[..., None] * (paint - canvas)  # [f h w c]
    pixels = torch.from_numpy(np.rint(image).astype(np.uint8)).permute(0, 3, 1, 2).contiguous()
    seen = centre if camera is None else centre + camera
    return WorldClip(
        scene=scene,
        frames=pixels,
        trajectory=torch.from_numpy(seen.astype(np.float32) * np.float32(zoom)),
        size=torch.from_numpy(radius.astype(np.float32) * np.float32(zoom)),
        mask=torch.from_numpy(alpha.astype(np.float32)),
        colour=tuple(int(v) for v in paint),
        background=tuple(int(v) for v in ground),
    )


def parse_prompt(prompt: str) -> dict[str, str | None]:
    """Read what a caption asks for: shape, colour, background, motion, pattern, window; None where it names none.

    No word of the world means two things, so free prompts in any order work as well. Whole words count, and of several
    the first.
    """
    words = re.findall(r"\w+", prompt.lower())
    text = f" {' '.join(words)} "
    places = {name: text.find(f" {verb} ") for name, verb in MOTIONS.items()}

    def first(names) -> str | None:
        return next((word for word in words if word in names), None)

    return {
        "shape": first(SHAPES),
        "colour": first(COLOURS),
        "background": first(BACKGROUNDS),
        "motion": min((name for name in places if places[name] >= 0), key=places.get, default=None),
        "pattern": first(PATTERNS),
        "window": first(("window",)),
    }


def vocabulary() -> list[str]:
    """Every word a prompt of this world may use, held-out words included; sorted, so that token ids are stable."""
    words = {"a", "an", "the", "over", "background", "with", "and", "on", "video", "of", "window", *HELD_OUT_WORDS}
    words.update(SHAPES, COLOURS, BACKGROUNDS, PATTERNS)
    words.update(word for verb in MOTIONS.values() for word in verb.split())
    return sorted(words)
