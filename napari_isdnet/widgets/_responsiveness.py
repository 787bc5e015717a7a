"""How long the window did not answer: :class:`Heartbeat` measures the gaps of the main thread.

A timer ticks as often as it can; where two ticks lie further apart than the interval, something held the main thread.
Time spent painting the OpenGL canvas is recorded apart (it belongs to the graphics driver), but not the time that a
lazy layer took to answer *during* painting, which is ours.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from qtpy.QtCore import QEvent, QEventLoop, QObject, Qt, QTimer
from qtpy.QtWidgets import QWidget

from napari_isdnet.widgets import _lazy

INTERVAL_MS = 5


@dataclass(frozen=True)
class Report:
    """Gaps of the main thread in milliseconds: all of them, and without the drawing of OpenGL."""

    seconds: float
    ticks: int
    with_drawing: dict[str, float]
    without_drawing: dict[str, float]

    def __str__(self) -> str:
        def line(name: str, values: dict[str, float]) -> str:
            return name + ": " + ", ".join(f"{key} {value:.1f}" for key, value in values.items()) + " ms"

        head = f"{self.ticks} ticks in {self.seconds:.1f} s"
        parts = line("without OpenGL drawing", self.without_drawing), line("all", self.with_drawing)
        return "\n".join((head, *parts))


def percentiles(gaps: list[float]) -> dict[str, float]:
    """p50, p90, p99, p99.9 and the longest, in milliseconds."""
    values = np.asarray(gaps if gaps else [0.0]) * 1000
    names = ("p50", "p90", "p99", "p99.9", "max")
    return dict(zip(names, map(float, np.percentile(values, (50, 90, 99, 99.9, 100))), strict=True))


class Heartbeat(QObject):
    """Records main-thread gaps between :meth:`start` and :meth:`stop`, as a context manager too.

    ``window`` is searched for OpenGL canvases whose painting is timed; without it nothing is told apart.
    """

    def __init__(self, window: QWidget | None = None) -> None:
        super().__init__()
        self._window = window
        self._timer = QTimer(self)
        self._timer.setTimerType(Qt.TimerType.PreciseTimer)
        self._timer.setInterval(INTERVAL_MS)
        self._timer.timeout.connect(self._tick)
        self._canvases: list[QWidget] = []
        self._painting = False
        self._drawn = 0.0
        self._last = self._began = 0.0
        self.gaps: list[float] = []
        self.gaps_without_drawing: list[float] = []

    def start(self) -> Heartbeat:
        """Begin to record."""
        self._canvases = _opengl_widgets(self._window) if self._window is not None else []
        for canvas in self._canvases:
            canvas.installEventFilter(self)
        self._last = self._began = time.perf_counter()
        self._timer.start()
        return self

    def stop(self) -> Report:
        """End and report."""
        self._timer.stop()
        for canvas in self._canvases:
            canvas.removeEventFilter(self)
        self._canvases = []
        seconds = time.perf_counter() - self._began
        return Report(seconds, len(self.gaps), percentiles(self.gaps), percentiles(self.gaps_without_drawing))

    def __enter__(self) -> Heartbeat:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _tick(self) -> None:
        now = time.perf_counter()
        gap = max(0.0, now - self._last - INTERVAL_MS / 1000)
        self.gaps.append(gap)
        self.gaps_without_drawing.append(max(0.0, gap - self._drawn))
        self._drawn = 0.0
        self._last = now

    def eventFilter(self, watched: QObject | None, event: QEvent | None) -> bool:
        """Time the painting of a canvas by handing the event on ourselves."""
        if event is None or watched is None or event.type() != QEvent.Type.Paint or self._painting:
            return False
        self._painting = True
        start, answered = time.perf_counter(), _lazy.answer_seconds
        try:
            watched.event(event)
        finally:
            self._painting = False
            self._drawn += time.perf_counter() - start - (_lazy.answer_seconds - answered)
        return True


def _opengl_widgets(window: QWidget) -> list[Any]:
    return [w for w in window.findChildren(QWidget) if w.inherits("QOpenGLWidget")]


def _live_for(milliseconds: int) -> None:
    """Let the window work for a while."""
    loop = QEventLoop()
    QTimer.singleShot(milliseconds, loop.quit)
    loop.exec()


def pan_and_zoom(viewer: Any, image: Any, seconds: float) -> Report:
    """Move over ``image`` along a fixed path for ``seconds``: in from the whole, across in steps, and out again."""
    from napari_isdnet.widgets._lazy import main_window

    rows, columns = image.data[0].shape[:2] if image.multiscale else image.data.shape[:2]
    heartbeat = Heartbeat(main_window(viewer))
    start = time.perf_counter()
    with heartbeat:
        while (share := (time.perf_counter() - start) / seconds) < 1:
            angle = 2 * np.pi * share
            point = rows * (0.5 + 0.3 * np.sin(3 * angle)), columns * (0.5 + 0.3 * np.cos(2 * angle))
            depth = 0.5 - 0.5 * np.cos(2 * angle)  # twice in to full resolution and out
            viewer.camera.center = tuple(image.data_to_world(point))
            viewer.camera.zoom = float(800 / rows) ** (1 - depth) / image.scale[0]
            _live_for(40)
    return Report(
        time.perf_counter() - start,
        len(heartbeat.gaps),
        percentiles(heartbeat.gaps),
        percentiles(heartbeat.gaps_without_drawing),
    )


def measure(path: str, model: str | None, seconds: float) -> Report:
    """Open ``path`` in a window, with live segmentation by ``model`` where one is given, and move over it."""
    import napari

    from napari_isdnet.widgets._reader import read
    from napari_isdnet.widgets.segment import SegmentWidget

    viewer = napari.Viewer(show=True)
    data, keywords, _ = read(path)[0]
    image = viewer.add_image(data, **keywords)
    if model is not None:
        dock = SegmentWidget(viewer)
        viewer.window.add_dock_widget(dock, name="Segment")
        while not dock.device.count():
            _live_for(50)
        dock.choose_model(model)
        while dock.controller.about is None:
            _live_for(50)
        dock.context.setCurrentIndex(dock.context.findData("window"))
        dock.live_button.click()
        while dock.controller.live is None:
            _live_for(50)
    _live_for(1000)
    report = pan_and_zoom(viewer, image, seconds)
    viewer.close()
    return report


def main() -> None:
    """``python -m napari_isdnet.widgets._responsiveness IMAGE [--model FILE]``."""
    import argparse

    parser = argparse.ArgumentParser(description="Gaps of the main thread while someone pans and zooms.")
    parser.add_argument("image", help="an image with a pyramid, the larger the better")
    parser.add_argument("--model", help="segment live with this model file meanwhile")
    parser.add_argument("--seconds", type=float, default=30)
    arguments = parser.parse_args()
    print(measure(arguments.image, arguments.model, arguments.seconds))


if __name__ == "__main__":
    main()
