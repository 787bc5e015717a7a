"""Files as napari's own menus open them with this package: pictures, samples, and class maps as what they are."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from napari_isdnet.io.intensity import IntensityPolicy
from napari_isdnet.widgets._lazy import pyramid_of
from napari_isdnet.window import Window


def test_reader_takes_pictures_and_leaves_stacks(viewer, qtbot, picture, tmp_path) -> None:
    from napari_isdnet.widgets._reader import get_reader

    assert get_reader([str(picture)]) is None
    assert get_reader(str(picture)) is not None  # small, but who chooses this reader wants it
    assert get_reader(str(tmp_path)) is None
    tifffile.imwrite(tmp_path / "stack.tif", np.zeros((5, 60, 50), np.uint8), metadata={"axes": "ZYX"})
    assert get_reader(str(tmp_path / "stack.tif")) is None
    wide = tmp_path / "wide.tif"
    tifffile.imwrite(wide, np.zeros((600, 5000), np.uint8), tile=(512, 512))
    assert get_reader(str(wide)) is not None
    (layer,) = viewer.open(str(wide), plugin="napari-isdnet")
    assert pyramid_of(layer) is not None
    (sample,) = viewer.open_sample("napari-isdnet", "aerial-4k")
    qtbot.waitUntil(lambda: bool(sample._slice.image.raw.any()), timeout=20_000)


def test_contrast_is_not_looked_for_on_the_main_thread(viewer, qtbot, tmp_path, monkeypatch) -> None:
    looked, find = [], IntensityPolicy.from_source.__func__

    def found(cls: Any, *arguments: Any) -> Any:
        looked.append(threading.current_thread())
        return find(cls, *arguments)

    monkeypatch.setattr(IntensityPolicy, "from_source", classmethod(found))
    pixels = np.linspace(0, 4000, 600 * 500).reshape(600, 500).astype(np.uint16)
    tifffile.imwrite(tmp_path / "deep.tif", pixels)
    (layer,) = viewer.open(str(tmp_path / "deep.tif"), plugin="napari-isdnet")
    qtbot.waitUntil(lambda: layer._slice.image.raw.max() == 255, timeout=10_000)
    assert layer._slice.image.raw[300, 250, 0] == pytest.approx(127.5, abs=1)
    assert looked
    assert threading.main_thread() not in looked


def test_class_maps_open_as_what_they_are(viewer, tmp_path) -> None:
    a_result_opens_as_the_class_map_it_is(viewer, tmp_path)
    for kind in ("ome-tiff", "geotiff"):
        a_class_map_saved_as_a_tiff_opens_as_one_again(viewer, tmp_path, kind)


def a_result_opens_as_the_class_map_it_is(viewer: Any, tmp_path: Path) -> None:
    from napari.layers import Labels

    from napari_isdnet.io.source import PixelSize
    from napari_isdnet.io.store import LabelStore

    store = LabelStore.create(
        tmp_path / "scene.ome.zarr", (600, 700), [("road", "#ff0000"), ("tree", "#00ff00")],
        pixel_size=PixelSize(2.0, 2.0, "m"), origin=(100, 30),
    )  # fmt: skip
    labels = np.tile(np.uint8([0, 1, 255, 1]), (600, 175))
    store.write_shard(0, labels)
    list(store.finish_pyramid())
    (layer,) = viewer.open(str(store.path), plugin="napari-isdnet")
    assert isinstance(layer, Labels)
    assert pyramid_of(layer) is not None
    assert layer.translate.tolist() == [200, 60]
    assert layer.features["class"].tolist() == ["road", "tree", "no data"]
    assert layer.colormap.map(np.uint8([1]))[0].tolist() == [0, 1, 0, 1]
    assert layer.colormap.map(np.uint8([255]))[0, 3] == 0
    np.testing.assert_array_equal(pyramid_of(layer).read(0, Window.whole((600, 700))), labels)


def a_class_map_saved_as_a_tiff_opens_as_one_again(viewer: Any, tmp_path: Path, kind: str) -> None:
    from napari.layers import Labels

    from napari_isdnet.io.sink import SUFFIXES, export
    from napari_isdnet.io.source import PixelSize
    from napari_isdnet.io.store import LabelStore
    from napari_isdnet.widgets._reader import get_reader

    store = LabelStore.create(
        tmp_path / f"{kind}.ome.zarr", (300, 200), [("road", "#ff0000"), ("tree", "#00ff00")],
        pixel_size=PixelSize(0.25, 0.5, "m"), origin=(100, 30),
    )  # fmt: skip
    labels = np.tile(np.uint8([0, 1, 255, 1]), (300, 50))
    store.write_shard(0, labels)
    list(store.finish_pyramid())
    path = tmp_path / f"saved{SUFFIXES[kind]}"
    list(export(store, path, kind))
    assert get_reader(str(path)) is not None
    (layer,) = viewer.open(str(path), plugin="napari-isdnet")
    assert isinstance(layer, Labels)
    np.testing.assert_allclose(layer.scale, [0.25, 0.5])  # also where it lies nowhere on the earth
    np.testing.assert_allclose(layer.translate, [25, 15])  # over the region of the image that it is of
    assert layer.features["class"].tolist() == ["road", "tree", "no data"]
    assert layer.colormap.map(np.uint8([1]))[0].tolist() == [0, 1, 0, 1]
    np.testing.assert_array_equal(pyramid_of(layer).read(0, Window.whole((300, 200))), labels)
