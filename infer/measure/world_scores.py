"""Scores of one video of the toy world, exact because the truth is known: motion, appearance and leakage.

Videos are taken apart once, then read by the analytic detectors of data/detectors.py (yes or no) and measured by
data/graded.py (how far). infer/measure/world_definitions.py says what each score means. Frames are uint8 [f c h w];
paths are (x, y) in pixels of a 64-pixel canvas.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from configs.errors import UserError
from data import graded
from data.detectors import Layers, compare_paths, read_clip, take_apart
from data.world import known_path, parse_prompt

APPEARANCE = ("shape", "colour", "background")


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

    @cached_property
    def layers(self) -> tuple[Layers, ...]:
        """The toy world's clips, each taken apart into ground and object."""
        return tuple(map(take_apart, self.frames))

    @property
    def is_world(self) -> bool:
        """Are the clips square and captioned in the toy world's words, so that its detectors can read them?"""
        return all(is_square(frames) for frames in self.frames) and all(map(speaks_world, self.captions))


def world_scores(frames: torch.Tensor, prompt: str, reference: ReferenceClips | None) -> dict[str, bool | float]:
    """The metrics of `WORLD_DEFINITIONS` for one video; without a reference neither path nor leakage, and whether the
    motion is the prompt's only where the prompt names one.

    Of several reference clips the path is their mean, the appearance of any of them counts as leakage, and graded
    leakage is towards the one that the video is drawn to most. A pull that cannot be measured is left out.
    """
    layers, wanted = take_apart(frames), parse_prompt(prompt)
    seen = read_clip(layers)
    found = {"shape": seen.shape, "colour": seen.colour, "background": seen.background}
    right = {name: found[name] == wanted[name] for name in APPEARANCE}
    scores = {
        "appearance_accuracy": all(right.values()),
        **{f"{name}_accuracy": hit for name, hit in right.items()},
        **graded.appearance(layers, wanted),
    }
    if len(frames) > 1:  # a single frame has no neighbour to be consistent with
        scores["frame_consistency"] = _frame_consistency(frames)
    if reference is None:
        asked = wanted["motion"]
        return scores if asked is None else {"motion_success": seen.motion == asked, **scores}
    captions = [parse_prompt(caption) for caption in reference.captions]
    path, shown = reference.path, _resampled(seen.trajectory, len(reference.path))
    motion = compare_paths(shown, path, known_path(captions[0]["motion"], len(path)))
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
        **graded.timing(shown, path),
        **scores,
        "leakage": bool(leaked),
        **_strongest_pull([graded.leakage(layers, wanted, clip) for clip in reference.layers]),
    }


def _strongest_pull(pulls: list[dict[str, float | None]]) -> dict[str, float]:
    """Of the pulls to each reference clip the strongest, whole; those that cannot be measured are left out."""
    strongest = max(pulls, key=lambda pull: -np.inf if (share := pull["appearance_pull"]) is None else share)
    return {name: share for name, share in strongest.items() if share is not None}


def _frame_consistency(frames: torch.Tensor) -> float:
    shown = [(seen.shape, seen.colour, seen.background) for seen in (read_clip(frame[None]) for frame in frames)]
    return float(np.mean([one == following and None not in one for one, following in zip(shown, shown[1:])]))


def is_of_world(frames: torch.Tensor, prompt: str, reference: ReferenceClips | None) -> bool:
    """Can `world_scores` measure this video of [f c h w]? Its detectors read square frames of the toy world alone."""
    return is_square(frames) and speaks_world(prompt) and (reference is None or reference.is_world)


def is_square(frames: torch.Tensor) -> bool:
    return frames.shape[-2] == frames.shape[-1]


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
