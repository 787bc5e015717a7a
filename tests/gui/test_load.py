"""The Load dock as a person uses it, in a real window."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pytest
import tifffile
from qtpy.QtCore import QMimeData, QPointF, Qt, QUrl
from qtpy.QtGui import QDropEvent
from qtpy.QtWidgets import QWidget

from napari_isdnet.io.array import ArraySource
from napari_isdnet.io.intensity import IntensityPolicy
from napari_isdnet.io.overviews import OverviewSource
from napari_isdnet.io.sample_files import SampleFile
from napari_isdnet.io.samples import Download, download
from napari_isdnet.io.source import GeoReference
from napari_isdnet.widgets import _facts
from napari_isdnet.widgets._image import source_of
from napari_isdnet.widgets._lazy import pyramid_of
from napari_isdnet.widgets.load import LoadWidget
from napari_isdnet.window import Window
from tests.gui.large_world import LargeWorld, large, run_limited
from tests.web_tools import serving


@pytest.fixture
def load(viewer: Any, tmp_path: Path) -> LoadWidget:
    widget = LoadWidget(viewer, folder=lambda: tmp_path / "cache")
    viewer.window.add_dock_widget(widget, name="Load")
    return widget


def shown(load: LoadWidget) -> dict[str, str]:
    table = load.table
    return {table.item(r, 0).text(): table.item(r, 1).text() for r in range(table.rowCount())}


def ready(qtbot: Any, load: LoadWidget) -> None:
    qtbot.waitUntil(lambda: load.load_button.isEnabled() and not load.bar.running, timeout=10_000)


def test_an_open_dock_a_wrong_path_a_dropped_file_and_one_that_is_typed_and_loaded(
    viewer, qtbot, load, picture
) -> None:
    every_control_says_what_it_does(load)
    the_dock_is_narrow_and_fits_a_small_window(load)
    an_error_is_said_in_one_sentence_and_the_dock_stays_usable(qtbot, load, picture)
    load.open("/nowhere/at all.tif")  # what the file said before is gone, so that the drop has something to say
    qtbot.waitUntil(lambda: not load.bar.running and load.table.isHidden(), timeout=5000)
    a_dropped_file_is_looked_at(qtbot, load, picture)
    type_a_path_see_the_facts_load_the_layer(viewer, qtbot, load, picture)


def every_control_says_what_it_does(load: LoadWidget) -> None:
    for child in load.findChildren(QWidget):
        if child.objectName().startswith(("load_", "isdnet")):
            assert child.toolTip() or child.objectName().endswith(("_bar", "_scroll")), child.objectName()
    for kind in ("QPushButton", "QToolButton", "QComboBox", "QLineEdit", "QTableWidget"):
        for child in [c for c in load.findChildren(QWidget) if c.inherits(kind)]:
            if child.parent() is load or child.parent() is load.bar:
                assert child.objectName().startswith("load_")


def the_dock_is_narrow_and_fits_a_small_window(load: LoadWidget) -> None:
    assert load.minimumSizeHint().width() < 400
    assert load.minimumSizeHint().height() < 300


def an_error_is_said_in_one_sentence_and_the_dock_stays_usable(qtbot: Any, load: LoadWidget, picture: Path) -> None:
    from napari.utils.notifications import notification_manager

    before = len(notification_manager.records)
    load.open("/nowhere/at all.tif")
    qtbot.waitUntil(lambda: len(notification_manager.records) > before, timeout=5000)
    assert "does not exist; check the path." in notification_manager.records[-1].message
    assert not load.load_button.isEnabled()
    load.open(str(picture))
    ready(qtbot, load)


def a_dropped_file_is_looked_at(qtbot: Any, load: LoadWidget, picture: Path) -> None:
    mime = QMimeData()
    mime.setUrls([QUrl.fromLocalFile(str(picture))])
    event = QDropEvent(
        QPointF(5, 5), Qt.DropAction.CopyAction, mime, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier
    )
    load.dropEvent(event)
    assert event.isAccepted()
    ready(qtbot, load)
    assert shown(load)["Name"] == "field"


def type_a_path_see_the_facts_load_the_layer(viewer: Any, qtbot: Any, load: LoadWidget, picture: Path) -> None:
    load.path.setText(str(picture))
    qtbot.keyClick(load.path, Qt.Key.Key_Return)
    ready(qtbot, load)
    assert shown(load)["Name"] == "field"
    assert shown(load)["Size"].startswith("1,500 rows × 1,100 columns (1.6 mega")
    assert shown(load)["Contrast"] == "as it is (0–255)"
    assert len(viewer.layers) == 0
    qtbot.mouseClick(load.load_button, Qt.MouseButton.LeftButton)
    layer = viewer.layers["field"]
    truth = tifffile.imread(picture)
    qtbot.waitUntil(lambda: np.array_equal(layer._slice.image.raw, truth), timeout=10_000)
    assert source_of(layer).name == "field"
    assert not load.load_button.isEnabled()


@pytest.mark.long
def test_contrast_limits_reach_the_screen(viewer, qtbot, load, tmp_path) -> None:
    pixels = np.linspace(0, 4000, 600 * 500).reshape(600, 500).astype(np.uint16)
    tifffile.imwrite(tmp_path / "deep.tif", pixels)
    load.open(str(tmp_path / "deep.tif"))
    ready(qtbot, load)
    assert "(auto)" in shown(load)["Contrast"]
    load.contrast.setCurrentIndex(load.contrast.findData("limits"))
    assert load.limits.isVisibleTo(load)
    load.limits.setText("1000,3000")
    qtbot.keyClick(load.limits, Qt.Key.Key_Return)
    qtbot.waitUntil(lambda: shown(load)["Contrast"].startswith("1000–3000"), timeout=5000)
    ready(qtbot, load)
    load.load_button.click()
    layer = viewer.layers[0]
    expected = np.rint(np.clip((pixels.astype(np.float32) - 1000) * (255 / 2000), 0, 255)).astype(np.uint8)
    qtbot.waitUntil(lambda: np.array_equal(layer._slice.image.raw[..., 1], expected), timeout=5000)


@pytest.mark.parametrize(
    ("pixel", "x", "y", "words"),
    [
        (0.5, 412345.5, 5412345.5, "x 412345.5, y 5412345.5"),
        (10.0, 1e6, 8.4e6 + 1 / 3, "x 1000000, y 8400000"),
        (2.5e-6, 11.123456789, -48.5, "x 11.1234568, y -48.5"),
    ],
)
def test_positions_are_plain_decimals_as_fine_as_the_pixels(pixel, x, y, words) -> None:
    place = GeoReference("EPSG:32633", (pixel, 0.0, x, 0.0, -pixel, y))
    source = ArraySource([np.zeros((8, 8), np.uint8)], "a", "yx", georeference=place)
    assert _facts.position(source) == f"EPSG:32633, top left at {words}"


@pytest.mark.parametrize(
    ("count", "chosen", "words"),
    [
        (3, None, "3 × uint8"),
        (1, None, "1 × uint8"),
        (2, None, "2 × uint8; grey = channel 0 (of 0 to 1)"),
        (4, (3, 1, 0), "4 × uint8; red, green, blue = channels 3, 1, 0 (of 0 to 3)"),
        (5, None, "5 × uint8; red, green, blue = channels 0, 1, 2 (of 0 to 4)"),
    ],
)
def test_facts_say_which_channels_the_network_sees(count, chosen, words) -> None:
    source = ArraySource([np.zeros((8, 8, count), np.uint8)], "a", "yxc")
    policy = IntensityPolicy.from_source(source, channels=chosen)
    assert dict(_facts.facts(source, policy))["Channels"] == words


@pytest.mark.long
def test_what_cannot_be_opened_or_taken_leaves_no_facts(viewer, qtbot, load, picture, tmp_path) -> None:
    wrong_limits_are_said_and_corrected_ones_are_taken(viewer, qtbot, load, picture)
    facts_of_the_image_before_go_with_a_failed_opening(qtbot, load, picture, tmp_path)


def facts_of_the_image_before_go_with_a_failed_opening(
    qtbot: Any, load: LoadWidget, picture: Path, tmp_path: Path
) -> None:
    load.open(str(picture))
    ready(qtbot, load)
    assert not load.table.isHidden()
    load.open(str(tmp_path / "none.tif"))
    qtbot.waitUntil(lambda: not load.bar.running, timeout=5000)
    assert load.table.isHidden()
    assert not load.hint.isHidden()
    assert load.hint.text() == f"{tmp_path / 'none.tif'} does not exist; check the path."
    shutil.copy(picture, tmp_path / "none.tif")
    load.contrast.setCurrentIndex(load.contrast.findData("none"))  # it is looked at again, and is there now
    ready(qtbot, load)
    assert shown(load)["Name"] == "none"
    load.contrast.setCurrentIndex(load.contrast.findData("auto"))
    load.open(str(picture))
    ready(qtbot, load)
    assert not load.table.isHidden()
    load.contrast.setCurrentIndex(load.contrast.findData("limits"))
    load.limits.setText("abc")
    load.limits.editingFinished.emit()
    assert load.table.isHidden()
    assert load.hint.text() == "Contrast limits must look like LOW,HIGH, got 'abc'."


def wrong_limits_are_said_and_corrected_ones_are_taken(
    viewer: Any, qtbot: Any, load: LoadWidget, picture: Path
) -> None:
    from napari.utils.notifications import notification_manager

    load.open(str(picture))
    ready(qtbot, load)
    load.contrast.setCurrentIndex(load.contrast.findData("limits"))
    load.limits.setText("abc")
    before = len(notification_manager.records)
    qtbot.keyClick(load.limits, Qt.Key.Key_Return)
    load.limits.editingFinished.emit()  # as when the focus leaves it: the same is not said twice
    assert [r.message for r in notification_manager.records[before:]] == [
        "Contrast limits must look like LOW,HIGH, got 'abc'."
    ]
    assert not load.load_button.isEnabled()  # what it would load is not what the table says
    load.limits.setText("10,200")
    qtbot.keyClick(load.limits, Qt.Key.Key_Return)
    ready(qtbot, load)
    assert load.path.text() == str(picture)
    assert shown(load)["Contrast"].startswith("10–200")
    load.load_button.click()
    assert len(viewer.layers) == 1
    assert not load.load_button.isEnabled()
    load.contrast.setCurrentIndex(load.contrast.findData("auto"))  # it can be loaded so as well
    ready(qtbot, load)
    assert shown(load)["Contrast"] == "as it is (0–255)"
    load.load_button.click()
    policies = [layer.metadata["napari-isdnet"]["policy"].contrast for layer in viewer.layers]
    assert policies == ["10,200", "auto"]


def test_a_large_file_without_pyramid_gets_one_once(viewer, qtbot, load, tmp_path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (3000, 5000), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "flat.tif", pixels, tile=(512, 512), compression="zlib")
    load.open(str(tmp_path / "flat.tif"))
    ready(qtbot, load)
    assert shown(load)["Pyramid"].startswith("none in the file; one is built")
    load.load_button.click()
    source = source_of(viewer.layers[0])  # at once
    assert isinstance(source, OverviewSource)
    qtbot.waitUntil(lambda: source.built, timeout=20_000)
    load.open(str(tmp_path / "flat.tif"))
    ready(qtbot, load)
    assert shown(load)["Pyramid"] == "6 levels, down to 94 × 157"
    load.load_button.click()
    assert source_of(viewer.layers[1]).built


def load_the_world(world: LargeWorld) -> None:
    """Facts without a pixel of full resolution; then what is seen, and after a step aside only what is new."""
    load = world.dock(LoadWidget(world.viewer))
    load.open(sample="aerial-100k")
    world.wait(lambda: load.load_button.isEnabled() and not load.bar.running)
    assert not world.fine(), "looking at the facts read full-resolution pixels"
    load.load()
    layer = world.image = world.viewer.layers[0]
    pyramid = pyramid_of(layer)
    assert pyramid is not None
    seen: list[Window] = []
    for column in (42_000, 42_600):
        view = world.look_at(61_000, column, zoom=1)
        world.pause()
        world.wait(lambda: pyramid.wait(0))
        new = world.fine()[len(seen) :]
        assert new
        assert all(not w.intersect(view.expanded(512)).empty for w in new), (view, new)
        assert not set(new) & set(seen), "a tile was read twice"
        seen += new
        world.pause()
        assert layer._slice.image.raw.std() > 1
    assert len(seen) <= 24, len(seen)
    assert world.pixels_read() < 2e7


@large
def test_the_100k_world_opens_within_3_gib_and_reads_only_what_is_seen() -> None:
    run_limited(load_the_world)


PNG = imageio.imwrite("<bytes>", np.zeros((40, 30, 3), np.uint8), extension=".png")


def choose(load: LoadWidget, name: str) -> None:
    """As if the entry were clicked."""
    index = load.sample.findData(name)
    load.sample.setCurrentIndex(index)
    load.sample.activated.emit(index)


def replace(load: LoadWidget, name: str, address: str) -> Path:
    """Let the entry ``name`` fetch a small picture from ``address``; returns where it will be."""
    file = load._files[name]
    item = Download(f"{address}/{name}.png", hashlib.sha256(PNG).hexdigest(), len(PNG))
    fetch = (lambda path, overwrite: download(item, path, overwrite),)
    load._files[name] = SampleFile(name, file.title, file.about, (f"{name}.png",), len(PNG), fetch, item)
    return load._files[name].paths()[0]


def test_samples_from_the_web(qtbot, load, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("NAPARI_ISDNET_CACHE", str(tmp_path / "cache"))
    a_sample_from_the_web_is_asked_about_then_fetched_once(qtbot, load)
    a_server_that_does_not_answer_is_one_sentence(qtbot, load)


def a_sample_from_the_web_is_asked_about_then_fetched_once(qtbot: Any, load: LoadWidget) -> None:
    with serving(PNG) as address:
        path = replace(load, "slide", address)
        choose(load, "slide")
        qtbot.waitUntil(load.question.isVisible, timeout=10_000)
        assert "Whole slide" in load.question.label.text()
        assert "from 127.0.0.1, to" in load.question.label.text()
        assert "napari-isdnet sample slide" in load.question.yes.toolTip()
        qtbot.mouseClick(load.question.no, Qt.MouseButton.LeftButton)
        assert not load.question.isVisible()
        assert not path.exists()
        choose(load, "slide")
        qtbot.waitUntil(load.question.isVisible, timeout=10_000)
        qtbot.mouseClick(load.question.yes, Qt.MouseButton.LeftButton)
        ready(qtbot, load)
    assert shown(load)["Size"].startswith("40 rows × 30 columns")
    assert path.read_bytes() == PNG
    choose(load, "slide")  # the server is gone, the file is there
    ready(qtbot, load)
    assert not load.question.isVisible()


def a_server_that_does_not_answer_is_one_sentence(qtbot: Any, load: LoadWidget) -> None:
    from napari.utils.notifications import notification_manager

    with serving(PNG) as address:
        replace(load, "slide-region", f"{address}/missing")
        before = len(notification_manager.records)
        choose(load, "slide-region")
        qtbot.waitUntil(lambda: len(notification_manager.records) > before, timeout=10_000)
    assert "cannot be reached" in notification_manager.records[-1].message
    assert not load.question.isVisible()
    qtbot.waitUntil(lambda: not load.bar.running, timeout=5000)
