"""Videos exist whole or not at all; contact sheets stay small, whatever prompts and numbers of videos there are."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from configs.errors import UserError, ending
from configs.files import NoSpace
from infer import pictures, video
from infer.video import read_frames, write_video

from conftest import ROOT

FRAMES = torch.randint(0, 256, (6, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a"])
def test_a_video_is_there_once_its_frames_were_read_back(tmp_path, name):
    path = write_video(tmp_path / "new" / name, FRAMES, fps=8)
    assert read_frames(path).shape == FRAMES.shape and [p.name for p in path.parent.iterdir()] == [name]


def cut_to(share):
    """An encoder on a full disk: it ends as if all were well, and a part is there."""

    def encode(path, *arguments):
        whole(path, *arguments)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])

    whole = video._encode
    return encode


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("name", ["a.mp4", "a.gif"])
def test_a_cut_video_never_gets_its_final_name(tmp_path, monkeypatch, name, share):
    monkeypatch.setattr(video, "_encode", cut_to(share))
    with pytest.raises(UserError, match="could not be written"):
        write_video(tmp_path / name, FRAMES, fps=8)
    assert list(tmp_path.iterdir()) == []


def test_a_video_that_lost_frames_never_gets_its_final_name(tmp_path, monkeypatch):
    whole = video._encode
    monkeypatch.setattr(video, "_encode", lambda path, images, *how: whole(path, images[:-1], *how))
    with pytest.raises(UserError, match="5 of 6 frames"):
        write_video(tmp_path / "a.mp4", FRAMES, fps=8)


@pytest.mark.parametrize("size", [(72, 40), (30, 18), (33, 17)])
def test_a_lossless_video_has_its_size_and_every_bit(tmp_path, size):
    width, height = size
    frames = torch.randint(0, 256, (3, 3, height, width), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    found = read_frames(write_video(tmp_path / "a.mp4", frames, fps=8, quality=10))
    assert found.shape[2:] == (height + height % 2, width + width % 2)
    assert torch.equal(found[..., :height, :width], frames)


def test_a_video_of_another_size_never_gets_its_final_name(tmp_path, monkeypatch):
    whole = video._encode
    monkeypatch.setattr(video, "_encode", lambda path, images, *how: whole(path, images[:, :-2], *how))
    with pytest.raises(UserError, match="frames of 32x30 in place of 32x32"):
        write_video(tmp_path / "a.mp4", FRAMES, fps=8)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_where_ffmpeg_does_not(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "_encode", cut_to(0.5))
    monkeypatch.setattr("configs.files.BLOCK", 2**60)  # as if nothing were left
    with pytest.raises(NoSpace) as error:
        write_video(tmp_path / "a.mp4", FRAMES, fps=8)
    assert "no space left" in ending(error.value)[0] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words, kind", [
    ("[Errno 32] Broken pipe\n\nFFMPEG COMMAND:\nffmpeg\n\nFFMPEG STDERR OUTPUT:\nNo space left on device", NoSpace),
    ("[Errno 32] Broken pipe\n\nFFMPEG COMMAND:\nffmpeg\n\nFFMPEG STDERR OUTPUT:\nUnknown encoder", UserError),
])  # fmt: skip
def test_what_ffmpeg_printed_becomes_one_sentence(tmp_path, monkeypatch, words, kind):
    def fail(*_, **__):
        raise OSError(words)

    monkeypatch.setattr(video.iio, "imwrite", fail)
    with pytest.raises(kind) as error:
        write_video(tmp_path / "a.mp4", FRAMES, fps=8)
    assert "\n" not in ending(error.value)[0] and list(tmp_path.iterdir()) == []


def test_an_error_of_the_system_keeps_its_number(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(video.Image.Image, "save", fail)
    with pytest.raises(NoSpace) as error:
        write_video(tmp_path / "a.gif", FRAMES, fps=8)
    assert "quota" in ending(error.value)[0]


def test_reading_back_costs_little(tmp_path, monkeypatch):
    frames = FRAMES.repeat_interleave(3, 0).repeat(1, 1, 10, 10)[:16]  # 16 frames of 320x320
    path = tmp_path / "a.mp4"

    def seconds(work) -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    written = frames.permute(0, 2, 3, 1).numpy()
    whole, check = zip(
        *(  # in turns, and the quickest of five: other processes only ever slow one down
            (seconds(lambda: write_video(path, frames, fps=8)), seconds(lambda: video._check_written(path, written, 8)))
            for _ in range(5)
        )
    )
    assert min(check) < min(whole) / 2


def test_pictures_and_cut_files_are_no_videos(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    write_video(tmp_path / "a.gif", FRAMES, fps=8)
    write_video(tmp_path / "a.mp4", FRAMES, fps=8)
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "0000.png").write_bytes(b"")
    (tmp_path / "cut.gif").write_bytes((tmp_path / "a.gif").read_bytes()[:400])
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "a.mp4").read_bytes()[:400])
    for name in ("a.png", "cut.gif", "cut.mp4", "frames", "absent.mp4", "absent"):
        with pytest.raises(UserError) as error:
            read_frames(tmp_path / name)
        assert "\n" not in str(error.value)


def test_a_pipe_is_refused_and_nobody_waits_for_what_it_may_bring(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "a.mp4")
    monkeypatch.setattr(video.iio, "imread", None)  # which would wait for ever
    with pytest.raises(UserError, match="neither a file nor a folder"):
        read_frames(tmp_path / "a.mp4")


WRITING = """
import os, signal, subprocess, sys
from pathlib import Path
import torch
from configs.errors import command
from infer.video import write_video
execute = subprocess.Popen._execute_child
def signalled(process, words, *arguments):
    execute(process, words, *arguments)
    if "-y" in words:  # the encoder runs, and nobody but this frame knows it
        os.kill(os.getpid(), signal.SIGINT)
