"""Measure a folder of sampled videos by their sidecars: prompt, seed and reference clip stand beside every video.

On the toy world the measures are exact, because the truth is known (data/detectors.py); on any other video they are
those of infer/measure/metrics.py. What can not be measured becomes one sentence, and the rest goes on. Frames are uint8
[f c h w]; paths are (x, y) in pixels of a 64-pixel canvas.
"""

import contextlib
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from configs.errors import UserError
from configs.schema import from_dict
from data.detectors import SUCCESS_CORRELATION, SUCCESS_RMSE, compare_paths, read_clip
from data.sources import load_clips
from data.world import known_path, parse_prompt
from infer.measure.metrics import DEFINITIONS, Definition, Measure
from infer.measure.statistics import Estimate, estimate
from infer.video import read_video

SNAP = 64  # pixels that sides are a multiple of: a VAE of 8 and ZeroScope's three halvings
WORLD = "analytic detectors"
LOOKS = ("shape", "colour", "background")
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
ALL_DEFINITIONS = WORLD_DEFINITIONS | DEFINITIONS


@dataclass(frozen=True)
class Sample:
    """A video file and its sidecar."""

    video: Path
    sidecar: dict


@dataclass(frozen=True)
class Reference:
    """The clips whose motion was learned: frames uint8 [f c h w] and caption of each."""

    frames: tuple[torch.Tensor, ...]
    captions: tuple[str, ...]

    @cached_property
    def path(self) -> np.ndarray:
        """Mean path [f 2] of the toy world's clips, at the length of the first. Raises UserError where none is seen."""
        paths = [read_clip(clip).trajectory for clip in self.frames]
        whole = [_at_length(path, len(paths[0])) for path in paths if np.isfinite(path).all()]
        if not whole:
            raise UserError(
                "no moving object of the toy world is seen in every frame of the reference clip; give another"
            )
        return np.mean([path - path.mean(0) for path in whole], axis=0)

    @property
    def is_world(self) -> bool:
        """Captioned in the toy world's words and square, so that the world's detectors can read it."""
        square = all(frames.shape[2] == frames.shape[3] for frames in self.frames)
        return square and all(speaks_world(caption) for caption in self.captions)


@dataclass
class Evaluation:
    """One row per video (video, prompt, seed, then metrics by name) and a sentence for everything left out."""

    rows: list[dict] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    models: dict[str, str] = field(default_factory=dict)

    def summary(self) -> dict[str, Estimate]:
        """Every metric over all videos that have it, with its 95 % interval."""
        return summarize(self.rows)


def summarize(rows: Iterable[dict]) -> dict[str, Estimate]:
    """Metric -> estimate over the rows that hold it; a row's `reference` names its clip where there are several."""
    rows = list(rows)
    having = {name: [row for row in rows if row.get(name) is not None] for name in ALL_DEFINITIONS}
    return {
        name: estimate([row[name] for row in found], [row.get("reference") for row in found])
        for name, found in having.items()
        if found
    }


def evaluate(folder: Path, measure: Measure, reference: Reference | None = None) -> Evaluation:
    """Measure every video in `folder`. `reference` overrides the one that the sidecars name.

    Raises UserError when the folder holds no video at all.
    """
    samples, problems = find_samples(folder)
    result = Evaluation(problems=problems, models=measure.models)
    references: dict[str, Reference | None] = {}
    lost = set()  # references that a sidecar names but that are not there
    for sample in samples:
        config = sample.sidecar.get("config")
        key = json.dumps(config and config.get("train_data"), sort_keys=True)
        if key not in references:
            try:
                references[key] = reference or reference_of(config)
            except UserError as error:
                references[key] = None
                lost.add(key)
                result.problems.append(f"the reference clip: {error}")
        try:
            scores = measure_video(read_video(sample.video), sample.sidecar["prompt"], references[key], measure)
        except UserError as error:
            result.problems.append(f"{sample.video.name}: {error}")
            continue
        result.problems += [f"{sample.video.name}: {sentence}" for sentence in measure.skipped]
        if key in lost:
            scores.pop(
                "motion_success", None
            )  # it would tell whether the motion is the prompt's, which is another question
        result.rows.append(
            {"video": sample.video.name, "prompt": sample.sidecar["prompt"], "seed": sample.sidecar["seed"], **scores}
        )
    if samples and not any(references.values()):
        result.problems.append(
            f"{folder}: no reference clip is known, so neither its motion nor leakage is measured; give "
            "--reference CLIP and --caption TEXT"
        )
    result.problems += measure.unavailable.values()
    result.problems = list(dict.fromkeys(result.problems))
    return result


