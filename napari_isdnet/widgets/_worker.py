"""A generator in a worker thread: :class:`Job`.

The work is a plain generator (``segment()``, ``finetune()``, building a pyramid) that yields
:class:`~napari_isdnet.progress.Progress` and returns its result. Everything a caller hears about it arrives on the
main thread. Cancelling means not asking for the next item and closing the generator, so that its ``finally`` runs.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from qtpy.QtCore import QCoreApplication, QObject, Qt, Signal

from napari_isdnet.progress import Progress

Work = Generator[Any, None, Any]
Result = TypeVar("Result")


def one_step(stage: str, act: Callable[[], Result]) -> Callable[[], Generator[Progress, None, Result]]:
    """``act`` as the work of a :class:`Job`, shown as ``stage``."""

    def work() -> Generator[Progress, None, Result]:
        yield Progress(0, 1, stage)
        return act()

    return work


class Job(QObject):
    """One run of a generator in a worker thread. Create and use it on the main thread.

    Signals, all on the main thread: ``progressed(Progress)`` (the latest only, when several came at once),
    ``yielded(list)`` (everything since the last time, in order), then exactly one of ``returned(result)``,
    ``failed(error)``, ``cancelled()``, then ``ended()``. After :meth:`stop` nothing is told any more.

    ``drop(result)`` is called, on the worker thread, where nobody is told of a result any more: to close what it holds.
    """

    progressed = Signal(object)
    yielded = Signal(list)
    returned = Signal(object)
    failed = Signal(object)
    cancelled = Signal()
    ended = Signal()
    _wake = Signal()

    def __init__(
        self,
        work: Work | Callable[[], Work],
        parent: QObject | None = None,
        name: str = "isdnet-job",
        drop: Callable[[Any], None] | None = None,
    ) -> None:
        super().__init__(parent)
        self._work, self._drop = work, drop
        self._news: deque[tuple[str, Any]] = deque()
        self._told = threading.Event()  # set while a wake-up is on its way
        self._go = threading.Event()
        self._go.set()
        self._cancel = threading.Event()
        self._decided = threading.Event()  # set once it is known whether anyone is told of the result
        self._silent = False
        self._over = self._handed_over = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._wake.connect(self._drain, Qt.ConnectionType.QueuedConnection)
        application = QCoreApplication.instance()
        if application is not None:
            application.aboutToQuit.connect(self.stop)

    def start(self) -> Job:
        """Begin; returns itself."""
        self._thread.start()
        return self

    # -- worker thread -------------------------------------------------------------------------------------------
    def _run(self) -> None:
        try:
            work = self._work() if callable(self._work) else self._work
            try:
                result = self._consume(work)
            finally:
                work.close()
        except Exception as error:  # handed to the main thread, whatever it is
            self._tell("failed", error)
            return
        if result is _CANCELLED:
            self._tell("cancelled", None)
            return
        self._tell("returned", result)
        if self._drop is not None:
            self._decided.wait()  # it may be abandoned between the last step and the telling
            if not self._handed_over:
                self._drop(result)

    def _consume(self, work: Work) -> Any:
        while not self._cancel.is_set():
            try:
                item = next(work)
            except StopIteration as stop:
                return stop.value
            self._tell("item", item)
            self._go.wait()
        return _CANCELLED

    def _tell(self, kind: str, value: Any) -> None:
        self._news.append((kind, value))
        if not self._told.is_set() and not self._silent:
            self._told.set()
            self._wake.emit()

    # -- main thread ---------------------------------------------------------------------------------------------
    def _drain(self) -> None:
        self._told.clear()
        items: list[Any] = []
        end: tuple[str, Any] | None = None
        while self._news:
            kind, value = self._news.popleft()
            if kind == "item":
                items.append(value)
            else:
                end = (kind, value)
        if self._silent:
            return
        if items:
            self.yielded.emit(items)
            latest = next((item for item in reversed(items) if isinstance(item, Progress)), None)
            if latest is not None:
                self.progressed.emit(latest)
        if end is not None and not self._over:
            self._over = self._handed_over = True
            self._decided.set()
            self._thread.join()
            kind, value = end
            if kind == "cancelled":
                self.cancelled.emit()
            else:
                (self.returned if kind == "returned" else self.failed).emit(value)
            self.ended.emit()

    @property
    def running(self) -> bool:
        """True until the end has been told."""
        return self._thread.is_alive() or (self._thread.ident is not None and not self._over)

    @property
    def paused(self) -> bool:
        """True between :meth:`pause` and :meth:`resume`."""
        return not self._go.is_set()

    def pause(self) -> None:
        """Finish the step at hand, then wait."""
        self._go.clear()

    def resume(self) -> None:
        """Go on."""
        self._go.set()

    def cancel(self) -> None:
        """Ask for no further item and close the generator; ``cancelled`` follows. Returns at once."""
        self._cancel.set()
        self._go.set()

    def abandon(self) -> None:
        """Cancel and say nothing more; returns at once, the thread ends after the step at hand."""
        self._silent = self._over = True
        self._decided.set()
        self.cancel()

    def stop(self) -> None:
        """Cancel, say nothing more, and wait until the thread has ended (when a window closes)."""
        self.abandon()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def alive(self) -> bool:
        """True while the thread runs, also after it was abandoned."""
        return self._thread.is_alive()


_CANCELLED = object()
