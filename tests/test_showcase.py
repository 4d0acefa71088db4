"""The picture that plays: what stands where, that it plays, and that it is small enough for a README."""

import re

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from PIL import Image

from configs.errors import UserError
from data.clips import Clip
from infer import side_by_side as animation
from infer.video import read_frames
from scripts import quickstart, side_by_side
from scripts.showcase.samples import clip_of, config_of

from conftest import ROOT

RED, GREEN, BLUE = (250, 0, 0), (0, 250, 0), (0, 0, 250)


def plain(colour, frames=4, side=64):
    """A video of one colour that fades a little from frame to frame."""
    video = torch.tensor(colour, dtype=torch.uint8)[:, None, None].repeat(frames, 1, side, side)
    return video - torch.arange(frames, dtype=torch.uint8)[:, None, None, None] * 10 * (video > 100)


def frames_of(path):
    image = Image.open(path)
    shown = []
    for number in range(image.n_frames):
        image.seek(number)
        shown.append(np.asarray(image.convert("RGB")).astype(int))
    return image, shown


def test_reference_base_and_customized_stand_side_by_side_and_play(tmp_path):
    rows = [("one", plain(GREEN), plain(BLUE)), ("two", plain(BLUE), plain(GREEN))]
    path = animation.write_side_by_side(tmp_path / "p.webp", rows, Clip(plain(RED), "clip", "c", 8), fps=8)
    image, shown = frames_of(path)
    assert image.is_animated and image.info["loop"] == 0 and path.stat().st_size < animation.MOST_BYTES
    assert len(shown) == 4 and image.info["duration"] == 125
    step = animation.SIDE + animation.GAP
    row = animation.SIDE + animation.LINES * animation.LINE + animation.GAP
    for number, frame in enumerate(shown):
        for column, line, colour in ((0, 0, RED), (1, 0, GREEN), (2, 0, BLUE), (1, 1, BLUE), (2, 1, GREEN)):
            seen = frame[60 + line * row, 60 + column * step]
            wanted = np.array(colour) - 10 * number * (np.array(colour) > 100)
            assert np.abs(seen - wanted).max() <= 3, (number, column, line)
        assert frame[60 + row, 60].min() == 255  # the reference clip stands once
    assert len(read_frames(path.with_suffix(".mp4"))) == 4


def test_videos_of_other_length_and_size_are_spread_and_reduced(tmp_path):
    rows = [("a prompt that is far too long for its place " * 20, plain(GREEN, 8, 300), plain(BLUE, 8, 300))]
    path = animation.write_side_by_side(tmp_path / "p.webp", rows, Clip(plain(RED, 2), "c", "c", 8), fps=8)
    image, shown = frames_of(path)
    assert len(shown) == 8 and image.width == 3 * (animation.SIDE + animation.GAP) + animation.GAP
    reds = [frame[60, 60, 0] for frame in shown]
    assert max(reds[:4]) - min(reds[:4]) <= 3 and reds[0] - reds[-1] == pytest.approx(10, abs=3)


def test_a_picture_that_cannot_be_made_small_is_refused_and_leaves_the_video_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(animation, "MOST_BYTES", 100)
    rows = [("one", plain(GREEN), plain(BLUE))]
    with pytest.raises(UserError, match="give fewer prompts"):
        animation.write_side_by_side(tmp_path / "p.webp", rows, Clip(plain(RED), "clip", "c", 8), fps=8)
    assert [path.name for path in tmp_path.iterdir()] == ["p.mp4"]


def test_a_slow_clip_plays_at_a_frame_a_second_at_least(tmp_path):
    rows = [("one", plain(GREEN), plain(BLUE))]
    path = animation.write_side_by_side(tmp_path / "p.webp", rows, Clip(plain(RED), "clip", "c", 0.4), fps=0.4)
    assert path.is_file() and iio.immeta(path.with_suffix(".mp4"), plugin="FFMPEG")["fps"] == 1


def test_noise_is_made_small_by_lossy_compression(tmp_path):
    noise = [torch.randint(256, (16, 3, 192, 192), dtype=torch.uint8) for _ in range(3)]
    path = animation.write_side_by_side(tmp_path / "p.webp", [("x", *noise[:2])], Clip(noise[2], "c", "c", 8), fps=8)
    assert path.stat().st_size < animation.MOST_BYTES and Image.open(path).n_frames == 16


def test_the_command_shows_a_run_beside_its_clip(trained, tmp_path, capsys):
    run = trained()
    side_by_side.main([str(run), "--output", str(tmp_path / "picture.webp")])
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "picture.webp")]
    assert Image.open(tmp_path / "picture.webp").n_frames == 4
    reference = clip_of(config_of(run))
    assert reference.frames.shape == (4, 3, 64, 64) and reference.prompt == "a car is running"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "picture.gif"], "ends in .webp"),
        (["--prompt", "a", "b", "c", "d"], "at most 3"),
        ([], "no config.yaml there"),
    ],
)
def test_what_cannot_be_shown_is_one_sentence(words, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        side_by_side.main([str(tmp_path), *words])
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_the_picture_of_the_readme_plays_and_is_small():
    path = ROOT / "data" / "examples" / "side_by_side.webp"
    image, shown = frames_of(path)
    assert image.is_animated and len(shown) == 8 and path.stat().st_size < animation.MOST_BYTES
    assert all(np.abs(one - other).max() > 50 for one, other in zip(shown, shown[1:]))


def test_the_quickstart_names_the_files_that_its_training_made(tmp_path, monkeypatch, capsys):
    """Overrides may leave out any of them."""
    monkeypatch.setattr("train.run", lambda cfg: tmp_path)
    quickstart.main([])
    said = capsys.readouterr()
    assert said.out == "" and re.fullmatch(r"took \d+ s and \d+ CPU seconds \(aim: 45 s and 80 .*\)\n", said.err)
    of_the_last_step = tmp_path / "previews/step-7"
    of_the_last_step.mkdir(parents=True)
    for path in (of_the_last_step / "b.mp4", of_the_last_step / "a.mp4", tmp_path / "loss.png"):
        path.touch()
    quickstart.main(["max_train_steps=7", "checkpointing_steps=7", "validation_steps=7"])
    told = capsys.readouterr().out.splitlines()
    assert told == [f"video: {of_the_last_step / 'a.mp4'}", f"loss plot: {tmp_path / 'loss.png'}"]
