"""What lies in the folder already: resumed, replaced or refused in words, and layers that say what they show."""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from napari.layers import Image
from qtpy.QtCore import Qt

from napari_isdnet.exceptions import InputError
from napari_isdnet.io.store import LabelStore
from napari_isdnet.widgets._notify import in_dock, notify_error
from napari_isdnet.widgets._segment_controller import color_table
from napari_isdnet.widgets._segment_layers import (
    CLASSES,
    add_labels,
    file_stem,
    opened,
    stem_of,
    store_pyramid,
)
from napari_isdnet.widgets.segment import SegmentWidget
from tests.gui.segment_tools import choose, open_dock, save_network, segmented, write_field


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    return write_field(tmp_path)


@pytest.fixture
def dock(viewer: Any, qtbot: Any, tmp_path: Path, model: str, picture: Path, monkeypatch: Any) -> SegmentWidget:
    return open_dock(viewer, qtbot, tmp_path, model, picture, monkeypatch)


@pytest.mark.long
def test_a_result_has_the_classes_of_what_ran_though_another_model_is_chosen(viewer, qtbot, dock, tmp_path) -> None:
    choose(dock.region, "whole")
    choose(dock.context, "window")
    other = str(save_network(tmp_path / "roofs.safetensors", ["roof", "yard"]))
    dock.segment_button.click()
    dock.bar.pause_button.click()
    dock.choose_model(other)
    qtbot.waitUntil(lambda: dock.model.currentData() == other, timeout=20_000)
    assert [dock.classes.item(row, 0).text() for row in range(dock.classes.rowCount())] == ["roof", "yard"]
    dock.classes.item(0, 0).setCheckState(Qt.CheckState.Unchecked)
    dock.bar.pause_button.click()
    qtbot.waitUntil(lambda: dock.finished is not None, timeout=120_000)
    layer = dock.result_layer
    names = ["soil", "crop", "water"]
    assert [item.name for item in layer.metadata[CLASSES]] == names
    assert list(layer.features["class"]) == [*names, "no data"]
    assert {0, 1, 2} < layer.colormap.color_dict.keys()
    assert layer.colormap.color_dict[0][3] == 1  # the other model's first class is the one that was hidden
    assert [dock.classes.item(row, 0).text() for row in range(dock.classes.rowCount())] == names
    assert sum(int(dock.classes.item(r, 1).text().strip("px –").replace(",", "") or 0) for r in range(3)) == 640 * 832
    dock.classes.item(2, 0).setCheckState(Qt.CheckState.Unchecked)
    assert [layer.colormap.color_dict[index][3] for index in range(3)] == [1, 1, 0]
    dock.live_button.click()  # of the model that is chosen
    qtbot.waitUntil(lambda: dock.live.layer is not None, timeout=60_000)
    assert [dock.classes.item(row, 0).text() for row in range(dock.classes.rowCount())] == ["roof", "yard"]
    assert dock.live.layer.colormap.color_dict[0][3] == 1


@pytest.mark.long
def test_areas_are_those_of_the_chosen_image(viewer, qtbot, dock) -> None:
    def areas() -> list[str]:
        return [dock.classes.item(row, column).text() for row in range(3) for column in (1, 2)]

    choose(dock.region, "whole")
    choose(dock.context, "window")
    field = dock.image.currentData()
    dock.segment_button.click()
    other = viewer.add_image(np.zeros((300, 300, 3), np.uint8), rgb=True, name="other")
    dock.image.setCurrentIndex(dock.image.findData(other))
    qtbot.waitUntil(lambda: dock.result_layer is not None, timeout=120_000)  # while another image is chosen
    assert not any(areas())
    dock.image.setCurrentIndex(dock.image.findData(field))
    counts = dock.finished.result.class_pixels
    assert areas()[::2] == [f"{counts[name]:,} px" if counts[name] else "–" for name in ("soil", "crop", "water")]
    dock.image.setCurrentIndex(dock.image.findData(other))
    assert not any(areas())


