"""The Segment dock as a person uses it, in a real window, with a small real network."""

from __future__ import annotations

import shlex
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QApplication, QWidget

from napari_isdnet import cli
from napari_isdnet.classes import IGNORE_INDEX
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.store import LabelStore
from napari_isdnet.widgets._lazy import pyramid_of
from napari_isdnet.widgets._segment_layers import (
    drawn_window,
    visible_window,
)
from napari_isdnet.widgets.segment import SegmentWidget
from napari_isdnet.window import Window
from tests.gui.segment_tools import choose, open_dock, write_field
from tests.gui.test_segment_controller import FakeEngine

SHAPE = (544, 576)
"""Two windows of the live grid each way."""


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    return write_field(tmp_path, SHAPE)


@pytest.fixture
def dock(viewer: Any, qtbot: Any, tmp_path: Path, model: str, picture: Path, monkeypatch: Any) -> SegmentWidget:
    return open_dock(viewer, qtbot, tmp_path, model, picture, monkeypatch)


def test_what_an_open_dock_says_and_sees(viewer, qtbot, dock, model) -> None:
    the_dock_says_what_there_is(dock, model)
    every_control_says_what_it_does(dock)
    the_visible_window_is_what_the_canvas_shows(viewer, qtbot, dock)
    a_view_beside_the_image_is_empty_and_said_so(viewer, dock)
    without_an_image_or_with_a_sample_it_says_what_to_do(viewer, qtbot, dock)


def the_dock_says_what_there_is(dock: SegmentWidget, model: str) -> None:
    assert dock.image.currentText() == "field"
    assert dock.model.currentData() == model
    assert dock.model_facts.text() == "3 classes · pixels of 0.5 m · 256 px windows"
    assert [dock.classes.item(row, 0).text() for row in range(3)] == ["soil", "crop", "water"]
    assert dock.device.itemData(0) == "auto"
    assert "GiB free" in dock.device.itemText(0)


def the_visible_window_is_what_the_canvas_shows(viewer: Any, qtbot: Any, dock: SegmentWidget) -> None:
    """At every zoom within one level, where napari keeps what it has read."""
    image = dock.image.currentData()
    viewer.camera.center = image.data_to_world((300, 400))
    for zoom in (4, 8, 16):
        viewer.camera.zoom = zoom / image.scale[0]
        qtbot.wait(50)
        height, width = viewer.canvas.size
        view = visible_window(viewer, image)
        assert abs(view.height - height / zoom) <= 2
        assert abs(view.width - width / zoom) <= 2
        assert abs(view.center[0] - 300) <= 1
        assert abs(view.center[1] - 400) <= 1


def a_view_beside_the_image_is_empty_and_said_so(viewer: Any, dock: SegmentWidget) -> None:
    image = dock.image.currentData()
    viewer.camera.zoom = 4 / image.scale[0]
    viewer.camera.center = image.data_to_world((-50_000, 0))
    assert visible_window(viewer, image).empty
    with pytest.raises(InputError, match="outside the image; move the view"):
        dock.roi("visible")


def every_control_says_what_it_does(dock: SegmentWidget) -> None:
    kinds = ("QPushButton", "QToolButton", "QComboBox", "QLineEdit", "QCheckBox", "QSlider", "QTableWidget")
    seen = [w for w in dock.findChildren(QWidget) if w.objectName().startswith("segment_") and w.inherits("QWidget")]
    controls = [w for w in seen if any(w.inherits(kind) for kind in kinds)]
    assert len(controls) > 20
    for control in controls:
        assert control.toolTip(), control.objectName()


def without_an_image_or_with_a_sample_it_says_what_to_do(viewer: Any, qtbot: Any, dock: SegmentWidget) -> None:
    from napari.utils.notifications import notification_manager

    viewer.layers.clear()
    dock.live_button.click()
    assert notification_manager.records[-1].message == "There is no image to segment; load one first."
    assert not dock.live_button.isChecked()
    viewer.add_image(np.zeros((300, 300, 3), np.uint8), name="made here")
    qtbot.waitUntil(lambda: dock.image.currentText() == "made here")
    dock.copy_button.click()
    assert "has no file that a command could read" in notification_manager.records[-1].message


