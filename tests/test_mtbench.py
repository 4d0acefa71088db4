"""MTBench's motion fidelity on motions whose answer is known, and against formulas written out point by point."""

import math

import numpy as np
import pytest
import torch

from infer.measure.agreement import displacement_agreement
from infer.measure.clip_scores import MetricUnavailable
from infer.measure.mtbench import follow, frechet_distance, grid_points, mtbench_code, mtbench_paper

SIZE = (64, 64)


def line(step: tuple[float, float], start: tuple[float, float] = (20, 30), frames: int = 6) -> torch.Tensor:
    """One tracklet [1 f 2] that moves evenly."""
    return (torch.tensor(start) + torch.arange(frames)[:, None] * torch.tensor(step))[None].double()


def random_tracks(count: int, frames: int, seed: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return 64 * torch.rand(count, frames, 2, generator=draw, dtype=torch.float64)


def cosine(a, b) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def slow_cosine(source: np.ndarray, generated: np.ndarray) -> float:
    """Start position and displacements as the script counts them, averaged."""
    motions = [[track[0], *(track[k + 1] - track[k] for k in range(len(track) - 1))] for track in (source, generated)]
    return sum(cosine(a, b) for a, b in zip(*motions)) / len(motions[0])


def slow_frechet(one: np.ndarray, other: np.ndarray) -> float:
    def leash(i: int, j: int) -> float:
        here = float(np.linalg.norm(one[i] - other[j]))
        before = [leash(a, b) for a, b in ((i - 1, j), (i, j - 1), (i - 1, j - 1)) if a >= 0 and b >= 0]
        return max(min(before), here) if before else here

    return leash(len(one) - 1, len(other) - 1)


def test_the_script_equals_its_formula_written_out():
    source, generated = random_tracks(4, 5, 0), random_tracks(3, 5, 1)
    one, other = source.numpy() / 64, generated.numpy() / 64
    best = sum(max(slow_cosine(s, g) for s in one) for g in other) / 3
    assert mtbench_code(source, generated, SIZE) == pytest.approx(best, abs=1e-9)
    near = [max(1 / (1 + np.mean([[np.linalg.norm(a - b) for b in s] for a in g])) for s in one) for g in other]
    assert mtbench_code(source, generated, SIZE, frechet=True) == pytest.approx((best + np.mean(near)) / 2, abs=1e-9)


def test_the_paper_equals_its_formula_written_out():
    source, generated = random_tracks(3, 5, 2), random_tracks(3, 5, 3)
    values = []
    for s, g in zip(source.numpy() / 64, generated.numpy() / 64):
        along = np.mean([cosine(s[k + 1] - s[k], g[k + 1] - g[k]) for k in range(4)])
        values.append(math.exp(-slow_frechet(s, g)) / 2 + along / 2)
    assert mtbench_paper(source, generated, SIZE) == pytest.approx(np.mean(values), abs=1e-9)


def test_frechet_distance_is_not_the_mean_distance():
    one, other = random_tracks(4, 5, 4), random_tracks(4, 6, 5)
    slow = [slow_frechet(a, b) for a, b in zip(one.numpy(), other.numpy())]
    assert frechet_distance(one, other).tolist() == pytest.approx(slow)


def test_the_same_tracks_are_the_maximum_except_for_the_mean_distance():
    tracks = torch.cat([line((3, 0)), line((0, 4), (10, 10))])
    assert mtbench_code(tracks, tracks, SIZE) == pytest.approx(1)
    assert mtbench_paper(tracks, tracks, SIZE) == pytest.approx(1)
    assert 0.5 < mtbench_code(tracks, tracks, SIZE, frechet=True) < 1


def test_the_start_position_is_a_motion_in_the_script_alone():
    here, there = line((2, 0), (40, 1)), line((2, 0), (1, 40))
    assert mtbench_code(here, there, SIZE) < mtbench_code(here, there, SIZE, start=False) == pytest.approx(1)


def test_still_points_give_numbers_in_every_definition():
    still, moving = torch.full((3, 6, 2), 20.0), torch.cat([line((2, 1))] * 3)
    origin = torch.zeros(3, 6, 2)  # even the start position has no direction there
    for pair in ((still, moving), (moving, still), (still, still), (origin, origin), (origin, moving)):
        for score in (
            mtbench_code(*pair, SIZE),
            mtbench_code(*pair, SIZE, frechet=True),
            mtbench_code(*pair, SIZE, start=False),
            mtbench_paper(*pair, SIZE),
            displacement_agreement(*pair),
        ):
            assert math.isfinite(score)


def test_tracks_of_another_length_are_picked_evenly_and_missing_ones_named():
    assert mtbench_code(line((2, 0), frames=16), line((4, 0), frames=8), SIZE) == pytest.approx(1, abs=1e-6)
    with pytest.raises(MetricUnavailable, match="1 and 0 points over 6 frames"):
        mtbench_code(line((2, 0)), torch.zeros(0, 6, 2), SIZE)
    with pytest.raises(MetricUnavailable, match="two frames or more"):
        mtbench_paper(line((2, 0))[:, :1], line((2, 0))[:, :1], SIZE)
    with pytest.raises(MetricUnavailable, match="there are 1 and 2"):
        mtbench_paper(line((2, 0)), torch.cat([line((2, 0))] * 2), SIZE)


def test_points_are_a_grid_in_the_box_of_the_mask():
    mask = np.zeros((64, 64))
    mask[10:30, 20:50] = 1
    points = grid_points(mask, 32)
    assert len(points) == 15 * 10 or len(points) == 14 * 9  # the last row and column are left out
    assert points.min(0).tolist() >= [20, 10] and points.max(0).tolist() < [49, 29]
    with pytest.raises(MetricUnavailable, match="mask of the first frame is empty"):
        grid_points(np.zeros((8, 8)), 4)
    tiny = np.zeros((64, 64))
    tiny[5, 5] = 1
    with pytest.raises(MetricUnavailable, match="larger mask"):
        grid_points(tiny, 4)


def test_given_points_are_followed_and_none_is_dropped():
    draw = torch.Generator().manual_seed(0)
    image = torch.nn.functional.interpolate(torch.rand(1, 3, 20, 20, generator=draw), scale_factor=8, mode="bicubic")
    image = image[0].clamp(0, 1).mul(255).byte()
    video = torch.stack([image[:, 40:104, 48 - 2 * j : 112 - 2 * j] for j in range(6)])
    points = np.array([[30.0, 30.0], [40.0, 20.0], [20.0, 44.0]])
    tracks = follow(video, points)
    assert tracks.shape == (3, 6, 2)
    torch.testing.assert_close(tracks[:, -1], torch.from_numpy(points + [10, 0]).float(), rtol=0, atol=0.5)
    flat = torch.full((6, 3, 64, 64), 90, dtype=torch.uint8)
    assert torch.isfinite(follow(flat, points)).all()


def test_agreement_sees_speed_timing_and_stillness_but_no_place():
    reference = line((2, 0), frames=9)
    assert displacement_agreement(reference, line((2, 0), (50, 3), frames=9)) == pytest.approx(1)
    assert displacement_agreement(reference, line((1, 0), frames=9)) == pytest.approx(1 - 1 / 3)
    assert displacement_agreement(reference, line((-2, 0), frames=9)) == pytest.approx(0)
    late = torch.cat([torch.full((4,), 20.0), 20 + 4 * torch.arange(5)])
    late = torch.stack([late, torch.full((9,), 30.0)], 1)[None]
    assert displacement_agreement(reference, late) == pytest.approx(0.5)
    still = torch.full((1, 9, 2), 5.0)
    assert displacement_agreement(reference, still) == pytest.approx(0)
    assert displacement_agreement(still, still) == 1


def test_points_that_rest_in_both_videos_do_not_count_in_the_agreement():
    ground = torch.full((50, 9, 2), 5.0, dtype=torch.float64)
    one, other = line((2, 0), frames=9), line((1.5, 0.5), frames=9)
    alone = displacement_agreement(one, other)
    with_ground = displacement_agreement(torch.cat([one, ground]), torch.cat([other, ground]))
    assert 0 < alone < 1 and with_ground == pytest.approx(alone)


def test_the_agreement_equals_its_formula_written_out():
    one, other = random_tracks(4, 6, 6), random_tracks(3, 6, 7)
    moves = [[np.diff(track, axis=0) for track in tracks.numpy()] for tracks in (one, other)]
    apart = whole = 0.0
    for own, others in (moves, moves[::-1]):
        for move in own:
            nearest = min(others, key=lambda found: np.linalg.norm(found - move, axis=1).sum())
            apart += np.linalg.norm(nearest - move, axis=1).sum()
            whole += np.linalg.norm(nearest, axis=1).sum() + np.linalg.norm(move, axis=1).sum()
    assert displacement_agreement(one, other) == pytest.approx(1 - apart / whole)
