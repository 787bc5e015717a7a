"""Ctrl-C between two steps of a training instead of within one: what is kept then is the state of a whole step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupts:
    """Holds back signals that Python handles, Ctrl-C as a rule, while something is half done.

    SIGTERM as the system handles it ends the process at once, and the last checkpoint stays; it is left alone. A second
    signal is never held back, and makes ``urgent`` true. Not ``active``: nothing is held back, since the processes of
    one run wait for one another within a step.
    """

    def __init__(self, active: bool = True) -> None:
        self.active, self.urgent = active, False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within: nothing is interrupted, unless by a second signal; a first one that came takes effect at the end."""
        if not self.active or threading.current_thread() is not threading.main_thread():
            yield  # other threads get no signal, and may not say how it is handled
            return
        handlers = {n: h for n in (signal.SIGTERM, signal.SIGINT) if callable(h := signal.getsignal(n))}
        waiting: list[int] = []

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
            for number, handler in handlers.items():
                signal.signal(number, handler)
        for came in waiting:
            handlers[signal.Signals(came)](came, None)


def leave_to_parent(worker: int) -> None:  # noqa: ARG001 (the data loader's signature)
    """In a process that reads crops: Ctrl-C reaches it too, but its parent, which needs it for the step, ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
