"""Displacement agreement: which share of the motion in two videos do their points have in common? This project's.

What published motion fidelity divides away is kept: how far a point moves in each frame. So a re-timing, another speed
and a still video all cost, and points that rest in both videos count for nothing. Tracklets are [n f 2], (x, y) in
pixels of the same frame, as in infer/measure/motion_fidelity.py.
"""

import torch

from infer.measure.clip_scores import MetricUnavailable
from infer.measure.motion_fidelity import resample_tracklets


def displacement_agreement(reference: torch.Tensor, generated: torch.Tensor) -> float:
    """1 - (summed difference of displacements) / (summed length of displacements), in 0..1; the same motion gives 1.

    Every point of each video, [n f 2] and [m f 2], is compared with the point of the other whose displacements differ
    least; sums run over these pairs and over frames, so a point weighs as much as it moves. Places do not matter. Two
    videos in which nothing moves agree: 1. Clips of different length are compared over their whole duration. Raises
    MetricUnavailable without points or with a single frame.
    """
    length = min(reference.shape[1], generated.shape[1])
    if not (len(reference) and len(generated)) or length < 2:
        raise MetricUnavailable(
            f"displacement agreement: found {len(reference)} and {len(generated)} points over {length} frames; it "
            "needs a point in each video and two frames or more"
        )
    moves = [resample_tracklets(tracks, length).double().diff(dim=1) for tracks in (reference, generated)]  # [n f-1 2]
    travel = [move.norm(dim=-1).sum(-1) for move in moves]  # [n]
    difference = sum(
        torch.cdist(moves[0][:, frame], moves[1][:, frame], compute_mode="donot_use_mm_for_euclid_dist")
        for frame in range(length - 1)
    )  # [n m]
    apart = whole = 0.0
    for matrix, own, others in ((difference, travel[0], travel[1]), (difference.T, travel[1], travel[0])):
        nearest = matrix.min(dim=1)
        apart += nearest.values.sum().item()
        whole += (own + others[nearest.indices]).sum().item()
    return 1.0 - apart / whole if whole > 1e-9 else 1.0
