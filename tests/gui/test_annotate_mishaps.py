"""The Annotate dock where something is not as it expects: another place, another class list, an image that is gone."""

from __future__ import annotations

import json
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from napari.utils.notifications import notification_manager
from qtpy.QtCore import QEvent, Qt
from qtpy.QtWidgets import QFileDialog, QInputDialog

from napari_isdnet.io.source import GeoReference
from napari_isdnet.progress import Progress
from napari_isdnet.widgets import _annotate_exchange as exchange
from napari_isdnet.widgets._annotate_regions import Placing
from napari_isdnet.widgets._image import source_of
from napari_isdnet.widgets._reader import read
from napari_isdnet.widgets._segment_layers import placement
from napari_isdnet.widgets.annotate import AnnotateWidget
from napari_isdnet.window import Window

from .canvas_tools import canvas_of, drag, key, mouse, on_screen

pytestmark = pytest.mark.long  # what a dock survives: a window each

SHAPE = (700, 900)


@pytest.fixture
def dock(viewer: Any, tmp_path: Path, qtbot: Any) -> AnnotateWidget:
    pixels = np.random.default_rng(0).integers(0, 255, (*SHAPE, 3)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "field.tif", pixels, photometric="rgb", tile=(256, 256))
    data, keywords, _ = read(tmp_path / "field.tif")[0]
    viewer.add_image(data, **keywords)
    widget = AnnotateWidget(viewer)
    viewer.window.add_dock_widget(widget, name="Annotate")
    widget.start_button.click()
    qtbot.wait(50)
    viewer.camera.center, viewer.camera.zoom = (350, 450), 1.0
    notification_manager.records.clear()
    return widget


def settle(qtbot: Any, dock: AnnotateWidget) -> None:
    qtbot.waitUntil(lambda: not dock.bar.running, timeout=20_000)
    assert dock.controller.wait(10)
    qtbot.wait(100)


def painted(dock: AnnotateWidget) -> np.ndarray:
    return dock.controller.store.read_labels(Window.whole(SHAPE))


def said() -> list[str]:
    return [record.message for record in notification_manager.records]


def test_the_prediction_of_a_part_of_the_image_is_accepted_in_its_place(viewer: Any, qtbot: Any, dock: Any) -> None:
    labels = np.zeros((200, 300), np.uint8)
    labels[20:120, 30:250] = 1
    dock.image_layer.scale = dock.canvas.layer.scale = (0.5, 0.5)
    viewer.camera.center, viewer.camera.zoom = (175, 225), 2.0
    part = viewer.add_labels(labels, name="part", **placement(dock.image_layer, (230, 310)))
    half = viewer.add_labels(labels[::2, ::2], name="half", scale=(1, 1), translate=(115.25, 155.25))
    dock.choose(tool="accept")
    expected = np.zeros(SHAPE, np.uint8)
    expected[250:350, 340:560] = 1
    for layer in (part, half):
        dock.prediction.setCurrentIndex(dock.prediction.findData(layer))
        drag(viewer, dock.canvas.layer, [(300, 400)])
        settle(qtbot, dock)
        assert np.array_equal(painted(dock), expected), layer.name
        drag(viewer, dock.canvas.layer, [(150, 400)])  # beside it, but a pixel that its arrays have
        settle(qtbot, dock)
        assert np.array_equal(painted(dock), expected)
        assert said()[-1].startswith("The prediction does not reach this place")
        dock.undo_button.click()
        settle(qtbot, dock)
        assert not painted(dock).any()
    assert Placing.between(part, dock.canvas.layer).shift == (230, 310)