def test_live_is_provisional_then_exact_and_equals_the_files(viewer, qtbot, dock, tmp_path) -> None:
    choose(dock.region, "whole")
    qtbot.mouseClick(dock.live_button, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: dock.live.layer is not None, timeout=60_000)
    layer = dock.live.layer
    live = dock.controller.live
    qtbot.waitUntil(lambda: not dock.controller.provisional and live.progress == (4, 4), timeout=120_000)
    assert layer.name == "field live"
    assert layer.colormap.color_dict[0][3] == 1
    assert layer.colormap.color_dict[IGNORE_INDEX][3] == layer.colormap.color_dict[None][3] == 0
    labels = live.read(0, Window.whole(SHAPE))
    # A window is done a moment before it is counted, both in a worker thread.
    qtbot.waitUntil(lambda: sum(dock.controller.areas.pixels()) == SHAPE[0] * SHAPE[1], timeout=10_000)
    dock.uncertainty.setChecked(True)
    dock.segment_button.click()
    qtbot.waitUntil(lambda: dock.finished is not None, timeout=120_000)
    assert dock.controller.live is None  # the result takes its place
    assert [item.name for item in viewer.layers] == ["field", "field segmentation", "field uncertainty"]
    store = LabelStore.open(tmp_path / "out" / "field.ome.zarr")
    written = store.read_labels(Window.whole(SHAPE))
    assert (written != labels).mean() <= 2e-4
    result = dock.result_layer
    viewer.reset_view()  # beside the dock the canvas is narrower than when the picture was fitted into it
    qtbot.waitUntil(lambda: np.array_equal(result._slice.image.raw, np.asarray(result.data[0])), timeout=10_000)
    assert dock.classes.item(0, 1).text() == (f"{np.sum(written == 0):,} px" if (written == 0).any() else "–")


@pytest.mark.long
def test_the_live_layer_is_lazy_hides_a_class_and_takes_the_opacity(viewer, qtbot) -> None:
    viewer.add_image(np.zeros((300, 300, 3), np.uint8), name="field")
    dock = SegmentWidget(viewer, FakeEngine())
    viewer.window.add_dock_widget(dock, name="Segment")
    qtbot.waitUntil(lambda: dock.controller.about is not None and dock.device.count() > 0, timeout=10_000)
    choose(dock.context, "window")
    dock.live_button.click()
    qtbot.waitUntil(lambda: dock.live.layer is not None, timeout=60_000)
    assert pyramid_of(dock.live.layer) is dock.controller.live
    dock.classes.item(1, 0).setCheckState(Qt.CheckState.Unchecked)
    assert dock.live.layer.colormap.color_dict[1][3] == 0
    dock.opacity.setValue(30)
    assert dock.live.layer.opacity == 0.3


@pytest.mark.long
def test_a_drawn_rectangle_is_what_is_segmented_and_the_command_says_so(viewer, qtbot, dock, picture, tmp_path) -> None:
    dock.draw_button.click()
    shapes = viewer.layers["Region"]
    assert shapes.mode == "add_rectangle"
    image = dock.image.currentData()
    corners = [image.data_to_world(p) for p in ((99.5, 199.5), (99.5, 499.5), (399.5, 499.5), (399.5, 199.5))]
    shapes.add_rectangles([[shapes.world_to_data(p) for p in corners]])
    assert drawn_window(viewer, image) == Window(100, 200, 300, 300)
    choose(dock.context, "window")
    choose(dock.orientations, 2)
    dock.copy_button.click()
    words = shlex.split(QApplication.clipboard().text())
    assert words[:3] == ["napari-isdnet", "segment", str(picture)]
    assert words[words.index("--roi") + 1] == "100,200,300,300"
    assert words[words.index("--orientations") + 1] == "2"
    dock.live_button.click()
    qtbot.waitUntil(lambda: dock.controller.live is not None and not dock.controller.live.pending, timeout=120_000)
    dock.segment_button.click()
    qtbot.waitUntil(lambda: dock.finished is not None, timeout=120_000)
    qtbot.wait(400)  # longer than the live view takes to tell again
    counts = dock.finished.result.class_pixels
    assert sum(counts.values()) == 300 * 300
    shown = [dock.classes.item(row, 1).text() for row in range(3)]
    assert shown == [f"{counts[name]:,} px" if counts[name] else "–" for name in ("soil", "crop", "water")]
    assert dock.finished.labels.shape == (300, 300)
    assert dock.finished.labels.origin == (100, 200)
    np.testing.assert_allclose(dock.result_layer.data_to_world((0, 0)), image.data_to_world((100, 200)))
    assert cli.run(cli.app, words[1:], words[0]) == 0  # the same job: it is found done
    for kind, name in (
        ("png", "a.png"),
        ("ome-tiff", "a.ome.tif"),
        ("geotiff", "a.tif"),
        ("geojson", "a.geojson"),
        ("gpkg", "a.gpkg"),
    ):
        dock.export(tmp_path / name, kind)
        qtbot.waitUntil(lambda: not dock.export_bar.running, timeout=20_000)
        assert (tmp_path / name).stat().st_size > 0
    choose(dock.outlines, 2.0)
    dock.min_area.setValue(30)
    for box, options in ((dock.polygons, "--polygons"), (dock.geopackage, "--polygons --geopackage")):
        box.setChecked(True)
        dock.copy_button.click()
        assert f" --simplify 2 --min-area 30 {options}" in QApplication.clipboard().text()


