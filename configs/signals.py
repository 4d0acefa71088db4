"""Turns SIGTERM and Ctrl-C into exceptions, and delays them inside `held`.

The first of them raises `Terminated` or `Interrupted`, and context managers clear away what is being written. Three
places would spoil that. What must not be broken off, such as an encoder that makes its file anew when it is left alone,
stands in `held`: the signal waits for its end. What is raised in a destructor or in a hook of the interpreter goes
nowhere, and so does what a library catches: such an exception is missed as soon as it is gone, and raised again. Before
the command has begun its work and after it has ended it, nothing is there to clear away: the process ends at once.
"""

import _thread
import atexit
import functools
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any

ENDINGS = {signal.SIGTERM: ("terminated", 143), signal.SIGINT: ("interrupted", 130)}  # the line on stderr, exit code
AGAIN = 0.02  # seconds until an exception that went nowhere is raised again: outside of whatever swallowed it
_waiting: list[int | None] = []  # one entry for each `held` around this moment: the signal that waits for its end


class Terminated(BaseException):
    """SIGTERM arrived: not an Exception, so that nothing but context managers acts on it."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C arrived: a class that can be watched, as Python's own cannot."""


@contextmanager
def held() -> Iterator[None]:
    """Within the block SIGTERM and Ctrl-C wait: the first that came is raised when it ends.

    For what takes seconds at most. Does nothing outside a command, and in other threads, which get no signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _waiting.append(None)
    try:
        yield
    finally:
        number = _waiting.pop()
        if number is not None:
            signal.raise_signal(number)


def waits(number: int) -> bool:
    """Whether a signal that has just arrived has to wait for the end of `held`; it then arrives again."""
    if _waiting:
        _waiting[0] = _waiting[0] or number  # the outermost block's
    return bool(_waiting)


class Stop:
    """The signals of one command: `number` is the first that arrived, None before.

    `main` is the code of the command's function: the imports that it begins with are slow, and end at once.
    """

    def __init__(self, main: CodeType | None = None):
        self.number: int | None = None
        self._main, self._process, self._over = main, os.getpid(), False
        self._ending = threading.Lock()
        self._raised: list[weakref.ref] = []

    def __enter__(self) -> "Stop":
        self._found: dict[int, Any] = {}
        self._hook, sys.unraisablehook = sys.unraisablehook, self._unraisable
        try:
            for number, usual in ((signal.SIGTERM, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
                if signal.getsignal(number) is usual:  # else somebody handles it, or wants it ignored
                    self._found[number] = usual
                    signal.signal(number, self._arrive)
        except ValueError:  # not the main thread: signals are none of its business
            self._found.clear()
        return self

    def __exit__(self, *_) -> None:
        with self._ending:
            self._over = True
        self._raised.clear()  # nobody watches any more
        sys.unraisablehook = self._hook
        for number, usual in self._found.items():
            if signal.getsignal(number) == self._arrive:  # else the command has made itself deaf, up to its last line
                signal.signal(number, usual)
        if self._found:
            _end_quietly(self.number)

    def _arrive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a copy that a library forked, between its start and its own program
            os._exit(ENDINGS[number][1])
        if waits(number):
            return
        if self._over and self.number:
            return  # how the command ends is known
        if self._over or (self._main is not None and _is_starting(frame, self._main)):
            at_once(number)  # of the imports also because libraries make errors of their own of what is raised in them
        if number == signal.SIGTERM and any(raised() is not None for raised in self._raised):
            return  # a second one must not break the clearing away
        self.number = self.number or number
        raise self._watched(number)  # no name for it in this frame, which it would keep alive with itself

    def _watched(self, number: int) -> BaseException:
        error = Terminated() if number == signal.SIGTERM else Interrupted()
        self._raised.append(weakref.ref(error, lambda ref: self._missed(ref, number)))
        return error

    def _missed(self, ref: weakref.ref, number: int) -> None:
        """An exception of ours is gone and the command still runs: somebody swallowed it."""
        if ref in self._raised:
            self._raised.remove(ref)
            _thread.start_new_thread(self._again, (number,))  # takes no lock, wherever this was called from

    def _again(self, number: int) -> None:
        time.sleep(AGAIN)
        with self._ending:
            if self._over:
                return
            if hasattr(signal, "pthread_kill"):  # wakes the main thread from whatever it waits for
                signal.pthread_kill(threading.main_thread().ident, number)
            else:
                signal.raise_signal(number)

    def _unraisable(self, what: Any) -> None:
        if not isinstance(what.exc_value, (Terminated, Interrupted)):  # those will be missed
            self._hook(what)


def at_once(number: int, frame: FrameType | None = None) -> None:
    """End this process with the line and the exit code of a signal, whatever it is doing."""
    line, code = ENDINGS[number]
    os.write(2, f"{line}\n".encode())
    os._exit(code)


@functools.cache
def _end_quietly(stopped: int | None) -> None:
    """While the interpreter closes, after the command, a signal would be a traceback of somebody's exit function.

    Closing may take seconds. A command that a signal has `stopped` has said so: another one only ends the waiting.
    """
    handler = at_once if stopped is None else lambda *_: os._exit(ENDINGS[stopped][1])

    @atexit.register
    def close() -> None:
        for number in ENDINGS:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, handler)


@atexit.register  # before anybody else does, so that it comes last
def _deafen() -> None:
    """What follows is the interpreter's own end, in which no handler runs: the exit code is the command's."""
    if _end_quietly.cache_info().currsize:
        for number in ENDINGS:
            signal.signal(number, signal.SIG_IGN)


def _is_starting(frame: FrameType | None, main: CodeType) -> bool:
    """Is this inside an import that stands in the function `main` itself?"""
    while frame is not None and frame.f_back is not None:
        if frame.f_back.f_code is main and frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
