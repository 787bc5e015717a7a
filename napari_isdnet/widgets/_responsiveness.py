"""How long the window did not answer: :class:`Heartbeat` measures the gaps of the main thread.

A timer ticks as often as it can; where two ticks lie further apart than the interval, something held the main thread.
Time spent painting the OpenGL canvas is recorded apart (it belongs to the graphics driver), but not the time that a
lazy layer took to answer *during* painting, which is ours.
"""

from __future__ import annotations

import time
from collections.abc import Callable
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
        self._canvases = _lazy.canvases(self._window) if self._window is not None else []
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


def _wait(until: Callable[[], bool]) -> None:
    while not until():
        _live_for(50)


def _segment(viewer: Any, model: str) -> None:
    """Live segmentation of what is visible, by the dock."""
    from napari_isdnet.widgets.segment import SegmentWidget

    dock = SegmentWidget(viewer)
    viewer.window.add_dock_widget(dock, name="Segment")
    _wait(lambda: bool(dock.device.count()))
    dock.choose_model(model)
    _wait(lambda: dock.controller.about is not None)
    dock.context.setCurrentIndex(dock.context.findData("window"))
    dock.live_button.click()
    _wait(lambda: dock.controller.live is not None)


def _inspect(viewer: Any, model: str) -> None:
    """A feature map over the whole image, computed where one looks."""
    from napari_isdnet.widgets.inspect import InspectWidget

    dock = InspectWidget(viewer)
    viewer.window.add_dock_widget(dock, name="Inspect")
    dock.choose_model(model)
    dock.context.setCurrentIndex(dock.context.findData("window"))
    dock.region.setCurrentIndex(dock.region.findData("whole"))
    dock.look_inside()
    _wait(lambda: dock.layer is not None)


def _finetune(viewer: Any, model: str, path: str) -> None:
    """Training on a hundred strokes, which say nothing: only the window is measured."""
    from napari_isdnet.annotation.strokes import Brush
    from napari_isdnet.io.open import open_source
    from napari_isdnet.model.checkpoint import read_header
    from napari_isdnet.widgets._projects import close_project, folder_of, open_project
    from napari_isdnet.widgets.finetune import FineTuneWidget

    source = open_source(path)
    classes = read_header(model).classes
    project = open_project(source, classes, folder_of(source))
    rng = np.random.default_rng(0)
    for index in range(100):
        row, column = (float(rng.integers(100, n - 100)) for n in source.shape)
        project.store.paint(Brush([(row, column), (row + 30, column + 30)], 9), index % len(classes))
    dock = FineTuneWidget(viewer)
    viewer.window.add_dock_widget(dock, name="Fine-tune")
    _wait(lambda: dock.controller.project is not None and dock.device.count() > 1)
    dock.choose_model(model)
    dock.steps.setValue(dock.steps.maximum())
    _wait(dock.train_button.isEnabled)
    dock.train_button.click()
    _wait(lambda: bool(dock.controller.curves.losses))
    close_project(project)  # the dock has its share of it
    source.close()


DOING = ("nothing", "segment", "inspect", "finetune")


def measure(viewer: Any, path: str, doing: str, model: str, seconds: float, settle: float = 1) -> dict[str, Report]:
    """Open ``path`` in the viewer and move over it while the plugin is ``doing`` something with ``model``.

    Returns what was measured under the name of what went on: ``load``, with twice ``settle`` seconds after it, then
    ``doing``.
    """
    from napari_isdnet.widgets._lazy import main_window
    from napari_isdnet.widgets.load import LoadWidget

    dock = LoadWidget(viewer)
    viewer.window.add_dock_widget(dock, name="Load")
    _live_for(round(1000 * settle))
    heartbeat = Heartbeat(main_window(viewer)).start()
    dock.open(path)
    _wait(dock.load_button.isEnabled)
    dock.load()
    _wait(lambda: bool(viewer.layers))
    _live_for(round(2000 * settle))  # what is drawn first
    reports = {"load": heartbeat.stop()}
    image = viewer.layers[0]
    if doing == "segment":
        _segment(viewer, model)
    elif doing == "inspect":
        _inspect(viewer, model)
    elif doing == "finetune":
        _finetune(viewer, model, path)
    _live_for(round(1000 * settle))
    reports[doing] = pan_and_zoom(viewer, image, seconds)
    return reports


def main() -> None:
    """``python -m napari_isdnet.widgets._responsiveness IMAGE [--doing segment] [--model FILE]``."""
    import argparse
    import os
    import tempfile

    import napari

    parser = argparse.ArgumentParser(description="Gaps of the main thread while an image loads and is moved over.")
    parser.add_argument("image", help="an image with a pyramid, the larger the better")
    parser.add_argument("--doing", choices=DOING, default="segment", help="what the plugin does meanwhile")
    parser.add_argument("--model", default="landcover-lite", help="the network of it, a name or a file")
    parser.add_argument("--seconds", type=float, default=30)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NAPARI_ISDNET_CACHE"] = folder  # the strokes of `finetune` go there
        viewer = napari.Viewer(show=True)
        reports = measure(viewer, arguments.image, arguments.doing, arguments.model, arguments.seconds)
        viewer.close()
    for name, report in reports.items():
        print(f"{name}: {report}")


if __name__ == "__main__":
    main()
