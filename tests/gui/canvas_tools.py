"""The mouse and keys of a person on napari's canvas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qtpy.QtCore import QEvent, QPoint, QPointF, Qt
from qtpy.QtGui import QMouseEvent
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication, QWidget

from napari_isdnet.widgets._lazy import canvases, main_window

Place = tuple[float, float]


def canvas_of(viewer: Any) -> QWidget:
    window = main_window(viewer)
    return canvases(window)[0]


def on_screen(viewer: Any, layer: Any, place: Place) -> QPoint:
    """Where a pixel (row, column) of ``layer`` is on the canvas."""
    canvas = canvas_of(viewer)
    row, column = layer.data_to_world(place)[-2:]
    center, zoom = viewer.camera.center[-2:], viewer.camera.zoom
    return QPoint(
        round(canvas.width() / 2 + (column - center[1]) * zoom), round(canvas.height() / 2 + (row - center[0]) * zoom)
    )


def drawn(qtbot: Any, viewer: Any) -> None:
    """Until the canvas has been drawn once more: napari looks then which level of which part is seen."""
    canvas, times = canvas_of(viewer), []
    draw = canvas._vispy_canvas.events.draw  # type: ignore[attr-defined]

    def note(_event: Any) -> None:
        times.append(True)

    draw.connect(note, position="last")
    canvas.update()
    qtbot.waitUntil(lambda: bool(times))
    draw.disconnect(note)


def mouse(
    canvas: QWidget, kind: QEvent.Type, at: QPoint, keys: Qt.KeyboardModifier = Qt.KeyboardModifier.NoModifier
) -> None:
    """One event of the left button."""
    held = Qt.MouseButton.NoButton if kind == QEvent.Type.MouseButtonRelease else Qt.MouseButton.LeftButton
    button = Qt.MouseButton.NoButton if kind == QEvent.Type.MouseMove else Qt.MouseButton.LeftButton
    event = QMouseEvent(kind, QPointF(at), QPointF(canvas.mapToGlobal(at)), button, held, keys)
    QApplication.sendEvent(canvas, event)


def drag(
    viewer: Any,
    layer: Any,
    path: Sequence[Place],
    keys: Qt.KeyboardModifier = Qt.KeyboardModifier.NoModifier,
    let_go: bool = True,
) -> None:
    """Press at the first place, move along the others, release at the last."""
    canvas = canvas_of(viewer)
    points = [on_screen(viewer, layer, place) for place in path]
    mouse(canvas, QEvent.Type.MouseButtonPress, points[0], keys)
    for point in points[1:]:
        QTest.qWait(25)  # the canvas takes no more than 60 moves a second
        mouse(canvas, QEvent.Type.MouseMove, point, keys)
    if let_go:
        mouse(canvas, QEvent.Type.MouseButtonRelease, points[-1], keys)


def hover(viewer: Any, layer: Any, place: Place) -> None:
    """Move without a button."""
    canvas = canvas_of(viewer)
    at = on_screen(viewer, layer, place)
    no = Qt.MouseButton.NoButton
    event = QMouseEvent(
        QEvent.Type.MouseMove, QPointF(at), QPointF(canvas.mapToGlobal(at)), no, no, Qt.KeyboardModifier.NoModifier
    )
    QApplication.sendEvent(canvas, event)


def key(viewer: Any, which: Qt.Key, keys: Qt.KeyboardModifier = Qt.KeyboardModifier.NoModifier) -> None:
    """A key while the canvas has the focus."""
    QTest.keyClick(canvas_of(viewer), which, keys)
