"""The queue of trainings: one at a time, stopped so that they can save, never lost without a sentence."""

import errno
import fcntl
import os
import threading
import time

import pytest

from scripts.studio import trainings
from scripts.studio.trainings import FAILED, FINISHED, STOPPED, STOPPING, TRAINING, WAITING, Training, Trainings

# a command that behaves as train.py does: makes its run folder, logs, on SIGTERM saves and ends with 143; a second
# signal ends it at once
STAND_IN = """
import os, pathlib, signal, sys, time
run = pathlib.Path(sys.argv[1]) / "train_1"
run.mkdir(parents=True, exist_ok=True)
stop = []
signal.signal(signal.SIGTERM, lambda *_: os._exit(1) if stop else stop.append(1))
(run / "log.jsonl").write_text("{}")
for _ in range(int(sys.argv[2])):
    if stop:
        time.sleep(0.3)
        (run / "saved").write_text("")
        sys.exit(143)
    time.sleep(0.02)
"""
LONG, SHORT = "5000", "1"


def until(true, seconds=20):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


@pytest.fixture
def queue(tmp_path):
    queue = Trainings(tmp_path / "lock")
    yield queue
    queue.close()


def submit(queue, folder, turns=LONG):
    return queue.submit(["-c", STAND_IN, str(folder), turns], folder)


def test_one_trains_and_the_others_wait_with_their_place(queue, tmp_path):
    first, second, third = (submit(queue, tmp_path / name) for name in "abc")
    until(lambda: first.state == TRAINING)
    assert [queue.place(each) for each in (first, second, third)] == [0, 1, 2]
    assert second.state == third.state == WAITING and queue.current is first
    assert first.run == tmp_path / "a" / "train_1" and not (tmp_path / "b").exists()
    queue.stop(second)
    assert second.state == STOPPED and queue.place(third) == 1
    queue.stop(first)
    until(lambda: third.state == TRAINING)
    assert first.state == STOPPED and not (tmp_path / "b").exists() and queue.current is third


def test_a_stopped_training_has_saved(queue, tmp_path):
    training = submit(queue, tmp_path / "a")
    until(lambda: training.state == TRAINING)
    queue.stop(training)
    time.sleep(0.1)
    queue.stop(training)  # a second click must not send a second signal
    assert training.state in (STOPPING, STOPPED)
    until(lambda: training.state == STOPPED)
    assert (training.run / "saved").is_file() and training.sentence == ""


def test_a_training_that_is_stopped_while_it_starts_is_stopped(queue, tmp_path):
    training = submit(queue, tmp_path / "a")
    queue.stop(training)
    until(lambda: training.state == STOPPED)


def test_going_on_uses_the_same_run(queue, tmp_path):
    first = submit(queue, tmp_path / "a", SHORT)
    until(lambda: first.state == FINISHED)
    again = queue.submit(first.words, first.folder, first.run)
    until(lambda: again.state == FINISHED)
    assert queue.of(first.run) is again and len(list((tmp_path / "a").iterdir())) == 1


def test_a_training_that_fails_says_why_in_one_sentence(queue, tmp_path):
    code = "import sys; print('step 1\\rerror: no space left on the disk; free some', file=sys.stderr); sys.exit(2)"
    failed, following = queue.submit(["-c", code], tmp_path / "a"), submit(queue, tmp_path / "b", SHORT)
    until(lambda: following.state == FINISHED)
    assert (failed.state, failed.sentence) == (FAILED, "no space left on the disk; free some")


def test_a_killed_training_is_told_and_the_queue_goes_on(queue, tmp_path):
    code = "import os, signal; print('training'); os.kill(os.getpid(), signal.SIGKILL)"
    killed, following = queue.submit(["-c", code], tmp_path / "a"), submit(queue, tmp_path / "b", SHORT)
    until(lambda: following.state == FINISHED)
    assert killed.state == FAILED and "code -9" in killed.sentence


def test_a_training_of_another_page_is_waited_for(queue, tmp_path):
    with open(queue.lock, "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        training = submit(queue, tmp_path / "a", SHORT)
        until(lambda: training.sentence)
        assert training.state == WAITING and "another page" in training.sentence
    until(lambda: training.state == FINISHED)


def test_a_training_holds_the_lock_itself(tmp_path):
    """So a page that was killed leaves no room for a second training beside its first."""
    with open(tmp_path / "lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        training = Training(["-c", STAND_IN, str(tmp_path / "a"), LONG], tmp_path / "a")
        thread = threading.Thread(target=training.perform, args=(lock.fileno(),))
        thread.start()
        until(lambda: training.state == TRAINING)
    with open(tmp_path / "lock", "a") as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    training.stop()
    thread.join()
    with open(tmp_path / "lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP], ids=["NFS", "FUSE"])
def test_a_file_system_without_locks_delays_no_training(queue, tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    first, second = submit(queue, tmp_path / "a", SHORT), submit(queue, tmp_path / "b", SHORT)
    until(lambda: second.state == FINISHED)
    assert first.state == FINISHED


def test_a_lock_that_cannot_be_opened_delays_no_training(tmp_path):
    (tmp_path / "file").write_text("")
    queue = Trainings(tmp_path / "file" / "lock")
    training = submit(queue, tmp_path / "a", SHORT)
    until(lambda: training.state == FINISHED)
    queue.close()


def test_closing_the_page_lets_the_training_save(tmp_path):
    queue = Trainings(tmp_path / "lock")
    training, waiting = submit(queue, tmp_path / "a"), submit(queue, tmp_path / "b")
    until(lambda: training.state == TRAINING)
    queue.close()
    assert training.state == STOPPED and (training.run / "saved").is_file()
    assert waiting.state == STOPPED and not (tmp_path / "b").exists()


def test_what_was_printed_is_kept_without_a_disk(tmp_path):
    training = Training(["-c", "print('x' * 200_000); print('the end')"], tmp_path)
    training.perform(None)
    assert training.printed.endswith("the end\n") and len(training.printed) < 100_000
    assert not list(tmp_path.iterdir())


def test_a_training_that_ended_holds_no_file(queue, tmp_path, monkeypatch):
    """Nor does one that never began; the end of what was printed is kept as text."""
    files, memory = [], trainings._memory
    monkeypatch.setattr(trainings, "_memory", lambda: files.append(memory()) or files[-1])
    training, waiting = submit(queue, tmp_path / "a"), queue.submit(["-c", "print('x')"], tmp_path / "b")
    until(lambda: training.state == TRAINING)
    queue.stop(waiting)
    queue.stop(training)
    until(lambda: training.state == STOPPED)
    last = queue.submit(["-c", "print('the end')"], tmp_path / "c")
    until(lambda: last.state == FINISHED)
    assert len(files) == 2 and all(file.closed for file in files) and last.printed == "the end\n"
