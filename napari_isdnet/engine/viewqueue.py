"""Work ordered by what someone is looking at: :class:`ViewQueue`.

Both the tiles of an image on the screen and the windows of a live prediction are asked for faster than they can be
made. The queue holds only the *latest* wish: a new view replaces what was waiting (stale requests are dropped), the
order given is kept, and nothing is worked on twice at once.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable, Iterable
from contextlib import ExitStack, suppress
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from napari_isdnet.window import Grid, Window

Key = TypeVar("Key", bound=Hashable)


def spare_core_threads(most: int = 4) -> int:
    """How many threads may compute while a window is open: one core is left to the window, at least one is used."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(most, available - 1))


def nearest_first(grid: Grid, cells: npt.NDArray[np.intp], view: Window) -> list[int]:
    """``cells`` of ``grid`` (N,), those nearest to the middle of ``view`` first; of equally near ones the first."""
    row, column = view.center
    down, across = np.divmod(cells, grid.counts[1])
    rows, columns = (down + 0.5) * grid.core[0] - row, (across + 0.5) * grid.core[1] - column
    found: list[int] = cells[np.argsort(rows**2 + columns**2, kind="stable")].tolist()
    return found


def close_later(*closers: Callable[[], Any]) -> threading.Thread:
    """Call ``closers`` one after the other where waiting for a step at hand does not hold the window.

    All of them are called, also where one raises; that is reported as any thread's error is.
    """

    def run() -> None:
        with ExitStack() as stack:
            for close in reversed(closers):
                stack.callback(close)

    # Not a daemon: the process ends after them, so that no thread computes into an interpreter that is going down.
    thread = threading.Thread(target=run, name="isdnet-view-close")
    thread.start()
    return thread


class ViewQueue(Generic[Key]):
    """Threads that work on the latest list of wishes, first wish first.

    ``work(key)`` runs in a worker thread; what it raises goes to ``on_error(key, error)``, also there. Threads start
    on the first wish, end after ``idle`` seconds without one, and are joined by :meth:`close`. ``busy`` of a key ends
    before the next key starts, so ``work`` may publish its result without a lock of the queue.

    A key that is wished for while it is being worked on is worked on once more where that went well: what it is wished
    for may have changed since the work began. ``work`` returns at once where it has nothing to do.
    """

    def __init__(
        self,
        work: Callable[[Key], None],
        threads: int | None = None,
        on_error: Callable[[Key, Exception], None] | None = None,
        name: str = "isdnet-view",
        idle: float = 5.0,
    ) -> None:
        self._work = work
        self._on_error = on_error
        self._limit = threads or spare_core_threads()
        self._name = name
        self._idle = idle
        self._changed = threading.Condition()
        self._waiting: list[Key] = []  # reversed: the next one is last
        self._busy: set[Key] = set()
        self._again: set[Key] = set()  # of the busy ones: those of the latest list
        self._threads: list[threading.Thread] = []
        self._sleeping = 0
        self._closed = False

    def replace(self, keys: Iterable[Key]) -> None:
        """Forget what was waiting; wait for ``keys`` instead, in this order. What is being worked on goes on."""
        with self._changed:
            if self._closed:
                return
            wishes = list(keys)
            self._again = self._busy.intersection(wishes)
            self._waiting = [key for key in reversed(wishes) if key not in self._busy]
            if not self._waiting:
                return
            missing = min(self._limit - len(self._threads), len(self._waiting) - self._sleeping)
            for _ in range(missing):
                thread = threading.Thread(target=self._loop, name=self._name, daemon=True)
                self._threads.append(thread)
                thread.start()
            self._changed.notify_all()

    def _take(self) -> Key | None:
        """The next key, or None when this thread should end. Called with the lock held."""
        while not self._closed:
            if self._waiting:
                key = self._waiting.pop()
                self._busy.add(key)
                return key
            self._sleeping += 1
            woken = self._changed.wait(self._idle)
            self._sleeping -= 1
            if not woken and not self._waiting:
                return None
        return None

    def _loop(self) -> None:
        while True:
            with self._changed:
                key = self._take()
                if key is None:
                    self._threads.remove(threading.current_thread())
                    self._changed.notify_all()
                    return
            again = False
            try:
                self._work(key)
                again = True
            except Exception as error:  # reported, whatever it is: a worker thread must not die silently
                if self._on_error is not None:
                    with suppress(Exception):  # whoever listened may be gone; the thread must live on
                        self._on_error(key, error)
            finally:
                with self._changed:
                    self._busy.discard(key)
                    if again and key in self._again:
                        self._waiting.append(key)
                    self._again.discard(key)
                    self._changed.notify_all()

    @property
    def pending(self) -> int:
        """How many keys wait or are being worked on."""
        with self._changed:
            return len(self._waiting) + len(self._busy)

    def wait(self, timeout: float | None = None) -> bool:
        """Block until nothing waits and nothing is worked on; False when ``timeout`` seconds passed first."""
        with self._changed:
            return self._changed.wait_for(lambda: self._closed or not (self._waiting or self._busy), timeout)

    def close(self) -> None:
        """Drop what waits, let what is being worked on finish, and join the threads. May be called twice."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._again.clear()
            threads = list(self._threads)
            self._changed.notify_all()
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join()
