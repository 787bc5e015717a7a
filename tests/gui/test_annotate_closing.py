"""The window is closed by its X while something is painted: all of it is stored, and napari ends."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qtpy.QtWidgets import QApplication

from napari_isdnet.annotation.project import Project
from napari_isdnet.widgets.annotate import AnnotateWidget
from napari_isdnet.window import Window

from .canvas_tools import drag

WAIT_SECONDS = 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "field.isdnet"


@pytest.fixture
def dock(viewer: Any, qtbot: Any, folder: Path) -> AnnotateWidget:
    viewer.add_image(np.zeros((400, 500, 3), np.uint8), name="field")
    widget = AnnotateWidget(viewer)
    viewer.window.add_dock_widget(widget, name="Annotate")
    widget.start(folder)
    qtbot.wait(50)
    viewer.camera.center, viewer.camera.zoom = (200, 250), 1.0
    return widget


def close_by_its_cross(viewer: Any, qtbot: Any) -> None:
    window = viewer.window._qt_window
    with qtbot.waitSignal(window.destroyed, timeout=2000 * WAIT_SECONDS):
        window.close()
    del viewer.window._qt_window  # which whoever closes the viewer after the test would close again
    QApplication.processEvents()


def value_at(folder: Path, row: int, column: int) -> int:
    with Project.open(folder) as project:  # refused while someone still paints in it
        return int(project.store.read_labels(Window(row, column, 1, 1))[0, 0])


def test_a_stroke_that_is_being_stored_is_stored_and_nothing_waits_for_good(
    viewer: Any, qtbot: Any, dock: AnnotateWidget, folder: Path, monkeypatch: Any
) -> None:
    store, queue = dock.controller.store, dock.controller._queue
    paint, wait = store.paint, queue.wait
    at_it, waited = threading.Event(), []

    def slowly(*arguments: Any) -> Any:
        at_it.set()
        threading.Event().wait(0.5)  # the window is gone before it is stored
        return paint(*arguments)

    monkeypatch.setattr(store, "paint", slowly)
    # For good would be as long as the test; the dock waits without a limit.
    monkeypatch.setattr(queue, "wait", lambda timeout=None: waited.append(wait(timeout or WAIT_SECONDS)))
    for column in (150, 300):
        drag(viewer, dock.canvas.layer, [(200, column), (200, column + 50)])
    assert at_it.wait(WAIT_SECONDS)
    close_by_its_cross(viewer, qtbot)
    assert waited == [True]
    assert [value_at(folder, 200, column) for column in (175, 325)] == [1, 1]


def test_what_was_painted_in_an_edit_window_just_now_is_stored(
    viewer: Any, qtbot: Any, dock: AnnotateWidget, folder: Path
) -> None:
    dock.edit_button.click()
    at = dock.editing.window
    dock.editing.layer.paint((50, 60), 1)
    close_by_its_cross(viewer, qtbot)
    assert value_at(folder, at.row + 50, at.column + 60) == 1