@pytest.mark.long
def test_cancel_keeps_the_job_and_another_dock_resumes_it(viewer, qtbot, dock, tmp_path) -> None:
    choose(dock.region, "whole")
    choose(dock.context, "window")
    dock.segment_button.click()
    qtbot.waitUntil(lambda: (tmp_path / "out" / "field.job" / "ledger.json").exists(), timeout=60_000)
    dock.bar.cancel_button.click()
    qtbot.waitUntil(lambda: not dock.bar.running, timeout=60_000)
    assert dock.segment_button.text() == "Resume or repeat"
    assert dock.job_hint.isVisibleTo(dock)
    dock.segment_button.click()
    qtbot.waitUntil(lambda: dock.finished is not None, timeout=180_000)
    assert LabelStore.open(tmp_path / "out" / "field.ome.zarr").finished


@pytest.mark.long
@pytest.mark.parametrize("what", ["layer", "image", "window"])
def test_what_is_deleted_in_the_middle_leaves_nothing(viewer, qtbot, dock, what) -> None:
    dock.live_button.click()
    qtbot.waitUntil(lambda: dock.live.layer is not None, timeout=60_000)
    if what == "layer":
        viewer.layers.remove(dock.live.layer)
    elif what == "image":
        viewer.layers.remove(dock.image.currentData())
    if what != "window":
        assert dock.controller.live is None
        assert not dock.live_button.isChecked()
        qtbot.waitUntil(
            lambda: not [t for t in threading.enumerate() if t.name in ("isdnet-view-live", "isdnet-job")],
            timeout=20_000,
        )


def test_closing_the_window_in_the_middle_of_a_job_leaves_one_that_can_be_resumed(qtbot, dock, tmp_path) -> None:
    choose(dock.region, "whole")
    dock.segment_button.click()
    qtbot.waitUntil(lambda: (tmp_path / "out" / "field.job" / "ledger.json").exists(), timeout=60_000)


def test_preferences_reach_the_dock(monkeypatch) -> None:
    from napari.settings import get_plugin_settings

    from napari_isdnet.widgets import _settings

    page = get_plugin_settings("napari-isdnet").general
    assert (_settings.device(), _settings.memory_gib()) == ("auto", None)
    monkeypatch.setattr(page, "device", "cpu")
    monkeypatch.setattr(page, "memory", 1.5)
    monkeypatch.setattr(page, "cache_folder", "/somewhere/else")
    assert (_settings.device(), _settings.memory_gib()) == ("cpu", 1.5)
    assert _settings.cache_folder() == Path("/somewhere/else")


def test_preferences_that_cannot_be_read_are_said_once(monkeypatch) -> None:
    from napari_isdnet.widgets import _settings

    said: list[str] = []

    def damaged(plugin: str) -> None:
        raise ValueError("bad\nfile")

    monkeypatch.setattr("napari.settings.get_plugin_settings", damaged)
    monkeypatch.setattr(_settings, "notify_error", lambda error: said.append(str(error)))
    assert (_settings.device(), _settings.memory_gib()) == ("auto", None)
    assert said == ["The preferences of napari-isdnet cannot be read (ValueError: bad file); using the defaults."]


SCRIPT = """
import resource, sys
limit = 3 * 2**30
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
import napari
from qtpy.QtTest import QTest
from napari_isdnet.io.world import ProceduralWorld
from napari_isdnet.widgets._reader import read_sample
from napari_isdnet.widgets._segment_layers import visible_window
from napari_isdnet.widgets.segment import SegmentWidget

def wait(until):
    for _ in range(8000):
        QTest.qWait(25)
        if until():
            return
    raise SystemExit("not in time")

reads = []
original = ProceduralWorld._read
def read(self, window, level):
    if self.shape[0] == 100_000:  # not the small one that the rounding of weights is measured on
        reads.append((level, window))
    return original(self, window, level)
ProceduralWorld._read = read
viewer = napari.Viewer(show=True)
data, keywords, _ = read_sample("aerial-100k")[0]
image = viewer.add_image(data, **keywords)
dock = SegmentWidget(viewer)
viewer.window.add_dock_widget(dock)
wait(lambda: dock.device.count())
dock.choose_model(sys.argv[1])
wait(lambda: dock.controller.about)
dock.context.setCurrentIndex(dock.context.findData("window"))
viewer.camera.center = image.data_to_world((61_000, 42_000))
viewer.camera.zoom = 2 / image.scale[0]
wait(lambda: image.data_level == 0 and visible_window(viewer, image).area < 10**6)
dock.live_button.click()
wait(lambda: dock.controller.live and dock.controller.live.progress[0] and not dock.controller.live.pending)
view = visible_window(viewer, image)
near = view.expanded(512 + 256)
level_0 = [w for level, w in reads if level == 0]
assert level_0 and all(near.expanded(512).contains(w) for w in level_0), (view, level_0)
assert sum(w.area for w in level_0) < 12e6, sum(w.area for w in level_0)
QTest.qWait(300)
raw = dock.live.layer._slice.image.raw
assert (raw != 255).all(), (raw == 255).mean()
viewer.close()
print("read", sum(w.area for w in level_0), "peak MiB", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the memory limit is Linux's")
def test_live_on_the_100k_world_within_3_gib_reads_only_around_the_view(model: str) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, model], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert "peak MiB" in done.stdout
    print(done.stdout)
