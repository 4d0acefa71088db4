"""The scores of a public benchmark's videos: our own metrics, and motion along the trajectories of the source clip."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from configs.errors import UserError
from data.benchmarks import Case, read_mask, read_tracks
from infer.measure.clip_scores import MetricUnavailable
from infer.measure.metrics import VideoScorer
from infer.measure.mtbench import GRID, follow, grid_points, mtbench_code, mtbench_paper, whole_grid
from infer.video import read_frames
from scripts.artefacts.samples import Samples, sidecars


@dataclass
class Found:
    """Scores of one video of a case."""

    case: Case
    prompt: str
    scores: dict[str, float]


def measure_case(case: Case, samples: Samples, seen: list[int], scorer: VideoScorer) -> tuple[list[Found], list[str]]:
    """(scores of a case's `samples` against the frames `seen` of its clip, a sentence for each that is missing)."""
    clip, problems, rows, folder = read_frames(case.clip), [], [], Path(samples.folder)
    source, points, notes = source_tracks(case, clip, seen)
    clip = clip[seen]
    problems += notes
    for notes, prompt, seed in sidecars(folder):
        if (prompt, seed) not in samples.wanted():
            continue  # of another time, when other prompts were asked for
        try:
            frames = read_frames(folder / notes["video"])
        except UserError as error:
            problems.append(f"{case.name}: {error}; delete it, and the same command samples it again")
            continue
        scores = scorer(frames, prompt, clip)
        problems += [f"{case.name}, {notes['video']}: {sentence}" for sentence in scorer.skipped]
        size = torch.tensor([frames.shape[3], frames.shape[2]])
        shown = follow(frames, points * size.numpy()) / size  # the same places as in the source, as shares of the frame
        try:
            scores["mtbench_code"] = mtbench_code(source, shown, (1, 1))
            scores["mtbench_paper"] = mtbench_paper(source, shown, (1, 1))
        except MetricUnavailable as error:
            problems.append(f"{case.name}, {notes['video']}: {error}")
        rows.append(Found(case, prompt, scores))
    return rows, problems


def source_tracks(case: Case, clip: torch.Tensor, seen: Sequence[int]) -> tuple[torch.Tensor, np.ndarray, list[str]]:
    """(tracks [n f 2] over the frames `seen`, their points in the first of those [n 2], notes), as shares of the frame.

    The published trajectories where they fit the clip, uint8 [f c h w]; else points of a grid in the mask's box, or
    over the whole frame, are followed.
    """
    notes = []
    if case.tracks is not None:
        try:
            tracks = read_tracks(case.tracks, len(clip), seen)
            return torch.from_numpy(tracks), tracks[:, 0], notes
        except UserError as error:
            notes.append(f"{case.name}: {error}; its points are followed anew")
    height, width = clip.shape[2:]
    points = whole_grid(1, 1, GRID)
    if case.mask is not None:
        try:
            if seen[0]:
                raise UserError(f"its mask is of frame 0, and the frames that were used begin with {seen[0]}")
            mask = read_mask(case.mask)
            points = grid_points(mask, GRID) / mask.shape[::-1]
        except UserError as error:
            notes.append(f"{case.name}: {error}; points of the whole frame are taken")
    size = np.array([width, height])
    return follow(clip[list(seen)], points * size) / torch.from_numpy(size), points, notes
