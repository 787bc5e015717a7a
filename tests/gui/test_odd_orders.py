"""Docks used in an order that nobody thought of: two things at once, what is gone, what changes meanwhile."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from napari.utils.notifications import notification_manager

from napari_isdnet.progress import Progress
from napari_isdnet.widgets import _segment_layers as layers
from napari_isdnet.widgets._demo import DemoGuide
from napari_isdnet.widgets._reader import read
from napari_isdnet.widgets._segment_layers import drawn_window, path_of, region_layer
from napari_isdnet.widgets.annotate import AnnotateWidget
from napari_isdnet.widgets.batch import BatchWidget
from napari_isdnet.widgets.errors import ErrorsWidget
from napari_isdnet.widgets.inspect import InspectWidget
from napari_isdnet.widgets.segment import SegmentWidget
from napari_isdnet.window import Window
from tests.gui.segment_tools import choose, open_dock, segmented, write_field

pytestmark = pytest.mark.long  # what a dock survives: a window each


@pytest.fixture
def dock(viewer: Any, qtbot: Any, tmp_path: Path, model: str, monkeypatch: Any) -> SegmentWidget:
    widget = open_dock(viewer, qtbot, tmp_path, model, write_field(tmp_path), monkeypatch)
    choose(widget.region, "whole")
    choose(widget.context, "window")
    return widget


def said() -> list[str]:
    return [record.message for record in notification_manager.records]


# ------------------------------------------------------------------------------------------------------------ segment


@pytest.mark.long
def test_an_export_runs_beside_a_segmentation(viewer: Any, qtbot: Any, dock: Any, tmp_path: Path) -> None:
    segmented(qtbot, dock)
    dock.output.setText(str(tmp_path / "again"))
    dock.output.textEdited.emit("")
    dock.segment_button.click()
    dock.bar.pause_button.click()
    dock.export(tmp_path / "a.png", "png")
    assert not dock.export_button.isEnabled()
    qtbot.waitUntil(lambda: (tmp_path / "a.png").exists() and not dock.export_bar.running, timeout=60_000)
    assert dock.bar.running
    assert dock.export_button.isEnabled()
    dock.bar.pause_button.click()
    qtbot.waitUntil(lambda: not dock.bar.running, timeout=120_000)
    assert dock.segment_button.isEnabled()
    assert (tmp_path / "again" / "field.ome.zarr").is_dir()


@pytest.mark.long
def test_the_end_of_a_job_leaves_the_live_view_of_another_image(
    viewer: Any, qtbot: Any, dock: Any, tmp_path: Path
) -> None:
    dock.segment_button.click()
    dock.bar.pause_button.click()
    other = tmp_path / "other"
    other.mkdir()
    data, keywords, _ = read(write_field(other))[0]
    second = viewer.add_image(data, **{**keywords, "name": "second"})
    dock.image.setCurrentIndex(dock.image.findText("second"))
    dock.live_button.click()
    qtbot.waitUntil(lambda: dock.live.layer is not None, timeout=60_000)
    dock.bar.pause_button.click()
    qtbot.waitUntil(lambda: dock.finished is not None, timeout=120_000)
    assert dock.live.on
    assert dock.live.layer in viewer.layers
    assert dock.live.image is second
    assert dock.result_layer in viewer.layers
    dock.live_button.click()


def test_a_folder_of_an_unknown_user_is_a_folder(dock: Any, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    dock.output.setText("~nobody of that name/out")
    dock.output.textEdited.emit("")
    assert dock._folder() == Path("~nobody of that name/out")


def test_a_region_that_is_drawn_while_live_is_followed(viewer: Any, qtbot: Any, dock: Any) -> None:
    choose(dock.region, "visible")
    dock.live_button.click()
    qtbot.waitUntil(lambda: dock.live.layer is not None, timeout=60_000)
    before = dock.controller.live
    other = viewer.add_shapes([np.array([[300, 300], [300, 400], [400, 400], [400, 300]])], name="of the user")
    dock.draw_button.click()
    drawn = viewer.layers.selection.active
    drawn.add_rectangles(np.array([[20, 20], [20, 160], [120, 160], [120, 20]]))
    viewer.layers.selection.active = dock.image.currentData()
    assert drawn is not other or len(drawn.data) == 2
    qtbot.waitUntil(lambda: dock.controller.live not in (None, before), timeout=60_000)
    assert dock.controller.live.within == dock.roi("drawn")
    dock.live_button.click()


def test_what_one_was_asked_to_draw_goes_before_other_shapes(viewer: Any) -> None:
    image = viewer.add_image(np.zeros((200, 200), np.uint8))
    square = np.array([[20, 20], [20, 60], [60, 60], [60, 20]])
    mine = region_layer(viewer, image)
    mine.add_rectangles(square)
    viewer.add_shapes([square + 100], name="other")
    viewer.layers.selection.active = image
    assert drawn_window(viewer, image) == Window(20, 20, 41, 41)


def test_a_channel_of_a_file_is_not_the_file(viewer: Any, tmp_path: Path) -> None:
    data = np.zeros((3, 64, 80), np.uint16)
    tifffile.imwrite(tmp_path / "multi.tif", data, photometric="minisblack")
    tifffile.imwrite(tmp_path / "grey.tif", data[0])
    found = []
    for path, pixels in (("multi.tif", data[0]), ("grey.tif", data[0]), ("none.tif", data[0])):
        layer = viewer.add_image(pixels, name=path)
        layer._source = layer.source.copy(update={"path": str(tmp_path / path)})
        found.append(path_of(layer))
    assert found == [None, str(tmp_path / "grey.tif"), None]


# ------------------------------------------------------------------------------------------------------- live, errors


@pytest.mark.long
def test_a_live_map_that_was_stopped_is_compared_as_far_as_it_is_known(viewer: Any, qtbot: Any, dock: Any) -> None:
    choose(dock.context, "whole")
    dock.live_button.click()
    qtbot.waitUntil(lambda: dock.live.layer is not None and not dock.controller.provisional, timeout=120_000)
    layer, pyramid = dock.live.layer, dock.controller.live
    dock.live_button.click()
    assert not dock.live.on
    values = pyramid.read(0, Window(0, 0, 640, 832))  # and computes nothing more
    known = pyramid.known(0, Window(0, 0, 640, 832))
    np.testing.assert_array_equal(values, known)
    viewer.add_labels(np.zeros((640, 832), np.uint8), name="truth")
    errors = ErrorsWidget(viewer)
    viewer.window.add_dock_widget(errors, name="Errors")
    errors.prediction.setCurrentIndex(errors.prediction.findText(layer.name))
    errors.truth.setCurrentIndex(errors.truth.findText("truth"))
    notification_manager.records.clear()
    errors.compare()
    qtbot.waitUntil(lambda: errors.result is not None, timeout=30_000)
    assert not said()


def test_comparing_again_does_not_wait_for_the_step_at_hand(viewer: Any, qtbot: Any) -> None:
    for name in ("prediction", "truth"):
        viewer.add_labels(np.zeros((64, 64), np.uint8), name=name)
    errors = ErrorsWidget(viewer)
    viewer.window.add_dock_widget(errors, name="Errors")
    errors.compare()
    qtbot.waitUntil(lambda: errors.result is not None, timeout=15_000)

    at_it, go_on, over = threading.Event(), threading.Event(), threading.Event()

    def slowly() -> Any:
        yield Progress(0, 1, "Comparing")
        at_it.set()
        go_on.wait(20)
        over.set()

    errors.bar.run(slowly)
    assert at_it.wait(20)
    errors.compare()
    assert not over.is_set()
    go_on.set()
    qtbot.waitUntil(lambda: errors.result is not None and not errors.bar.running, timeout=15_000)


def test_the_error_layer_keeps_its_looks_and_changes_only_when_asked(viewer: Any, qtbot: Any) -> None:
    viewer.add_labels(np.zeros((64, 64), np.uint8), name="prediction")
    viewer.add_labels(np.ones((64, 64), np.uint8), name="truth")
    errors = ErrorsWidget(viewer)
    viewer.window.add_dock_widget(errors, name="Errors")
    errors.compare()
    qtbot.waitUntil(lambda: errors.result is not None, timeout=15_000)
    layer = errors.error_layer
    layer.visible, layer.opacity = False, 0.3
    errors.tolerance.editingFinished.emit()
    assert errors.error_layer is layer  # nothing was changed
    errors.tolerance.setValue(errors.tolerance.value() + 1)
    errors.tolerance.editingFinished.emit()
    assert errors.error_layer is not layer
    assert (errors.error_layer.visible, errors.error_layer.opacity) == (False, 0.3)


# -------------------------------------------------------------------------------------------------------- other docks


def test_the_demo_ends_where_its_dock_is_closed(viewer: Any, qtbot: Any) -> None:
    class Gone:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("wrapped C/C++ object of type QComboBox has been deleted")

    guide = DemoGuide(viewer, None, None, {"Segment": Gone()}, [], "model")
    qtbot.addWidget(guide)
    qtbot.waitUntil(lambda: guide.state == "over", timeout=5_000)
    assert not guide._timer.isActive()
    assert "closed" in guide.step.text()


def test_what_is_added_while_another_look_is_under_way_is_added_too(viewer: Any, qtbot: Any, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        tifffile.imwrite(tmp_path / f"{name}.tif", np.zeros((40, 50), np.uint8))
    batch = BatchWidget(viewer)
    viewer.window.add_dock_widget(batch, name="Batch")
    for name in ("a", "missing", "b", "c"):
        batch.add([str(tmp_path / f"{name}.tif")])
    qtbot.waitUntil(lambda: len(batch.queue.items) >= 3 and batch.model.count() > 0, timeout=60_000)
    assert [Path(item.path).stem for item in batch.queue.items] == ["a", "b", "c"]


def test_a_view_that_is_closed_answers_nothing(viewer: Any, qtbot: Any) -> None:
    dock = InspectWidget(viewer)
    viewer.window.add_dock_widget(dock, name="Inspect")

    def slowly() -> Any:
        yield Progress(0, 1, "Finding")
        time.sleep(0.3)
        raise AssertionError("its files are closed")

    heard: list[Any] = []
    notification_manager.records.clear()
    dock.status.setText("Finding the colours of the map…")
    dock._run(slowly, heard.append)
    dock._forget()
    qtbot.wait(600)
    assert not heard
    assert not said()
    assert dock.status.text() == ""
    dock._answered(object(), object())  # type: ignore[arg-type]
    assert dock.picked is None


def test_another_annotation_begins_without_the_visits_of_the_one_before(
    viewer: Any, qtbot: Any, tmp_path: Path
) -> None:
    data, keywords, _ = read(write_field(tmp_path))[0]
    viewer.add_image(data, **keywords)
    dock = AnnotateWidget(viewer)
    viewer.window.add_dock_widget(dock, name="Annotate")
    dock.start_button.click()
    dock.next_region()
    qtbot.waitUntil(lambda: bool(dock._visited) and not dock.bar.running, timeout=15_000)
    dock.stop()
    assert not dock._visited
    assert dock.reason.isHidden()
    assert layers.canvas_size(viewer)[0] > 100
