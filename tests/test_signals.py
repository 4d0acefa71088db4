"""SIGTERM and Ctrl-C: one line and the right code wherever they arrive, nothing half-made left, and none is lost."""

import os
import re
import signal
import subprocess
import sys
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from tqdm import tqdm

import train
from configs import signals
from configs.errors import command
from configs.files import atomic_path
from configs.signals import held
from infer.training.preview import Previews
from models.files.checkpoint import list_checkpoints
from models.training.journal import Journal
from models.training.stopping import StopSignals

from conftest import ROOT

SIGNALS = pytest.mark.parametrize(
    "number, code, line", [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
SCRIPT = """
import sys, time
from pathlib import Path
from configs.errors import command
from configs import files
from configs.files import atomic_path
remove, files._remove = files._remove, lambda path: (path.exists() and time.sleep(1), remove(path))  # a slow disk
@command
def main():
    with atomic_path(Path(sys.argv[1]) / "new" / "video.mp4") as part:
        part.write_text("half")
        print("writing", flush=True)
        time.sleep(30)
main()
"""


def started(script, *words, path=ROOT):
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, words)], env={"PYTHONPATH": f"{ROOT}:{path}"}, stdout=-1, stderr=-1,
        text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip


@SIGNALS
def test_a_signal_ends_a_command_in_one_line_with_nothing_half_made(number, code, line, tmp_path):
    process = started(SCRIPT, tmp_path)
    process.stdout.readline()
    process.send_signal(number)
    if number == signal.SIGTERM:  # a second one does not disturb the clearing away
        time.sleep(0.3)
        process.send_signal(number)
    _, told = process.communicate(timeout=20)
    assert (process.returncode, told.strip()) == (code, line)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def usual():
    """Ctrl-C as Python handles it: a shell's background jobs ignore it, the tests' own process perhaps among them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@SIGNALS
def test_a_signal_that_a_library_turns_into_an_error_of_its_own_is_still_a_signal(number, code, line, capsys, usual):
    def main():
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        except BaseException as error:
            raise AttributeError("a part is missing") from error

    with pytest.raises(SystemExit) as ended:
        command(main)()
    assert (ended.value.code, capsys.readouterr().err.strip()) == (code, line)


class Destructor:
    def __init__(self, number):
        self.number = number

    def __del__(self):
        os.kill(os.getpid(), self.number)
        time.sleep(0)  # where the handler runs at the latest


def in_a_destructor(number):
    Destructor(number)


def in_a_callback(number):
    watched = Destructor(signal.SIGCONT)
    called = weakref.ref(watched, lambda _: Destructor(number))
    del watched
    assert called() is None


def in_a_bare_except(number):
    try:
        os.kill(os.getpid(), number)
        time.sleep(5)
    except BaseException:
        pass


def in_an_error_that_is_swallowed(number):
    try:
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        except BaseException as error:
            raise AttributeError("a part is missing") from error
    except AttributeError:
        pass


SWALLOWED = [in_a_destructor, in_a_callback, in_a_bare_except, in_an_error_that_is_swallowed]


@SIGNALS
@pytest.mark.parametrize("where", SWALLOWED)
def test_a_signal_that_was_swallowed_comes_again(where, number, code, line, capfd, usual):
    def main():
        where(number)
        time.sleep(5)  # the work that was to be stopped

    began = time.monotonic()
    with pytest.raises(SystemExit) as ended:
        command(main)()
    assert (ended.value.code, capfd.readouterr().err.strip()) == (code, line)
    assert time.monotonic() - began < 3


@SIGNALS
@pytest.mark.parametrize("where", SWALLOWED)
def test_a_signal_that_was_swallowed_at_the_very_end_decides_it(where, number, code, line, capfd, usual):
    with pytest.raises(SystemExit) as ended:
        command(partial(where, number))()
    assert (ended.value.code, capfd.readouterr().err.strip()) == (code, line)
    time.sleep(3 * signals.AGAIN)  # and it does not come once more, after the command


@SIGNALS
def test_the_line_stands_below_a_bar_that_was_running(number, code, line, capsys, usual):
    def steps():
        yield from tqdm(range(4), mininterval=0)  # closed with this generator, which only the error's frames hold

    def main():
        for step in steps():
            if step == 2:
                signal.raise_signal(number)

    with pytest.raises(SystemExit):
        command(main)()
    assert re.search(rf"\] ?\n{line}\n$", capsys.readouterr().err)


def test_what_others_cannot_raise_is_still_printed(monkeypatch):
    class Broken:
        def __del__(self):
            raise ValueError("broken")

    found = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: found.append(str(what.exc_value)))
    command(lambda: Broken() and None)()
    assert found == ["broken"]


@SIGNALS
def test_a_held_signal_waits_for_the_end_of_the_outer_block(number, code, line, capsys, usual):
    reached = []

    def main():
        with held():
            with held():
                os.kill(os.getpid(), number)
                os.kill(os.getpid(), number)
                time.sleep(0)
            reached.append("inner")
            time.sleep(0)
            reached.append("outer")
        reached.append("after")

    with pytest.raises(SystemExit) as ended:
        command(main)()
    assert (ended.value.code, capsys.readouterr().err.strip(), reached) == (code, line, ["inner", "outer"])
    assert signals._waiting == []


def test_another_thread_holds_nothing():
    with ThreadPoolExecutor(1) as pool:
        pool.submit(held().__enter__).result()
    assert signals._waiting == []


@pytest.fixture
def signal_after(monkeypatch):
    """SIGTERM arrives as soon as a method of paths has done its work for the first time."""

    def set_up(name):
        original = getattr(Path, name)

        def method(*arguments, **options):
            found = original(*arguments, **options)
            monkeypatch.undo()
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0)
            return found

        monkeypatch.setattr(Path, name, method)

    return set_up


@pytest.mark.parametrize("moment", ["mkdir", "write_text", "rename"])
def test_a_signal_at_any_moment_of_writing_leaves_nothing(moment, tmp_path, signal_after):
    def main():
        with atomic_path(tmp_path / "new" / "file") as part:
            part.write_text("whole")

    signal_after(moment)
    with pytest.raises(SystemExit) as ended:
        command(main)()
    left = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")]
    assert ended.value.code == 143 and left == (["new", "new/file"] if moment == "rename" else [])


def test_a_folder_is_replaced_in_one_go_whenever_a_signal_arrives(tmp_path, signal_after):
    (tmp_path / "run").mkdir()

    def main():
        with atomic_path(tmp_path / "run") as part:
            part.mkdir()
            (part / "new").touch()
            signal_after("rename")  # the old one was moved aside, and the new one has not its name yet

    with pytest.raises(SystemExit) as ended:
        command(main)()
    left = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")]
    assert ended.value.code == 143 and left == ["run", "run/new"]


def test_of_two_requests_to_stop_a_training_only_a_second_ctrl_c_insists(usual):
    with StopSignals() as stop:
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
        assert stop.requested == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            with held():
                signal.raise_signal(signal.SIGINT)
                time.sleep(0)
                reached = True  # what must not be broken off is not
            reached = False
        assert reached


def test_signal_handling_is_given_back():
    before = signal.getsignal(signal.SIGTERM)
    assert command(lambda: signal.getsignal(signal.SIGTERM))() != before
    assert signal.getsignal(signal.SIGTERM) == before


IMPORTER = """
from configs.errors import command
@command
def main():
    import slow
