"""Pyramids for images whose files have none, built into the cache while the images are shown: :class:`Builder`."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator

from qtpy.QtCore import QObject
from qtpy.QtWidgets import QMainWindow

from napari_isdnet.engine.tiles import LivePyramid
from napari_isdnet.io.overviews import OverviewSource
from napari_isdnet.progress import Progress
from napari_isdnet.widgets._image import ImagePyramid
from napari_isdnet.widgets._job import JobBar, timer
from napari_isdnet.widgets._notify import notify_error, notify_info
from napari_isdnet.window import Window

BEGIN_MS = 300
"""The window is left to draw the new layer first: to load what writes a pyramid takes the interpreter from it."""
SHOWN = 0.5
"""Seconds between two looks at what has been built: drawing takes time from building where no graphics card does it."""


class Builder(QObject):
    """Builds what images lack, one after the other; a bar at the bottom of the window shows how far it is.

    Lives on the main thread. ``window()``, which gets the bar, stops it when it is closed.
    """

    def __init__(self, window: Callable[[], QMainWindow | None]) -> None:
        super().__init__()
        self._waiting: list[ImagePyramid] = []
        self._window = window
        self._bar: JobBar | None = None
        self._begin = timer(self, BEGIN_MS, self._next, once=True)

    def add(self, pyramid: LivePyramid) -> None:
        """Build what the image behind ``pyramid`` lacks, if it does; every part is shown soon after it is done."""
        if not isinstance(pyramid, ImagePyramid) or pyramid in self._waiting:
            return
        if isinstance(pyramid.source, OverviewSource) and pyramid.source.to_come:
            self._waiting.append(pyramid)
            if len(self._waiting) == 1:
                self._begin.start()

    def drop(self, pyramid: LivePyramid) -> None:
        """Nobody looks at ``pyramid`` any more."""
        current = self._waiting[:1]
        self._waiting = [item for item in self._waiting if item is not pyramid]
        if current and current[0] is pyramid and self._bar is not None:
            self._bar.abandon()
            self._next()

    def _next(self) -> None:
        if not self._waiting or self._begin.isActive():
            return
        pyramid = self._waiting[0]
        if self._bar is None:
            self._bar = self._made()
        self._bar.run(
            lambda: _build(pyramid),
            on_result=lambda _: self._over(pyramid),
            on_error=lambda error: self._over(pyramid, error),
            on_cancel=lambda: self._cancelled(pyramid),
            title=f"Pyramid of {pyramid.source.name}",
        )

    def _made(self) -> JobBar:
        window = self._window()
        bar = JobBar(window, "pyramid", in_line=True)
        bar.setToolTip("The file has no pyramid: one is built in the cache, so that it opens at once from now on")
        bar.cancel_button.setToolTip("Build no pyramid: what you look at is read anew each time, which takes longer")
        status = None if window is None else window.statusBar()
        if status is not None:
            status.addPermanentWidget(bar)
            bar.hide()
        return bar

    def _over(self, pyramid: ImagePyramid, error: BaseException | None = None) -> None:
        if error is not None:
            notify_error(error)
        self._waiting = [item for item in self._waiting if item is not pyramid]
        self._next()

    def _cancelled(self, pyramid: ImagePyramid) -> None:
        _give_up(pyramid)  # a generator that was closed before its first step has done nothing
        notify_info(f"'{pyramid.source.name}' has no pyramid now; open it again to have one built.")
        self._over(pyramid)


def _build(pyramid: ImagePyramid) -> Generator[Progress, None, None]:
    source, done, shown = pyramid.source, [Window(0, 0, 0, 0)], time.monotonic()
    assert isinstance(source, OverviewSource)
    title = f"Pyramid of {source.name}"
    try:
        for progress in source.build():
            done += [] if progress.window is None else [progress.window]
            if time.monotonic() - shown > SHOWN:
                for window in done:
                    pyramid.renew(window)
                done, shown = [], time.monotonic()
            yield Progress(progress.done, progress.total, title, None, progress.seconds_left)
    finally:
        _give_up(pyramid)


def _give_up(pyramid: ImagePyramid) -> None:
    assert isinstance(pyramid.source, OverviewSource)
    pyramid.source.give_up()
    pyramid.renew(Window.whole(pyramid.source.shape))
