"""What the docks share: boxes that list layers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QComboBox

from napari_isdnet.io.intensity import IntensityPolicy
from napari_isdnet.widgets._controls import LOWEST, Box, fill_with
from napari_isdnet.widgets._segment_export import written_in_words
from napari_isdnet.widgets._segment_layers import opened
from napari_isdnet.widgets.annotate import AnnotateWidget
from napari_isdnet.widgets.batch import BatchWidget
from napari_isdnet.window import Window


def layer(name: str) -> Any:
    from napari.layers import Image

    return Image(np.zeros((4, 4)), name=name)


def test_the_alpha_of_an_rgba_layer_means_no_image_as_in_a_file() -> None:
    from napari.layers import Image

    pixels = np.full((40, 60, 4), 200, np.uint8)
    pixels[:, 30:, 3] = 0
    source, _, _ = opened(Image(pixels, name="rgba"))
    assert source.alpha == 3
    _, valid = IntensityPolicy.from_source(source).apply(source.read(Window(0, 0, 40, 60)))
    assert valid is not None
    assert valid[:, :30].all()
    assert not valid[:, 30:].any()


def texts(box: QComboBox) -> list[str]:
    return [box.itemText(i) for i in range(box.count())]


def test_a_renamed_layer_is_listed_by_its_new_name_at_once(qtbot: Any) -> None:
    box = QComboBox()
    qtbot.addWidget(box)
    one, two = layer("one"), layer("two")
    fill_with(box, [one, two])
    changes: list[int] = []
    box.currentIndexChanged.connect(changes.append)
    one.name, two.name = "first", "second"
    assert texts(box) == ["first", "second"]
    assert not changes


def test_a_box_lets_go_of_the_names_of_layers_it_does_not_list(qtbot: Any) -> None:
    box = QComboBox()
    qtbot.addWidget(box)
    one, two = layer("one"), layer("two")
    before = len(one.events.name.callbacks)
    for _ in range(3):
        fill_with(box, [one, two])
    assert len(one.events.name.callbacks) == before + 1
    fill_with(box, [two])
    assert len(one.events.name.callbacks) == before
    box.deleteLater()
    qtbot.waitUntil(lambda: len(two.events.name.callbacks) == before, timeout=2000)
    two.name = "renamed after the box is gone"


def test_a_long_choice_ends_in_an_ellipsis_and_is_told_with_the_tooltip(qtbot: Any) -> None:
    box = Box()
    qtbot.addWidget(box)
    box.setToolTip("What it is for")
    box.addItem("short", None)
    box.addItem("a name that is much too long for a box in a narrow dock", None)
    box.addItem("file", "/x/file")
    box.setItemData(2, "/x/file", Qt.ItemDataRole.ToolTipRole)
    box.setFixedWidth(120)
    box.show()
    assert (box.shown_text(), box.full_tip()) == ("short", "short\nWhat it is for")
    box.setCurrentIndex(1)
    assert box.shown_text().endswith("…")
    assert box.full_tip().startswith("a name that is much too long for a box in a narrow dock\n")
    assert box.currentText() == box.itemText(1)
    box.setCurrentIndex(2)
    assert box.full_tip() == "/x/file\nWhat it is for"
    box.setCurrentIndex(-1)
    assert box.full_tip() == "What it is for"
    assert not box.grab().isNull()  # it is painted without an error in every state


@pytest.mark.long
def test_annotate_and_batch_scroll_and_keep_a_height_under_other_docks(viewer: Any, qtbot: Any, tmp_path: Any) -> None:
    viewer.add_image(np.zeros((64, 64, 3), np.uint8), name="field")
    annotate, batch = AnnotateWidget(viewer), BatchWidget(viewer)
    for dock in (annotate, batch):
        viewer.window.add_dock_widget(dock)
    annotate.start(tmp_path / "field.isdnet")
    qtbot.wait(50)
    for dock in (annotate, batch):
        assert LOWEST <= dock.minimumSizeHint().height() < 200
    annotate.stop()


@pytest.mark.long
def test_the_annotation_tells_its_own_keys_and_why_the_brush_does_nothing(
    viewer: Any, qtbot: Any, tmp_path: Any
) -> None:
    from napari.utils.notifications import notification_manager

    image = viewer.add_image(np.zeros((64, 64, 3), np.uint8), name="field")
    dock = AnnotateWidget(viewer)
    viewer.window.add_dock_widget(dock)
    dock.start(tmp_path / "field.isdnet")
    qtbot.wait(50)
    assert viewer.help == dock.canvas.layer.help
    assert viewer.help.startswith("<1>-<9> class, <Z> pan, <B> brush")
    assert dock.waiting.isHidden()
    viewer.layers.selection.active = image
    assert not dock.waiting.isHidden()
    assert "while 'field' is selected" in dock.waiting.text()
    dock.tool_buttons["brush"].click()
    assert dock.waiting.isHidden()
    dock.canvas.layer.visible = False
    event = SimpleNamespace(button=1, modifiers=(), type="mouse_press", position=(10.0, 10.0))
    list(dock.canvas._drag(dock.canvas.layer, event))
    assert "'field annotation' is hidden; show that layer" in notification_manager.records[-1].message
    dock.edit_button.click()
    assert dock.waiting.isHidden()  # the edit window is what one paints in
    dock.stop()
    assert dock.waiting.isHidden()


def test_what_was_written_is_told_with_its_folder_once(tmp_path: Any) -> None:
    paths = [str(tmp_path / name) for name in ("a.ome.zarr", "a.geojson")]
    assert written_in_words(paths) == f"Written to {tmp_path}: a.ome.zarr, a.geojson"
    assert written_in_words([*paths, "/y/b.png"]) == f"Written: {paths[0]}, {paths[1]}, /y/b.png"
