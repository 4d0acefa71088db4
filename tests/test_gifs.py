"""A gif says how long each frame stays: it plays at its own pace, and frames that writers merged are counted again."""

import pytest
import torch
from PIL import Image

from configs.errors import UserError
from data.clips import Cut, open_video, read_video
from data.inspection import inspect_video
from infer import video
from infer.video import read_frames, write_video


def steps(*places):
    """uint8 [f c h w]: a light square at each of these places."""
    frames = torch.full((len(places), 3, 32, 64), 20, dtype=torch.uint8)
    for frame, place in zip(frames, places):
        frame[:, 8:24, place : place + 16] = 240
    return frames


RESTS = steps(0, 8, 16, 24, 24, 24, 24, 24)


def save(path, frames, stays):
    first, *others = (Image.fromarray(frame) for frame in frames.permute(0, 2, 3, 1).numpy())
    first.save(path, format="GIF", save_all=True, append_images=others, duration=stays, loop=0)
    return path


@pytest.mark.parametrize("fps", [1, 8, 12, 15, 24, 25, 30, 60, 200])
def test_a_motion_that_comes_to_rest_keeps_its_frames_and_their_times(tmp_path, fps):
    frames = torch.cat([RESTS, RESTS[-1:].repeat(9, 1, 1, 1)])  # 14 that stay: a fraction of each would add up
    path = write_video(tmp_path / "a.gif", frames, fps)
    assert Image.open(path).n_frames == 4, "what was written is short, as Pillow merges what is equal"
    assert torch.equal(read_frames(path), frames)
    clip = read_video(path, Cut(64, 32, 17), "x")
    assert torch.equal(clip.frames, frames)
    assert clip.fps == open_video(path).fps == pytest.approx(100 / max(1, round(100 / fps)))


def test_the_rate_of_a_gif_is_that_of_its_shortest_frame_wherever_it_is(tmp_path):
    path = save(tmp_path / "a.gif", steps(0, 8, 16, 24), [300, 100, 200, 140])
    gif = open_video(path)
    assert (gif.count, gif.fps, gif.size) == (7, 10, (64, 32))
    assert torch.equal(read_frames(path), steps(0, 0, 0, 8, 16, 16, 24))
    clip = read_video(path, Cut(64, 32, 3, fps=5), "x")
    assert torch.equal(clip.frames, steps(0, 0, 16)) and clip.fps == 5
    plan = inspect_video(path, Cut(64, 32, 3, fps=5), 5)
    assert (plan.count, plan.fps, plan.taken) == (7, 10, (0, 2, 4))


def test_frames_that_stay_for_about_as_long_count_once(tmp_path):
    path = save(tmp_path / "a.gif", steps(0, 8, 16, 24), [30, 30, 40, 30])  # 30 frames a second, as ffmpeg writes them
    assert torch.equal(read_frames(path), steps(0, 8, 16, 24))
    path = save(tmp_path / "b.gif", steps(0, 8), 0)
    assert open_video(path).fps == 10 and len(read_frames(path)) == 2


@pytest.mark.parametrize("read", [open_video, read_frames, lambda path: read_video(path, Cut(64, 32, 2), "x")])
def test_a_gif_that_would_fill_the_memory_is_one_sentence(tmp_path, read, monkeypatch):
    path = save(tmp_path / "a.gif", steps(0, 8), [10, 600_000])
    monkeypatch.setattr("data.clips.np.repeat", None)  # nothing is repeated before it is refused
    monkeypatch.setattr("data.clips.MOST_REPEATED", 59_998 * 64 * 32 * 3)  # 60000 for the second, one is there
    with pytest.raises(UserError, match="a.gif: its frames stay from 10 to 600000 ms.* 60001 frames of 64x32.*; save"):
        read(path)