main()
"""
SLOW = """
import time
try:
    print("importing", flush=True)
    time.sleep(30)
except BaseException as error:  # as libraries do around their parts
    raise RuntimeError("a part is missing") from error
"""


@SIGNALS
def test_a_signal_in_an_import_ends_in_one_line_whatever_the_library_makes_of_it(number, code, line, tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    process = started(IMPORTER, path=tmp_path)
    process.stdout.readline()
    process.send_signal(number)
    _, told = process.communicate(timeout=20)
    assert (process.returncode, told.strip()) == (code, line)


@SIGNALS
@pytest.mark.parametrize("steps", [1, 3])
def test_a_training_that_is_stopped_ends_with_its_step_also_when_it_is_the_last(
    steps, number, code, line, tiny_config, monkeypatch, capsys, usual
):
    def log(journal, step, *arguments, **values):
        if step == 1:
            signal.raise_signal(number)
        return original(journal, step, *arguments, **values)

    original = Journal.log
    monkeypatch.setattr(Journal, "log", log)
    monkeypatch.setattr(Previews, "at_last", lambda _: pytest.fail("nobody waits for the picture any more"))
    with pytest.raises(SystemExit) as ended:
        train.run(tiny_config(max_train_steps=steps))
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("stopped after step ")]
    folder = re.search(r"(?:resume_from_checkpoint=|side_by_side.py )(\S+)$", said)[1]
    reached = min(2, steps)  # the signal arrives after the first step was settled
    assert ended.value.code == code and list(list_checkpoints(folder)) == [reached]
    assert ("side_by_side.py" in said) == (reached == steps)
    assert (Path(folder) / "README.md").exists() == (reached == steps), "a training that is over has its card"


DEEPER = """
import sys
from pathlib import Path
from configs.errors import command
from configs.files import atomic_path
def work():
    with atomic_path(Path(sys.argv[1]) / "new" / "video.mp4") as part:
        part.write_text("half")
        import slow
