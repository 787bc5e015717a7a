"""Layers whose pixels are replaced while a dock works on them: nothing of the pixels before passes for the new ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from napari.utils.notifications import notification_manager
from qtpy.QtCore import QObject

from napari_isdnet.io.array import ArraySource
from napari_isdnet.widgets._finetune_compare import AFTER, BEFORE, Comparison
from napari_isdnet.widgets._lazy import pyramid_of
from napari_isdnet.widgets.annotate import AnnotateWidget
from napari_isdnet.widgets.finetune import FineTuneWidget
from napari_isdnet.widgets.inspect import InspectWidget
from napari_isdnet.window import Window
from tests.gui.test_segment_controller import FakeEngine

from .segment_tools import choose, dock_beside, fields_network

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("own_cache")]


def pixels(*shape: int) -> Any:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def said() -> list[str]:
    return [record.message for record in notification_manager.records]


def test_a_live_map_is_of_the_pixels_that_an_image_has_now(viewer: Any, qtbot: Any, tmp_path: Path) -> None:
    image = viewer.add_image(pixels(300, 320, 3), name="field")
    dock = dock_beside(viewer, qtbot, tmp_path, fields_network(tmp_path))
    choose(dock.context, "window")
    dock.live_button.click()
    qtbot.waitUntil(lambda: dock.live.layer is not None)
    dock._areas[image] = (), [], None  # as after a job
    image.data = pixels(200, 210, 3)
    qtbot.waitUntil(lambda: dock.live.layer is not None and pyramid_of(dock.live.layer).shapes[0] == (200, 210))
    assert dock.live.on
    assert image not in dock._areas
    assert len(viewer.layers) == 2
    dock.live_button.click()
    image.data = pixels(100, 110, 3)
    qtbot.wait(50)
    assert not dock.live.on


def test_inspect_lets_go_of_pixels_that_are_gone_and_says_what_failed(
    viewer: Any, qtbot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = viewer.add_image(pixels(300, 320, 3), name="field")
    dock = InspectWidget(viewer, folder=lambda: tmp_path / "maps")
    viewer.window.add_dock_widget(dock, name="Inspect")
    dock.choose_model(fields_network(tmp_path))
    dock.context.setCurrentIndex(dock.context.findData("window"))
    dock.look_inside()
    assert not dock.open_button.isEnabled()
    qtbot.waitUntil(lambda: dock.layer is not None)
    assert dock.open_button.isEnabled()
    with monkeypatch.context() as patched:
        patched.setattr(ArraySource, "read", lambda *_: 1 / 0)
        with pytest.MonkeyPatch.context() as quiet:
            quiet.setattr("napari_isdnet.widgets.inspect.notify_error", lambda _: None)
            dock.ask(299, 319)
            qtbot.waitUntil(lambda: not any(job.running for job in dock._jobs))
    assert "Asking" not in dock.status.text()
    image.data = pixels(500, 600, 3)
    qtbot.waitUntil(lambda: not dock.shared)
    assert dock.status.text() == "'field' has other pixels now: look inside again to see them."
    dock.ask(450, 550)
    assert not dock._jobs
    dock.look_inside()
    qtbot.waitUntil(lambda: bool(dock.shared))
    assert dock.shared[0].view.source.shape == (500, 600)


def test_an_edit_window_keeps_its_size_and_what_is_painted_beside_a_label_that_is_none(viewer: Any, qtbot: Any) -> None:
    viewer.add_image(pixels(300, 320, 3), name="field")
    dock = AnnotateWidget(viewer)
    viewer.window.add_dock_widget(dock, name="Annotate")
    dock.start_button.click()
    viewer.reset_view()
    dock.edit_button.click()
    edit, at = dock.editing, dock.editing.window
    notification_manager.records.clear()
    edit.layer.data = edit.layer.data.astype(np.int32)  # as napari's 'Convert data type' does
    edit.layer.data[:9, :9], edit.layer.data[30:40, 30:40] = -1, 1
    edit.layer.data = edit.layer.data
    store = dock.controller.store
    part = Window(at.row + 30, at.column + 30, 10, 10)
    qtbot.waitUntil(lambda: bool((store.read_labels(part) == 1).all()))
    assert not edit.layer.data[:9, :9].any()
    edit.layer.data = np.zeros((50, 60), np.uint8)
    qtbot.waitUntil(lambda: edit.layer.data.shape == at.shape)
    assert said()[0] == "Label -1 is no class; add a class first."
    assert said()[1].startswith("An edit window keeps its size: got 50 x 60 pixels")
    assert len(said()) == 2
    edit.layer.data = np.zeros((50, 60), np.uint8)
    dock.edit_button.click()  # before it was noticed
    assert edit.layer not in viewer.layers
    assert dock.canvas.layer.visible
    assert (store.read_labels(part) == 1).all()


def test_errors_of_a_layer_that_is_painted_or_replaced_are_marked_and_compared_again_at_a_click(
    viewer: Any, qtbot: Any, errors: Any
) -> None:
    values = pixels(60, 80) % 3
    mine, right = (viewer.add_labels(values.copy(), name=name) for name in ("mine", "right"))

    def compared(how: Any) -> None:
        how()
        qtbot.waitUntil(lambda: errors.report_button.isEnabled(), timeout=15_000)
        assert not errors.stale

    def noticed(name: str) -> None:
        qtbot.waitUntil(lambda: errors.stale, timeout=5000)
        assert errors.summary.text().startswith(f"<b>'{name}' was painted or replaced since: <a href='again'")
        assert not errors.report_button.isEnabled()
        assert errors.error_layer.name == "errors: any class (out of date)"

    def again() -> None:
        errors.summary.linkActivated.emit("again")

    compared(errors.compare_button.click)
    assert errors.result.accuracy == 1.0
    viewer.camera.zoom *= 2
    right.visible = False
    right.visible = True
    qtbot.wait(50)
    assert not errors.stale  # drawn again, and not painted
    right.selected_label, right.brush_size = 2, 30
    right.paint((30, 40), 2)
    noticed("right")
    compared(again)
    assert errors.result.accuracy < 1.0
    right.undo()
    noticed("right")
    compared(again)
    assert errors.result.accuracy == 1.0
    mine.data = np.zeros_like(values)
    noticed("mine")
    compared(again)
    assert errors.result.accuracy == (values == 0).mean()


def test_what_is_painted_while_the_figures_are_found_is_not_taken_for_theirs(
    viewer: Any, qtbot: Any, errors: Any
) -> None:
    viewer.add_labels(pixels(60, 80) % 3, name="mine")
    right = viewer.add_labels(pixels(60, 80) % 3, name="right")
    errors.compare_button.click()
    right.data = pixels(60, 80) % 2
    qtbot.waitUntil(lambda: errors.result is not None, timeout=15_000)
    qtbot.waitUntil(lambda: errors.stale, timeout=5000)


def test_before_and_after_are_of_the_pixels_that_an_image_has_now(viewer: Any, qtbot: Any) -> None:
    image = viewer.add_image(pixels(64, 64, 3), name="field")
    parent = QObject()
    comparison = Comparison(viewer, FakeEngine(), parent)
    renewed: list[None] = []
    comparison.renewed.connect(lambda: renewed.append(None))
    comparison.look_at(image)
    comparison.show(BEFORE, "models/old.safetensors", "old")
    comparison.show(AFTER, "models/new.safetensors", "new")
    qtbot.waitUntil(lambda: comparison.both, timeout=5000)
    comparison.scores = ({"miou": 0.1}, {"miou": 0.2})
    image.data = pixels(96, 128, 3)
    qtbot.waitUntil(lambda: bool(renewed) and comparison.both, timeout=5000)
    for key, name in ((BEFORE, "old"), (AFTER, "new")):
        layer = comparison.sides[key].layer
        assert layer.name == f"field {key} ({name})"
        assert pyramid_of(layer).shapes[0] == (96, 128)
    assert comparison.scores[1] == {"miou": 0.2}
    assert len(viewer.layers) == 3
    viewer.layers.remove(image)
    comparison.layer_removed(image)
    image.data = pixels(32, 32, 3)
    qtbot.wait(50)
    assert len(renewed) == 1
    comparison.close()


def test_fine_tune_says_of_which_pixels_its_figures_are(viewer: Any, qtbot: Any) -> None:
    image = viewer.add_image(pixels(64, 64, 3), name="field")
    dock = FineTuneWidget(viewer, FakeEngine())
    viewer.window.add_dock_widget(dock, name="Fine-tune")
    qtbot.waitUntil(lambda: dock._folder is not None, timeout=10_000)
    before = dock._folder
    dock.compare.show(AFTER, "models/new.safetensors", "new")
    qtbot.waitUntil(lambda: dock.compare.sides[AFTER].layer is not None, timeout=5000)
    image.data = pixels(96, 128, 3)
    said = "'field' has other pixels now: its maps are computed anew, curves and figures are of those before."
    qtbot.waitUntil(lambda: dock.status.text() == said, timeout=5000)
    qtbot.waitUntil(lambda: dock._folder not in (None, before), timeout=10_000)  # of another annotation
    qtbot.waitUntil(lambda: dock.compare.sides[AFTER].layer in viewer.layers, timeout=5000)
    dock.busy = True
    image.data = pixels(64, 64, 3)
    qtbot.waitUntil(lambda: dock.status.text().endswith("the run goes on with those before."), timeout=5000)
    dock.busy = False


def test_an_annotation_of_pixels_that_are_gone_says_so_until_it_is_started_anew(viewer: Any, qtbot: Any) -> None:
    image = viewer.add_image(pixels(300, 320, 3), name="field")
    dock = AnnotateWidget(viewer)
    viewer.window.add_dock_widget(dock, name="Annotate")
    dock.start_button.click()
    assert dock.other.isHidden()
    before = dock.controller.store.folder
    image.data = pixels(200, 210, 3)
    qtbot.waitUntil(lambda: not dock.other.isHidden(), timeout=5000)
    assert dock.other.text().startswith("'field' has other pixels now, and this annotation is of those before: press")
    dock.start_button.click()
    dock.start_button.click()
    assert dock.other.isHidden()
    assert dock.controller.store.folder != before
    assert dock.controller.store.shape == (200, 210)
