"""The Batch dock as a person uses it, in a real window."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from napari.utils.notifications import notification_manager
from qtpy.QtCore import QMimeData, QPointF, Qt, QUrl
from qtpy.QtGui import QDropEvent
from qtpy.QtWidgets import QApplication, QWidget

from napari_isdnet import cli
from napari_isdnet.engine.batch import DONE, BatchQueue, Item, command
from napari_isdnet.io.store import LabelStore
from napari_isdnet.model.checkpoint import load_model, save_model
from napari_isdnet.widgets import _batch_controller as work
from napari_isdnet.widgets._engine import keep_triton_out
from napari_isdnet.widgets._image import source_of
from napari_isdnet.widgets._lazy import pyramid_of
from napari_isdnet.widgets.batch import BatchWidget
from napari_isdnet.window import Window
from tests.network_tools import lively, picture, small


@pytest.fixture
def batch(viewer: Any) -> BatchWidget:
    widget = BatchWidget(viewer)
    viewer.window.add_dock_widget(widget, name="Batch")
    return widget


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a", "b"):
        tifffile.imwrite(folder / f"{name}.tif", picture((130, 140), ord(name)), photometric="rgb", tile=(128, 128))
    (folder / "broken.tif").write_bytes(b"II*\0 no picture")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    keep_triton_out()
    path = tmp_path_factory.mktemp("model") / "lively.safetensors"
    save_model(lively(small(channels=16)), path)
    return path


def listed(qtbot: Any, batch: BatchWidget, count: int) -> None:
    qtbot.waitUntil(lambda: batch.table.rowCount() == count and not batch.looking.running, timeout=10_000)


def states(batch: BatchWidget) -> list[str]:
    return [item.state for item in batch.queue.items]


def begin(qtbot: Any, batch: BatchWidget, images: Path, model: Path, output: Path, count: int) -> None:
    batch.pattern.setText(str(images))
    qtbot.keyClick(batch.pattern, Qt.Key.Key_Return)
    listed(qtbot, batch, count)
    batch.choose_model(str(model))
    batch.context.setCurrentIndex(batch.context.findData("window"))
    batch.output.setText(str(output))
    qtbot.mouseClick(batch.run_button, Qt.MouseButton.LeftButton)


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


def test_what_is_to_know_of_a_result_is_told_beside_it_and_at_the_end(viewer, qtbot, batch, model, tmp_path) -> None:
    """The pixels of one image are 20 times as large as those that the model was trained at."""
    trained = load_model(model)
    assert trained.header is not None
    save_model(trained, tmp_path / "fine.safetensors", replace(trained.header, pixel_size=0.5))
    folder = tmp_path / "images"
    folder.mkdir()
    for name, size in (("coarse", 10.0), ("fine", 0.5)):
        store = tifffile.TiffWriter(folder / f"{name}.tif")
        with store:
            store.write(picture((130, 140)), photometric="rgb", resolution=(0.01 / size, 0.01 / size), resolutionunit=3)
    notification_manager.records.clear()
    begin(qtbot, batch, folder, tmp_path / "fine.safetensors", tmp_path / "out", 2)
    qtbot.waitUntil(lambda: states(batch) == ["done"] * 2 and not batch.bar.running, timeout=60_000)
    said = batch.queue.items[0].warnings[0]
    assert "10 m" in said
    told = [[batch.table.item(row, column) for column in (1, 2)] for row in (0, 1)]
    assert told[0][1].text().endswith("\n⚠ 1 note")
    for cell in told[0]:
        assert cell.toolTip().splitlines()[-1].startswith("The image has pixels of")
        assert "--" not in cell.toolTip()
    assert "⚠" not in told[1][1].text()
    assert "pixels of" not in told[1][0].toolTip()
    assert batch.table.rowHeight(0) >= batch.table.sizeHintForRow(0)
    assert notification_manager.records[-1].message == "Batch: 2 done, 1 of them with notes (⚠): see the list."
    again = BatchWidget(viewer)
    viewer.window.add_dock_widget(again, name="Again")
    again.output.setText(str(tmp_path / "out"))
    again.read_queue()
    assert again.table.item(0, 2).toolTip() == told[0][1].toolTip()


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


def icon_of(batch: BatchWidget, row: int) -> Any:
    item = batch.table.item(row, 0)
    return None if item is None or item.icon().isNull() else item.icon().pixmap(48, 48).toImage()


@pytest.mark.long
def test_channels_and_contrast_are_chosen_kept_and_shown(viewer, qtbot, batch, model, tmp_path) -> None:
    pixels = np.random.default_rng(4).integers(0, 3000, (140, 150, 4), dtype=np.uint16)
    pixels[..., 3] //= 4  # another colour than the first three would give
    tifffile.imwrite(tmp_path / "four.tif", pixels, photometric="minisblack", planarconfig="contig", tile=(128, 128))
    batch.add([str(tmp_path / "four.tif")])
    listed(qtbot, batch, 1)
    qtbot.waitUntil(lambda: icon_of(batch, 0) is not None, timeout=10_000)
    plain = icon_of(batch, 0)
    typed_into(qtbot, batch.channels, "3,1,0")
    qtbot.waitUntil(lambda: icon_of(batch, 0) not in (None, plain), timeout=10_000)
    batch.choose_model(str(model))
    batch.context.setCurrentIndex(batch.context.findData("window"))
    batch.output.setText(str(tmp_path / "out"))
    typed_into(qtbot, batch.contrast, "200;3000")
    run_says(batch, "'200;3000' must be auto, none or LOW,HIGH")
    assert not (tmp_path / "out").exists()
    typed_into(qtbot, batch.contrast, "200,3000")
    batch.copy_button.click()
    assert "--channels 3,1,0 --contrast 200,3000" in QApplication.clipboard().text()
    batch.run_button.click()
    qtbot.waitUntil(lambda: states(batch) == ["done"] and not batch.bar.running, timeout=60_000)
    found = LabelStore.open(tmp_path / "out" / "four.ome.zarr").read(Window(0, 0, 140, 150))
    line = QApplication.clipboard().text().replace(str(tmp_path / "out"), str(tmp_path / "shell"))
    assert cli.run(cli.app, shlex.split(line)[1:], "napari-isdnet") == 0
    shell = LabelStore.open(tmp_path / "shell" / "four.ome.zarr").read(Window(0, 0, 140, 150))
    np.testing.assert_array_equal(found, shell)
    again = BatchWidget(viewer)
    viewer.window.add_dock_widget(again, name="Batch again")
    again.output.setText(str(tmp_path / "out"))
    again.output.editingFinished.emit()
    assert (again.channels.currentText(), again.contrast.currentText()) == ("3,1,0", "200,3000")
    assert len(again.table.item(0, 2).text().splitlines()) == 1
    typed_into(qtbot, again.contrast, "auto")
    assert again.table.item(0, 2).text().endswith("\ncontrast 200,3000")
    again.table.selectRow(0)
    again.open_button.click()
    qtbot.waitUntil(lambda: len(viewer.layers) == 2, timeout=10_000)
    policy = viewer.layers[0].metadata["napari-isdnet"]["policy"]
    assert (policy.channels, policy.contrast) == ((3, 1, 0), "200,3000")


def typed_into(qtbot: Any, box: Any, text: str) -> None:
    box.lineEdit().selectAll()
    qtbot.keyClicks(box.lineEdit(), text)
    qtbot.keyClick(box.lineEdit(), Qt.Key.Key_Return)


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


@pytest.mark.long
def test_what_was_done_with_another_model_or_of_another_image_says_so(
    viewer, qtbot, batch, images, model, tmp_path
) -> None:
    from napari.utils.notifications import notification_manager

    begin(qtbot, batch, images / "a.tif", model, tmp_path / "out", 1)
    qtbot.waitUntil(lambda: states(batch) == ["done"] and not batch.bar.running, timeout=60_000)
    state = batch.table.item(0, 2).text()
    assert "with" not in state
    other = save_model(lively(small(channels=16)), tmp_path / "other.safetensors")
    batch.choose_model(str(other))
    batch.context.setCurrentIndex(batch.context.findData("whole"))
    assert batch.table.item(0, 2).text() == f"{state}\nwith lively, window by window"
    batch.choose_model(str(model))
    assert batch.table.item(0, 2).text() == f"{state}\nwindow by window"
    batch.choose_model(str(other))
    batch.context.setCurrentIndex(batch.context.findData("window"))
    batch.add([str(images / "b.tif")])
    listed(qtbot, batch, 2)
    batch.run_button.click()
    qtbot.waitUntil(lambda: states(batch) == ["done", "done"] and not batch.bar.running, timeout=60_000)
    assert [batch.table.item(row, 2).text().splitlines()[1:] for row in range(2)] == [["with lively"], []]
    tifffile.imwrite(images / "a.tif", picture((200, 180)), photometric="rgb", tile=(128, 128))
    batch.table.selectAll()
    batch.open_button.click()
    qtbot.waitUntil(lambda: len(viewer.layers) == 4, timeout=10_000)
    assert [layer.name for layer in viewer.layers][1::2] == ["a classes (with lively, of another image)", "b classes"]
    assert notification_manager.records[-1].message.startswith("The result of 'a' was made of the image as it was bef")
    again = BatchWidget(viewer)  # and the queue remembers
    viewer.window.add_dock_widget(again, name="Batch again")
    again.output.setText(str(tmp_path / "out"))
    again.output.editingFinished.emit()
    assert again.table.item(0, 2).text().endswith("with lively")


def test_polygons_made_otherwise_than_is_asked_now_are_told(batch, tmp_path) -> None:
    batch.min_area.setValue(40)
    assert "min_area" not in batch._chosen()  # no polygons are asked for
    batch.polygons.setChecked(True)
    exact = {**batch._chosen()}
    batch.min_area.setValue(1)
    batch.outlines.setCurrentIndex(batch.outlines.findData(2.0))
    simple = batch._chosen()
    assert (exact.get("min_area"), simple.get("min_area"), simple["simplify"]) == (40, None, 2.0)
    item = Item("a.tif", "a", state=DONE, model="m", settings=exact)
    assert work.done_with(item, "m", exact) == ""
    assert work.done_with(item, "m", simple) == "outlines of every pixel, areas from 40 pixels"
    item = replace(item, settings=simple)
    assert work.done_with(item, "m", exact) == "outlines within 2 pixels, areas of every size"
    batch.queue = BatchQueue(tmp_path / "out", [], "m", exact)
    batch._show_settings()
    assert (batch.min_area.value(), batch.outlines.currentData()) == (40, 0.0)
    assert shlex.split(command(batch.queue))[-3:] == ["--polygons", "--min-area", "40"]
    batch.polygons.setChecked(False)
    batch.geopackage.setChecked(True)
    package = batch._chosen()
    assert work.done_with(item, "m", package) == "with polygons, without GeoPackage"
    batch.queue = BatchQueue(tmp_path / "out", [], "m", package)
    assert shlex.split(command(batch.queue))[-3:] == ["--geopackage", "--min-area", "40"]


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


def test_what_is_missing_is_said_and_what_every_control_does(qtbot, batch, images, model, tmp_path) -> None:
    every_control_says_what_it_does(batch)
    without_an_image_there_is_no_command(batch, tmp_path)
    qtbot.waitUntil(lambda: not batch.looking.running, timeout=10_000)
    batch.model.clear()
    batch.choose_model(str(model))
    run_says(batch, "No image is queued")
    batch.add([str(images)])
    listed(qtbot, batch, 3)
    batch.output.setText("")
    run_says(batch, "need a folder")
    batch.output.setText(str(tmp_path / "out"))
    batch.model.clear()
    run_says(batch, "No model is chosen")


def run_says(batch: BatchWidget, words: str) -> None:
    from napari.utils.notifications import notification_manager

    before = len(notification_manager.records)
    batch.run_button.click()
    assert len(notification_manager.records) == before + 1
    assert words in notification_manager.records[-1].message


def without_an_image_there_is_no_command(batch: BatchWidget, tmp_path: Path) -> None:
    from napari.utils.notifications import notification_manager

    QApplication.clipboard().setText("before")
    batch.output.setText(str(tmp_path / "out"))
    batch.copy_button.click()
    assert QApplication.clipboard().text() == "before"
    assert notification_manager.records[-1].message == "No image is in the list; add some first."


def every_control_says_what_it_does(batch: BatchWidget) -> None:
    for child in batch.findChildren(QWidget):
        name = child.objectName()
        if name.startswith("batch_") and not name.endswith(("_bar", "job", "look", "thumbnails", "scroll")):
            assert child.toolTip(), name


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