@command
def main():
    work()
main()
"""
FORKING = """
import os, signal, time
from configs.errors import command
@command
def main():
    if not (child := os.fork()):
        time.sleep(10)
        os._exit(9)
    time.sleep(0.3)  # a signal in the middle of a fork goes nowhere
    os.kill(child, signal.{name})
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    os.kill(os.getpid(), signal.{name})
    time.sleep(30)
main()
"""
CLOSED = """
import atexit, os, signal
from configs import signals
from configs.errors import command
class Late:
    def __del__(self):
        kill(pid, number)
@command
def main():
    pass
kill, pid, number = os.kill, os.getpid(), signal.{name}
signals.late = Late()  # goes with the modules, after every exit function and every handler
main()
"""
CLOSING = """
import atexit, os, sys, time
from configs.errors import command
atexit.register(lambda: (print("closing", flush=True), time.sleep(30)))
@command
def main():
    for number in map(int, sys.argv[1:]):
        os.kill(os.getpid(), number)
main()
"""


@SIGNALS
def test_a_signal_in_an_import_in_the_middle_of_the_work_clears_away(number, code, line, tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    process = started(DEEPER, tmp_path / "out", path=tmp_path)
    process.stdout.readline()
    process.send_signal(number)
    _, told = process.communicate(timeout=20)
    assert (process.returncode, told.strip()) == (code, line)
    assert not (tmp_path / "out").exists()


@SIGNALS
def test_a_forked_copy_ends_without_a_word(number, code, line):
    printed, told = (process := started(FORKING.format(name=number.name))).communicate(timeout=20)
    assert (printed.strip(), process.returncode, told.strip()) == (str(code), code, line)


@SIGNALS
@pytest.mark.parametrize("before", [False, True])
def test_a_signal_while_the_interpreter_closes_is_one_line(number, code, line, before):
    process = started(CLOSING, *[int(number)] * before)
    process.stdout.readline()
    process.send_signal(number)
    _, told = process.communicate(timeout=20)
    assert (process.returncode, told.strip()) == (code, line)


@SIGNALS
def test_a_signal_after_the_last_exit_function_does_not_change_the_exit_code(number, code, line):
    process = started(CLOSED.format(name=number.name))
    assert (*process.communicate(timeout=20), process.returncode) == ("", "", 0)


DEAF = """
import atexit, os, signal
from configs.errors import UserError, command
hit = lambda: os.kill(os.getpid(), signal.SIGTERM)
atexit.register(hit)
class Lost(UserError):
    def __str__(self):  # while its line is being made
        hit()
        return "another process has ended"
@command
def main():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Lost
main()
"""


def test_a_command_that_made_itself_deaf_stays_so_until_it_has_said_why():
    """As a process does that lost another one: torchrun stops it while it says so."""
    process = started(DEAF)
    assert process.communicate(timeout=20) == ("", "error: another process has ended\n")
    assert process.returncode == 2
