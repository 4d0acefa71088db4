"""Evaluation of a folder of sampled videos by their sidecars: prompt, seed and reference clip stand beside every video.

Videos of the toy world get its exact scores (infer/measure/world_scores.py), any other video the metrics of
infer/measure/metrics.py. A metric that cannot be computed is reported with the reason; the others continue. Frames are
uint8 [f c h w].
"""

import json
import os
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from configs.checks import checked, maybe, text, whole
from configs.errors import UserError, shown
from configs.paths import locate
from configs.plain import read_json, read_text
from configs.schema import from_dict
from configs.stored import stored_config
from data.sources import load_clips, plan_clips
from infer.measure.metrics import DEFINITIONS, VideoScorer
from infer.measure.statistics import FEWEST, Estimate, share_or_mean
from infer.measure.world_definitions import WORLD_DEFINITIONS
from infer.measure.world_scores import ReferenceClips, is_of_world, world_scores
from infer.video import read_frames
from models.outline import snap_of

SIDECAR = {  # what is read of one; every other key only tells people how the video was made
    "prompt": text(),
    "seed": whole(0, 2**64 - 1),
    "config": maybe(lambda values: stored_config(values, "the sidecar")),
}
ALL_DEFINITIONS = WORLD_DEFINITIONS | DEFINITIONS


@dataclass(frozen=True)
class Sample:
    """A video file and its sidecar."""

    video: Path
    sidecar: dict


@dataclass
class Evaluation:
    """One row per video (video, prompt, seed, number of its reference clip and of its training, then metrics by name)
    and one sentence for everything left out. Without a reference clip its number is None."""

    rows: list[dict] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    models: dict[str, str] = field(default_factory=dict)

    @property
    def caveat(self) -> str | None:
        """What the intervals leave out, where the videos are of too few reference clips to tell."""
        clips, trainings = (len({row[unit] for row in self.rows} - {None}) for unit in ("reference", "training"))
        if not 0 < clips < FEWEST:
            return None
        inside = f" ({trainings} training{'s' * (trainings > 1)})" if trainings else ""
        return (
            f"the videos are of {clips} reference clip{'s' * (clips > 1)}{inside}: their intervals cover other prompts "
            f"and seeds, not another clip, for which {FEWEST} or more are needed; more trainings on a clip do not make "
            "it two"
        )

    def summary(self) -> dict[str, Estimate]:
        """Every metric over all videos that have it, with its 95 % interval."""
        return summarize(self.rows)


def summarize(rows: Iterable[dict]) -> dict[str, Estimate]:
    """Metric -> estimate over the rows that hold it; the unit is a row's `reference`, with its trainings inside."""
    rows = list(rows)
    having = {name: [row for row in rows if row.get(name) is not None] for name in ALL_DEFINITIONS}
    return {
        name: share_or_mean([row[name] for row in found], [row["reference"] for row in found])
        for name, found in having.items()
        if found
    }


def evaluate(folder: Path, scorer: VideoScorer, reference: ReferenceClips | None = None) -> Evaluation:
    """Measure every video in `folder`. `reference` overrides the one that the sidecars name.

    Raises UserError when the folder holds no video at all.
    """
    samples, problems = find_samples(folder)
    result = Evaluation(problems=problems, models=scorer.models)
    references: dict[str, ReferenceClips | None] = {}  # of each training: its configuration, in which its seed stands
    learned: dict[str, Hashable] = {}  # of each training: which clips
    clips: dict[Hashable, int] = {}
    lost = set()  # trainings whose reference is named but is not there
    for sample in samples:
        config = sample.sidecar.get("config")
        key = json.dumps(config, sort_keys=True, default=str)
        if key not in references:
            learned[key] = learned_clips(config) or reference and "the given one"
            try:
                references[key] = reference or reference_of(config)
            except UserError as error:
                references[key] = None
                lost.add(key)
                result.problems.append(f"the reference clip: {error}")
        try:
            scores = measure_video(read_frames(sample.video), sample.sidecar["prompt"], references[key], scorer)
        except UserError as error:
            result.problems.append(f"{sample.video.name}: {error}")
            continue
        result.problems += [f"{sample.video.name}: {sentence}" for sentence in scorer.skipped]
        if key in lost:
            # without its reference it would say whether the motion is the prompt's, which is another question
            scores.pop("motion_success", None)
        result.rows.append(
            {
                "video": sample.video.name,
                **{name: sample.sidecar[name] for name in ("prompt", "seed")},
                "reference": learned[key] and clips.setdefault(learned[key], len(clips) + 1),
                "training": list(references).index(key) + 1 if config else None,
                **scores,
            }
        )
    if samples and not any(references.values()):
        by_words = any("motion_success" in row for row in result.rows)
        motion = "motion success is that of the prompt's own words" if by_words else "motion was not measured"
        result.problems.append(
            f"{folder}: no sidecar names a reference clip, so leakage was not measured and {motion}; give --reference "
            "CLIP and --caption TEXT"
        )
    result.problems += scorer.unavailable.values()
    result.problems = list(dict.fromkeys(result.problems))
    return result


