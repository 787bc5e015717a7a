"""Changes of an annotation, one after the other on a thread of their own, so that painting never holds the window."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from napari_isdnet.window import Window

Task = Callable[[], list[Window]]


class PaintQueue:
    """Runs tasks in the order they come. ``on_done(dirty, idle)`` and ``on_error(error)`` are called on its thread.

    ``dirty`` are the windows (level 0) that the task returned; ``idle`` is true when no other task waits. The thread
    starts with the first task. What ``on_done`` raises goes to ``on_error``, what that raises nowhere: whoever listened
    may be gone, and what waits is still to be stored.
    """

    def __init__(self, on_done: Callable[[list[Window], bool], None], on_error: Callable[[Exception], None]) -> None:
        self._on_done, self._on_error = on_done, on_error
        self._tasks: deque[Task] = deque()
        self._changed = threading.Condition()
        self._working = self._telling = False
        self._closed = False
        self._thread: threading.Thread | None = None

    def submit(self, task: Task) -> None:
        """Do ``task`` after all that was submitted before; ignored after :meth:`close`."""
        with self._changed:
            if self._closed:
                return
            self._tasks.append(task)
            if self._thread is None:
                # Not a daemon: what was painted is written before the process ends.
                self._thread = threading.Thread(target=self._run, name="isdnet-job-annotate")
                self._thread.start()
            self._changed.notify_all()

    @property
    def pending(self) -> int:
        """Tasks that wait or run."""
        with self._changed:
            return len(self._tasks) + self._working

    def wait(self, timeout: float | None = None) -> bool:
        """Block until nothing waits or runs and all has been told; False when ``timeout`` seconds passed first."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._tasks and not self._working and not self._telling, timeout)

    def close(self) -> None:
        """Do what waits, then end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        main = threading.main_thread()
        while True:
            with self._changed:
                while not self._tasks and not self._closed:
                    self._changed.wait(1.0)
                    self._closed = self._closed or not main.is_alive()
                if not self._tasks:
                    return
                task = self._tasks.popleft()
                self._working = True
            dirty: list[Window] = []
            try:
                dirty = task()
            except Exception as error:  # said on the main thread, whatever it is; the next task goes on
                self._say(error)
            with self._changed:
                self._working, self._telling = False, True
                idle = not self._tasks
            try:
                self._on_done(dirty, idle)
            except Exception as error:
                self._say(error)
            finally:
                with self._changed:
                    self._telling = False
                    self._changed.notify_all()

    def _say(self, error: Exception) -> None:
        with suppress(Exception):
            self._on_error(error)
