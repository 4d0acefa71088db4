"""How a command ends: one line and the right code, whatever library found the trouble; nothing half-made is left."""

import errno
import os
import subprocess
import sys
import threading
import time

import pytest
import torch

from configs import files
from configs.errors import UserError, command, ending, is_out_of_memory, why_ended
from configs.files import NoSpace, alone_in, atomic_path, check_writable, fresh_folder, sweep

from conftest import ROOT


class SafetensorError(Exception):
    """As the library of that name raises it."""


def huge(function):
    try:
        function()
    except Exception as error:
        return error
    raise AssertionError("it fitted")


@pytest.mark.parametrize("error, code, words", [
    (UserError("a: b\x1b[31m"), 2, r"a: b\x1b[31m"),
    (KeyboardInterrupt(), 130, "interrupted"),
    (OSError(errno.ENOSPC, "No space left on device", "x.mp4"), 2, "no space left on the disk while writing x.mp4"),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), 2, "quota exceeded"),
    (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), 2, "no space left"),
    (SafetensorError("I/O error: Read-only file system (os error 30)"), 2, "read-only"),
    (RuntimeError("[mp4 @ 0x1] av_interleaved_write_frame(): No space left on device"), 2, "no space left"),
    (PermissionError(errno.EACCES, "Permission denied", "/x"), 2, "/x: permission denied"),
    (MemoryError(), 2, "out of memory"),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), 2, "out of memory"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0"), 2, "(2.50 GiB more"),
    (RuntimeError("CUDA error: out of memory"), 2, "out of memory"),
    (huge(lambda: torch.zeros(2**46)), 2, "out of memory"),
    (huge(lambda: torch.zeros(2**40, 2**40)), 2, "out of memory"),
])  # fmt: skip
def test_what_a_person_can_mend_is_one_line(error, code, words):
    line, number = ending(error)
    assert number == code and words in line and "\n" not in line


@pytest.mark.parametrize(
    "error", [ValueError("x"), RuntimeError("shape mismatch"), OSError(errno.EIO, "I/O"), SystemExit(3)]
)
def test_a_defect_keeps_its_traceback(error):
    assert ending(error) is None
    with pytest.raises(type(error)):
        command(lambda: (_ for _ in ()).throw(error))()


def test_out_of_memory_is_told_from_a_defect():
    assert not is_out_of_memory(ValueError("out of memory")) and not is_out_of_memory(RuntimeError("x"))


@pytest.mark.parametrize("error", [
    OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EDQUOT, "quota"),
    SafetensorError("I/O error: No space left on device (os error 28)"),
])  # fmt: skip
def test_a_full_disk_is_noticed_by_its_words_however_much_is_left(error, tmp_path):
    with pytest.raises(NoSpace) as raised, atomic_path(tmp_path / "a" / "file", needs=100) as part:
        part.write_text("half")
        raise error
    line, code = ending(raised.value)
    assert code == 2 and "100 bytes are needed and" in line and "free" in line and str(tmp_path / "a" / "file") in line
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_fit_is_not_begun(tmp_path):
    with pytest.raises(NoSpace), atomic_path(tmp_path / "file", needs=2**60):
        raise AssertionError("begun")
    assert list(tmp_path.iterdir()) == []


def test_another_error_with_room_left_stays_what_it_is(tmp_path):
    with pytest.raises(SafetensorError), atomic_path(tmp_path / "file"):
        raise SafetensorError("header too large")


@pytest.mark.parametrize("folder", ["/proc/x", "/proc/self/fd/x", "a\0b", "a\ud800b"])
def test_a_place_where_nothing_can_be_written_is_named_before_the_work(folder):
    with pytest.raises(UserError, match="name another folder"):
        check_writable(files.Path(folder))


def test_looking_whether_a_folder_can_be_written_leaves_nothing(tmp_path):
    check_writable(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_two_runs_never_share_a_fresh_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(files.Path, "exists", lambda _: False)  # as it looks to both of two that start together
    made = [fresh_folder(tmp_path / "train") for _ in range(3)]
    assert [folder.name for folder in made] == ["train", "train-2", "train-3"]


PRINTER = """
from configs.errors import command
@command
def main():
    print("x" * 100_000)
    print("more")
main()
"""


def test_a_reader_that_has_seen_enough_ends_a_command_quietly():
    process = subprocess.Popen([sys.executable, "-c", PRINTER], cwd=ROOT, stdout=-1, stderr=-1)
    process.stdout.close()
    assert process.wait(timeout=20) == 141 and process.stderr.read() == b""
    process.stderr.close()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no full device")
def test_an_output_that_cannot_be_written_is_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", PRINTER], cwd=ROOT, stdout=full, stderr=-1, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: no space left") and done.stderr.count("\n") == 1


