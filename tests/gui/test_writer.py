"""File > Save of a class map, as napari calls it: the result on disk is written again, with names and colours."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from napari_builtins.io import napari_write_labels
from PIL import Image
from qtpy.QtCore import QTimer

from napari_isdnet.classes import classes_from
from napari_isdnet.engine.tiles import TilePyramid
from napari_isdnet.io.store import LabelStore
from napari_isdnet.progress import Progress
from napari_isdnet.widgets import _saving, _writer
from napari_isdnet.widgets import _segment_layers as layers
from napari_isdnet.widgets._job import JobBar
from napari_isdnet.widgets._segment_controller import color_table
from napari_isdnet.widgets._writer import write_class_map
from napari_isdnet.window import Window

CLASSES = classes_from(["land", "water"])
LABELS = np.add.outer(np.arange(300) // 100, np.arange(420) // 140).astype(np.uint8) % 2


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    made = LabelStore.create(tmp_path / "scene.ome.zarr", LABELS.shape, CLASSES)
    for index, window in enumerate(made.shards):
        made.write_shard(index, LABELS[window.slices])
    list(made.finish_pyramid())
    return made


@pytest.fixture
def layer(viewer: Any, store: LabelStore) -> Any:
    image = viewer.add_image(np.zeros((*LABELS.shape, 3), np.uint8), name="scene")
    return layers.add_labels(
        viewer, image, layers.store_pyramid(store), CLASSES, color_table(CLASSES), "scene classes", store=store
    )


def test_what_is_saved_and_what_is_not(layer: Any, viewer: Any, tmp_path: Path) -> None:
    what_cannot_be_saved_is_one_sentence_and_writes_nothing(layer, viewer, tmp_path)
    napari_saves_it_in_the_formats_of_the_engine(layer, tmp_path)
    what_export_offers_is_saved_with_classes(layer, tmp_path)
    other_labels_stay_with_napari(viewer, tmp_path)


def what_cannot_be_saved_is_one_sentence_and_writes_nothing(layer: Any, viewer: Any, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="exists; choose another name, or delete it first"):
        layer.save(str(tmp_path / "scene.ome.zarr"))
    with pytest.raises(RuntimeError, match="'mine' shows no finished class map: use 'Segment to files' for a live one"):
        viewer.add_labels(LABELS, name="mine").save(str(tmp_path / "mine.ome.zarr"))
    with pytest.raises(RuntimeError, match=r"written as .geojson, .gpkg, .ome.tif, .* .tiff, .png; got 'a.txt'"):
        write_class_map(str(tmp_path / "a.txt"), None, {"metadata": {}})
    gone = {"name": "gone", "metadata": {layers.STORE: str(tmp_path / "none.ome.zarr")}}
    with pytest.raises(RuntimeError, match="which the layer shows, is gone"):
        write_class_map(str(tmp_path / "b.ome.zarr"), None, gone)
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir() or p.suffix) == ["scene.ome.zarr"]


def napari_saves_it_in_the_formats_of_the_engine(layer: Any, tmp_path: Path) -> None:
    assert layer.save(str(tmp_path / "saved.ome.zarr")) == [str(tmp_path / "saved.ome.zarr")]
    with tifffile.TiffFile(layer.save(str(tmp_path / "saved.ome.tif"))[0]) as tiff:
        np.testing.assert_array_equal(tiff.asarray(), LABELS)
    saved = LabelStore.open(tmp_path / "saved.ome.zarr")
    np.testing.assert_array_equal(saved.read_labels(Window.whole(saved.shape)), LABELS)
    assert [item.name for item in saved.classes] == ["land", "water"]
    features = json.loads(Path(layer.save(str(tmp_path / "saved.geojson"))[0]).read_text())["features"]
    assert {f["properties"]["classification"]["name"] for f in features} == {"land", "water"}
    package = layer.save(str(tmp_path / "saved.gpkg"))[0]
    names = pytest.importorskip("pyogrio").raw.read(package, layer="classes", columns=["class"])[3][0]
    assert set(names) == {"land", "water"}


def what_export_offers_is_saved_with_classes(layer: Any, tmp_path: Path) -> None:
    written = write_class_map(str(tmp_path / "a.tif"), None, {"metadata": layer.metadata})  # the file type of that name
    with tifffile.TiffFile(written[0]) as tiff:
        np.testing.assert_array_equal(tiff.asarray(), LABELS)
        assert tiff.pages.first.photometric == tifffile.PHOTOMETRIC.PALETTE
    with Image.open(layer.save(str(tmp_path / "a.png"))[0]) as png:
        np.testing.assert_array_equal(np.asarray(png), LABELS)
        assert [item["name"] for item in json.loads(png.info["classes"])] == ["land", "water"]


def other_labels_stay_with_napari(viewer: Any, tmp_path: Path) -> None:
    mine = viewer.add_labels(LABELS, name="mine")
    mine.save(str(tmp_path / "mine.tif"))
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "mine.tif"), LABELS)
    again = str(tmp_path / "again.tif")  # as where this plugin is found before napari's own writers
    assert write_class_map(again, mine.data, mine.as_layer_data_tuple()[1]) == [again]
    np.testing.assert_array_equal(tifffile.imread(again), LABELS)


@pytest.fixture
def large(viewer: Any) -> Any:
    """Makes layers of a class map of two levels; ``finished`` is where it lies, None for a live one."""

    def make(finished: LabelStore | None) -> Any:
        pyramid = TilePyramid(((600, 840), (300, 420)), lambda _, window: np.full(window.shape, 1, np.uint8))
        image = viewer.add_image(np.zeros((600, 840, 3), np.uint8), name="large")
        return layers.add_labels(viewer, image, pyramid, CLASSES, color_table(CLASSES), "large classes", store=finished)

    return make


@pytest.mark.long
def test_napari_s_own_tif_has_all_pixels_or_says_what_to_choose(
    large: Any, store: LabelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished = large(store)
    assert finished.multiscale
    # Which of two writers of .tif napari takes depends on which plugin it has found first.
    napari_write_labels(str(tmp_path / "a.tif"), *finished.as_layer_data_tuple()[:2])
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.tif"), np.ones((600, 840)))
    with pytest.raises(RuntimeError, match="use 'Segment to files' of the Segment dock"):
        large(None).save(str(tmp_path / "b.tif"))
    monkeypatch.setattr(_saving, "MOST_WHOLE", 1000)
    with pytest.raises(RuntimeError, match=r"Choose 'Class map of ISDNet' as the file type, or a name that ends in"):
        napari_write_labels(str(tmp_path / "c.tif"), *finished.as_layer_data_tuple()[:2])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tif", "scene.ome.zarr"]


def slow(steps: list[int]) -> Any:
    def work(*_: Any) -> Any:
        for step in range(1000):
            steps.append(step)
            yield Progress(step, 1000, "writing", Window(0, 0, 1, 1), 60.0)
            time.sleep(0.01)

    return work


def bar_of(viewer: Any) -> JobBar:
    return viewer.window._qt_window.findChild(JobBar, "save_bar")


@pytest.mark.long
def test_the_bar_of_a_saving(layer: Any, viewer: Any, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        saving_shows_how_far_it_is_and_is_cancelled(layer, viewer, tmp_path, patch)
    clicking_the_cross_of_the_bar_lets_the_saving_end(layer, viewer, tmp_path)


def saving_shows_how_far_it_is_and_is_cancelled(
    layer: Any, viewer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    seen: list[str] = []
    monkeypatch.setattr(_writer, "write_result", slow(steps))

    def click() -> None:
        bar = bar_of(viewer)
        if bar is None or not bar.label.text().startswith("writing"):  # a busy machine has not shown it yet
            QTimer.singleShot(100, click)
            return
        seen.append(bar.label.text())
        bar.cancel_button.click()

    QTimer.singleShot(100, click)
    with pytest.raises(RuntimeError, match=r"Saving b.ome.zarr was stopped; nothing was written."):
        layer.save(str(tmp_path / "b.ome.zarr"))
    assert seen[0].startswith("writing")
    assert seen[0].endswith("60 s left")
    assert 0 < len(steps) < 1000
    assert bar_of(viewer) is None or not bar_of(viewer).isVisible()
    assert not (tmp_path / "b.ome.zarr").exists()


def clicking_the_cross_of_the_bar_lets_the_saving_end(layer: Any, viewer: Any, tmp_path: Path) -> None:
    seen: list[JobBar] = []

    def click() -> None:
        seen.append(bar_of(viewer))
        seen[0].parent().destroyOnClose()

    QTimer.singleShot(0, click)
    layer.save(str(tmp_path / "b.ome.zarr"))
    assert seen
    assert LabelStore.open(tmp_path / "b.ome.zarr").finished
    assert bar_of(viewer) is None


@pytest.mark.long
def test_closing_the_window_while_saving_leaves_nothing(layer: Any, viewer: Any, tmp_path: Path, monkeypatch) -> None:
    steps: list[int] = []
    monkeypatch.setattr(_writer, "write_result", slow(steps))

    def close() -> None:
        if steps:
            viewer.close()
        else:
            QTimer.singleShot(100, close)

    QTimer.singleShot(100, close)
    with pytest.raises(RuntimeError, match="was stopped; nothing was written"):
        layer.save(str(tmp_path / "b.ome.zarr"))
    count = len(steps)
    time.sleep(0.1)
    assert 0 < count == len(steps)