def test_a_small_gif_that_rests_for_minutes_is_read_and_a_large_one_is_not(tmp_path):
    assert open_video(save(tmp_path / "a.gif", steps(0, 8), [10, 600_000])).count == 60_001
    large = steps(0, 8).repeat(1, 1, 12, 12)
    with pytest.raises(UserError, match="too many to hold in memory"):
        open_video(save(tmp_path / "b.gif", large, [10, 600_000]))


def test_small_frames_are_no_way_around_the_limit(tmp_path):
    dots = torch.tensor([0, 255] * 8, dtype=torch.uint8)[:, None, None, None].expand(16, 3, 1, 1)
    with pytest.raises(UserError, match="983026 frames of 1x1"):
        open_video(save(tmp_path / "a.gif", dots, [10] + [655_350] * 15))


def test_a_small_file_of_large_frames_is_refused_before_they_are_held(tmp_path, monkeypatch):
    path = save(tmp_path / "a.gif", steps(0, 8, 16, 24), 100)
    monkeypatch.setattr("data.clips.np.stack", None)
    monkeypatch.setattr("data.clips.MOST_REPEATED", 3 * 64 * 32 * 3)
    with pytest.raises(UserError, match="a.gif: 4 frames of 64x32 pixels and more, too many to hold in memory; cut"):
        open_video(path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_picture_that_is_named_a_gif_is_one_sentence(tmp_path, kind):
    path = tmp_path / "a.gif"
    Image.fromarray(steps(0)[0].permute(1, 2, 0).numpy()).save(path, format=kind)
    for read in (
        open_video, read_frames, lambda path: read_video(path, Cut(64, 32, 2), "x"),
        lambda path: inspect_video(path, Cut(64, 32, 2), 8),
    ):  # fmt: skip
        with pytest.raises(UserError, match="a.gif: not a gif but a picture of 64x32 pixels; save it as gif or mp4"):
            read(path)


def test_a_gif_of_which_only_a_part_has_colours_is_one_sentence(tmp_path):
    area, pixels = bytes([0, 0, 0, 0, 2, 0, 2, 0]), bytes([2, 3, 0x44, 2, 5, 0])
    grey, coloured = b"," + area + b"\0" + pixels, b"," + area + b"\x80" + bytes(6) + pixels
    (tmp_path / "a.gif").write_bytes(b"GIF89a" + bytes([2, 0, 2, 0, 0, 0, 0]) + grey + coloured + b";")
    with pytest.raises(UserError, match="not a gif that can be read"):
        open_video(tmp_path / "a.gif")


def test_a_gif_of_one_frame_is_a_video_of_one(tmp_path):
    path = save(tmp_path / "a.gif", steps(0), 100)
    assert open_video(path).count == 1 and torch.equal(read_frames(path), steps(0))
    with pytest.raises(UserError, match="1 frames where 2 are asked for"):
        read_video(path, Cut(64, 32, 2), "x")


@pytest.mark.parametrize("frames", [RESTS, steps(0, 8, 16, 24), steps(0, 0, 0)], ids=["rests", "moves", "is still"])
def test_a_gif_that_lost_frames_never_gets_its_final_name(tmp_path, monkeypatch, frames):
    write_video(tmp_path / "whole.gif", frames, fps=8)
    whole = video._encode
    monkeypatch.setattr(video, "_encode", lambda path, images, *how: whole(path, images[:-1], *how))
    with pytest.raises(UserError, match=f"the gif plays {len(frames) - 1} of {len(frames)} frames"):
        write_video(tmp_path / "a.gif", frames, fps=8)
    assert [path.name for path in tmp_path.iterdir()] == ["whole.gif"]


def test_a_gif_that_does_not_decode_never_gets_its_final_name(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "_encode", lambda path, images, *how: path.write_bytes(b"GIF89a;"))
    with pytest.raises(UserError, match="the gif cannot be read"):
        write_video(tmp_path / "a.gif", steps(0, 8), fps=8)
    assert list(tmp_path.iterdir()) == []
