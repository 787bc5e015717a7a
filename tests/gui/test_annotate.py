"""The Annotate dock in a real window: mouse and keys on the canvas, at every zoom, across restarts."""

from __future__ import annotations

import json
import shlex
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from qtpy.QtCore import QEvent, Qt, QVariantAnimation
from qtpy.QtGui import QColor
from qtpy.QtWidgets import QApplication, QWidget

from napari_isdnet import cli
from napari_isdnet.annotation.project import Project
from napari_isdnet.annotation.strokes import Brush
from napari_isdnet.annotation.suggest import next_regions
from napari_isdnet.classes import ClassInfo
from napari_isdnet.io.intensity import IntensityPolicy
from napari_isdnet.io.open import open_source
from napari_isdnet.widgets._image import image_layer
from napari_isdnet.widgets._segment_layers import CLASSES
from napari_isdnet.widgets.annotate import AnnotateWidget
from napari_isdnet.window import Window

from .annotate_tools import look, painted, settle, start_over, tiles
from .canvas_tools import canvas_of, drag, drawn, hover, key, mouse, on_screen

CONTROL, SHIFT = Qt.KeyboardModifier.ControlModifier, Qt.KeyboardModifier.ShiftModifier
SHAPE = (1400, 1800)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("drawn") / "field.tif"
    tifffile.imwrite(path, tiles(SHAPE), photometric="rgb", tile=(256, 256))
    return path


@pytest.fixture
def picture(written: Path, tmp_path: Path) -> Path:
    """In a folder of its own: annotations lie beside it."""
    return Path(shutil.copy(written, tmp_path))


def add_image(viewer: Any, path: Path) -> Any:
    source = open_source(path)
    data, keywords, _ = image_layer(source, IntensityPolicy.from_source(source, "auto"), path=str(path))
    return viewer.add_image(data, **keywords)


@pytest.fixture
def dock(viewer: Any, picture: Path, qtbot: Any) -> AnnotateWidget:
    add_image(viewer, picture)
    widget = AnnotateWidget(viewer)
    viewer.window.add_dock_widget(widget, name="Annotate")
    widget.start_button.click()
    drawn(qtbot, viewer)
    return widget


