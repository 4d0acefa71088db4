"""Scores of one video of the toy world, exact because the truth is known: motion, appearance and leakage.

Videos are read by the analytic detectors of data/detectors.py. Frames are uint8 [f c h w]; paths are (x, y) in pixels
of a 64-pixel canvas.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from configs.errors import UserError
from data.detectors import SUCCESS_CORRELATION, SUCCESS_RMSE, compare_paths, read_clip
from data.world import known_path, parse_prompt
from infer.measure.metrics import Definition

WORLD = "analytic detectors"
APPEARANCE = ("shape", "colour", "background")
WORLD_DEFINITIONS = {
    "motion_success": Definition(
        "motion success",
        WORLD,
        f"share of videos whose object's path is within {SUCCESS_RMSE:g} pixels of 64 (root "
        f"mean square, {SUCCESS_RMSE / 0.64:.1f} % of the canvas) of the reference's, each path around its own mean, "
        f"correlates with it above {SUCCESS_CORRELATION:g}, and is nearer to it than to the motion that its caption "
        "names; without a reference, whose motion is the prompt's",
        "data/detectors.py",
        "up",
    ),
    "correlation": Definition(
        "path correlation",
        WORLD,
        "correlation of the object's path with the reference's, both axes together; 0 where a frame lacks the object",
        "data/detectors.py",
        "up",
    ),
    "rmse": Definition(
        "path error",
        WORLD,
        "root mean square distance to the reference's path in pixels of 64, each path around its own "
        "mean; a frame without the object counts as 64",
        "data/detectors.py",
        "down",
    ),
    "appearance_accuracy": Definition(
        "appearance accuracy",
        WORLD,
        "share of videos with the prompt's shape, colour and background",
        "data/detectors.py",
        "up",
    ),
    "shape_accuracy": Definition("shape", WORLD, "share with the prompt's shape", "data/detectors.py", "up"),
    "colour_accuracy": Definition("colour", WORLD, "share with the prompt's colour", "data/detectors.py", "up"),
    "background_accuracy": Definition(
        "background", WORLD, "share with the prompt's background", "data/detectors.py", "up"
    ),
    "frame_consistency": Definition(
        "frame consistency",
        WORLD,
        "share of neighbouring frames that, each read alone, show the same shape, colour and background",
        "data/detectors.py",
        "up",
    ),
    "leakage": Definition(
        "leakage",
        WORLD,
        "share of videos that show the reference's colour, background or window where the prompt asks for another",
        "data/detectors.py",
        "down",
    ),
}


@dataclass(frozen=True)
class ReferenceClips:
    """The clips whose motion was learned: frames uint8 [f c h w] and caption of each."""

    frames: tuple[torch.Tensor, ...]
    captions: tuple[str, ...]

    @cached_property
    def path(self) -> np.ndarray:
        """Mean path [f 2] of the toy world's clips, at the length of the first.

        Raises UserError when the object is lost in some frame of every clip.
        """
        paths = [read_clip(clip).trajectory for clip in self.frames]
        whole = [_resampled(path, len(paths[0])) for path in paths if np.isfinite(path).all()]
        if not whole:
            raise UserError(
                "the reference clip: its object cannot be followed through every frame; give a clip of the toy world "
                "in which the object stays in view"
            )
        return np.mean([path - path.mean(0) for path in whole], axis=0)

    @property
    def is_world(self) -> bool:
        """Are the clips square and captioned in the toy world's words, so that its detectors can read them?"""
        square = all(frames.shape[2] == frames.shape[3] for frames in self.frames)
        return square and all(speaks_world(caption) for caption in self.captions)


def world_scores(frames: torch.Tensor, prompt: str, reference: ReferenceClips | None) -> dict[str, bool | float]:
    """The metrics of `WORLD_DEFINITIONS` for one video; without a reference neither path nor leakage.

    Of several reference clips the path is their mean, and the appearance of any of them counts as leakage.
    """
    wanted, seen = parse_prompt(prompt), read_clip(frames)
    found = {"shape": seen.shape, "colour": seen.colour, "background": seen.background}
    right = {name: found[name] == wanted[name] for name in APPEARANCE}
    scores = {
        "appearance_accuracy": all(right.values()),
        **{f"{name}_accuracy": hit for name, hit in right.items()},
        "frame_consistency": _frame_consistency(frames),
    }
    if reference is None:
        return {"motion_success": seen.motion == wanted["motion"], **scores}
    captions = [parse_prompt(caption) for caption in reference.captions]
    path = reference.path
    named = known_path(captions[0]["motion"], len(path))
    motion = compare_paths(_resampled(seen.trajectory, len(path)), path, named)
    leaked = any(
        found[name] is not None and found[name] != wanted[name] and found[name] == caption[name]
        for caption in captions
        for name in ("colour", "background")
    )
    leaked |= seen.window and not wanted["window"] and any(caption["window"] for caption in captions)
    return {
        "motion_success": motion["success"],
        "correlation": motion["correlation"],
        "rmse": motion["rmse"],
        **scores,
        "leakage": bool(leaked),
    }


def _frame_consistency(frames: torch.Tensor) -> float:
    shown = [(seen.shape, seen.colour, seen.background) for seen in (read_clip(frame[None]) for frame in frames)]
    return float(np.mean([one == following and None not in one for one, following in zip(shown, shown[1:])]))


def speaks_world(text: str) -> bool:
    """Does this prompt name a shape, a colour and a background of the toy world?"""
    words = parse_prompt(text)
    return all(words[name] for name in APPEARANCE)


def _resampled(path: np.ndarray, frames: int) -> np.ndarray:
    """A path [f 2] resampled in time to `frames`; the NaN of a frame without the object spreads to its neighbours."""
    if len(path) == frames:
        return path
    places, whole = np.linspace(0, 1, frames), np.linspace(0, 1, len(path))
    return np.stack([np.interp(places, whole, path[:, axis]) for axis in range(2)], 1)
