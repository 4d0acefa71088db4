"""The plan for a clip and its warnings: each on a clip that deserves it, and on the nearest one that does not."""

import time

import imageio.v3 as iio
import numpy as np
import pytest

from configs.errors import UserError
from data import inspection
from data.clips import Cut, read_video
from data.footage import motion
from data.inspection import inspect_video

from conftest import ROOT
from scenes import pan, square

CUT = Cut(64, 64, 8, 8)


@pytest.fixture
def inspected(tmp_path):
    """A function of frames uint8 [f h w c] and their rate: what is found in a video of them."""

    def inspect(frames, fps=8, cut=CUT, plays_at=8, native=None):
        path = tmp_path / "clip.mp4"
        iio.imwrite(path, frames, plugin="FFMPEG", fps=fps, quality=9, macro_block_size=2)
        return inspect_video(path, cut, plays_at, native)

    return inspect


def kinds(inspection):
    return [finding.kind for finding in inspection.findings]


@pytest.mark.parametrize(
    "clip", sorted((ROOT / "data" / "examples").glob("*.mp4")), ids=lambda path: path.stem.removeprefix("pocket_")
)
def test_the_example_clips_deserve_no_warning(clip):
    side, frames = (64, 8) if clip.stem.startswith("pocket") else (384, 16)
    began = time.process_time()
    plan = inspect_video(clip, Cut(side, side, frames, 8), plays_at=8, native=(side, side))
    assert plan.findings == () and time.process_time() - began < 2
    assert len(plan.lines()) == 1 and f"{frames} frames of {frames / 8:.1f} s" in plan.lines()[0]


def test_a_clip_that_is_taken_at_half_its_rate_and_small_deserves_none_either():
    for name in ("car_turn", "dolly_zoom", "zoom_in", "zoom_out"):
        clip = ROOT / "data" / "examples" / f"{name}.mp4"
        assert inspect_video(clip, Cut(64, 64, 8, 4), plays_at=4, native=(64, 64)).findings == ()


def test_the_plan_is_what_reading_takes(inspected, tmp_path):
    cut = Cut(48, 48, 6, 8, start=5)
    plan = inspected(square(30), fps=24, cut=cut, plays_at=4)
    clip = read_video(tmp_path / "clip.mp4", cut, "a square")
    assert plan.trained == tuple(clip.frames.shape[:1:-1]) and plan.rate == clip.fps and len(plan.taken) == 6
    assert plan.taken == (5, 8, 11, 14, 17, 20) and plan.seconds == 1.25 and plan.span == 0.75 and plan.pace == 0.5
    assert "0.5 times the clip's speed" in plan.lines()[0]


@pytest.mark.parametrize("at", [1, 4, 7])
def test_a_cut_is_found_wherever_it_is(inspected, at):
    frames = np.concatenate([pan(at, step=1), pan(8 - at, step=1, seed=1)])
    (finding,) = inspected(frames).findings
    assert finding.kind == "cut" and f"(frame {at})" in finding.found and "cut the file there" in finding.advice


def test_the_advice_on_a_cut_is_a_stretch_without_one(inspected):
    frames = np.concatenate([pan(6, step=1), pan(20, step=1, seed=1)])
    (finding,) = inspected(frames).findings
    assert "train_data.sample_start_idx=7" in finding.advice
    assert kinds(inspected(frames, cut=Cut(64, 64, 8, 8, start=6))) == []
    frames = np.concatenate([pan(20, step=1), pan(4, step=1, seed=1)])
    (finding,) = inspected(frames, cut=Cut(64, 64, 16, 8, start=8)).findings
    assert "train_data.n_sample_frames=12" in finding.advice


def test_no_cut_is_seen_in_fast_or_sudden_motion(inspected):
    assert "cut" not in kinds(inspected(pan(8, step=14)))
    assert "cut" not in kinds(inspected(np.concatenate([pan(4, step=0), pan(4, step=8)])))


def test_a_clip_in_which_hardly_anything_moves(inspected):
    noise = np.random.default_rng(0).normal(0, 6, (8, 64, 64, 3))
    still = (pan(8, step=0) + noise).clip(0, 255).astype(np.uint8)
    assert kinds(inspected(still)) == ["still"]
    assert kinds(inspected(square(8, side=10, step=1))) == []
    assert kinds(inspected(square(8, side=10, step=1, colour=(120, 95, 120)))) == [], "of the same brightness"


def test_motion_that_is_faster_than_the_frames_show(inspected):
    assert kinds(inspected(pan(8, step=20, side=64))) == ["fast"]
    assert kinds(inspected(pan(8, step=8, side=64))) == []
    assert kinds(inspected(square(8, step=26))) == [], "one thing that jumps over its own size is still seen to move"
    slow_enough = pan(40, step=4, side=64)
    fast, calm = (inspected(slow_enough, fps=40, cut=Cut(64, 64, 4, fps), plays_at=fps) for fps in (8, 20))
    assert kinds(fast) == ["fast"] and kinds(calm) == []
    assert "train_data.fps=16" in fast.findings[0].advice
    assert "no frames in between" in inspected(pan(8, step=20)).findings[0].advice


