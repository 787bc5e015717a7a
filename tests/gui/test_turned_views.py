"""Annotate and Errors where the viewer shows rows across the screen, and in three dimensions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from napari.utils.notifications import notification_manager
from qtpy.QtCore import QEvent, QPoint
from qtpy.QtTest import QTest

from napari_isdnet.widgets.annotate import AnnotateWidget
from napari_isdnet.widgets.errors import ErrorsWidget
from napari_isdnet.window import Window
from tests.gui.annotate_tools import settle
from tests.gui.canvas_tools import canvas_of, drawn, mouse

pytestmark = pytest.mark.long  # what a dock survives: a window each

SHAPE = (1400, 700)


@pytest.fixture
def dock(viewer: Any, tmp_path: Path, qtbot: Any) -> AnnotateWidget:
    viewer.add_image(np.zeros((*SHAPE, 3), np.uint8), name="field")
    widget = AnnotateWidget(viewer)
    viewer.window.add_dock_widget(widget, name="Annotate")
    widget.start(tmp_path / "field.isdnet")
    viewer.dims.order = (1, 0)
    drawn(qtbot, viewer)
    widget.choose(tool="brush", size=30)
    return widget


def across(viewer: Any, before_letting_go: Any = lambda: None) -> None:
    """A stroke from the middle of the canvas to the right."""
    canvas = canvas_of(viewer)
    middle = QPoint(canvas.width() // 2, canvas.height() // 2)
    mouse(canvas, QEvent.Type.MouseButtonPress, middle)
    for step in (40, 80, 120):
        QTest.qWait(25)
        mouse(canvas, QEvent.Type.MouseMove, middle + QPoint(step, 0))
    before_letting_go()
    mouse(canvas, QEvent.Type.MouseButtonRelease, middle + QPoint(120, 0))


def shown(dock: AnnotateWidget) -> np.ndarray:
    layer = dock.canvas.layer
    assert layer.data_level == 0
    return np.array(layer._slice.image.raw)


def test_a_stroke_is_shown_where_it_is_stored_when_rows_run_across(viewer, qtbot, dock) -> None:
    viewer.camera.center, viewer.camera.zoom = (300, 1000), 1.0
    drawn(qtbot, viewer)
    seen: list[np.ndarray] = []
    across(viewer, lambda: seen.append(shown(dock)))
    settle(qtbot, dock)
    drawn(qtbot, viewer)
    stored = dock.controller.store.read_labels(Window.whole(SHAPE))
    rows, columns = np.nonzero(stored)
    assert rows.min() < 1010
    assert 1100 < rows.max() < 1160
    assert abs(columns.mean() - 300) < 3
    (top, left), (bottom, right) = dock.canvas.layer.corner_pixels
    part = stored[top : bottom + 1, left : right + 1].T
    np.testing.assert_array_equal(shown(dock), part)
    different = (seen[0] != part).sum()
    assert different < 0.05 * (part > 0).sum()


def test_next_region_and_worst_window_are_flown_to_when_rows_run_across(viewer, qtbot, dock) -> None:
    dock._fly(Window(1000, 100, 200, 100))
    qtbot.waitUntil(lambda: dock._flight.state() != dock._flight.State.Running, timeout=5000)
    assert viewer.camera.center[-2:] == pytest.approx(Window(1000, 100, 200, 100).center[::-1])
    errors = ErrorsWidget(viewer)
    viewer.window.add_dock_widget(errors, name="Errors")
    truth = np.zeros(SHAPE, np.uint8)
    prediction = truth.copy()
    prediction[900:1200, 50:150] = 1
    viewer.add_labels(prediction, name="p")
    truth_layer = viewer.add_labels(truth, name="t")
    errors.prediction.setCurrentIndex(errors.prediction.findText("p"))
    errors.truth.setCurrentIndex(errors.truth.findData(truth_layer))
    errors.compare_button.click()
    qtbot.waitUntil(lambda: errors.result is not None, timeout=15_000)
    errors.fly(0)
    assert viewer.camera.center[-2:] == pytest.approx(errors.worst_windows[0].center[::-1])


def test_painting_in_three_dimensions_is_refused_in_words(viewer, qtbot, dock) -> None:
    viewer.dims.ndisplay = 3
    drawn(qtbot, viewer)
    across(viewer)
    assert "view of two dimensions" in notification_manager.records[-1].message
    assert dock.controller.wait(10)
    assert not dock.controller.store.can_undo
    viewer.dims.ndisplay = 2
