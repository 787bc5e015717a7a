"""The Errors dock as a person uses it, in a real window."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QWidget

from napari_isdnet.classes import classes_from
from napari_isdnet.io.store import LabelStore
from napari_isdnet.progress import result_of
from napari_isdnet.widgets import _errors_controller as facts
from napari_isdnet.widgets._lazy import pyramid_of
from napari_isdnet.widgets.errors import ErrorsWidget
from napari_isdnet.window import Window
from tests.gui.large_world import TRUTH, LargeWorld, large, run_limited

CLASSES = classes_from([("field", "#30a030"), ("house", "#d04020"), ("water", "#2060d0")])


def maps() -> tuple[np.ndarray, np.ndarray]:
    """Truth, and a prediction that misses a house and calls another field water."""
    truth = np.zeros((900, 1200), np.uint8)
    truth[100:200, 100:200] = 1
    truth[500:900, 700:1200] = 2
    prediction = truth.copy()
    prediction[100:200, 100:150] = 0
    prediction[300:330, 900:1000] = 2
    return truth, prediction


def stored(path: Path, values: np.ndarray) -> Path:
    store = LabelStore.create(path, values.shape, CLASSES)
    for index, window in enumerate(store.shards):
        store.write_shard(index, values[window.slices])
    list(store.finish_pyramid())
    return path


def compared(qtbot: Any, errors: ErrorsWidget) -> None:
    qtbot.mouseClick(errors.compare_button, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: errors.result is not None and errors.report_button.isEnabled(), timeout=15_000)


def rows(table: Any) -> list[list[str]]:
    return [[table.item(r, c).text() for c in range(table.columnCount())] for r in range(table.rowCount())]


def test_two_layers_are_compared_reported_and_compared_in_a_region(viewer, qtbot, errors, tmp_path) -> None:
    truth, prediction = maps()
    viewer.add_labels(prediction, name="prediction")
    viewer.add_labels(truth, name="truth")
    two_layers_give_a_layer_figures_and_windows_to_fly_to(viewer, qtbot, errors)
    the_report_is_written_and_named(qtbot, errors, tmp_path)
    a_drawn_region_counts_alone(viewer, qtbot, errors)


def two_layers_give_a_layer_figures_and_windows_to_fly_to(viewer: Any, qtbot: Any, errors: ErrorsWidget) -> None:
    assert (errors.prediction.currentText(), errors.truth.currentText()) == ("prediction", "truth")
    compared(qtbot, errors)
    table = {row[0]: row[1:] for row in rows(errors.table)}
    assert table["class 1"][0] == "50.0 %"
    assert table["Mean"][0] == f"{100 * errors.result.mean_iou:.1f} %"
    layer = errors.error_layer
    pyramid = pyramid_of(layer)
    codes = pyramid.read(0, Window(0, 0, 900, 1200))
    assert codes[150, 110] == 3
    assert codes[150, 101] == 6  # at the boundary of the truth: paler
    assert codes[700, 900] == 0
    assert errors.prediction.count() == errors.truth.count() == 2  # our own layer is no map to choose
    worst = rows(errors.worst)
    assert worst[0][1] == "0, 0"
    assert worst[0][2] == "class 1 → class 0"
    assert "class 1 → class 0" in errors.worst.item(0, 2).toolTip()  # a narrow dock cuts it off
    before = viewer.camera.zoom
    errors.tabs.setCurrentWidget(errors.worst)
    qtbot.mouseClick(
        errors.worst.viewport(),
        Qt.MouseButton.LeftButton,
        pos=errors.worst.visualItemRect(errors.worst.item(1, 1)).center(),
    )
    assert viewer.camera.center[-2:] == errors.result.worst[1].window.center
    assert viewer.camera.zoom != before


def the_report_is_written_and_named(qtbot: Any, errors: ErrorsWidget, tmp_path: Path) -> None:
    errors.report(tmp_path / "report")
    qtbot.waitUntil(
        lambda: (tmp_path / "report" / "evaluation.json").exists() and not errors.bar.running, timeout=15000
    )
    assert "prediction" in (tmp_path / "report" / "report.html").read_text()


def a_drawn_region_counts_alone(viewer: Any, qtbot: Any, errors: ErrorsWidget) -> None:
    viewer.add_shapes([[[300, 900], [300, 1000], [330, 1000], [330, 900]]], shape_type="rectangle")
    errors.region.setCurrentIndex(errors.region.findData("drawn"))
    compared(qtbot, errors)
    assert errors.result.region == Window(300, 900, 31, 101)  # the pixels that the outline touches count
    assert errors.result.accuracy == pytest.approx(131 / 3131)


@pytest.mark.long
def test_one_class_is_missed_in_red_and_false_alarm_in_blue(viewer, qtbot, errors, tmp_path) -> None:
    truth, prediction = maps()
    errors.choose_file(errors.prediction, str(stored(tmp_path / "p.ome.zarr", prediction)))
    errors.choose_file(errors.truth, str(stored(tmp_path / "t.ome.zarr", truth)))
    compared(qtbot, errors)
    assert [errors.classes.itemText(i) for i in range(4)] == ["Any class", "field", "house", "water"]
    errors.classes.setCurrentIndex(errors.classes.findText("house"))
    errors.classes.activated.emit(2)
    windows = [item.window for item in errors.result.worst_by_class[1]]
    assert errors.worst_windows == windows
    here = windows[0].slices
    missed, false_alarm = (
        int(((a == 1) & (b != 1))[here].sum()) for a, b in ((truth, prediction), (prediction, truth))
    )
    kinds = ((missed, "missed"), (false_alarm, "false alarm"))
    assert rows(errors.worst)[0][2] == ", ".join(f"{pixels:,} {kind}" for pixels, kind in kinds if pixels)
    assert "house: " in errors.worst.item(0, 0).toolTip()
    errors.fly(0)
    assert viewer.camera.center[-2:] == windows[0].center
    codes = pyramid_of(errors.error_layer).read(0, Window(0, 0, 900, 1200))
    assert codes[150, 125] == 1
    assert codes[310, 950] == 0
    errors.classes.setCurrentIndex(errors.classes.findText("water"))
    errors.classes.activated.emit(3)
    layer = errors.error_layer
    assert pyramid_of(layer).read(0, Window(300, 900, 30, 100)).min() == 2
    red, blue = layer.colormap.color_dict[1], layer.colormap.color_dict[2]
    assert red[0] > 0.8 > 0.3 > red[2]
    assert blue[2] > 0.8 > 0.3 > blue[0]
    assert "missed" in errors.legend.text()


def test_what_cannot_be_compared_is_said_and_so_is_what_every_control_does(viewer, qtbot, errors) -> None:
    from napari.utils.notifications import notification_manager

    for number, words in enumerate(("need two class maps", "beside each other in the viewer")):
        viewer.add_labels(np.zeros((300, 300), np.uint8), translate=(0, 300 * number))
        before = len(notification_manager.records)
        errors.compare_button.click()
        qtbot.waitUntil(lambda before=before: len(notification_manager.records) > before, timeout=5000)
        assert words in notification_manager.records[-1].message
    for child in errors.findChildren(QWidget):
        if child.objectName().startswith("errors_") and not child.objectName().endswith(
            ("_bar", "job", "look", "scroll")
        ):
            assert child.toolTip(), child.objectName()


@pytest.mark.long
def test_closing_the_window_while_comparing_is_clean(viewer, qtbot, errors, tmp_path) -> None:
    big = np.random.default_rng(0).integers(0, 3, (4096, 4096), dtype=np.uint8)
    prediction = stored(tmp_path / "p.ome.zarr", big)
    errors.choose_file(errors.prediction, str(prediction))
    errors.choose_file(errors.truth, str(shutil.copytree(prediction, tmp_path / "t.ome.zarr")))
    errors.compare_button.click()
    qtbot.waitUntil(lambda: errors.bar.running, timeout=15_000)  # the window closes now


def test_the_matrix_is_of_the_classes_that_occur() -> None:
    truth, prediction = maps()
    pair = (
        facts.LabelMap(facts.ArraySource([prediction], "p", "yx")),
        facts.LabelMap(facts.ArraySource([truth], "t", "yx")),
    )
    result, *_ = result_of(facts.compare(*pair, facts.Question()))
    present, shares, counts = facts.confusion_shares(result)
    assert present == [0, 1, 2]
    assert shares[1, 0] == 0.5
    assert counts.sum() == 900 * 1200


def errors_of_a_live_map(world: LargeWorld) -> None:
    """A map that is segmented where one looks, against the world's truth: nothing else is segmented or read."""
    from napari_isdnet.engine.errors import error_map
    from napari_isdnet.engine.live import PredictionPyramid
    from napari_isdnet.landcover import LANDCOVER_CLASSES
    from napari_isdnet.widgets import _segment_layers as layers
    from napari_isdnet.widgets._demo import _add_truth
    from napari_isdnet.widgets._image import source_of
    from napari_isdnet.widgets._segment_controller import color_table

    image = world.open()
    truth: Any = source_of(image).truth  # type: ignore[union-attr]
    segmented: list[Window] = []

    def wrong(window: Window) -> np.ndarray:
        values = truth.read(window)[..., 0]
        return np.where(window.row // 512 % 2 == 0, values, (values + 1) % len(LANDCOVER_CLASSES)).astype(np.uint8)

    def segment(window: Window) -> np.ndarray:
        segmented.append(window)
        return wrong(window)

    view = world.look_at(61_000, 42_000)
    live = PredictionPyramid(truth.shape, (512, 512), segment)
    colors = color_table(LANDCOVER_CLASSES)
    layer = layers.add_labels(world.viewer, image, live, LANDCOVER_CLASSES, colors, "live")
    _add_truth(world.viewer, image, truth)
    dock = world.dock(ErrorsWidget(world.viewer))
    assert (dock.prediction.currentText(), dock.truth.currentText()) == ("live", "truth")
    dock.region.setCurrentIndex(dock.region.findData("visible"))
    dock.compare_button.click()
    world.wait(lambda: dock.result is not None)
    assert view.expanded(2).contains(dock.result.region)
    grid = live.grid

    def expected(part: Window) -> np.ndarray:
        outer = part.expanded(8)
        guess = np.empty(outer.shape, np.uint8)
        for index in grid.touching(outer):
            shared = grid[index].intersect(outer)
            guess[shared.relative_to(outer).slices] = wrong(grid[index])[shared.relative_to(grid[index]).slices]
        return error_map(guess, truth.read(outer)[..., 0], None, 3.0)[part.relative_to(outer).slices]

    errors = pyramid_of(dock.error_layer)
    assert errors is not None
    for place in ((61_000, 42_000), (33_000, 70_000)):
        view = world.look_at(*place)
        before, read = len(segmented), len(world.fine(TRUTH))
        part = view.expanded(-100)
        world.wait(lambda p=part: not (errors.answer(0, p) == 255).any() and errors.wait(0) and not live.pending)  # type: ignore[misc]
        np.testing.assert_array_equal(errors.answer(0, part), expected(part))
        near = view.expanded(1024)
        assert all(near.contains(w) for w in segmented[before:]), (view, segmented[before:])
        assert all(view.expanded(2048).contains(w) for w in world.fine(TRUTH)[read:])
        assert len(segmented) < 60, len(segmented)
        layer.visible = False  # the errors go on without the map
    assert len(segmented) > 4


@large
def test_errors_of_a_live_map_of_the_100k_world_within_3_gib_are_where_one_looks() -> None:
    run_limited(errors_of_a_live_map)
