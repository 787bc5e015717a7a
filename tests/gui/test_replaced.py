"""Layers whose pixels are replaced while a dock works on them: nothing of the pixels before passes for the new ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from napari.utils.notifications import notification_manager

from napari_isdnet.io.array import ArraySource
from napari_isdnet.widgets._lazy import pyramid_of
from napari_isdnet.widgets.annotate import AnnotateWidget
from napari_isdnet.widgets.inspect import InspectWidget
from napari_isdnet.window import Window

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
