"""Motion fidelity: do points of the generated video move in the directions points of the reference move?

Yatim et al. 2023 (DMT), section 5. Tracklets are [n f 2], (x, y) in pixels, one row per point that
could be followed through the whole clip. Points are tracked by CoTracker where its folder is given, else by OpenCV's
pyramidal Lucas-Kanade on Shi-Tomasi corners; the two do not give comparable numbers, so results name the tracker.
"""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from configs.errors import DAMAGED_PICKLE
from configs.plain import shown_error
from infer.measure.clip_scores import MetricUnavailable

Tracker = Callable[[torch.Tensor], torch.Tensor]  # uint8 [f c h w] -> tracklets [n f 2]

SHORT_SIDE = 256  # smaller videos are enlarged to this before Lucas-Kanade, whose window would cover half of them
CORNERS = dict(maxCorners=400, qualityLevel=0.01, minDistance=5, blockSize=5)
FLOW = dict(winSize=(21, 21), maxLevel=3)
ROUND_TRIP = 1.0  # pixels that a point may miss its start by when tracked forward and back again
COTRACKER_GRID = 55  # DMT's evaluation
COTRACKER_WEIGHTS = "scaled_offline.pth"


def lucas_kanade(frames: torch.Tensor) -> torch.Tensor:
    """Tracklets [n f 2] of corners of the first frame that survive a forward-backward check in every frame.

    Bouguet's pyramidal Lucas-Kanade as in OpenCV. A video without any texture gives no tracklets (n = 0).
    """
    grey, zoom = grey_frames(frames)
    corners = cv2.goodFeaturesToTrack(grey[0], **CORNERS)
    if corners is None:
        return torch.zeros(0, len(grey), 2)
    track, alive = [corners], np.ones(len(corners), bool)
    for before, after in zip(grey, grey[1:]):
        there, found, _ = cv2.calcOpticalFlowPyrLK(before, after, track[-1], None, **FLOW)
        back, found_back, _ = cv2.calcOpticalFlowPyrLK(after, before, there, None, **FLOW)
        missed = np.linalg.norm(back - track[-1], axis=-1).ravel()
        alive &= (found.ravel() == 1) & (found_back.ravel() == 1) & (missed < ROUND_TRIP)
        track.append(there)
    points = np.stack([points.reshape(-1, 2) for points in track], axis=1)  # [n f 2]
    return torch.from_numpy(points[alive] / zoom)


def grey_frames(frames: torch.Tensor) -> tuple[list[np.ndarray], float]:
    """(frames, uint8 [f c h w], in grey [h w] and enlarged for Lucas-Kanade, how many times)."""
    zoom = max(1.0, SHORT_SIDE / min(frames.shape[2:]))
    grey = [
        cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)
        for image in frames.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    ]
    return grey, zoom


def load_cotracker(folder: str, device: str = "cpu") -> Tracker:
    """CoTracker 3 (Karaev et al. 2024) from a checkout with its weights, whose own code is executed.

    `folder` is a clone of facebookresearch/co-tracker with checkpoints/scaled_offline.pth in it. Raises
    MetricUnavailable when either is missing or the code does not load.
    """
    weights = Path(folder) / "checkpoints" / COTRACKER_WEIGHTS
    if not (Path(folder) / "hubconf.py").is_file() or not weights.is_file():
        raise MetricUnavailable(
            f"CoTracker: {folder} needs hubconf.py and checkpoints/{COTRACKER_WEIGHTS}; clone "
            "facebookresearch/co-tracker and put the weights of facebook/cotracker3 there"
        )
    try:
        predictor = torch.hub.load(folder, "cotracker3_offline", source="local", pretrained=False)
        state = torch.load(weights, map_location="cpu", weights_only=True)
        predictor.model.load_state_dict(state.get("model", state))
    except (ImportError, *DAMAGED_PICKLE) as error:
        reason = shown_error(error)
        raise MetricUnavailable(f"CoTracker: {folder} does not load ({reason}); see its README") from error
    predictor = predictor.to(device).eval()

    @torch.no_grad()
    def track(frames: torch.Tensor) -> torch.Tensor:
        tracks, _ = predictor(frames[None].float().to(device), grid_size=COTRACKER_GRID)  # [1 f n 2]
        return tracks[0].transpose(0, 1).cpu()

    return track


def directions(tracklets: torch.Tensor) -> torch.Tensor:
    """Unit displacements [n f-1 2] between neighbouring frames; a point that rests has the zero vector, not NaN."""
    return F.normalize(tracklets.diff(dim=1).double(), dim=-1, eps=1e-6)


def motion_fidelity(reference: torch.Tensor, generated: torch.Tensor, definition: str = "paper") -> float:
    """How well two sets of tracklets [n f 2] and [m f 2] move alike, correlation = mean cosine of unit displacements.

    - "paper": mean over generated of the best correlation with a reference tracklet plus the same the other way
      round; -2 to 2, identical moving videos give 2.
    - "dmt_code": the first of the two terms, as in the published script; -1 to 1. (That script also lowers pairs with
      the same row number by 1, left over from comparing a video with itself; that is not done here.)
    Clips of different length are compared over their whole duration, the longer resampled in time. A video whose
    points rest scores 0; there is no dead zone, so the jitter of points in a noisy still video counts as motion.
    Raises MetricUnavailable when no point could be tracked in one of the videos, or for a single frame.
    """
    for name, tracklets in (("reference", reference), ("generated video", generated)):
        if len(tracklets) == 0 or tracklets.shape[1] < 2:
            raise MetricUnavailable(
                f"motion fidelity: no point of the {name} could be followed through "
                f"{tracklets.shape[1]} frames; it needs texture and two frames or more"
            )
    length = min(reference.shape[1], generated.shape[1])
    reference, generated = (directions(resample_tracklets(tracklets, length)) for tracklets in (reference, generated))
    correlation = torch.einsum("mfc,nfc->mn", generated, reference) / (length - 1)
    one_way = correlation.max(dim=1).values.mean().item()
    return one_way if definition == "dmt_code" else one_way + correlation.max(dim=0).values.mean().item()


def resample_tracklets(tracklets: torch.Tensor, frames: int) -> torch.Tensor:
    """Tracklets [n f 2] resampled in time to `frames`."""
    if tracklets.shape[1] == frames:
        return tracklets
    return F.interpolate(tracklets.transpose(1, 2), size=frames, mode="linear", align_corners=True).transpose(1, 2)