def measure_video(frames: torch.Tensor, prompt: str, reference: Reference | None, measure: Measure) -> dict:
    """The world's measures where prompt and reference are of the toy world, else `measure`'s, against the first
    clip.
    """
    if speaks_world(prompt) and (reference is None or reference.is_world):
        return world_scores(frames, prompt, reference)
    return measure(frames, prompt, reference and reference.frames[0], reference and reference.captions[0])


def world_scores(frames: torch.Tensor, prompt: str, reference: Reference | None) -> dict[str, bool | float]:
    """The metrics of `WORLD_DEFINITIONS` for one video; without a reference neither path nor leakage.

    Of several reference clips the path is their mean, and leakage is the looks of any of them.
    """
    wanted, seen = parse_prompt(prompt), read_clip(frames)
    found = {"shape": seen.shape, "colour": seen.colour, "background": seen.background}
    right = {name: found[name] == wanted[name] for name in LOOKS}
    scores = {
        "appearance_accuracy": all(right.values()),
        **{f"{name}_accuracy": hit for name, hit in right.items()},
        "frame_consistency": _frame_consistency(frames),
    }
    if reference is None:
        return {"motion_success": seen.motion == wanted["motion"], **scores}
    shown = [parse_prompt(caption) for caption in reference.captions]
    path = reference.path
    named = known_path(shown[0]["motion"], len(path))
    motion = compare_paths(_at_length(seen.trajectory, len(path)), path, named)
    leaked = any(
        found[name] is not None and found[name] != wanted[name] and found[name] == look[name]
        for look in shown
        for name in ("colour", "background")
    )
    leaked |= seen.window and not wanted["window"] and any(look["window"] for look in shown)
    return {
        "motion_success": motion["success"],
        "correlation": motion["correlation"],
        "rmse": motion["rmse"],
        **scores,
        "leakage": bool(leaked),
    }


def _frame_consistency(frames: torch.Tensor) -> float:
    looks = [(seen.shape, seen.colour, seen.background) for seen in (read_clip(frame[None]) for frame in frames)]
    return float(np.mean([one == next_one and None not in one for one, next_one in zip(looks, looks[1:])]))


def speaks_world(text: str) -> bool:
    """Does this prompt name a shape, a colour and a background of the toy world?"""
    words = parse_prompt(text)
    return all(words[name] for name in LOOKS)


def find_samples(folder: Path) -> tuple[list[Sample], list[str]]:
    """Videos with their sidecars, by name, and a sentence for each that lacks its other half.

    Raises UserError when there is no video (mp4, gif, or a folder of frames) in `folder`.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give one that infer/infer.py wrote videos into")
    videos = sorted(
        path
        for path in folder.iterdir()
        if not path.name.startswith(".")
        and (path.suffix in (".mp4", ".gif") or (path.is_dir() and any(path.glob("*.png"))))
    )
    if not videos:
        raise UserError(f"{folder}: no video in it (mp4, gif or folders of frames); give a folder of samples")
    samples, problems = [], []
    for video in videos:
        notes = video.with_suffix(".json") if video.suffix else video.with_name(f"{video.name}.json")
        try:
            sidecar = json.loads(notes.read_text())
            if (
                not isinstance(sidecar["prompt"], str)
                or not isinstance(sidecar["seed"], int)
                or not isinstance(sidecar.get("config"), dict | None)
            ):
                raise ValueError
            samples.append(Sample(video, sidecar))
        except FileNotFoundError:
            problems.append(f"{video.name}: no sidecar {notes.name} beside it, left out; sample it with infer/infer.py")
        except (ValueError, KeyError, TypeError):
            problems.append(f"{video.name}: its sidecar {notes.name} is damaged, left out; sample it again")
    return samples, problems


def reference_of(config: dict | None) -> Reference | None:
    """The clips a checkpoint was trained on, cut as they were for training."""
    if config is None:
        return None
    with contextlib.redirect_stderr(io.StringIO()):  # load_clips tells its plan, once a folder is enough
        clips = load_clips(from_dict(config), snap=SNAP)
    return Reference(tuple(clip.frames for clip in clips), tuple(clip.prompt for clip in clips))


def _at_length(path: np.ndarray, frames: int) -> np.ndarray:
    """A path [f 2] resampled over its whole duration; a frame next to one without the object has none either."""
    if len(path) == frames:
        return path
    places, whole = np.linspace(0, 1, frames), np.linspace(0, 1, len(path))
    return np.stack([np.interp(places, whole, path[:, axis]) for axis in range(2)], 1)
