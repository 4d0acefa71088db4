"""The queue of trainings: each is the real `train.py` in a process of its own, one after another.

A training outlives the tab that started it. SIGTERM asks it to save a checkpoint and end. What it prints is kept in
memory that belongs to it (on Linux), so that a full disk can still be reported. A lock that every training holds keeps
two pages from training at once: even one whose page was killed is waited for.
"""

import functools
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from configs.errors import why_ended

try:
    import fcntl
except ImportError:  # no locks between pages there
    fcntl = None

POLL = 0.2  # seconds between looks at a lock, or at a training that ends
TAIL = 1 << 16  # bytes of what was printed that are looked at for a reason
PATIENCE = 120  # seconds that a closing page waits for a training to save

WAITING, PREPARING, TRAINING, STOPPING = "waiting", "preparing", "training", "stopping"
FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"
ENDED_BY_SIGNAL = (130, 143, -signal.SIGINT, -signal.SIGTERM)
OPEN = (WAITING, PREPARING, TRAINING, STOPPING)


class Training:
    """One command, from its place in the queue to its end. `folder` is its output_dir, of it alone."""

    def __init__(self, words: list[str], folder: Path, run: Path | None = None):
        self.words, self.folder = words, folder
        self.sentence = ""  # why it failed, or what it waits for
        self.printed = ""  # the end of what the command printed, once it has ended
        self.began = self.ended = 0.0
        self._run, self._state, self._process, self._asked = run, WAITING, None, False
        self._first = None

    @property
    def run(self) -> Path | None:
        """The run folder, once the command has made it."""
        if self._run is None and self.folder.is_dir():
            self._run = max(self.folder.glob("train_*"), default=None)
        return self._run

    @property
    def state(self) -> str:
        if self._state == PREPARING and self.run is not None and self._logged():
            return TRAINING
        return self._state

    def _logged(self) -> bool:
        log = self.run / "log.jsonl"
        return log.is_file() and log.stat().st_mtime >= self.began

    def pace(self, done: int, when: float) -> float | None:
        """Seconds a step, with previews and checkpoints: from the first that was asked about to number `done`.

        `when` is the time at which that step ended. None before there are two.
        """
        if self._first is None:
            self._first = (done, when)
        steps = done - self._first[0]
        return (when - self._first[1]) / steps if steps > 0 else None

    def stop(self) -> None:
        """Ask it to save and end: once, because a second signal would not let it save."""
        if self._asked or self._state not in OPEN:
            return
        self._asked = True
        if self._state == WAITING:
            self._state = STOPPED
        elif self._process is not None:
            self._tell()

    def _tell(self) -> None:
        self._state = STOPPING
        self._process.send_signal(signal.SIGTERM)

    def perform(self, lock: int | None) -> None:
        """Run the command to its end. The lock's descriptor goes to it, so that it is held as long as it lives."""
        self.began, self._state, self.sentence = time.time(), PREPARING, ""
        environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "PYTHONUNBUFFERED": "1"}
        try:
            with _memory() as memory:
                self._process = subprocess.Popen(
                    [sys.executable, *self.words],
                    stdin=subprocess.DEVNULL,
                    stdout=memory,
                    stderr=memory,
                    env=environment,
                    start_new_session=True,  # Ctrl-C in the page's terminal is the page's
                    pass_fds=() if lock is None else (lock,),
                )
                if self._asked:  # between the queue and here
                    self._tell()
                code = self._process.wait()
                self.printed = _end_of(memory)
        except OSError as error:
            self.sentence, code = f"the command could not be started ({error.strerror})", -1
        self.ended = time.time()
        self._state = FINISHED if code == 0 else STOPPED if code in ENDED_BY_SIGNAL else FAILED
        if self._state == FAILED:
            self.sentence = self.sentence or why_ended(self.printed, code)


class Trainings:
    """All trainings of this page in their order; a thread works through those that wait."""

    def __init__(self, lock: Path):
        self.lock, self.all = lock, []
        self._changed, self._closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._work, name="trainings", daemon=True)
        self._thread.start()

    def submit(self, words: list[str], folder: Path, run: Path | None = None) -> Training:
        """Put a command at the end of the queue; `run` is the folder that it goes on in."""
        training = Training(words, folder, run)
        with self._changed:
            self.all.append(training)
            self._changed.notify_all()
        return training

    def place(self, training: Training) -> int:
        """0 for the one that trains, then 1, 2, ... in the queue."""
        opened = [each for each in self.all if each.state in OPEN]
        return opened.index(training) if training in opened else 0

    @property
    def current(self) -> Training | None:
        """The one that trains, else the next in the queue, else the one that ended last."""
        opened = [each for each in self.all if each.state in OPEN]
        return opened[0] if opened else self.all[-1] if self.all else None

    def of(self, run: Path) -> Training | None:
        """The latest training in a run folder."""
        return next((each for each in reversed(self.all) if each.run == run), None)

    def stop(self, training: Training) -> None:
        """Take it out of the queue, or let it save and end."""
        training.stop()

    def close(self) -> None:
        """Empty the queue and wait until the running training has saved."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for training in list(self.all):
            self.stop(training)
        self._thread.join(PATIENCE)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._next())
                if self._closed:
                    return
                training = self._next()

            with alone(self.lock, functools.partial(self._unwanted, training)) as lock:
                if training._state == WAITING and not self._closed:
                    training.perform(lock)

    def _unwanted(self, training: Training) -> bool:
        training.sentence = "a training of another page goes on; this one begins when it ends"
        return self._closed or training._state != WAITING

    def _next(self) -> Training | None:
        return next((each for each in self.all if each._state == WAITING), None)


@contextmanager
def alone(path: Path, unwanted: Callable[[], bool]) -> Iterator[int | None]:
    """Hold the lock file, waiting for it until `unwanted()`; gives its descriptor, None where it is not held."""
    with ExitStack() as files:
        try:
            held = _held(path, unwanted, files)
        except OSError:  # file systems that know no locks (NFS, FUSE): as where Python knows none
            held = None
        yield held


def _held(path: Path, unwanted: Callable[[], bool], files: ExitStack) -> int | None:
    """The descriptor of the locked file, which `files` closes; None without locks, and once it is unwanted."""
    if fcntl is None:
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    file = files.enter_context(open(path, "a", encoding="utf-8"))
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file.fileno()
        except BlockingIOError:
            if unwanted():
                return None
            time.sleep(POLL)


def _memory():
    """A file in memory where there are such files, else a temporary one that has no name."""
    return os.fdopen(os.memfd_create("printed"), "wb+") if hasattr(os, "memfd_create") else tempfile.TemporaryFile()


def _end_of(file) -> str:
    """The last `TAIL` bytes of a file that another process wrote, as text."""
    descriptor = file.fileno()
    size = os.fstat(descriptor).st_size
    return os.pread(descriptor, TAIL, max(0, size - TAIL)).decode("utf-8", "replace")
