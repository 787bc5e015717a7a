"""The Batch dock as a person uses it, in a real window."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from napari.utils.notifications import notification_manager
from qtpy.QtCore import QMimeData, QPointF, Qt, QUrl
from qtpy.QtGui import QDropEvent
from qtpy.QtWidgets import QApplication

from napari_isdnet.engine.batch import BatchQueue
from napari_isdnet.io.store import LabelStore
from napari_isdnet.widgets import _batch_controller as work
from napari_isdnet.widgets._image import source_of
from napari_isdnet.widgets._lazy import pyramid_of
from napari_isdnet.widgets.batch import BatchWidget
from napari_isdnet.window import Window

from . import batch_tools as tools
from .batch_tools import begin, listed, states

batch, images, model = tools.batch, tools.images, tools.model  # the fixtures


def test_add_a_folder_run_see_the_states_open_a_result(viewer, qtbot, batch, images, model, tmp_path) -> None:
    begin(qtbot, batch, images, model, tmp_path / "out", 3)
    qtbot.waitUntil(lambda: states(batch) == ["done", "done", "failed"] and not batch.bar.running, timeout=60_000)
    qtbot.waitUntil(lambda: not batch.table.item(0, 0).icon().isNull(), timeout=10_000)
    assert batch.table.item(2, 0).icon().isNull()
    assert "broken" in batch.table.item(2, 1).text()
    assert len(batch.table.item(2, 1).text().splitlines()) == 2  # the error in words
    assert "2 done" in batch.status.text()
    batch.table.selectRow(0)
    qtbot.mouseClick(batch.open_button, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: len(viewer.layers) == 2, timeout=10_000)
    shown = pyramid_of(viewer.layers["a classes"]).read(0, Window(0, 0, 130, 140))
    truth = LabelStore.open(tmp_path / "out" / "a.ome.zarr").read_labels(Window(0, 0, 130, 140))
    np.testing.assert_array_equal(shown, truth)


def test_a_result_on_a_large_image_opens_with_a_pyramid(viewer, qtbot, batch, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("NAPARI_ISDNET_CACHE", str(tmp_path / "cache"))
    wide = np.full((64, 5000, 3), 90, np.uint8)
    tifffile.imwrite(tmp_path / "wide.tif", wide, photometric="rgb", tile=(64, 512))
    batch.output.setText(str(tmp_path / "out"))
    batch.add([str(tmp_path / "wide.tif")])
    listed(qtbot, batch, 1)
    batch.queue.items[0] = replace(
        batch.queue.items[0], state="done"
    )  # its result is gone since, which is no matter here
    batch.table.selectRow(0)
    batch.open_results()
    qtbot.waitUntil(lambda: len(viewer.layers) == 1, timeout=10_000)
    layer = viewer.layers[0]
    assert layer.multiscale
    qtbot.waitUntil(lambda: source_of(layer).built, timeout=10_000)


@pytest.mark.long
def test_cancelled_it_goes_on_in_another_window(viewer, qtbot, batch, images, model, tmp_path) -> None:
    begin(qtbot, batch, images, model, tmp_path / "out", 3)
    qtbot.waitUntil(lambda: batch.bar.running, timeout=5000)
    batch.bar.cancel_button.click()
    qtbot.waitUntil(lambda: not batch.bar.running, timeout=30_000)
    assert "running" not in states(batch)
    assert batch.run_button.isEnabled()
    again = BatchWidget(viewer)
    viewer.window.add_dock_widget(again, name="Batch again")
    again.output.setText(str(tmp_path / "out"))
    again.output.editingFinished.emit()
    assert [item.stem for item in again.queue.items] == ["a", "b", "broken"]
    assert again.context.currentData() == "window"
    assert again.model.currentData() == str(model)
    again.run_button.click()
    qtbot.waitUntil(lambda: states(again) == ["done", "done", "failed"] and not again.bar.running, timeout=60_000)


def test_a_run_that_is_cancelled_before_its_first_step_has_left_its_queue(images, model, tmp_path) -> None:
    queue = BatchQueue(tmp_path, model=str(model))
    queue.add([images / "a.tif"])
    work.run(queue).close()
    assert [item.stem for item in BatchQueue.open(tmp_path).items] == ["a"]


def test_dropped_files_are_added_and_two_of_one_name_refused(qtbot, batch, images) -> None:
    from napari.utils.notifications import notification_manager

    def drop(path: Path) -> None:
        mime = QMimeData()
        mime.setUrls([QUrl.fromLocalFile(str(path))])
        event = QDropEvent(
            QPointF(5, 5), Qt.DropAction.CopyAction, mime, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier
        )
        batch.dropEvent(event)

    drop(images / "a.tif")
    listed(qtbot, batch, 1)
    other = images / "other"
    other.mkdir()
    tifffile.imwrite(other / "a.tif", np.zeros((8, 8), np.uint8))
    before = len(notification_manager.records)
    drop(other / "a.tif")
    qtbot.waitUntil(lambda: len(notification_manager.records) > before, timeout=5000)
    assert "have one name, 'a'" in notification_manager.records[-1].message
    assert batch.table.rowCount() == 1


@pytest.mark.long
def test_a_folder_that_cannot_be_made_and_what_is_there_are_said_without_options(qtbot, batch, images, model) -> None:
    from napari.utils.notifications import notification_manager

    (images / "file").touch()
    begin(qtbot, batch, images / "a.tif", model, images / "file" / "out", 1)
    message = f"{images / 'file'} is a file, not a folder for results; choose another output folder."
    assert notification_manager.records[-1].message == message
    assert not batch.bar.running
    batch.output.setText(str(images / "out"))
    (images / "out" / "a.ome.zarr").mkdir(parents=True)
    batch.run_button.click()
    qtbot.waitUntil(lambda: states(batch) == ["skipped"] and not batch.bar.running, timeout=60_000)
    assert "exists; tick 'Replace' to replace it" in batch.table.item(0, 1).text()
    assert "--" not in batch.table.item(0, 1).text()


@pytest.mark.long
def test_layers_of_a_result_that_is_replaced_are_removed(viewer, qtbot, batch, images, model, tmp_path) -> None:
    begin(qtbot, batch, images / "a.tif", model, tmp_path / "out", 1)
    qtbot.waitUntil(lambda: states(batch) == ["done"] and not batch.bar.running, timeout=60_000)
    batch.table.selectRow(0)
    batch.open_button.click()
    qtbot.waitUntil(lambda: len(viewer.layers) == 2, timeout=10_000)
    batch.again_button.click()
    batch.run_button.click()  # the same again: the layer shows what it showed
    qtbot.waitUntil(lambda: states(batch) == ["done"] and not batch.bar.running, timeout=60_000)
    assert len(viewer.layers) == 2
    batch.again_button.click()
    assert batch.overwrite.text() == "Replace"  # as in the Segment dock
    batch.overwrite.setChecked(True)
    batch.run_button.click()
    assert [layer.name for layer in viewer.layers] == ["a"]
    qtbot.waitUntil(lambda: states(batch) == ["done"] and not batch.bar.running, timeout=60_000)


def test_the_same_as_a_command_and_skipping(qtbot, batch, images, model, tmp_path) -> None:
    batch.add([str(images)])
    listed(qtbot, batch, 3)
    batch.choose_model(str(model))
    batch.output.setText(str(tmp_path / "out"))
    batch.where.setEditText("tcp://cluster:8786")
    batch.table.selectRow(2)
    batch.skip_button.click()
    batch.copy_button.click()
    text = QApplication.clipboard().text()
    assert "broken" not in text
    assert text.endswith(f"--output {tmp_path / 'out'} --model {model} --context whole --dask tcp://cluster:8786")
    assert BatchQueue.open(tmp_path / "out").items == []  # looking writes nothing


@pytest.mark.long
def test_closing_the_window_in_the_middle_leaves_a_queue_that_goes_on(qtbot, batch, images, model, tmp_path) -> None:
    begin(qtbot, batch, images, model, tmp_path / "out", 3)
    qtbot.waitUntil(lambda: (tmp_path / "out" / "batch.json").exists(), timeout=30_000)
    # the window closes now; the leak check looks for threads


def test_a_queue_that_another_window_has_changed_is_taken_up_before_it_runs(
    qtbot, batch, images, model, tmp_path
) -> None:
    (images / "broken.tif").unlink()
    begin(qtbot, batch, images, model, tmp_path / "out", 2)
    qtbot.waitUntil(lambda: states(batch) == ["done", "done"] and not batch.bar.running, timeout=60_000)
    other = BatchQueue.open(tmp_path / "out")
    other.add([tmp_path / "c.tif"])
    other.save()
    batch.queue.again([0])
    qtbot.mouseClick(batch.run_button, Qt.MouseButton.LeftButton)
    assert not batch.bar.running
    assert "Another window has changed the queue" in notification_manager.records[-1].message
    assert states(batch) == ["done", "done", "queued"]
    listed(qtbot, batch, 3)
    qtbot.mouseClick(batch.run_button, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: states(batch) == ["done", "done", "failed"] and not batch.bar.running, timeout=60_000)
