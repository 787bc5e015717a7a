"""The Inspect dock as a person uses it, in a real window, and its controller without one."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyqtgraph as pg
import pytest
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QComboBox, QPushButton

from napari_isdnet.classes import classes_from
from napari_isdnet.engine.rendering import Rendering, paint
from napari_isdnet.model.checkpoint import save_model
from napari_isdnet.widgets import _inspect_controller as control
from napari_isdnet.widgets._lazy import pyramid_of
from napari_isdnet.widgets.inspect import InspectWidget
from napari_isdnet.window import Window
from tests.gui.large_world import LargeWorld, large, run_limited
from tests.network_tools import lively, picture, small

SHAPE = (104, 144)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(lively(small(channels=16, classes=3)), tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture
def dock(viewer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> InspectWidget:
    monkeypatch.setenv("NAPARI_ISDNET_CACHE", str(tmp_path / "cache"))
    viewer.add_image(picture(SHAPE), rgb=True, name="field", scale=(2, 2), translate=(10, 30))
    widget = InspectWidget(viewer, folder=lambda: tmp_path / "maps")
    viewer.window.add_dock_widget(widget, name="Inspect")
    return widget


def opened(qtbot: Any, dock: InspectWidget, model: Path) -> None:
    dock.choose_model(str(model))
    dock.region.setCurrentIndex(dock.region.findData("whole"))
    qtbot.mouseClick(dock.open_button, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: dock.layer is not None, timeout=120_000)


def choose(box: QComboBox, key: str) -> None:
    box.setCurrentIndex(box.findData(key))
    box.activated.emit(box.currentIndex())


def test_look_inside_see_maps_in_place_and_ask_about_a_pixel(qtbot, viewer, dock, model, tmp_path) -> None:
    opened(qtbot, dock, model)
    assert dock.table.isHidden()
    for name, kind, stride in (("fused8", "pca", 8), ("H0", "color", 1), ("super_resolution", "color", None)):
        choose(dock.map, name)
        qtbot.waitUntil(lambda n=name: dock.layer.metadata["napari-isdnet-features"]["map"] == n, timeout=60_000)
        layer, shape = dock.layer, np.array(dock.layer.data.shape[:2])
        pyramid = pyramid_of(layer)
        assert pyramid is not None
        qtbot.waitUntil(lambda p=pyramid: p.progress[0] > 0 and p.wait(0), timeout=60_000)
        # The outer edges of the map are those of the image: 2 units a pixel, the first pixel's centre at (10, 30).
        edges = np.array([layer.data_to_world((-0.5, -0.5)), layer.data_to_world(shape - 0.5)])
        np.testing.assert_allclose(edges, [(9, 29), (9 + 2 * SHAPE[0], 29 + 2 * SHAPE[1])])
        if stride is not None:
            np.testing.assert_allclose(layer.scale, 2 * stride)
        view = dock.shared[0].view
        cells = Window(1, 2, 10, 9)
        expected = paint(view.read(name, cells), view.basis(name), Rendering(kind))
        difference = np.abs(pyramid.read(0, cells).astype(int) - expected.astype(int))
        assert difference.max() <= 6  # bfloat16: a window of another size rounds otherwise
        assert len(viewer.layers) == 2
    choose(dock.map, "shallow16")
    dock.ask(50, 60)
    qtbot.waitUntil(lambda: dock.table.rowCount() == 3, timeout=60_000)
    qtbot.waitUntil(
        lambda: dock.layer.metadata["napari-isdnet-features"] == {"map": "shallow16", "kind": "similarity"},
        timeout=60_000,
    )
    texts = [[dock.table.item(r, c).text() for c in range(1, 4)] for r in range(3)]
    for column, branch in enumerate(("both", "shallow", "deep")):
        shares = [float(row[column].rstrip("%")) for row in texts]
        assert abs(sum(shares) - 100) < 0.3
        logits = dock.shared[0].view.logits(Window(50, 60, 1, 1), branch)[0, :, 0, 0]
        expected = np.sort(100 * np.exp(logits.numpy()) / np.exp(logits.numpy()).sum())
        np.testing.assert_allclose(np.sort(shares), expected, atol=0.11)
    pyramid = pyramid_of(dock.layer)
    assert pyramid is not None
    brightness = pyramid.read(0, Window.whole(pyramid.shapes[0]))[..., :3].sum(-1)
    assert brightness[50 // 16, 60 // 16] == brightness.max()  # nothing is more similar to a pixel than itself
    assert dock.asked.text() == "Classes at row 50, column 60:"
    cross = dock.picker.layer
    assert viewer.layers[-1] is cross  # the map lies below it
    np.testing.assert_allclose(cross.data_to_world(cross.data[0]), viewer.layers["field"].data_to_world((50, 60)))
    dock.ask(70, 80)
    qtbot.waitUntil(lambda: dock.asked.text().endswith("row 70, column 80:"), timeout=60_000)
    assert cross.data.tolist() == [[70, 80]]
    qtbot.waitUntil(lambda: viewer.layers[-2] is dock.layer and viewer.layers[-1] is cross, timeout=60_000)
    for plot in (dock.charts.shallow, dock.charts.deep):
        (bars,) = (item for item in plot.plotItem.items if isinstance(item, pg.BarGraphItem))
        assert len(bars.opts["height"]) == dock.shared[0].view.model.config.channels
    viewer.layers.remove("field")
    assert dock.shown.isHidden()
    assert dock.asked.isHidden()
    qtbot.waitUntil(lambda: not dock.shared and cross not in viewer.layers)
    viewer.layers.clear()
    qtbot.waitUntil(lambda: not list((tmp_path / "maps").iterdir()), timeout=10_000)


@pytest.mark.long
def test_a_channel_of_the_slider_is_the_one_that_varies_most(qtbot, dock, model) -> None:
    dock.context.setCurrentIndex(dock.context.findData("window"))
    opened(qtbot, dock, model)
    choose(dock.rendering, "channel")
    qtbot.waitUntil(lambda: dock.layer.metadata["napari-isdnet-features"]["kind"] == "channel", timeout=60_000)
    view = dock.shared[0].view
    values = view.sample("fused8")
    assert view.basis("fused8").order[0] == values.var(0).argmax()
    assert f"number {values.var(0).argmax()}" in dock.channel_text.text()
    assert dock.channel.maximum() == 15


@pytest.mark.long
def test_another_image_or_model_ends_what_can_be_asked_of_the_view(qtbot, viewer, dock, model) -> None:
    from napari.utils.notifications import notification_manager

    dock.context.setCurrentIndex(dock.context.findData("window"))
    opened(qtbot, dock, model)
    said, before = dock.status.text(), dock.layer
    dock.pick_button.setChecked(True)
    other = viewer.add_image(picture(SHAPE), rgb=True, name="meadow")
    dock.image.setCurrentIndex(dock.image.findData(other))
    words = "What was looked into is 'field' through tiny (window by window): look inside to see what is chosen now."
    assert dock.status.text() == words
    assert not dock.shown.isEnabled()
    assert not dock.pick_button.isChecked()
    for refused in (dock.show_map, lambda: dock.ask(5, 5)):
        refused()
        assert not dock._latest.running
    assert dock.layer is before
    dock.copy_command()
    assert notification_manager.records[-1].message == words
    dock.image.setCurrentIndex(dock.image.findData(viewer.layers["field"]))
    assert (dock.shown.isEnabled(), dock.status.text()) == (True, said)
    dock.context.setCurrentIndex(dock.context.findData("whole"))
    dock.look_inside()
    qtbot.waitUntil(lambda: dock.shown.isEnabled() and dock.settings.context == "whole", timeout=120_000)


def test_what_an_open_dock_says(qtbot, viewer, dock, model) -> None:
    a_model_that_is_chosen_before_the_others_are_found_stays(qtbot, dock, model)
    the_same_choices_have_the_same_words_as_in_the_segment_dock(dock)
    errors_are_said_and_every_control_explains_itself(dock)
    a_region_that_is_not_drawn_leaves_no_status_of_work(viewer, dock)


def a_model_that_is_chosen_before_the_others_are_found_stays(qtbot: Any, dock: InspectWidget, model: Path) -> None:
    dock.choose_model(str(model))
    qtbot.waitUntil(lambda: dock.model.count() > 1, timeout=20_000)
    assert dock.model.currentData() == str(model)


def the_same_choices_have_the_same_words_as_in_the_segment_dock(dock: InspectWidget) -> None:
    from napari_isdnet.widgets._segment_form import SegmentForm

    def words(box: QComboBox) -> dict[str, str]:
        return {str(box.itemData(i)): box.itemText(i) for i in range(box.count())}

    other = SegmentForm()
    try:
        assert words(dock.context) == words(other.context)
        assert words(dock.region) == words(other.region)
    finally:
        other.deleteLater()


def errors_are_said_and_every_control_explains_itself(dock: InspectWidget) -> None:
    from napari.utils.notifications import notification_manager

    dock.model.setCurrentIndex(-1)
    dock.look_inside()
    assert "No model is chosen" in notification_manager.records[-1].message
    dock.copy_command()
    assert "look inside first" in notification_manager.records[-1].message
    for kind in (QPushButton, QComboBox):
        for child in dock.findChildren(kind):
            assert child.toolTip() or not child.objectName().startswith("inspect"), child.objectName()


def a_region_that_is_not_drawn_leaves_no_status_of_work(viewer: Any, dock: InspectWidget) -> None:
    from napari.utils.notifications import notification_manager

    dock.shared.append(SimpleNamespace(release=lambda: None))
    dock.looked_at = viewer.layers["field"]
    dock.map.addItem("Fused", "fused8")
    dock.region.setCurrentIndex(dock.region.findData("drawn"))
    dock.show_map()
    assert "No region is drawn" in notification_manager.records[-1].message
    assert dock.status.text() == "No map of this region is shown."
    dock.shared.clear()


def test_models_are_looked_for_in_a_thread_and_the_default_one_is_chosen(qtbot, viewer, monkeypatch) -> None:
    from napari_isdnet.model import checkpoint

    threads: list[threading.Thread] = []

    def available() -> dict[str, Path]:
        threads.append(threading.current_thread())
        names = ["another", checkpoint.DEFAULT_MODEL, "zebra"]
        return {str(name): Path(f"{name}.safetensors") for name in names}

    monkeypatch.setattr(checkpoint, "available_models", available)
    dock = InspectWidget(viewer)
    viewer.window.add_dock_widget(dock, name="Inspect")
    qtbot.waitUntil(lambda: dock.model.count() == 3, timeout=20_000)
    assert dock.model.currentText() == checkpoint.DEFAULT_MODEL
    assert threads
    assert threading.main_thread() not in threads


@pytest.mark.long
def test_closing_the_window_in_the_middle_leaves_nothing(qtbot, dock, model) -> None:
    dock.choose_model(str(model))
    dock.look_inside()
    assert dock.bar.running  # the leak check looks for threads


def test_command_and_opinions_without_a_window() -> None:
    settings = control.InspectSettings("my model.safetensors", device="cpu")
    text = control.command("a.tif", settings, "deep", Window(1, 2, 3, 4))
    assert text == (
        "napari-isdnet features a.tif --output features --model 'my model.safetensors' --layer deep"
        " --roi 1,2,3,4 --device cpu"
    )
    windows = control.InspectSettings("m", "window")
    assert control.command("a.tif", windows, "deep", None).endswith("--layer deep --context window")
    rows = control.opinion_rows({"both": np.array([0.2, 0.8]), "deep": np.array([0.9, 0.1])}, classes_from(["a", "b"]))
    assert [info.name for info, _ in rows] == ["b", "a"]
    assert rows[0][1] == {"both": 0.8, "deep": 0.1}


def test_a_view_is_closed_by_its_last_holder() -> None:
    closed: list[bool] = []
    shared = control.SharedView(SimpleNamespace(), (), lambda: closed.append(True))  # type: ignore[arg-type]
    shared.hold()
    shared.release()
    assert not closed
    shared.release()
    assert closed == [True]


def inspect_the_world(world: LargeWorld, model: str, folder: str) -> None:
    """The map of what is visible; full resolution is read around it, and at the nine places that give the colours."""
    image = world.open()
    dock = world.dock(InspectWidget(world.viewer, folder=lambda: Path(folder)))
    view = world.look_at(61_000, 42_000)
    world.pause()
    before = len(world.fine())
    dock.choose_model(model)
    dock.context.setCurrentIndex(dock.context.findData("window"))
    dock.region.setCurrentIndex(dock.region.findData("visible"))
    dock.open_button.click()
    world.wait(lambda: dock.layer is not None)
    pyramid = pyramid_of(dock.layer)
    assert pyramid is not None
    world.wait(lambda: pyramid.progress[0] == pyramid.progress[1])  # type: ignore[attr-defined]
    dock.ask(61_000, 42_000)
    world.wait(lambda: dock.table.rowCount() == 3)
    new = world.fine()[before:]
    spots = [Window(100_000 * r // 4 - 512, 100_000 * c // 4 - 512, 1024, 1024) for r in (1, 2, 3) for c in (1, 2, 3)]
    near = view.expanded(512)
    assert all(any(place.contains(w) for place in (near, *spots)) for w in new), (view, new)
    assert any(near.contains(w) for w in new)
    assert all(any(spot.contains(w) for w in new) for spot in spots)
    assert sum(w.area for w in new) < 16e6, sum(w.area for w in new)
    edges = np.array(
        [dock.layer.data_to_world((-0.5, -0.5)), dock.layer.data_to_world(np.array(pyramid.shapes[0]) - 0.5)]
    )
    (top, left), (bottom, right) = (image.world_to_data(edge) + 0.5 for edge in edges)
    covered = Window.from_bounds(round(top), round(left), round(bottom), round(right))
    assert covered.contains(view)
    assert view.expanded(8).contains(covered)


@large
def test_the_100k_world_is_looked_into_within_3_gib_where_it_is_visible(model: Path, tmp_path: Path) -> None:
    run_limited(inspect_the_world, str(model), str(tmp_path / "maps"))
