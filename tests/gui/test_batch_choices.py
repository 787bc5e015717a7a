"""What is chosen in the Batch dock, and what it says of results that were made with something else."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from napari.utils.notifications import notification_manager
from qtpy.QtWidgets import QApplication, QWidget

from napari_isdnet import cli
from napari_isdnet.engine.batch import DONE, BatchQueue, Item, command
from napari_isdnet.io.store import LabelStore
from napari_isdnet.model.checkpoint import load_model, save_model
from napari_isdnet.widgets import _batch_controller as work
from napari_isdnet.widgets.batch import BatchWidget
from napari_isdnet.window import Window
from tests.network_tools import lively, picture, small

from . import batch_tools as tools
from .batch_tools import begin, icon_of, listed, run_says, states, typed_into

batch, images, model = tools.batch, tools.images, tools.model  # the fixtures


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


def without_an_image_there_is_no_command(batch: BatchWidget, tmp_path: Path) -> None:
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
