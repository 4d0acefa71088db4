"""MTBench's motion fidelity (Shi et al. 2025, DeT), as its published script computes it and as the paper states it.

Tracklets are [n f 2] in pixels, one row per point; `size` is the frame's (width, height), by which both definitions
divide. In MTBench the points are those of a regular grid over the frame that lie in the bounding box of the source
object's mask in the first frame, and the same points are taken in the generated video, wherever its object is.

Where the script and the paper differ, both are here: the script counts the start position as one more motion, takes
for each generated point the best source point, and its "Fréchet" part is a mean of all distances; the paper pairs
points by their number and takes Fréchet's distance.
"""

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from infer.measure.clip_scores import MetricUnavailable
from infer.measure.motion_fidelity import FLOW, directions, grey_frames

GRID = 50  # points a side over the whole frame
FRECHET_POINTS = 50  # that the script draws for its second part
EPS = 1e-6


def grid_points(mask: np.ndarray, grid: int = GRID) -> np.ndarray:
    """Points (x, y) [n 2] in pixels of a regular grid over the frame inside the bounding box of `mask` [h w] > 0.5.

    As in the script the box's last row and column are left out. Raises MetricUnavailable for an empty mask.
    """
    rows, columns = np.nonzero(mask > 0.5)
    if not len(rows):
        raise MetricUnavailable("MTBench: the mask of the first frame is empty; give one that covers the moving object")
    points = whole_grid(mask.shape[1], mask.shape[0], grid)
    low, high = (columns.min(), rows.min()), (columns.max(), rows.max())
    inside = (points >= low).all(1) & (points < high).all(1)
    if not inside.any():
        raise MetricUnavailable(
            f"MTBench: no point of a {grid} x {grid} grid lies in the mask's box of {high[0] - low[0]} x "
            f"{high[1] - low[1]} pixels; give a larger mask"
        )
    return points[inside]


def whole_grid(width: int, height: int, grid: int) -> np.ndarray:
    """Points (x, y) [grid*grid 2] in the middles of a grid of equal cells, in pixels."""
    y, x = ((np.mgrid[0:grid, 0:grid] + 0.5).reshape(2, -1)) / grid
    return np.stack([x * width, y * height], 1)


def follow(frames: torch.Tensor, points: np.ndarray) -> torch.Tensor:
    """Tracklets [n f 2] of given points [n 2] of the first of `frames`, uint8 [f c h w], by pyramidal Lucas-Kanade.

    Every point has a tracklet, as CoTracker gives one: a point that is lost stays where it was last seen.
    """
    grey, zoom = grey_frames(frames)
    track = [(points * zoom).astype(np.float32)[:, None]]
    for before, after in zip(grey, grey[1:]):
        there, found, _ = cv2.calcOpticalFlowPyrLK(before, after, track[-1], None, **FLOW)
        seen = (found.ravel() == 1) & np.isfinite(there).all(-1).ravel()
        track.append(np.where(seen[:, None, None], there, track[-1]))
    return torch.from_numpy(np.concatenate(track, 1) / zoom)


def mtbench_code(
    source: torch.Tensor,
    generated: torch.Tensor,
    size: tuple[int, int],
    *,
    frechet: bool = False,
    start: bool = True,
    seed: int = 0,
) -> float:
    """The script's score of tracklets [n f 2] and [m f 2]: mean over generated points of the best cosine.

    Each tracklet is its start position and its displacements, all made unit vectors; cosines are averaged over them.
    `frechet` adds the script's optional half: the best 1 / (1 + mean distance of all pairs of frames), over at most
    fifty points drawn with `seed`. `start` False leaves the start position out, which the paper does not mention. A
    point that rests has the zero vector, where the script's division gives NaN. Raises MetricUnavailable without
    points or with a single frame.
    """
    source, generated = _prepared(source, generated, size)
    one, other = (_unit_motions(tracks, start) for tracks in (source, generated))
    cosine = torch.einsum("mfc,nfc->mn", other, one) / one.shape[1]
    score = cosine.max(dim=1).values.mean().item()
    if not frechet:
        return score
    picked = [_drawn(tracks, seed) for tracks in (generated, source)]
    distance = torch.cdist(picked[0][:, None], picked[1][None]).mean((-2, -1))  # [m n], of all f x f pairs
    return 0.5 * score + 0.5 * (1 / (1 + distance)).max(dim=1).values.mean().item()


def mtbench_paper(source: torch.Tensor, generated: torch.Tensor, size: tuple[int, int]) -> float:
    """The paper's score: mean over points of exp(-Fréchet distance) / 2 + mean cosine of displacements / 2.

    Point i of the source, [n f 2], is paired with point i of the generated video, [n f 2]. Raises MetricUnavailable
    when there are not as many, and as `mtbench_code` does.
    """
    if len(source) != len(generated):
        raise MetricUnavailable(
            f"MTBench (paper): it pairs points by their number, and there are {len(source)} and {len(generated)}; track"
            " the same points in both videos"
        )
    source, generated = _prepared(source, generated, size)
    cosine = (directions(source) * directions(generated)).sum(-1).mean(1)
    return (0.5 * torch.exp(-frechet_distance(source, generated)) + 0.5 * cosine).mean().item()


def frechet_distance(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Discrete Fréchet distance [n] of paired tracklets [n f 2] and [n g 2] (Eiter and Mannila 1994)."""
    distance = torch.cdist(one, other)  # [n f g]
    leash = distance.clone()
    for i in range(distance.shape[1]):
        for j in range(distance.shape[2]):
            before = [leash[:, a, b] for a, b in ((i - 1, j), (i, j - 1), (i - 1, j - 1)) if a >= 0 and b >= 0]
            if before:
                leash[:, i, j] = torch.maximum(torch.stack(before).amin(0), distance[:, i, j])
    return leash[:, -1, -1]


def _prepared(source: torch.Tensor, generated: torch.Tensor, size: tuple[int, int]) -> list[torch.Tensor]:
    """Both in shares of the frame and of one length: as in the script, frames of the longer are picked evenly."""
    length = min(source.shape[1], generated.shape[1])
    if not (len(source) and len(generated)) or length < 2:
        raise MetricUnavailable(
            f"MTBench: found {len(source)} and {len(generated)} points over {length} frames; it needs a point in each "
            "video and two frames or more"
        )
    return [
        tracks.double()[:, torch.linspace(0, tracks.shape[1] - 1, length).int()] / torch.tensor(size)
        for tracks in (source, generated)
    ]


def _unit_motions(tracks: torch.Tensor, start: bool) -> torch.Tensor:
    motions = directions(tracks)
    return torch.cat([F.normalize(tracks[:, :1], dim=-1, eps=EPS), motions], 1) if start else motions


def _drawn(tracks: torch.Tensor, seed: int) -> torch.Tensor:
    if len(tracks) <= FRECHET_POINTS:
        return tracks
    return tracks[torch.randint(len(tracks), (FRECHET_POINTS,), generator=torch.Generator().manual_seed(seed))]
