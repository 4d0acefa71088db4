"""Two decoders, one answer: the same frames, upright, whatever the width; and one sentence for what neither decodes."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import imageio.v3 as imageio
import imageio_ffmpeg
import numpy as np
import pytest

from configs.errors import UserError
from data import decoder as decoder_module
from data.clips import Cut, open_video, read_video
from data.decoder import Decoder
from data.inspection import inspect_video

EXAMPLES = sorted((Path(__file__).parents[1] / "data" / "examples").glob("*.mp4"))
NARROW = [2, 4, 6, 8, 12, 16, 24, 48, 72]  # even ones of those that decord fails at: H.264 has no odd sides


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """A function of width and height: a video of 4 frames at 8 fps, dark, darker to the right, with a light corner."""
    folder = tmp_path_factory.mktemp("videos")

    def write(width, height):
        frames = np.zeros((4, height, width, 3), np.uint8)
        frames += np.linspace(120, 0, width).astype(np.uint8)[:, None]
        frames[:, : height // 3, : width // 3] = 250
        frames[:, -height // 3 :] += 20 * np.arange(4, dtype=np.uint8)[:, None, None, None]
        path = folder / f"{width}x{height}.mp4"
        imageio.imwrite(path, frames, fps=8, macro_block_size=2, quality=9)
        return path

    return write


def without_decord(monkeypatch):
    """data/decoder.py as it is where decord has no wheel."""
    monkeypatch.setitem(sys.modules, "decord", None)
    spec = importlib.util.spec_from_file_location("decoder_without_decord", decoder_module.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_both_decoders_give_the_same_frames(path, monkeypatch):
    pytest.importorskip("av")
    decoder = without_decord(monkeypatch)
    theirs, ours = Decoder(path), decoder.Decoder(path)
    assert type(ours).__name__ == "AvDecoder"
    assert (ours.count, ours.fps, ours.size) == (theirs.count, theirs.fps, theirs.size)
    picked = [7, 0, 3]
    assert np.array_equal(ours.frames(picked), theirs.frames(picked))
    scaled = ours.frames(picked, (96, 64)).astype(int) - theirs.frames(picked, (96, 64))
    assert np.abs(scaled).max() <= 8


def test_without_decord_bad_videos_are_one_sentence_too(make, tmp_path, monkeypatch):
    pytest.importorskip("av")
    decoder = without_decord(monkeypatch)
    monkeypatch.setattr("data.clips.Decoder", decoder.Decoder)
    monkeypatch.setattr("data.clips.UNDECODABLE", decoder.UNDECODABLE)
    video = make(96, 64)
    assert "4 frames 0..3 by 1 of 4" in read_video(video, Cut(64, 64, 4), "x").source
    whole = video.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.mp4").write_text("not a video at all")
    for name in ("cut.mp4", "text.mp4"):
        with pytest.raises(UserError, match="not a video that can be decoded"):
            read_video(tmp_path / name, Cut(64, 64, 4), "x")


@pytest.mark.parametrize("degrees, corner", [
    (0, (0, 0)), (90, (-1, 0)), (180, (-1, -1)), (270, (0, -1)), (45, (0, 0)),
])  # fmt: skip
def test_both_decoders_turn_a_video_as_its_metadata_say(make, tmp_path, monkeypatch, degrees, corner):
    pytest.importorskip("av")
    turned, whole = tmp_path / "turned.mp4", make(96, 64)
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-display_rotation", str(degrees)]
    subprocess.run([*ffmpeg, "-i", whole, "-c", "copy", turned], check=True)
    decoder = without_decord(monkeypatch)
    theirs, ours = Decoder(turned), decoder.Decoder(turned)
    assert ours.size == theirs.size == ((64, 96) if degrees in (90, 270) else (96, 64))
    assert (ours.count, ours.fps) == (theirs.count, theirs.fps) == (4, 8)
    frames = ours.frames([3, 1])
    assert np.array_equal(frames, theirs.frames([3, 1]))
    y, x = (8 if end == 0 else -8 for end in corner)
    assert frames[:, y, x].min() > 230, "the light corner went where it belongs"
    scaled = ours.frames([3, 1], (80, 100))
    assert scaled.shape == (2, 100, 80, 3)
    assert np.abs(scaled.astype(int) - theirs.frames([3, 1], (80, 100))).mean() < 2


def test_frames_are_counted_where_the_file_does_not_say_how_many_there_are(make, tmp_path, monkeypatch):
    pytest.importorskip("av")
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error"]
    subprocess.run([*ffmpeg, "-i", make(96, 64), "-c", "copy", tmp_path / "a.mkv"], check=True)
    assert without_decord(monkeypatch).Decoder(tmp_path / "a.mkv").count == Decoder(tmp_path / "a.mkv").count == 4


@pytest.mark.parametrize("width", [*NARROW, 1, 3, 10, 64, 80])
def test_a_clip_is_stretched_to_any_width(make, width):
    clip = read_video(make(96, 64), Cut(width, 64, 4, snap=None), "x")
    assert clip.frames.shape == (4, 3, 64, width)
    light, dark = clip.frames[0, :, :20, : max(1, width // 4)], clip.frames[0, :, 30:40, -max(1, width // 4) :]
    assert light.float().mean() > dark.float().mean() + 20


@pytest.mark.parametrize("width", NARROW)
def test_a_video_too_narrow_for_decord_is_left_to_pyav(make, width, monkeypatch):
    pytest.importorskip("av")
    path = make(width, 64)
    video = open_video(path)
    assert (video.count, video.fps, video.size) == (4, 8, (width, 64))
    frames = video.frames([2, 0])
    assert np.array_equal(frames, without_decord(monkeypatch).Decoder(path).frames([2, 0]))
    assert frames.shape == video.frames([2, 0], (16, 16)).shape == (2, 64, width, 3), "too narrow for both"
    assert video.frames([2, 0], (64, 96)).shape == (2, 96, 64, 3)
    assert inspect_video(path, Cut(64, 64, 4, 8), 8).size == (width, 64)


@pytest.mark.skipif(decoder_module.decord is None, reason="PyAV decodes every width")
def test_a_video_too_narrow_for_decord_is_one_sentence_where_there_is_no_pyav(make, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    for cut in (Cut(64, 64, 4), Cut(24, 64, 4, snap=None)):
        with pytest.raises(UserError, match="16x64.mp4: 16 pixels wide, which decord cannot decode; scale it"):
            read_video(make(16, 64), cut, "x")
    assert read_video(make(20, 64), Cut(64, 64, 4), "x").frames.shape[0] == 4


@pytest.mark.skipif(decoder_module.decord is None, reason="decord's own errors")
def test_a_damaged_video_is_not_taken_for_a_narrow_one(make, tmp_path, monkeypatch):
    monkeypatch.setattr(decoder_module, "AvDecoder", None)  # which nobody is to call
    path = make(96, 64)
    reader = decoder_module.decord.VideoReader(str(path))
    with pytest.raises(IndexError):
        decoder_module._batch(reader, [99])
    monkeypatch.setattr(reader, "get_batch", lambda _: (_ for _ in ()).throw(decoder_module.decord.DECORDError("bad")))
    with pytest.raises(decoder_module.decord.DECORDError, match="bad"):
        decoder_module._batch(reader, [0])