def test_a_label_that_is_no_class_is_refused_and_said_once(viewer: Any, qtbot: Any, dock: Any) -> None:
    dock.edit_button.click()
    edit = dock.editing
    at = edit.window
    viewer.layers.selection.active = edit.layer
    canvas_of(viewer).setFocus()
    edit.layer.paint((50, 50), 2)
    key(viewer, Qt.Key.Key_M)
    assert edit.layer.selected_label == 3
    edit.layer.paint((150, 150), 3)
    qtbot.waitUntil(lambda: bool(said()), timeout=5000)
    edit.layer.paint((50, 50), 3)
    edit.layer.paint((180, 180), 1)
    qtbot.waitUntil(lambda: painted(dock)[at.row + 180, at.column + 180] == 1, timeout=5000)
    settle(qtbot, dock)
    assert said() == ["Label 3 is no class; add a class first."]
    for picture in (edit.layer.data, painted(dock)[at.slices]):
        assert picture[150, 150] == 0
        assert picture[50, 50] == 2
    dock.add_button.click()
    settle(qtbot, dock)
    edit.layer.paint((150, 150), 3)
    dock.edit_button.click()
    settle(qtbot, dock)
    assert painted(dock)[at.row + 150, at.column + 150] == 3
    assert len(said()) == 1


def test_an_edit_window_keeps_its_classes_while_the_list_is_edited(viewer: Any, qtbot: Any, dock: Any) -> None:
    dock.edit_button.click()
    edit, go = dock.editing, threading.Event()
    at = edit.window
    edit.layer.paint((50, 50), 2)
    qtbot.waitUntil(lambda: painted(dock)[at.row + 50, at.column + 50] == 2, timeout=5000)
    settle(qtbot, dock)
    dock.controller.edit(lambda _store: go.wait(10) and None)
    dock.controller.class_index = 0
    dock.remove_button.click()
    edit.layer.paint((150, 150), 2)  # still the second class here, which becomes the first one
    edit.flush()
    go.set()
    settle(qtbot, dock)
    qtbot.waitUntil(lambda: edit.layer.data[150, 150] == 1, timeout=5000)
    assert [c.name for c in dock.controller.store.classes] == ["background"]
    for picture in (edit.layer.data, painted(dock)[at.slices]):
        assert (picture[50, 50], picture[150, 150]) == (1, 1)
    edit.layer.paint((120, 20), 1)
    dock.edit_button.click()
    settle(qtbot, dock)
    assert painted(dock)[at.row + 120, at.column + 20] == 1
    assert said() == []


def test_what_is_drawn_while_the_classes_change_is_refused_in_words_and_a_polygon_stays(
    viewer: Any, qtbot: Any, dock: Any
) -> None:
    go = threading.Event()
    dock.controller.edit(lambda _store: go.wait(60) and None)
    path = [(300.0, 400.0), (300.0, 500.0), (400.0, 500.0)]
    for tool in ("brush", "lasso"):
        dock.choose(tool=tool)
        drag(viewer, dock.canvas.layer, path)
    dock.choose(tool="polygon")
    for corner in path:
        drag(viewer, dock.canvas.layer, [corner])
    canvas_of(viewer).setFocus()
    key(viewer, Qt.Key.Key_Return)
    at = on_screen(viewer, dock.canvas.layer, path[-1])
    mouse(canvas_of(viewer), QEvent.Type.MouseButtonDblClick, at)
    assert said() == ["The classes are being changed; paint again in a moment."] * 4
    assert len(dock.canvas.corners) >= len(path)
    go.set()
    settle(qtbot, dock)
    assert not painted(dock).any()
    key(viewer, Qt.Key.Key_Return)
    settle(qtbot, dock)
    assert painted(dock)[320, 480] == 1
    assert not dock.canvas.corners
    assert len(said()) == 4


def test_an_image_that_was_closed_stays_named_and_its_annotation_can_be_closed(
    viewer: Any, qtbot: Any, dock: Any
) -> None:
    viewer.layers.remove(dock.image_layer)
    assert dock.start_button.isEnabled()
    assert dock.image.currentText() == "field"
    other = viewer.add_image(np.zeros((300, 300), np.uint8), name="other")
    assert dock.image.currentText() == "field"
    assert not dock.image.isEnabled()
    dock.choose(tool="brush", size=20)
    drag(viewer, dock.canvas.layer, [(350, 400), (350, 420)])
    settle(qtbot, dock)
    assert painted(dock).any()
    dock.choose(tool="superpixel", size=100)
    drag(viewer, dock.canvas.layer, [(200, 200)])  # its pixels can still be read
    settle(qtbot, dock)
    assert painted(dock)[200, 200] == 1
    dock.edit_button.click()
    assert dock.editing is not None
    assert not said()
    dock.start_button.click()
    assert dock.canvas is None
    assert [dock.image.itemText(k) for k in range(dock.image.count())] == ["other"]
    assert dock.start_button.isEnabled()
    viewer.layers.remove(other)
    assert not dock.start_button.isEnabled()