@pytest.mark.parametrize(
    "zoom", [pytest.param(4.0, marks=pytest.mark.long), pytest.param(1.0, marks=pytest.mark.long), 0.2]
)
def test_a_drag_paints_what_the_brush_covers_at_any_zoom(viewer, qtbot, dock, zoom: float) -> None:
    look(viewer, (700, 900), zoom)
    drawn(qtbot, viewer)
    layer = dock.canvas.layer
    dock.choose(tool="brush", size=24)
    reach = 60 / zoom
    path = [(700, 900 - reach), (700 - reach / 2, 900), (700, 900 + reach)]
    drag(viewer, layer, path, let_go=False)
    level, shown = dock.canvas.preview.view()
    raw = layer._slice.image.raw
    factor = 2**level
    assert raw[int(700 // factor) - shown.row, int((900 - reach) // factor) - shown.column] == 1, "shown before release"
    mouse(canvas_of(viewer), QEvent.Type.MouseButtonRelease, on_screen(viewer, layer, path[-1]))
    settle(qtbot, dock)
    expected = Brush(path, 12 / zoom).cover(SHAPE).mask(Window.whole(SHAPE))
    found = painted(dock) == 1
    # The canvas counts whole pixels of the screen: half of one, and the rounding of the window's own middle.
    assert (found & ~Brush(path, 12 / zoom + 1.5 / zoom).cover(SHAPE).mask(Window.whole(SHAPE))).sum() == 0
    assert (expected & found).sum() / expected.sum() > 0.9
    now = layer._slice.image.raw
    assert np.array_equal(now, dock.controller.store.read_labels(shown, level)), "the screen shows the store"
    assert dock.classes.item(0, 2).text() == f"{int(found.sum()):,}"


def test_keys_and_shift_on_the_canvas(viewer, qtbot, dock) -> None:
    keys_pick_classes_and_tools(viewer, qtbot, dock)
    for promise in (shift_erases_and_keys_undo_and_redo, pan_moves_the_picture_and_paints_nothing):
        start_over(qtbot, dock)
        promise(viewer, qtbot, dock)


def keys_pick_classes_and_tools(viewer: Any, qtbot: Any, dock: AnnotateWidget) -> None:
    look(viewer, (700, 900), 1.0)
    canvas_of(viewer).setFocus()
    key(viewer, Qt.Key.Key_2)
    assert dock.controller.class_index == 1
    assert dock.classes.currentRow() == 1
    key(viewer, Qt.Key.Key_L)
    assert dock.tool_buttons["lasso"].isChecked()
    drag(viewer, dock.canvas.layer, [(600, 800), (600, 1000), (800, 1000), (800, 800), (700, 790)])
    settle(qtbot, dock)
    assert painted(dock)[700, 900] == 2
    assert painted(dock)[500, 900] == 0
    key(viewer, Qt.Key.Key_B)
    key(viewer, Qt.Key.Key_BracketRight)
    assert dock.controller.tool == "brush"
    assert dock.size_box.value() > 20


def shift_erases_and_keys_undo_and_redo(viewer: Any, qtbot: Any, dock: AnnotateWidget) -> None:
    look(viewer, (700, 900), 1.0)
    dock.choose(tool="brush", size=40)
    layer = dock.canvas.layer
    drag(viewer, layer, [(700, 800), (700, 1000)])
    settle(qtbot, dock)
    one = painted(dock)
    drag(viewer, layer, [(700, 900), (700, 905)], SHIFT)
    settle(qtbot, dock)
    two = painted(dock)
    assert 0 < np.count_nonzero(two) < np.count_nonzero(one)
    key(viewer, Qt.Key.Key_Z, CONTROL)
    settle(qtbot, dock)
    assert np.array_equal(painted(dock), one)
    dock.undo_button.click()
    settle(qtbot, dock)
    assert not painted(dock).any()
    assert not dock.undo_button.isEnabled()
    viewer.layers.selection.active = viewer.layers["field"]  # the keys work from any layer
    key(viewer, Qt.Key.Key_Z, CONTROL | SHIFT)
    settle(qtbot, dock)
    dock.redo_button.click()
    settle(qtbot, dock)
    assert np.array_equal(painted(dock), two)


def pan_moves_the_picture_and_paints_nothing(viewer: Any, qtbot: Any, dock: AnnotateWidget) -> None:
    look(viewer, (700, 900), 1.0)
    dock.choose(tool="brush")
    assert not viewer.camera.mouse_pan
    dock.choose(tool="pan")
    assert viewer.camera.mouse_pan
    drag(viewer, dock.canvas.layer, [(700, 900), (700, 950)])
    settle(qtbot, dock)
    assert not painted(dock).any()


@pytest.mark.long
def test_outlines_by_clicks(viewer, qtbot, dock) -> None:
    polygon_by_clicks_with_a_rubber_band(viewer, qtbot, dock)
    start_over(qtbot, dock)
    one_click_takes_a_superpixel(viewer, qtbot, dock)


def polygon_by_clicks_with_a_rubber_band(viewer: Any, qtbot: Any, dock: AnnotateWidget) -> None:
    look(viewer, (700, 900), 1.0)
    drawn(qtbot, viewer)
    layer = dock.canvas.layer
    key(viewer, Qt.Key.Key_P)
    for corner in [(600, 800), (600, 1000), (1000, 1000), (800, 1000), (800, 800)]:
        drag(viewer, layer, [corner])
        if corner == (1000, 1000):
            key(viewer, Qt.Key.Key_Backspace)

    def outlined() -> bool:
        hover(viewer, layer, (700, 850))
        return bool(layer._slice.image.raw.any())

    # On a busy machine the view that was asked for may arrive just now, and the outline comes with the next move.
    qtbot.waitUntil(outlined, timeout=5000)
    key(viewer, Qt.Key.Key_Return)
    settle(qtbot, dock)
    values = painted(dock)
    assert values[700, 900] == 1
    assert np.count_nonzero(values) == pytest.approx(200 * 200, rel=0.03)
    drag(viewer, layer, [(900, 900)])
    drag(viewer, layer, [(950, 950)])
    key(viewer, Qt.Key.Key_Escape)
    settle(qtbot, dock)
    level, shown = dock.canvas.preview.view()
    assert np.array_equal(layer._slice.image.raw, dock.controller.store.read_labels(shown, level))


def one_click_takes_a_superpixel(viewer: Any, qtbot: Any, dock: AnnotateWidget) -> None:
    look(viewer, (700, 900), 1.0)
    key(viewer, Qt.Key.Key_S)
    dock.choose(size=100)
    for method in ("slic", "felzenszwalb"):
        dock.method.setCurrentText(method)
        drag(viewer, dock.canvas.layer, [(700, 900)])
        settle(qtbot, dock)
        values = painted(dock)
        assert values[700, 900] == 1
        inside = np.count_nonzero(values[600:800, 800:1000])
        assert inside > 2000
        assert np.count_nonzero(values) - inside < 0.03 * inside, "it stops at the edge of the square"


def test_a_predicted_region_is_accepted_under_its_own_class(viewer, qtbot, dock) -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[500:900, 700:1200] = 1
    layer = viewer.add_labels(labels, name="prediction")
    layer.metadata[CLASSES] = (ClassInfo("field", (1, 2, 3)), ClassInfo("water", (0, 90, 200)))
    look(viewer, (700, 900), 0.5)
    dock.prediction.setCurrentIndex(dock.prediction.findText("prediction"))
    dock.choose(tool="accept")
    drag(viewer, dock.canvas.layer, [(700, 900)])
    settle(qtbot, dock)
    names = [c.name for c in dock.controller.store.classes]
    assert names == ["object", "background", "water"]
    assert np.array_equal(painted(dock) == 3, labels == 1)
    assert dock.classes.item(2, 0).text() == "water"


def test_the_class_list_and_the_controls(viewer, qtbot, dock) -> None:
    every_control_says_what_it_does(dock)
    a_name_twice_is_refused_and_shown_as_before(qtbot, dock)
    classes_are_renamed_recolored_merged_and_removed_without_losing_strokes(viewer, qtbot, dock)


def every_control_says_what_it_does(dock: AnnotateWidget) -> None:
    kinds = ("QPushButton", "QToolButton", "QComboBox", "QSpinBox", "QSlider", "QTableWidget", "QLabel")
    controls = [c for c in dock.findChildren(QWidget) if any(c.inherits(kind) for kind in kinds)]
    ours = [c for c in controls if c.objectName().startswith("annotate_")]
    assert len(ours) > 20
    for control in ours:
        assert control.toolTip(), control.objectName()
    assert "Ctrl+Z" in dock.undo_button.toolTip()
    assert "Ctrl+Shift+Z" in dock.redo_button.toolTip()


def a_name_twice_is_refused_and_shown_as_before(qtbot: Any, dock: AnnotateWidget) -> None:
    from napari.utils.notifications import notification_manager

    before = len(notification_manager.records)
    dock.classes.item(1, 0).setText("object")
    settle(qtbot, dock)
    assert len(notification_manager.records) > before
    assert dock.classes.item(1, 0).text() == "background"


def classes_are_renamed_recolored_merged_and_removed_without_losing_strokes(
    viewer: Any, qtbot: Any, dock: AnnotateWidget
) -> None:
    look(viewer, (700, 900), 1.0)
    dock.add_button.click()
    settle(qtbot, dock)
    for row, column in ((0, 700), (1, 900), (2, 1100)):
        dock.classes.selectRow(row)
        drag(viewer, dock.canvas.layer, [(700, column)])
    settle(qtbot, dock)
    dock.classes.item(0, 0).setText("roof")
    dock.classes.ask_color = lambda _now: QColor("#ff8800")
    dock.classes.pick_color(0)
    settle(qtbot, dock)
    assert dock.controller.store.classes[0] == ClassInfo("roof", (255, 136, 0))
    assert np.allclose(dock.canvas.layer.colormap.color_dict[1], (1, 136 / 255, 0, 1), atol=0.01)
    dock.classes.selectRow(2)
    dock._fill_merge_menu()
    dock.merge_menu.actions()[0].trigger()
    settle(qtbot, dock)
    assert [painted(dock)[700, c] for c in (700, 900, 1100)] == [1, 2, 1]
    dock.classes.selectRow(1)
    dock.remove_button.click()
    settle(qtbot, dock)
    assert [painted(dock)[700, c] for c in (700, 900, 1100)] == [1, 0, 1]
    dock.undo_button.click()
    dock.undo_button.click()
    settle(qtbot, dock)
    assert [painted(dock)[700, c] for c in (700, 900, 1100)] == [1, 2, 3]
    assert dock.classes.rowCount() == 3


def test_strokes_and_undo_survive_a_restart_and_an_end_in_the_middle_of_a_drag(viewer, qtbot, dock, picture) -> None:
    look(viewer, (700, 900), 1.0)
    drag(viewer, dock.canvas.layer, [(700, 800), (700, 1000)])
    dock.start_button.click()  # close
    assert dock.canvas is None
    assert dock.start_button.text() == "Start"
    with Project.open(picture, read_only=True) as project:
        assert project.store.class_counts()[0] > 0
    dock.start_button.click()
    settle(qtbot, dock)
    assert painted(dock).any()
    key(viewer, Qt.Key.Key_Z, CONTROL)
    settle(qtbot, dock)
    assert not painted(dock).any()
    # Nor is a stroke lost where the window closes in the middle of its drag.
    drag(viewer, dock.canvas.layer, [(700, 800), (700, 1000)], let_go=False)
    dock.controller.close_project()
    with Project.open(picture, read_only=True) as project:
        assert project.store.read_labels(Window(700, 900, 1, 1))[0, 0] == 1


@pytest.mark.long
def test_edit_window_with_naparis_tools_is_flushed_by_itself(viewer, qtbot, dock) -> None:
    look(viewer, (700, 900), 1.0)
    drag(viewer, dock.canvas.layer, [(700, 900)])
    settle(qtbot, dock)
    dock.edit_button.click()
    edit = dock.editing
    assert viewer.layers.selection.active is edit.layer
    assert max(edit.layer.data.shape) <= 4096
    corner = edit.window
    drag(viewer, edit.layer, [(650 - corner.row, 900 - corner.column), (650 - corner.row, 950 - corner.column)])
    edit.layer.fill((0, 0), 2)
    qtbot.waitUntil(lambda: painted(dock)[corner.row, corner.column] == 2, timeout=5000)
    settle(qtbot, dock)  # other chunks of the same stroke come after that corner's
    assert painted(dock)[650, 920] == 1
    dock.undo_button.click()
    settle(qtbot, dock)
    # what is taken back goes from the edit window too
    qtbot.waitUntil(lambda: edit.layer.data[0, 0] == 0, timeout=5000)
    dock.edit_button.click()
    settle(qtbot, dock)
    assert dock.editing is None
    assert dock.canvas.layer.visible
    assert painted(dock)[700, 900] == 1


@pytest.mark.long
def test_export_import_and_the_command_that_exports(viewer, qtbot, dock, tmp_path, monkeypatch) -> None:
    look(viewer, (700, 900), 1.0)
    drag(viewer, dock.canvas.layer, [(700, 800), (700, 1000)])
    settle(qtbot, dock)
    values = painted(dock)
    dock.export_file(tmp_path / "out.geojson", "geojson")
    qtbot.waitUntil(lambda: not dock.bar.running, timeout=10_000)
    shapes = json.loads((tmp_path / "out.geojson").read_text())["features"]
    assert shapes[0]["properties"]["classification"]["name"] == "object"
    dock.export_file(tmp_path / "out.tif", "geotiff")
    qtbot.waitUntil(lambda: not dock.bar.running, timeout=10_000)
    dock.undo_button.click()
    settle(qtbot, dock)
    for path, kind in ((tmp_path / "out.geojson", "auto"), (tmp_path / "out.tif", "auto")):
        dock.import_file(path, kind)
        qtbot.waitUntil(lambda: not dock.bar.running, timeout=10_000)
        settle(qtbot, dock)
        assert np.array_equal(painted(dock), values)
        dock.undo_button.click()
        settle(qtbot, dock)
        assert not painted(dock).any()
    the_copied_command_writes_the_outlines(qtbot, dock, tmp_path, monkeypatch)


def the_copied_command_writes_the_outlines(qtbot: Any, dock: AnnotateWidget, tmp_path: Path, monkeypatch: Any) -> None:
    dock.controller.paint(Brush([(100.0, 100.0)], 20.0))
    settle(qtbot, dock)
    next(a for a in dock.export_menu.actions() if a.objectName() == "annotate_export_command").trigger()
    words = shlex.split(QApplication.clipboard().text())
    monkeypatch.chdir(tmp_path)
    assert cli.run(cli.app, words[1:], words[0]) == 0  # while the dock has the annotation open
    written = json.loads((tmp_path / words[-1]).read_text())
    assert len(written["features"]) == 1


def arrived(qtbot: Any, dock: AnnotateWidget) -> None:
    """Until the view has flown to where it was sent."""
    qtbot.waitUntil(lambda: dock._flight.state() != dock._flight.State.Running)


@pytest.mark.long
def test_next_region_flies_to_the_unsure_place_and_says_why(viewer, qtbot, dock, monkeypatch) -> None:
    unsure = np.full(SHAPE, 10, np.uint8)
    unsure[:350, :350] = 200
    viewer.add_image(unsure, name="field uncertainty")
    viewer.layers.selection.active = dock.canvas.layer
    canvas_of(viewer).setFocus()
    # While little is painted ordinary places come first; here what is unsure counts from the first stroke on.
    monkeypatch.setattr("napari_isdnet.widgets._next_region.next_regions", partial(next_regions, trust_from=0))
    key(viewer, Qt.Key.Key_N)
    qtbot.waitUntil(lambda: dock.reason.isVisibleTo(dock), timeout=10_000)
    arrived(qtbot, dock)
    assert "unsure" in dock.reason.text()
    assert viewer.camera.center[-2] == pytest.approx(175, abs=5)
    assert viewer.camera.center[-1] == pytest.approx(175, abs=5)
    first = viewer.camera.center
    dock.next_button.click()
    qtbot.waitUntil(lambda: viewer.camera.center != first)
    arrived(qtbot, dock)
    assert len(dock.findChildren(QVariantAnimation)) == 1


def test_without_an_image_start_is_off(viewer) -> None:
    dock = AnnotateWidget(viewer)
    viewer.window.add_dock_widget(dock)
    assert not dock.start_button.isEnabled()
    assert not dock.body.isVisible()
