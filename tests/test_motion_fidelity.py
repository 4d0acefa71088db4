"""Motion fidelity on motions whose answer is known, from tracklets and through the classical tracker."""

import math

import pytest
import torch

from infer.measure.clip_scores import MetricUnavailable
from infer.measure.motion_fidelity import load_cotracker, lucas_kanade, motion_fidelity


def straight(angle: float, frames: int = 8, speed: float = 3.0) -> torch.Tensor:
    """One tracklet [1 f 2] going one way."""
    way = torch.tensor([math.cos(angle), math.sin(angle)])
    return (speed * torch.arange(frames)[:, None] * way)[None]


def texture(seed: int = 0) -> torch.Tensor:
    image = torch.rand(1, 3, 20, 20, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(image, scale_factor=8, mode="bicubic")[0].clamp(0, 1).mul(255).byte()


def sliding(dx: int, dy: int, seed: int = 0, frames: int = 8) -> torch.Tensor:
    """uint8 [f 3 64 64] whose content moves by (dx, dy) pixels a frame."""
    image = texture(seed)
    return torch.stack([image[:, 48 - j * dy : 112 - j * dy, 48 - j * dx : 112 - j * dx] for j in range(frames)])


def test_identical_motion_is_the_maximum_of_both_definitions():
    tracklets = torch.cat([straight(0.3), straight(2.0)])
    assert motion_fidelity(tracklets, tracklets) == pytest.approx(2)
    assert motion_fidelity(tracklets, tracklets, "dmt_code") == pytest.approx(1)


def test_mirrored_motion_scores_the_cosine_of_the_angle_between():
    assert motion_fidelity(straight(0), straight(math.pi)) == pytest.approx(-2)
    assert motion_fidelity(straight(0), straight(math.pi / 3), "dmt_code") == pytest.approx(0.5)


def test_speed_does_not_matter_and_direction_does():
    assert motion_fidelity(straight(1, speed=1), straight(1, speed=9)) == pytest.approx(2)


def test_equals_the_slow_formula():
    draw = torch.Generator().manual_seed(0)
    reference, generated = torch.randn(5, 6, 2, generator=draw), torch.randn(3, 6, 2, generator=draw)

    def correlation(a, b):
        return sum(float(torch.cosine_similarity(a[k + 1] - a[k], b[k + 1] - b[k], dim=0)) for k in range(5)) / 5

    there = sum(max(correlation(g, r) for r in reference) for g in generated) / 3
    back = sum(max(correlation(g, r) for g in generated) for r in reference) / 5
    assert motion_fidelity(reference, generated) == pytest.approx(there + back, abs=1e-5)
    assert motion_fidelity(reference, generated, "dmt_code") == pytest.approx(there, abs=1e-5)


def test_still_points_score_zero_without_nan():
    still = torch.ones(4, 8, 2)
    assert motion_fidelity(straight(0), still) == 0
    assert motion_fidelity(still, still) == 0


def test_shuffled_frames_lose_a_turning_motion():
    around = torch.linspace(0, math.pi, 16)
    turning = torch.stack([around.cos(), around.sin()], dim=-1)[None] * 20
    shuffled = turning[:, torch.randperm(16, generator=torch.Generator().manual_seed(1))]
    assert motion_fidelity(turning, shuffled) < 1


def test_lengths_are_compared_over_the_whole_clip():
    assert motion_fidelity(straight(1, frames=16), straight(1, frames=8)) == pytest.approx(2)


def test_classical_tracker_follows_known_motion():
    tracklets = lucas_kanade(sliding(3, -2))
    assert len(tracklets) > 20 and tracklets.shape[1:] == (8, 2)
    torch.testing.assert_close(
        tracklets.diff(dim=1).median(dim=0).values, torch.tensor([3.0, -2.0]).expand(7, 2), rtol=0, atol=0.1
    )


def test_videos_through_the_tracker_rank_same_other_and_mirrored_motion():
    reference = lucas_kanade(sliding(4, 0))
    same, other, mirrored = (
        lucas_kanade(v) for v in (sliding(3, 0, seed=1), sliding(0, 3, seed=1), sliding(4, 0).flip(-1))
    )
    assert motion_fidelity(reference, same) > 1.9
    assert abs(motion_fidelity(reference, other)) < 0.3
    assert motion_fidelity(reference, mirrored) < -1.9


def test_still_textured_video_has_no_nan_and_a_flat_one_says_so():
    reference = lucas_kanade(sliding(4, 0))
    still = lucas_kanade(texture()[None, :, :64, :64].repeat(8, 1, 1, 1))
    assert math.isfinite(motion_fidelity(reference, still))
    flat = torch.full((8, 3, 64, 64), 90, dtype=torch.uint8)
    with pytest.raises(MetricUnavailable, match="no point of the generated video"):
        motion_fidelity(reference, lucas_kanade(flat))
    with pytest.raises(MetricUnavailable, match="two frames"):
        motion_fidelity(reference[:, :1], reference[:, :1])


def test_cotracker_is_used_from_a_folder_and_missing_weights_say_how(tmp_path):
    with pytest.raises(MetricUnavailable, match="clone facebookresearch/co-tracker"):
        load_cotracker(str(tmp_path))
    # a stand-in with CoTracker's interface: every point moves right by its one weight
    (tmp_path / "hubconf.py").write_text(
        "import torch\n\n\nclass Predictor(torch.nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.model = torch.nn.Linear(1, 1, "
        "bias=False)\n\n"
        "    def forward(self, video, grid_size):\n"
        "        steps = torch.arange(video.shape[1])[None, :, None, None] * self.model.weight.squeeze()\n"
        "        tracks = steps * torch.tensor([1.0, 0.0]) + torch.zeros(1, 1, grid_size**2, 1)\n"
        "        return tracks, torch.ones(tracks.shape[:3])\n\n\n"
        "def cotracker3_offline(*, pretrained=True):\n    assert not pretrained\n    return Predictor()\n"
    )
    (tmp_path / "checkpoints").mkdir()
    torch.save({"model": {"weight": torch.tensor([[5.0]])}}, tmp_path / "checkpoints" / "scaled_offline.pth")
    tracklets = load_cotracker(str(tmp_path))(sliding(1, 0))
    assert tracklets.shape == (55 * 55, 8, 2)
    assert motion_fidelity(straight(0), tracklets) == pytest.approx(2)
    torch.save({"weight": torch.zeros(3, 3)}, tmp_path / "checkpoints" / "scaled_offline.pth")
    with pytest.raises(MetricUnavailable, match="does not load"):
        load_cotracker(str(tmp_path))
    for damage in (b"", b"version https://git-lfs.github.com/spec/v1\n"):  # a pointer instead of the weights
        (tmp_path / "checkpoints" / "scaled_offline.pth").write_bytes(damage)
        with pytest.raises(MetricUnavailable, match="does not load"):
            load_cotracker(str(tmp_path))