def test_an_image_that_was_replaced_since_is_said_on_start(viewer: Any, qtbot: Any, dock: Any, tmp_path: Path) -> None:
    drag(viewer, dock.canvas.layer, [(350, 400), (350, 500)])
    settle(qtbot, dock)
    assert not dock.other.isVisible()
    dock.start_button.click()
    viewer.layers.clear()
    tifffile.imwrite(tmp_path / "field.tif", np.zeros((*SHAPE, 3), np.uint8), photometric="rgb", tile=(256, 256))
    data, keywords, _ = read(tmp_path / "field.tif")[0]
    viewer.add_image(data, **keywords)
    dock.start_button.click()
    assert dock.other.isVisible()
    assert "is not the image that this annotation was begun on" in dock.other.text()
    assert painted(dock)[350, 450] == 1


def test_renamed_layers_are_renamed_in_the_boxes(viewer: Any, dock: Any) -> None:
    viewer.add_labels(np.zeros(SHAPE, np.uint8), name="map").name = "better map"
    dock.image_layer.name = "meadow"
    assert dock.image.currentText() == "meadow"
    assert dock.prediction.currentText() == "better map"


def test_importing_shapes_beside_the_image_is_said(viewer: Any, qtbot: Any, dock: Any, tmp_path: Path) -> None:
    def shape(x: int) -> dict[str, Any]:
        ring = [[x, 9], [x + 9, 9], [x + 9, 90], [x, 9]]
        geometry = {"type": "Polygon", "coordinates": [ring]}
        return {"type": "Feature", "geometry": geometry, "properties": {"classification": {"name": f"at {x}"}}}

    path = tmp_path / "in.geojson"
    for places, message in (
        ([5000, 6000], "0 of 2 shapes lie on the image; in.geojson must count the pixels of this image"),
        ([5000, 60], "1 of 2 shapes lie on the image; the others are left out."),
    ):
        path.write_text(json.dumps({"type": "FeatureCollection", "features": [shape(x) for x in places]}))
        dock.import_file(path)
        settle(qtbot, dock)
        assert said()[-1].startswith(message), said()
    assert [c.name for c in dock.controller.store.classes] == ["at 60"]  # the two of a new annotation go
    assert len(said()) == 2


def test_labels_that_may_mean_either_are_imported_as_one_chooses(
    qtbot: Any, dock: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    labels = np.ones(SHAPE, np.uint8)
    labels[:10] = 0
    path = tmp_path / "labels.npy"
    np.save(path, labels)
    monkeypatch.setattr(QFileDialog, "getOpenFileName", lambda *_: (str(path), ""))
    for choice, values in (("As the file says", None), ("0 = unlabelled", labels), ("0 = first class", labels + 1)):

        def choose(_self: Any, _title: str, _text: str, kinds: list[str], *_: Any, start: str = choice) -> Any:
            return next(kind for kind in kinds if kind.startswith(start)), True

        monkeypatch.setattr(QInputDialog, "getItem", choose)
        dock.import_button.click()
        settle(qtbot, dock)
        if values is None:
            assert said()[-1].endswith("or unlabelled: import it again and choose what its values mean.")
        assert np.array_equal(painted(dock), 0 * labels if values is None else values)


def test_outlines_in_map_coordinates_are_imported_where_they_lie(
    qtbot: Any, dock: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    reference = GeoReference("EPSG:32640", (0.5, 0.0, 400_000.0, 0.0, -0.5, 2_800_000.0))
    monkeypatch.setattr(type(source_of(dock.image_layer)), "georeference", reference)
    x, y = 400_000 + 0.5 * np.array([100, 130]), 2_800_000 - 0.5 * np.array([200, 260])
    ring = [[x[0], y[0]], [x[1], y[0]], [x[1], y[1]], [x[0], y[1]], [x[0], y[0]]]
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32640"}}
    shape = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
    path = tmp_path / "qgis.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": [shape]}))
    dock.import_file(path)
    settle(qtbot, dock)
    expected = np.zeros(SHAPE, np.uint8)
    expected[200:260, 100:130] = 1
    assert np.array_equal(painted(dock), expected)
    assert said() == ["1 of 1 shapes have no class and are painted as 'object'."]


