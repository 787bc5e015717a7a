"""A Batch dock under test: its images, its model, a run of its queue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tifffile
from napari.utils.notifications import notification_manager
from qtpy.QtCore import Qt

from napari_isdnet.model.checkpoint import save_model
from napari_isdnet.widgets._engine import keep_triton_out
from napari_isdnet.widgets.batch import BatchWidget
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


def icon_of(batch: BatchWidget, row: int) -> Any:
    item = batch.table.item(row, 0)
    return None if item is None or item.icon().isNull() else item.icon().pixmap(48, 48).toImage()


def typed_into(qtbot: Any, box: Any, text: str) -> None:
    box.lineEdit().selectAll()
    qtbot.keyClicks(box.lineEdit(), text)
    qtbot.keyClick(box.lineEdit(), Qt.Key.Key_Return)


def run_says(batch: BatchWidget, words: str) -> None:
    before = len(notification_manager.records)
    batch.run_button.click()
    assert len(notification_manager.records) == before + 1
    assert words in notification_manager.records[-1].message
