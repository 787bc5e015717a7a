"""Ctrl-C between two steps of a training instead of within one: what is kept then is the state of a whole step."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from napari_isdnet.cli_output import INTERRUPTED, print_error

_PARENT = "NAPARI_ISDNET_PARENT"


class Interrupts:
    """Holds back signals that Python handles, Ctrl-C as a rule, while something is half done.

    SIGTERM as the system handles it ends the process at once, and the last checkpoint stays; it is left alone. A second
    signal is never held back, and makes ``urgent`` true.
    """

    def __init__(self) -> None:
        self.urgent = False
        self._waiting: list[int] | None = None

    @property
    def came(self) -> bool:
        """True where a signal is being held back."""
        return bool(self._waiting)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within: nothing is interrupted, unless by a second signal; a first one that came takes effect at the end.

        Where that is within another such block, at the end of that.
        """
        if self._waiting is not None or threading.current_thread() is not threading.main_thread():
            yield  # other threads get no signal, and may not say how it is handled
            return
        handlers = {n: h for n in (signal.SIGTERM, signal.SIGINT) if callable(h := signal.getsignal(n))}
        waiting = self._waiting = []

        def hold(number: int, frame: FrameType | None) -> None:
            if waiting:
                self.urgent = True
                handlers[signal.Signals(number)](number, frame)
            waiting.append(number)

        try:
            for number in handlers:
                signal.signal(number, hold)
            yield
        finally:
            self._waiting = None
            for number, handler in handlers.items():
                signal.signal(number, handler)
        for came in waiting:
            handlers[signal.Signals(came)](came, None)


def leave_to_parent(worker: int) -> None:  # noqa: ARG001 (the data loader's signature)
    """In a process that reads crops: Ctrl-C reaches it too, but its parent, which needs it for the step, ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def follow() -> None:
    """In a follower: Ctrl-C reaches it too, but is for the first process to answer; it ends when its parent does."""
    signal.signal(signal.SIGINT, lambda *_: None)  # a handler, which Interrupts holds back like any other
    if sys.platform == "win32":  # which tells no process that its parent has ended
        return
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # see launching()
    parent = int(os.environ.get(_PARENT, os.getppid()))  # which may be gone already

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(0)

    threading.Thread(target=watch, name="follow", daemon=True).start()


@contextmanager
def launching() -> Iterator[None]:
    """Within, processes are started and wait for one another: Ctrl-C ends this one at once, and followers with it.

    They wait in C++, for minutes or for a machine that never comes, where Python does not answer a signal. Nothing of
    the run is written by then.
    """
    handled = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not handled or threading.current_thread() is not threading.main_thread():
        yield
        return
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)

    def watch() -> None:
        while number := ours.recv(1):
            if number[0] == signal.SIGINT:
                print_error("Interrupted; run the same command again.")
                os._exit(INTERRUPTED)

    thread = threading.Thread(target=watch, name="launching", daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    # What is started now begins deaf, until it says how it answers; here the thread above gets the signal.
    os.environ[_PARENT] = str(os.getpid())
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if sys.platform != "win32" else None
    try:
        yield
    finally:
        del os.environ[_PARENT]
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.set_wakeup_fd(before)
        theirs.close()
        thread.join()
        ours.close()