def test_a_layer_and_the_attribute_that_is_the_class_are_asked_for(
    qtbot: Any, dock: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    pyogrio, shapely = pytest.importorskip("pyogrio"), pytest.importorskip("shapely")
    reference = GeoReference("EPSG:32640", (0.5, 0.0, 400_000.0, 0.0, -0.5, 2_800_000.0))
    monkeypatch.setattr(type(source_of(dock.image_layer)), "georeference", reference)
    path = tmp_path / "region.gpkg"
    box = shapely.to_wkb(shapely.box(400_050, 2_799_870, 400_065, 2_799_900))
    for layer, field in (("roads", "lanes"), ("fields", "crop")):
        pyogrio.raw.write(
            path, np.array([box], object), [np.array(["wheat"], object)], [field], layer=layer, crs="EPSG:32640",
            geometry_type="Polygon", append=path.exists(),
        )  # fmt: skip
    monkeypatch.setattr(QFileDialog, "getOpenFileName", lambda *_: (str(path), ""))
    asked: list[list[str]] = []

    def choose(_self: Any, _title: str, _text: str, kinds: list[str], *_: Any) -> Any:
        asked.append(kinds)
        return kinds[-1 if len(asked) in (2, 3) else 0], len(asked) < 5

    monkeypatch.setattr(QInputDialog, "getItem", choose)
    expected = np.zeros(SHAPE, np.uint8)
    expected[200:260, 100:130] = 1
    none = "(none of them: paint all as 'object')"
    for value, classes in ((1, ["object"]), (2, ["object", "wheat"])):  # as what is painted with; by the attribute
        dock.import_button.click()
        settle(qtbot, dock)
        assert np.array_equal(painted(dock), value * expected)
        assert [c.name for c in dock.controller.store.classes] == classes
    assert asked == [["roads", "fields"], ["lanes", none], ["roads", "fields"], ["crop", none]]
    dock.import_button.click()  # who answers nothing imports nothing
    settle(qtbot, dock)
    assert np.array_equal(painted(dock), 2 * expected)


@pytest.mark.parametrize("how", ["close", "cancel", "layer", "late"])
def test_closing_in_the_middle_of_an_export_is_said(
    viewer: Any, qtbot: Any, dock: Any, tmp_path: Path, monkeypatch: Any, how: str
) -> None:
    under_way, go_on = threading.Event(), threading.Event()

    def slowly(*_: Any) -> Generator[Progress, None, str]:
        yield Progress(0, 2, "Exporting")
        under_way.set()
        while how != "late" and not go_on.wait(0.01):
            yield Progress(1, 2, "Exporting")
        go_on.wait(20)
        return "Written to the end."

    monkeypatch.setattr(exchange, "write_out", slowly)
    dock.export_file(tmp_path / "out.tif", "geotiff")
    assert under_way.wait(20)
    if how == "late":
        threading.Timer(0.2, go_on.set).start()
    if how == "cancel":
        dock.bar.cancel_button.click()
    elif how == "layer":
        viewer.layers.remove(dock.canvas.layer)
    else:
        dock.start_button.click()
    qtbot.waitUntil(lambda: bool(said()), timeout=20_000)
    late = "Written to the end."  # it was over when it was to be cancelled
    assert said() == [late if how == "late" else "The export was cancelled: out.tif was not written."]


def test_an_annotation_is_painted_in_one_window_at_a_time(viewer: Any, qtbot: Any, dock: Any, tmp_path: Path) -> None:
    # Another dock stands for another window's: what they share is the process.
    other = AnnotateWidget(viewer)
    viewer.window.add_dock_widget(other, name="Annotate in another window")
    other.image.setCurrentIndex(other.image.findData(dock.image_layer))
    other.start()
    assert "is open in another window; paint there, or close it there first." in said()[-1]
    assert other.canvas is None
    dock.stop()
    other.start()
    assert other.canvas is not None
    other.stop()
    qtbot.wait(50)