@pytest.mark.long
def test_layers_of_a_result_that_is_replaced_are_removed(viewer, qtbot, dock, tmp_path) -> None:
    choose(dock.region, "whole")
    choose(dock.context, "window")
    dock.uncertainty.setChecked(True)
    segmented(qtbot, dock)
    elsewhere = LabelStore.open(tmp_path / "out" / "field.ome.zarr")
    colors = color_table(elsewhere.classes)
    add = partial(add_labels, viewer, dock.image.currentData(), store_pyramid(elsewhere), elsewhere.classes, colors)
    add("from another dock", store=elsewhere)
    shown = ["field", "field segmentation", "field uncertainty", "from another dock"]
    assert [item.name for item in viewer.layers] == shown
    mine = viewer.add_labels(np.zeros((9, 9), int), name="mine")
    choose(dock.context, "whole")
    dock.overwrite.setChecked(True)
    assert dock.export_button.isEnabled()
    dock.segment_button.click()
    assert [item.name for item in viewer.layers] == ["field", "mine"]  # at once: the store is emptied first
    assert not dock.export_button.isEnabled()
    qtbot.waitUntil(lambda: not dock.bar.running, timeout=120_000)
    assert [item.name for item in viewer.layers] == ["field", "mine", "field segmentation", "field uncertainty"]
    segmented(qtbot, dock)  # repeated: no second layer beside it
    assert [item.name for item in viewer.layers] == ["field", "mine", "field segmentation", "field uncertainty"]
    assert mine in viewer.layers


@pytest.mark.long
def test_resume_is_offered_for_the_same_settings_only(viewer, qtbot, dock, model, tmp_path) -> None:
    from napari.utils.notifications import notification_manager

    choose(dock.context, "window")
    image = dock.image.currentData()
    viewer.camera.zoom = 4 / image.scale[0]
    viewer.camera.center = image.data_to_world((300, 300))
    assert dock.segment_button.text() == "Segment to files"
    assert not dock.job_hint.isVisibleTo(dock)
    segmented(qtbot, dock)
    assert dock.segment_button.text() == "Resume or repeat"
    region = dock.finished.labels.shape
    viewer.camera.center = image.data_to_world((340, 300))  # the region is what is visible
    qtbot.waitUntil(lambda: dock.segment_button.text() == "Segment to files", timeout=5000)
    begun = "The job in the folder was begun with rows "
    assert dock.job_hint.text().startswith(begun)
    assert dock.job_hint.text().endswith(
        "tick 'Replace' to throw it and its result away (field.job) and start again, or choose another folder."
    )
    dock.segment_button.click()
    assert not dock.bar.running
    said = notification_manager.records[-1].message
    assert said == dock.job_hint.text()
    choose(dock.region, "whole")
    choose(dock.context, "whole")
    for words in ("as region (now the whole image)", "window by window (now the whole image as context)"):
        assert words in dock.job_hint.text()
    other = str(save_network(tmp_path / "roofs.safetensors", ["roof", "yard"]))
    dock.choose_model(other)
    qtbot.waitUntil(lambda: "the model 'fields' (now 'roofs')" in dock.job_hint.text(), timeout=20_000)
    for text in (said, dock.job_hint.text()):
        assert "--" not in text
        assert not re.search("[0-9a-f]{12}", text)
    segmented(qtbot, dock, replace=True)
    assert dock.finished.labels.shape != region
    assert dock.segment_button.text() == "Resume or repeat"
    dock.choose_model(model)
    qtbot.waitUntil(
        lambda: dock.job_hint.text().endswith(": it is replaced, with its result (field.job)."), timeout=20_000
    )


