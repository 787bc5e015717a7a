"""A Segment dock on a small picture with a small real network, for the tests that use it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from napari_isdnet.widgets._engine import LocalEngine
from napari_isdnet.widgets._reader import read
from napari_isdnet.widgets.segment import SegmentWidget


def save_network(path: Path, classes: list[str]) -> Path:
    """A network of random weights that is called as its file is."""
    import torch

    from napari_isdnet.classes import classes_from
    from napari_isdnet.model.checkpoint import save_model
    from napari_isdnet.model.config import ISDNetConfig
    from napari_isdnet.model.header import ModelHeader
    from napari_isdnet.model.isdnet import ISDNet

    torch.manual_seed(0)
    config = ISDNetConfig(num_classes=len(classes), channels=16, shallow="narrow")
    header = ModelHeader(config, classes_from(classes), name=path.stem, pixel_size=0.5, window=256)
    save_model(ISDNet(config), path, header)
    return path


def fields_network(folder: Path) -> str:
    """A network of random weights that knows three classes."""
    return str(save_network(folder / "fields.safetensors", ["soil", "crop", "water"]))


def write_field(folder: Path, shape: tuple[int, int] = (640, 832)) -> Path:
    """A picture in ``folder``, of squares of 32 pixels."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (shape[0] // 32, shape[1] // 32, 3), dtype=np.uint8)
    pixels = np.kron(coarse, np.ones((32, 32, 1), np.uint8)) // 2 + rng.integers(0, 128, (*shape, 3), dtype=np.uint8)
    tifffile.imwrite(folder / "field.tif", pixels, photometric="rgb", tile=(256, 256))
    return folder / "field.tif"


def open_dock(viewer: Any, qtbot: Any, folder: Path, model: str, picture: Path, monkeypatch: Any) -> SegmentWidget:
    """The dock in a viewer that shows ``picture``, with ``model`` chosen; results go to ``folder / "out"``."""
    monkeypatch.setenv("NAPARI_ISDNET_CACHE", str(folder / "cache"))
    data, keywords, _ = read(picture)[0]
    viewer.add_image(data, **keywords)
    return dock_beside(viewer, qtbot, folder, model)


def dock_beside(viewer: Any, qtbot: Any, folder: Path, model: str) -> SegmentWidget:
    """The dock, with ``model`` chosen, in a viewer that shows an image already; results go to ``folder / "out"``."""
    widget = SegmentWidget(viewer, LocalEngine(folder / "live"))
    viewer.window.add_dock_widget(widget, name="Segment")
    qtbot.waitUntil(lambda: widget.device.count() > 0, timeout=60_000)
    widget.choose_model(model)
    # The default model's facts are there already: wait for those of this one.
    qtbot.waitUntil(lambda: widget.model.currentData() == model, timeout=20_000)
    widget.output.setText(str(folder / "out"))
    return widget


def choose(box: Any, key: str) -> None:
    """As if the entry were clicked."""
    box.setCurrentIndex(box.findData(key))
    box.activated.emit(box.currentIndex())


def segmented(qtbot: Any, dock: SegmentWidget, replace: bool = False) -> None:
    """Press 'Segment to files' and wait for the end."""
    dock.overwrite.setChecked(replace)
    dock.segment_button.click()
    assert dock.bar.running
    qtbot.waitUntil(lambda: not dock.bar.running, timeout=120_000)