subprocess.Popen._execute_child = signalled
@command
def main():
    write_video(Path(sys.argv[1]) / "new" / "a.mp4", torch.zeros(6, 3, 32, 32, dtype=torch.uint8), fps=8)
main()
"""


def test_a_signal_in_the_first_moments_of_ffmpeg_leaves_nothing_that_it_would_make_anew(tmp_path):
    (tmp_path / "new").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", WRITING, tmp_path], cwd=ROOT, capture_output=True, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    time.sleep(1)  # an ffmpeg that was left alone notices that nothing comes, and writes an empty video
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
    assert list((tmp_path / "new").iterdir()) == []


def test_a_long_caption_is_cut_in_no_time(tmp_path):
    row = pictures.strip(FRAMES)
    began = time.process_time()
    pictures.contact_sheet(tmp_path / "sheet.png", [("a horse " * 20_000, row)] * 3)
    assert time.process_time() - began < 10  # word by word it takes minutes


def test_a_caption_is_cut_as_late_as_it_fits():
    draw, font = ImageDraw.Draw(Image.new("RGB", (1, 1))), ImageFont.load_default(size=12)
    assert pictures.fitted(draw, "a  cat\n", font, 500) == "a cat"
    text = "a horse is running through a field of flowers"
    for width in range(0, 300, 7):
        cut = pictures.fitted(draw, text, font, width)
        slow = next(
            (
                text[:n] + "..."
                for n in range(len(text), 0, -1)
                if draw.textlength(text[:n] + "...", font=font) <= width
            ),
            "...",
        )
        assert cut in (slow, text)


def test_a_sheet_has_so_many_rows_and_counts_the_rest(tmp_path, monkeypatch):
    row = pictures.strip(FRAMES, columns=2, height=16)
    assert row.size == (34, 16)
    monkeypatch.setattr(pictures, "MOST_ROWS", 4)
    heights = [Image.open(pictures.contact_sheet(tmp_path / "s.png", [("x", row)] * n)).height for n in (3, 4, 5, 900)]
    assert heights[0] < heights[1] < heights[2] == heights[3]
    sheet = pictures.contact_sheet(tmp_path / "s.png", [("x", row)] * 4, more=7)
    assert Image.open(sheet).height == heights[2]


def test_a_strip_keeps_first_and_last_frame():
    frames = torch.arange(20, dtype=torch.uint8)[:, None, None, None].expand(20, 3, 8, 8) * 10
    shown = np.asarray(pictures.strip(frames, columns=3, height=8))[0, [0, 10, 20], 0]
    assert shown.tolist() == [0, 100, 190]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
@pytest.mark.parametrize("free", [0, 12_000, 40_000, 48_000, 100_000])
def test_a_really_full_disk_leaves_no_video_and_says_so(tmp_path, free, capfd):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("this machine mounts no small disk")
    try:
        (tmp_path / "fill").write_bytes(b"x" * (shutil.disk_usage(tmp_path).free - free))
        noise = torch.randint(0, 256, (16, 3, 128, 128), dtype=torch.uint8)
        for name in ("a.mp4", "a.gif", "a"):
            with pytest.raises(NoSpace) as error:
                write_video(tmp_path / "out" / name, noise, fps=8)
            assert "no space left" in ending(error.value)[0]
            assert [path.name for path in tmp_path.iterdir()] == ["fill"]
        assert capfd.readouterr().err == "", "neither a traceback nor ffmpeg's own lines"
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_captions_are_drawn_in_other_letters_than_english_ones(monkeypatch):
    """What a font lacks it draws as one and the same box."""
    distinct = lambda: len({bytes(pictures.font_of(20).getmask(letter)) for letter in "éüяλ"})
    assert distinct() == 4
    monkeypatch.setattr(pictures, "DEJAVU", "nowhere.ttf")
    assert distinct() < 4, "Pillow's own is better than no picture"