@pytest.mark.long
def test_another_array_of_the_same_name_is_not_this_image(viewer, qtbot, dock) -> None:
    choose(dock.region, "whole")
    choose(dock.context, "window")
    viewer.layers.clear()
    pixels = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    viewer.add_image(pixels, rgb=True, name="Image")
    segmented(qtbot, dock)
    assert dock.job_hint.text().startswith("An earlier job of this image lies")
    viewer.layers.clear()
    viewer.add_image(255 - pixels, rgb=True, name="Image")
    begun = "The job in the folder was begun with another image of this name, or this one before it changed: "
    assert dock.job_hint.text().startswith(f"{begun}tick 'Replace' to throw it and its result away (Image.job)")
    assert dock.segment_button.text() == "Segment to files"
    dock.overwrite.setChecked(True)
    assert dock.job_hint.text() == f"{begun}it is replaced, with its result (Image.job)."


@pytest.mark.long
def test_what_only_the_engine_finds_is_said_without_options(viewer, qtbot, dock, tmp_path) -> None:
    from napari.utils.notifications import notification_manager

    choose(dock.region, "whole")
    choose(dock.context, "window")
    (tmp_path / "out" / "field.ome.zarr").mkdir(parents=True)
    segmented(qtbot, dock)
    assert notification_manager.records[-1].message == (
        f"{tmp_path / 'out' / 'field.ome.zarr'} exists; tick 'Replace' to replace it, or choose another output folder."
    )
    (tmp_path / "file").touch()
    dock.output.setText(str(tmp_path / "file" / "out"))
    dock.output.textEdited.emit("")
    segmented(qtbot, dock)
    assert "is a file, not a folder for results" in notification_manager.records[-1].message


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("a--b  c exists; use --overwrite to replace it.", "a--b  c exists; tick 'Replace' to replace it."),
        ("J: use --overwrite or --no-resume to throw its work away and start again, or choose another --output folder.",
         "J: tick 'Replace' to start again, or choose another output folder."),
        ("too large; use --format ome-tiff or geotiff, or a smaller --roi.",
         "too large; choose ome-tiff or geotiff as the format, or a smaller region."),
        ("cannot read rows 0-1 (bad); repair the file, or use --skip-bad-tiles to get nodata there.",
         "cannot read rows 0-1 (bad); repair the file."),
        ("it takes 9 GiB where --memory leaves 2 GiB; use --context window or a larger --memory.",
         "it takes 9 GiB where the memory budget leaves 2 GiB; choose 'Window by window' as the context or a larger"
         " memory budget in the preferences."),
        (f"The job J is being worked on by process {os.getpid()} on vm; wait for it, end it, or choose another --output"
         " folder.", "The job J is being worked on in another window; wait for it, or choose another output folder."),
        ("a.pth is no model: turn it into one with 'napari-isdnet convert a.pth --output a.safetensors'.",
         "a.pth is no model: turn it into one with 'napari-isdnet convert a.pth --output a.safetensors'."),
        ("trained at 2 m; --scale 0.5 resamples it.",
         "trained at 2 m; it does better resampled by 0.5, which the command line can (scale 0.5)."),
    ],
)  # fmt: skip
def test_messages_of_the_engine_without_options(message: str, words: str) -> None:
    from napari.utils.notifications import notification_manager

    assert in_dock(message) == words
    notify_error(InputError(message))
    assert notification_manager.records[-1].message == words


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("u16/odd: name", "u16_odd_ name"), ("../../fg/up", "_.._fg_up"), (".hidden", "hidden"), ("a\\b", "a_b"),
        ("Straße 1-b_2.x", "Straße 1-b_2.x"), ("..", "image"), ("", "image"), ("dot. ", "dot"), ("é" * 200, "é" * 90),
        ("aux", "_aux"), (" Con.1", "_ Con.1"), ("com1x", "com1x"),
    ],
)  # fmt: skip
def test_any_layer_name_makes_a_file_inside_the_folder(name: str, stem: str) -> None:
    assert file_stem(name) == stem
    layer = Image(np.zeros((300, 300, 3), np.uint8), name=name)
    assert opened(layer)[0].name == stem_of(layer) == file_stem(layer.name)