def measure_video(frames: torch.Tensor, prompt: str, reference: ReferenceClips | None, scorer: VideoScorer) -> dict:
    """The toy world's scores where video, prompt and reference are of that world, else the metrics of `scorer`.

    Metrics compare with the representative one of several reference clips, the first of the longest (data/cache.py).
    """
    scorer.skipped = []
    if is_of_world(frames, prompt, reference):
        return world_scores(frames, prompt, reference)
    if reference is None:
        return scorer(frames, prompt, None, None)
    first = max(range(len(reference.frames)), key=lambda number: len(reference.frames[number]))
    return scorer(frames, prompt, reference.frames[first], reference.captions[first])


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
            if not notes.exists():
                problems.append(
                    f"{video.name}: no sidecar {notes.name} beside it, left out; sample it with infer/infer.py"
                )
                continue
            samples.append(Sample(video, checked(read_json(notes), SIDECAR, notes.name, needed=("prompt", "seed"))))
        except UserError:
            problems.append(f"{video.name}: its sidecar {notes.name} is damaged, left out; sample it again")
    return samples, problems


def reference_of(config: dict | None) -> ReferenceClips | None:
    """The clips a checkpoint was trained on, cut as they were for training; None without a configuration.

    Raises UserError when a clip, or the model that its size was rounded for, is no longer there, or when the training
    read cached latents, so that there is no clip. No name inside a configuration decides what is fetched.
    """
    if config is None:
        return None
    cfg = from_dict(config)
    if cfg.cached_latent_dir:
        raise UserError(
            f"the training read {cfg.cached_latent_dir}, which holds latents and no clip; give --reference CLIP and "
            "--caption TEXT"
        )
    snap = 1
    if cfg.train_data.use_bucketing:  # the size was rounded for the model
        if not locate(cfg.pretrained_model_path).is_dir():
            raise UserError(
                f"the training rounded its clip's size for {shown(cfg.pretrained_model_path)}, which is no folder "
                "here; give --reference CLIP and --caption TEXT"
            )
        snap = snap_of(locate(cfg.pretrained_model_path))
    clips = load_clips(cfg, snap)
    return ReferenceClips(tuple(clip.frames for clip in clips), tuple(clip.prompt for clip in clips))


def learned_clips(config: dict | None) -> Hashable:
    """What all trainings on the same reference clips have in common: their files, whatever was cut from them how.

    Where these are not there any more it is what the configuration says of them; of a training on cached latents it is
    their folder. None without a configuration.
    """
    if config is None:
        return None
    if cached := config.get("cached_latent_dir"):
        return os.path.realpath(cached)
    try:
        return frozenset(os.path.realpath(planned.path) for planned in plan_clips(from_dict(config), snap=1))
    except UserError:
        return json.dumps(config.get("train_data"), sort_keys=True, default=str)


def given_reference(path: str | None, caption: str | None) -> ReferenceClips | None:
    """The clip of --reference with its caption, from --caption or the .txt beside it."""
    if path is None:
        return None
    clip = locate(path)
    if not clip.exists():
        raise UserError(f"--reference: no clip at {clip}; point it at a video or a folder of frames")
    beside = clip.with_suffix(".txt")
    caption = caption or (read_text(beside).strip() if beside.is_file() else "")
    if not caption:
        raise UserError(f"--reference: {clip.name} has no caption; give --caption TEXT or write it into {beside.name}")
    return ReferenceClips((read_frames(clip),), (caption,))