@pytest.fixture
def dead():
    """The process number of one that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_leftovers_of_the_dead_are_swept_and_those_of_the_living_stay(dead, tmp_path):
    place, alive = files._place(), os.getppid()
    (tmp_path / f".checkpoint-5.{place}-{dead}.part").mkdir()
    (tmp_path / f".checkpoint-5.{place}-{dead}.part" / "file").touch()
    kept = [f".x.{place}-{alive}.part.mp4", ".x.ffffff-1.part.mp4", ".hidden", f".x.{dead}.part", "x.part"]
    for name in (f".x.{place}-{dead}.part.mp4", *kept):
        (tmp_path / name).touch()
    old = tmp_path / ".y.ffffff-1.part.json"  # of another machine, long ago
    old.touch()
    os.utime(old, (time.time() - 2 * files.ABANDONED,) * 2)
    assert len(sweep(tmp_path)) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
    assert sweep(tmp_path / "absent") == []


def test_a_folder_that_was_moved_aside_and_never_replaced_is_put_back(dead, tmp_path):
    aside = [tmp_path / f".{name}.{files._place()}-{dead}.old" for name in ("checkpoint-5", "checkpoint-6")]
    for folder in aside:
        folder.mkdir()
    (tmp_path / "checkpoint-6").mkdir()
    assert sweep(tmp_path) == aside
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-5", "checkpoint-6"]


def test_sweeping_beside_a_writer_that_finishes_is_no_error(dead, tmp_path, monkeypatch):
    for name in (".a.ffffff-1.part.mp4", f".b.{files._place()}-{dead}.part.mp4"):
        (tmp_path / name).touch()
    dies = files._is_dead
    monkeypatch.setattr(
        files, "_is_dead", lambda path, *rest: (path.name[1] == "a" and path.unlink(), dies(path, *rest))[1]
    )
    assert [path.name[1] for path in sweep(tmp_path)] == ["b"] and not list(tmp_path.iterdir())


def test_what_atomic_path_writes_is_what_sweep_recognizes(tmp_path):
    for name in ("checkpoint-5", "a.b.mp4", "cached_0.safetensors"):
        with atomic_path(tmp_path / name) as part:
            found = files.LEFTOVER.fullmatch(part.name)
            assert int(found["pid"]) == os.getpid() and found["place"] == files._place() and found["kind"] == "part"
            part.touch()


@pytest.mark.parametrize(
    ("printed", "said"),
    [
        ("error: the disk is full\nbye\n", "the disk is full"),
        ("error: the first\nerror: the last\n", "the last"),
        ("train:  10%\rerror: the disk is full; free some\r\n", "the disk is full; free some"),
        ("a\nerror: this was wrong\n  and this\n", "this was wrong; and this"),
        ("error: 2 keys are wrong:\n  a: one\n  b: two\nbye", "2 keys are wrong: a: one; b: two"),
        ("train:  10%\rTraceback\nValueError: x\n", "the command ended by itself with code 1 (ValueError: x)"),
        ("", "the command ended by itself with code 1"),
    ],
)
def test_what_a_failed_command_printed_is_one_sentence(printed, said):
    assert why_ended(printed, 1) == said


def test_the_line_that_a_command_ends_with_is_read_back():
    for error in (UserError("x: found 1; give 2"), UserError("2 keys are wrong:\n  a: one\n  b: two")):
        line, _ = ending(error)
        assert why_ended(f"step 1\n{line}\n", 2) == str(error).replace(":\n  ", ": ").replace("\n  ", "; ")


def test_a_file_takes_no_folders_place(tmp_path):
    """`--csv outputs/infer` must not cost the videos there."""
    folder = tmp_path / "videos"
    folder.mkdir()
    (folder / "a.mp4").touch()
    with pytest.raises(UserError, match="videos: is a folder, and a file is to be written; name a file"):
        with atomic_path(folder) as part:
            part.write_text("a table")
    assert [path.name for path in tmp_path.rglob("*")] == ["videos", "a.mp4"]


def test_one_at_a_time_is_alone_in_a_folder(tmp_path):
    order = []

    def other():
        with alone_in(tmp_path):
            order.append("second")

    with alone_in(tmp_path):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"] and not list(tmp_path.iterdir())
