"""Channels that are chosen in the Load dock: what is shown, what is segmented, and what the commands say."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from qtpy.QtWidgets import QApplication

from napari_isdnet import cli
from napari_isdnet.io.intensity import IntensityPolicy
from napari_isdnet.io.store import LabelStore
from napari_isdnet.widgets import _inspect_controller as inspection
from napari_isdnet.widgets._segment_layers import file_for_command
from napari_isdnet.widgets.annotate import AnnotateWidget
from napari_isdnet.widgets.load import LoadWidget
from napari_isdnet.widgets.segment import SegmentWidget
from napari_isdnet.window import Window
from tests.gui.segment_tools import choose, dock_beside, fields_network, segmented


@pytest.fixture
def load(viewer: Any, tmp_path: Path, monkeypatch: Any) -> LoadWidget:
    monkeypatch.setenv("NAPARI_ISDNET_CACHE", str(tmp_path / "cache"))
    widget = LoadWidget(viewer, folder=lambda: tmp_path / "cache")
    viewer.window.add_dock_widget(widget, name="Load")
    return widget


def write_channels(path: Path, count: int) -> np.ndarray:
    """A TIFF of ``count`` channels of 16 bits, none of which is said to be a colour."""
    rng = np.random.default_rng(count)
    coarse = rng.integers(0, 3000, (8, 10, count), dtype=np.uint16)
    pixels = np.kron(coarse, np.ones((32, 32, 1), np.uint16)) + rng.integers(0, 900, (256, 320, count), dtype=np.uint16)
    tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig="contig", tile=(128, 128))
    return pixels


def looked_at(qtbot: Any, load: LoadWidget) -> str:
    """What the table says of the channels, once the dock has looked."""
    qtbot.waitUntil(lambda: load.load_button.isEnabled() and not load.bar.running, timeout=10_000)
    rows = {load.table.item(r, 0).text(): load.table.item(r, 1).text() for r in range(load.table.rowCount())}
    return rows["Channels"]


def pick(load: LoadWidget, *channels: int) -> None:
    choose(load.channels.kind, "rgb" if len(channels) == 3 else "grey")
    for box, channel in zip(load.channels.numbers, channels, strict=False):
        box.setCurrentIndex(box.findData(channel))


def test_other_channels_are_shown_and_belong_to_the_image(viewer, qtbot, load, tmp_path) -> None:
    pixels = write_channels(tmp_path / "four.tif", 4)
    write_channels(tmp_path / "five.tif", 5)
    load.open(str(tmp_path / "four.tif"))
    assert "red, green, blue = channels 0, 1, 2" in looked_at(qtbot, load)
    assert load.channels.isVisibleTo(load)
    assert not any(box.isVisibleTo(load) for box in load.channels.numbers)
    assert load.minimumSizeHint().width() < 400
    pick(load, 3, 1, 0)
    qtbot.waitUntil(lambda: "channels 3, 1, 0" in looked_at(qtbot, load), timeout=10_000)
    load.load_button.click()
    layer = viewer.layers[0]
    policy = IntensityPolicy.from_source(layer.metadata["napari-isdnet"]["source"], channels=(3, 1, 0))
    expected = np.rint(policy.apply(pixels)[0]).astype(np.uint8)
    qtbot.waitUntil(lambda: np.array_equal(layer._slice.image.raw, expected), timeout=10_000)
    pick(load, 2)
    qtbot.waitUntil(lambda: "grey = channel 2" in looked_at(qtbot, load), timeout=10_000)
    assert [box.isVisibleTo(load) for box in load.channels.numbers] == [True, False, False]
    load.open(str(tmp_path / "five.tif"))  # channels of the image before say nothing of this one
    assert "channels 0, 1, 2" in looked_at(qtbot, load)
    assert load.channels.numbers[0].count() == 5
    tifffile.imwrite(tmp_path / "grey.tif", pixels[..., 0])
    load.open(str(tmp_path / "grey.tif"))
    looked_at(qtbot, load)
    assert not load.channels.isVisibleTo(load)


@pytest.mark.long
def test_the_docks_take_the_channels_and_the_contrast_of_the_layer(viewer, qtbot, load, tmp_path) -> None:
    write_channels(tmp_path / "four.tif", 4)
    load.open(str(tmp_path / "four.tif"))
    looked_at(qtbot, load)
    pick(load, 3, 1, 0)
    qtbot.waitUntil(lambda: "channels 3, 1, 0" in looked_at(qtbot, load), timeout=10_000)
    load.load_button.click()
    layer = viewer.layers[0]
    segment = dock_beside(viewer, qtbot, tmp_path, fields_network(tmp_path))
    choose(segment.region, "whole")
    the_dock_and_its_command_give_the_same_map(qtbot, segment, tmp_path)
    outlines_are_exported_as_chosen(qtbot, segment, tmp_path)
    annotate = AnnotateWidget(viewer)
    viewer.window.add_dock_widget(annotate, name="Annotate")
    annotate.start(tmp_path / "project")
    source = layer.metadata["napari-isdnet"]["source"]
    assert source.channels == 4
    assert annotate.controller._policy_of(source).channels == (3, 1, 0)
    annotate.stop()
    path, colors = file_for_command(layer)
    assert colors == {"contrast": "auto", "channels": (3, 1, 0)}
    line = inspection.command(path, inspection.InspectSettings("m"), "deep", None, **colors)
    assert line.endswith("--channels 3,1,0")


def outlines_are_exported_as_chosen(qtbot: Any, dock: SegmentWidget, folder: Path) -> None:
    sizes = []
    for tolerance, least in ((0.0, 1), (2.0, 1), (0.0, 500)):
        choose(dock.outlines, tolerance)
        dock.min_area.setValue(least)
        dock.export(folder / "shapes.geojson", "geojson")
        qtbot.waitUntil(lambda: not dock.export_bar.running, timeout=20_000)
        sizes.append((folder / "shapes.geojson").stat().st_size)
    assert 0 < sizes[1] < 0.8 * sizes[0]
    assert 0 < sizes[2] < 0.8 * sizes[0]


def the_dock_and_its_command_give_the_same_map(qtbot: Any, dock: SegmentWidget, folder: Path) -> None:
    segmented(qtbot, dock)
    found = LabelStore.open(folder / "out" / "four.ome.zarr").read(Window.whole((256, 320)))
    dock.output.setText(str(folder / "shell"))
    dock.copy_command()
    words = shlex.split(QApplication.clipboard().text())
    assert words[words.index("--channels") + 1] == "3,1,0"
    assert cli.run(cli.app, words[1:], words[0]) == 0
    shell = LabelStore.open(folder / "shell" / "four.ome.zarr").read(Window.whole((256, 320)))
    assert np.array_equal(found, shell)
    at = words.index("--channels")
    plain = [*words[1:at], *words[at + 2 :], "--overwrite"]
    assert cli.run(cli.app, plain, words[0]) == 0
    other = LabelStore.open(folder / "shell" / "four.ome.zarr").read(Window.whole((256, 320)))
    assert not np.array_equal(found, other), "the channels made no difference"
