"""A long piece of work behind a widget: :class:`JobBar` shows a job, and what a dock ends when it is closed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from qtpy.QtCore import QEvent, QObject, QTimer, Signal
from qtpy.QtWidgets import QHBoxLayout, QLabel, QProgressBar, QToolButton, QVBoxLayout, QWidget

from napari_isdnet.progress import Progress
from napari_isdnet.widgets._notify import notify_error
from napari_isdnet.widgets._worker import Job, Work


def _stop_all(jobs: list[Job]) -> None:
    for job in jobs:
        job.stop()


_stops: set[Callable[..., None]] = set()
"""What is still to be called. Held here, since the collector would clear a function that only Qt's connection holds
before Qt calls it, which ends the process."""


def stop_with(owner: QObject, stop: Callable[[], Any]) -> None:
    """Call ``stop`` when ``owner`` is destroyed. ``stop`` must not be a method of ``owner`` (it is gone by then)."""

    def gone(*_: Any) -> None:
        _stops.discard(gone)
        stop()

    _stops.add(gone)
    owner.destroyed.connect(gone)


def timer(owner: QObject, milliseconds: int, then: Callable[[], Any], once: bool = False) -> QTimer:
    """A timer of ``owner`` that is still to be started; it calls ``then`` each time, or only ``once`` a start."""
    made = QTimer(owner)
    made.setSingleShot(once)
    made.setInterval(milliseconds)
    made.timeout.connect(then)
    return made


def end_with_dock(widget: QWidget, first: Callable[[], Any] = lambda: None) -> None:
    """End ``widget`` when its dock is closed by its cross: call ``first``, stop its jobs, then destroy it.

    napari only takes the widget out of the dock then; it would go on unseen, out of reach, until Python collects it.
    """
    widget.installEventFilter(_Undocked(widget, first))


class _Undocked(QObject):
    """Notices that a widget has lost its parent for good."""

    def __init__(self, widget: QWidget, first: Callable[[], Any]) -> None:
        super().__init__(widget)
        self._first = first

    def eventFilter(self, watched: QObject | None, event: QEvent | None) -> bool:
        """Look again once whoever moves the widget is done: it may get another parent at once."""
        if event is not None and event.type() == QEvent.Type.ParentChange:
            widget = self.parent()
            if isinstance(widget, QWidget) and widget is watched and widget.parent() is None:
                _ending.add(widget)
                QTimer.singleShot(0, lambda: _end(widget, self._first))
        return False


_ending: set[QWidget] = set()


def _end(widget: QWidget, first: Callable[[], Any]) -> None:
    """Destroy a widget without a parent as soon as its jobs have ended, which is after the steps at hand."""
    try:
        if widget.parent() is not None:
            _ending.discard(widget)
            return
        widget.hide()
        first()
        bars = widget.findChildren(JobBar)
        for bar in bars:
            bar.abandon()
        if any(bar.working for bar in bars):
            QTimer.singleShot(100, lambda: _end(widget, lambda: None))
            return
        widget.destroyed.connect(partial(_ending.discard, widget))
        widget.deleteLater()
    except RuntimeError:  # destroyed already, with its window
        _ending.discard(widget)


def describe_time(seconds: float | None) -> str:
    """Time that is left, as people say it."""
    if seconds is None:
        return ""
    if seconds < 90:
        return f"{max(1, round(seconds))} s left"
    if seconds < 5400:
        return f"{round(seconds / 60)} min left"
    return f"{seconds / 3600:.1f} h left"


class JobBar(QWidget):
    """Progress, pause and cancel for one job at a time; hidden while there is none.

    ``bar.run(work, on_result=..., title=...)`` starts it. Errors are shown as notifications unless ``on_error`` is
    given. The running job is stopped when the bar is destroyed with its window. ``in_line``: one line high.
    ``unseen``: for what is too slow for the main thread and too short to be shown.
    """

    started = Signal()
    ended = Signal()

    def __init__(
        self, parent: QWidget | None = None, name: str = "job", in_line: bool = False, unseen: bool = False
    ) -> None:
        super().__init__(parent)
        self.setObjectName(f"{name}_bar")
        if unseen:
            self.setMaximumHeight(0)
        self.job: Job | None = None
        self._current: list[Job] = []  # outlives the widget's C++ side, for 'destroyed'
        self._title = ""
        self.progress = QProgressBar(self)
        self.progress.setObjectName(f"{name}_progress")
        self.progress.setRange(0, 1000)
        self.progress.setTextVisible(False)
        self.progress.setToolTip("How much of the work is done")
        self.label = QLabel(self)
        self.label.setObjectName(f"{name}_status")
        self.label.setToolTip("What is being done, and about how long it will still take")
        self.label.setWordWrap(not in_line)
        self.pause_button = self._button(
            f"{name}_pause", "Pause", "Finish the step at hand, then wait until you resume"
        )
        self.pause_button.setCheckable(True)
        self.cancel_button = self._button(f"{name}_cancel", "Cancel", "Stop; what is finished is kept")
        row = QHBoxLayout()
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self.progress, 1)
        row.addWidget(self.pause_button)
        row.addWidget(self.cancel_button)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addLayout(row)
        if in_line:
            row.insertWidget(0, self.label)
        else:
            column.addWidget(self.label)
        self.pause_button.toggled.connect(self._pause)
        self.cancel_button.clicked.connect(self.cancel)
        current = self._current
        stop_with(self, lambda: _stop_all(current))
        self.hide()

    def _button(self, name: str, text: str, tip: str) -> QToolButton:
        button = QToolButton(self)
        button.setObjectName(name)
        button.setText(text)
        button.setToolTip(tip)
        return button

    @property
    def running(self) -> bool:
        """True while a job runs."""
        return self.job is not None

    @property
    def working(self) -> bool:
        """True while the thread of any job runs, also of one that was abandoned."""
        return any(job.alive for job in self._current)

    def threads(self) -> list[threading.Thread]:
        """Of jobs that are still in a step, also of those that were abandoned."""
        return [job._thread for job in self._current if job.alive]

    def run(
        self,
        work: Work | Callable[[], Work],
        on_result: Callable[[Any], None] | None = None,
        on_items: Callable[[list[Any]], None] | None = None,
        on_error: Callable[[BaseException], None] = notify_error,
        on_cancel: Callable[[], None] | None = None,
        title: str = "",
        drop: Callable[[Any], None] | None = None,
    ) -> Job:
        """Start ``work``; a job that still runs is abandoned. All callbacks come on the main thread.

        ``drop`` is the exception: what closes a result that nobody is told of (:class:`Job`).
        """
        self.abandon()
        job = self.job = Job(work, drop=drop)  # without a parent: 'destroyed' must still find it
        self._current.append(job)
        self._title = title
        job.progressed.connect(self.show_progress)
        if on_items is not None:
            job.yielded.connect(on_items)
        if on_result is not None:
            job.returned.connect(on_result)
        job.failed.connect(on_error)
        if on_cancel is not None:
            job.cancelled.connect(on_cancel)
        job.ended.connect(lambda: self._ended(job))
        self.progress.setRange(0, 0)
        self.label.setText(title)
        self.pause_button.setChecked(False)
        self.setVisible(True)
        job.start()
        self.started.emit()
        return job

    def show_progress(self, progress: Progress) -> None:
        """Bring bar and text up to date."""
        self.progress.setRange(0, 1000)
        self.progress.setValue(round(1000 * progress.fraction))
        if self.pause_button.isChecked():
            return
        parts = [
            progress.stage or self._title,
            f"{100 * progress.fraction:.0f} %",
            describe_time(progress.seconds_left),
        ]
        self.label.setText(" · ".join(part for part in parts if part))

    def _pause(self, on: bool) -> None:
        self.pause_button.setText("Resume" if on else "Pause")
        if self.job is None:
            return
        if on:
            self.job.pause()
            self.label.setText("Paused")
        else:
            self.job.resume()
            self.label.setText(self._title)

    def cancel(self) -> None:
        """Cancel the running job, if there is one."""
        if self.job is not None:
            self.label.setText("Stopping after the step at hand…")
            self.job.cancel()

    def stop(self) -> None:
        """End the running job now, waiting for its step, without telling anyone."""
        _stop_all(self._current)
        self.abandon()

    def abandon(self) -> None:
        """Cancel the running job without waiting for its step and without telling anyone."""
        job, self.job = self.job, None
        if job is not None:
            job.abandon()
            self._finish()
        for ended in [item for item in self._current if not item.alive]:
            self._forget(ended)

    def _ended(self, job: Job) -> None:
        self._forget(job)
        if job is self.job:
            self.job = None
            self._finish()

    def _forget(self, job: Job) -> None:
        if job in self._current:
            self._current.remove(job)
            job.deleteLater()

    def _finish(self) -> None:
        self.hide()
        self.ended.emit()
