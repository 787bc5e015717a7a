"""A stroke in whose middle something else happens: what is shown is what is stored, and it never goes on by itself."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from napari.layers import Labels
from napari.utils.notifications import notification_manager
from qtpy.QtCore import QEvent, Qt
from qtpy.QtTest import QTest

from napari_isdnet.annotation.store import AnnotationStore
from napari_isdnet.annotation.strokes import Polygon, Rectangle
from napari_isdnet.widgets._annotate_layer import SharedLevel
from napari_isdnet.widgets._annotate_preview import Preview
from napari_isdnet.widgets.annotate import AnnotateWidget
from napari_isdnet.window import Window

from .annotate_tools import look, painted, settle, start_over
from .canvas_tools import canvas_of, drag, hover, key, mouse, on_screen

SHAPE = (400, 500)
MOST_SECONDS = 60
CONTROL = Qt.KeyboardModifier.ControlModifier


@pytest.fixture
def dock(viewer: Any, qtbot: Any, tmp_path: Path) -> AnnotateWidget:
    viewer.add_image(np.zeros((*SHAPE, 3), np.uint8), name="field")
    widget = AnnotateWidget(viewer)
    viewer.window.add_dock_widget(widget, name="Annotate")
    widget.start(tmp_path / "field.isdnet")
    look(viewer, (200, 250), 1.0)
    qtbot.wait(50)
    return widget


def go_on(viewer: Any, layer: Any, *path: tuple[float, float], let_go: bool = True) -> None:
    """More of a drag that was begun with ``let_go=False``."""
    for place in path:
        QTest.qWait(25)
        mouse(canvas_of(viewer), QEvent.Type.MouseMove, on_screen(viewer, layer, place))
    if let_go:
        mouse(canvas_of(viewer), QEvent.Type.MouseButtonRelease, on_screen(viewer, layer, path[-1]))


def shown(dock: AnnotateWidget) -> np.ndarray:
    assert dock.canvas is not None
    return np.asarray(dock.canvas.layer._slice.image.raw)


def begin_and_undo(viewer: Any, qtbot: Any, dock: AnnotateWidget) -> None:
    """Undo takes back the stroke that is being painted; what the held button draws after it is not shown as painted."""
    layer = dock.canvas.layer
    drag(viewer, layer, [(100, 100), (100, 200)], let_go=False)
    key(viewer, Qt.Key.Key_Z, CONTROL)
    settle(qtbot, dock)
    go_on(viewer, layer, (100, 300), (200, 300))
    settle(qtbot, dock)
    assert not painted(dock).any()
    assert not shown(dock).any()


def begin_and_lose_the_mouse(viewer: Any, qtbot: Any, dock: AnnotateWidget) -> None:
    """A layer that is added takes the mouse, so that the end of the stroke is not told: it ends there."""
    layer = dock.canvas.layer
    drag(viewer, layer, [(100, 100), (100, 200)], let_go=False)
    points = viewer.add_points(np.array([[10, 10]]), name="found meanwhile")
    go_on(viewer, layer, (100, 300))
    viewer.layers.selection.active = layer
    for place in ((300, 100), (300, 300)):  # no button is held
        hover(viewer, layer, place)
        QTest.qWait(25)
    settle(qtbot, dock)
    assert not dock.controller.dragging
    assert painted(dock)[100, [150, 250]].tolist() == [1, 0]
    assert not painted(dock)[250:].any()
    np.testing.assert_array_equal(shown(dock), painted(dock))
    viewer.layers.remove(points)
    dock.choose(tool="brush")


def draw_a_loop_and_lose_the_mouse(viewer: Any, qtbot: Any, dock: AnnotateWidget) -> None:
    """A loop that was not closed is nothing: neither what lies between its ends, nor what is drawn later."""
    layer = dock.canvas.layer
    dock.choose(tool="lasso")
    drag(viewer, layer, [(100, 100), (100, 300), (300, 300)], let_go=False)
    points = viewer.add_points(np.array([[10, 10]]), name="found meanwhile")
    go_on(viewer, layer, (300, 100))
    viewer.layers.selection.active = layer
    hover(viewer, layer, (350, 50))
    settle(qtbot, dock)
    assert not shown(dock).any()
    drag(viewer, layer, [(20, 20), (20, 60), (60, 60), (60, 20)])
    settle(qtbot, dock)
    assert painted(dock)[40, 40] == 1
    assert not painted(dock)[80:].any()
    np.testing.assert_array_equal(shown(dock), painted(dock))
    viewer.layers.remove(points)
    dock.choose(tool="brush")


def test_a_stroke_that_is_interrupted(viewer: Any, qtbot: Any, dock: AnnotateWidget) -> None:
    for interruption in (begin_and_undo, begin_and_lose_the_mouse, draw_a_loop_and_lose_the_mouse):
        interruption(viewer, qtbot, dock)
        start_over(qtbot, dock)


def test_the_class_list_is_edited_while_a_stroke_waits(viewer: Any, qtbot: Any, dock: AnnotateWidget) -> None:
    """Its table shows the list as it was until then."""
    gate = threading.Event()
    dock.controller._queue.submit(lambda: [Window(0, 0, 1, 1)] * gate.wait(10))
    dock.classes.selectRow(0)
    dock.remove_button.click()
    dock.remove_button.click()  # impatiently
    dock.classes.item(1, 0).setText("water")
    dock.add_button.click()
    dock.add_button.click()
    dock._fill_merge_menu()
    assert [entry.text() for entry in dock.merge_menu.actions()] == ["background"]
    notification_manager.records.clear()
    gate.set()
    settle(qtbot, dock)
    assert [c.name for c in dock.controller.store.classes] == ["water", "class 2", "class 3"]
    assert [x.message for x in notification_manager.records] == [
        "Class 'object' is gone by now, so nothing of it was changed."
    ]
    assert dock.classes.currentRow() == 2
    dock.merge_menu.actions()[0].trigger()  # into a class that is called otherwise by now
    settle(qtbot, dock)
    assert "'background' is gone" in notification_manager.records[-1].message


@pytest.mark.long
def test_the_window_waits_for_no_stroke_that_takes_long(viewer: Any, qtbot: Any, dock: AnnotateWidget) -> None:
    """Looking around, closing and starting again, while a stroke is being painted; an edit window is refused."""
    paints, go = threading.Event(), threading.Event()
    store, folder = dock.controller.store, dock.controller.store.folder

    def stroke() -> list[Window]:
        with store.still():
            paints.set()
            go.wait(MOST_SECONDS)
            return store.paint(Rectangle(Window(100, 100, 50, 50)), 0)

    dock.controller._queue.submit(stroke)
    assert paints.wait(MOST_SECONDS)
    before = time.monotonic()
    dock._show_change([], True)
    dock.canvas.layer.refresh()
    dock.edit_button.click()
    assert dock.editing is None
    assert not dock.edit_button.isChecked()
    assert "still being stored" in notification_manager.records[-1].message
    dock.stop()
    dock.start(folder)
    drag(viewer, dock.canvas.layer, [(50, 100), (50, 200)])
    assert time.monotonic() - before < MOST_SECONDS / 2
    assert dock.controller.pending
    go.set()
    settle(qtbot, dock)
    assert painted(dock)[[50, 120], [150, 120]].tolist() == [1, 1]
    np.testing.assert_array_equal(shown(dock), painted(dock))
    assert dock.undo_button.isEnabled()


def test_zoomed_out_one_sees_what_was_painted_zoomed_in(
    viewer: Any, qtbot: Any, dock: AnnotateWidget, tmp_path: Path
) -> None:
    dock.stop()
    viewer.layers.clear()
    viewer.add_image(np.zeros((1400, 1800, 3), np.uint8), name="large")
    dock.start(tmp_path / "large.isdnet")
    store, layer = dock.controller.store, dock.canvas.layer
    look(viewer, (200, 250), 1.0)
    qtbot.wait(50)
    drag(viewer, layer, [(200, 150), (200, 350)])
    settle(qtbot, dock)
    look(viewer, (700, 900), 0.1)
    qtbot.waitUntil(lambda: layer.data_level == len(store.levels) - 1, timeout=5000)
    coarsest = store.read_labels(Window.whole(store.levels[-1]), len(store.levels) - 1)
    assert coarsest.any()
    np.testing.assert_array_equal(shown(dock), coarsest)
    dock.undo_button.click()
    settle(qtbot, dock)
    look(viewer, (200, 250), 1.0)
    qtbot.waitUntil(lambda: layer.data_level == 0, timeout=5000)
    look(viewer, (700, 900), 0.1)
    qtbot.waitUntil(lambda: layer.data_level > 0, timeout=5000)
    assert not shown(dock).any()


def test_a_lasso_shows_its_path_by_adding_to_it_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with AnnotationStore.create(tmp_path / "a.isdnet", (300, 400), ["a", "b"]) as store:
        store.paint(Polygon([[(50, 50), (50, 350), (250, 200)]]), 1)
        layers = [Labels(SharedLevel(store, 0), multiscale=False) for _ in range(2)]
        grown, whole = (Preview(layer, store) for layer in layers)
        before = layers[0]._slice.image.raw.copy()
        angles = np.linspace(0, 25, 300)  # four rounds, each over the one before
        path = list(zip(150 + 90 * np.sin(angles), 200 + 90 * np.cos(1.02 * angles), strict=True))
        painted: list[int] = []
        brush = Preview.brush

        def counted(self: Preview, points: Any, *rest: Any) -> None:
            painted.append(len(points))
            brush(self, points, *rest)

        monkeypatch.setattr(Preview, "brush", counted)
        for count in range(2, len(path) + 1):
            grown.grow(path[:count], 2.5, 1)
        assert set(painted) == {2}, "the work of a move is as much however long the path is"
        whole.line(path, 2.5, 1)
        shown = [layer._slice.image.raw for layer in layers]
        np.testing.assert_array_equal(*shown)
        assert (shown[0] != before).any()
        layers[0].refresh()  # as after a zoom: what is displayed now knows nothing of the path
        grown.grow(path, 2.5, 1)
        assert painted[-1] == len(path)
        np.testing.assert_array_equal(layers[0]._slice.image.raw, shown[1])
        grown.clear()
        whole.clear()
        for layer in layers:
            np.testing.assert_array_equal(layer._slice.image.raw, before)