def test_black_bars_and_how_to_crop_them(inspected, tmp_path):
    boxed = pan(8, step=2, side=96)
    boxed[:, :12] = boxed[:, -12:] = 0
    (finding,) = inspected(boxed).findings
    assert finding.kind == "bars" and "(27 % of it)" in finding.found and "crop=96:68:0:14" in finding.advice
    pillars = pan(8, step=2, side=96)
    pillars[:, :, :9] = pillars[:, :, -9:] = 5
    assert "crop=76:96:10:0" in inspected(pillars).findings[0].advice, "even, and nothing of a bar is left"
    one_side = pan(8, step=2, side=96)
    one_side[:, :12] = 0
    night = (pan(8, step=2, side=96) * np.linspace(0, 1, 96)[:, None, None] ** 2).astype(np.uint8)
    night[:, -4:] = 0
    assert kinds(inspected(one_side)) == kinds(inspected(night)) == []
    assert "bars" not in kinds(inspected(np.zeros((8, 64, 64, 3), np.uint8)))


def test_a_pace_that_the_model_will_not_play(inspected):
    frames = pan(24, step=1)
    every = Cut(64, 64, 8, 0)
    plan = inspected(frames, fps=24, cut=every)
    assert kinds(plan) == ["pace"] and "3 times slower" in plan.lines()[1]
    assert "train_data.fps=8" in plan.findings[0].advice and "--fps 24" in plan.findings[0].advice
    assert kinds(inspected(frames, fps=24, cut=every, plays_at=20)) == []
    assert "2 times faster" in inspected(frames, fps=4, cut=every).lines()[1]


def test_shapes_and_sizes_far_from_the_models(inspected):
    def found(width, height, cut, native=None):
        return kinds(inspected(pan(8, step=1, side=max(width, height))[:, :height, :width], cut=cut, native=native))

    assert found(64, 64, Cut(128, 128, 8, 8)) == ["small"] and found(96, 96, Cut(128, 128, 8, 8)) == []
    assert found(128, 64, Cut(64, 64, 8, 8, snap=None)) == ["stretched"]
    assert "stretched" in found(64, 128, Cut(64, 64, 8, 8, snap=64)), "there is one multiple of 64 in 64"
    assert "stretched" not in found(64, 128, Cut(64, 64, 8, 8, snap=8))
    assert found(72, 64, Cut(64, 64, 8, 8, snap=None)) == []
    assert found(160, 64, Cut(160, 160, 8, 8)) == ["shape"] and found(128, 72, Cut(128, 128, 8, 8)) == []
    assert found(128, 128, Cut(128, 128, 8, 8), (64, 64)) == ["size"]
    assert found(64, 64, Cut(64, 64, 8, 8), (128, 128)) == ["size"]
    assert found(64, 64, Cut(64, 64, 8, 8), (72, 64)) == []


def test_a_long_stretch_is_watched_in_steps_and_every_frame_that_is_taken(inspected):
    plan = inspected(pan(1000, step=0.05, side=32), fps=60, cut=Cut(32, 32, 8, 0, step=140), plays_at=60 / 140)
    assert plan.taken[-1] == 980 and kinds(plan) == []
    for last in (399, 400, 798, 799, 5000):
        assert len(inspection._watched([0, last])) <= inspection.MOST_WATCHED + 1, "and the last that is taken"
    assert inspection._watched([3, 402]) == list(range(3, 403))


def test_images_gifs_and_broken_files(tmp_path):
    gif = tmp_path / "a.gif"
    iio.imwrite(gif, pan(8, step=2), duration=100, loop=0)
    assert inspect_video(gif, CUT, 8).findings == () and inspect_video(gif, CUT, 8).fps == 10
    (tmp_path / "a.mp4").write_bytes(b"no video")
    for name, words in (("a.mp4", "not a video"), ("b.mp4", "no such file"), ("c.png", "is an image")):
        if name.endswith("png"):
            iio.imwrite(tmp_path / name, np.zeros((8, 8, 3), np.uint8))
        with pytest.raises(UserError, match=words):
            inspect_video(tmp_path / name, CUT, 8)


def test_a_single_frame_has_no_motion_to_warn_of(inspected):
    assert kinds(inspected(pan(8, step=1), cut=Cut(64, 64, 1, 8))) == []


@pytest.mark.parametrize("height, width", [(1, 300), (300, 1), (2, 2)])
def test_frames_of_a_pixel_or_two_are_looked_at_like_others(height, width):
    frames = np.random.default_rng(0).integers(0, 255, (4, height, width, 3), dtype=np.uint8)
    assert motion(frames).changed > 0


def test_full_hd_takes_seconds_only(tmp_path):
    frames = np.repeat(np.repeat(pan(24, step=1, side=120), 9, axis=1), 16, axis=2)
    path, quick = tmp_path / "hd.mp4", ["-preset", "ultrafast"]
    iio.imwrite(path, frames, plugin="FFMPEG", fps=24, quality=5, macro_block_size=2, output_params=quick)
    began = time.process_time()
    plan = inspect_video(path, Cut(384, 384, 8, 8), plays_at=8)
    assert plan.size == (1920, 1080) and kinds(plan) == [] and time.process_time() - began < 10
