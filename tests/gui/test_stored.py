"""Layers over a result that another program replaces: what is shown is of one state, and it is said."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from napari.utils.notifications import notification_manager

from napari_isdnet.classes import classes_from
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.source import PixelSize
from napari_isdnet.io.store import LabelStore
from napari_isdnet.progress import result_of
from napari_isdnet.widgets import _segment_layers as layers
from napari_isdnet.widgets._lazy import pyramid_of
from napari_isdnet.widgets._reader import read
from napari_isdnet.window import Window

CLASSES = classes_from(["soil", "crop", "water"])
NEAR, FAR = Window(0, 0, 500, 500), Window(2000, 2000, 100, 100)


def made(path: Path, value: int, shape: tuple[int, int] = (2100, 2100)) -> LabelStore:
    store = LabelStore.create(path, shape, CLASSES, overwrite=True)
    for index, window in enumerate(store.shards):
        store.write_shard(index, np.full(window.shape, value, np.uint8))
    result_of(store.finish_pyramid())
    return store


@pytest.mark.parametrize("how", ["made anew", "of another size", "removed"])
def test_nothing_is_read_of_a_result_that_is_another_one_by_now(tmp_path: Path, how: str) -> None:
    store = made(tmp_path / "a.ome.zarr", 1)
    pyramid = layers.store_pyramid(store)
    pyramid.answer(0, NEAR)
    assert pyramid.wait(10)
    store.move(PixelSize(2.0, 2.0, "m"), None)  # its pixels are what they were
    assert (pyramid.read(0, FAR) == 1).all()
    assert not pyramid.notice
    if how == "removed":
        shutil.rmtree(store.path)
    else:
        made(store.path, 2, (2100, 2100) if how == "made anew" else (900, 900))
    pyramid.answer(0, FAR)
    assert pyramid.wait(10)
    assert (pyramid.answer(0, NEAR) == 1).all()
    # Of what was known: the coarsest level, which is of the result before, or nothing.
    assert set(np.unique(pyramid.answer(0, FAR))) <= {1, 255}
    assert pyramid.notice.startswith("a.ome.zarr was replaced or removed by another program since it was opened")
    with pytest.raises(InputError, match="open the result again"):
        pyramid.read(0, NEAR)
    pyramid.close()


def test_a_damaged_result_that_is_the_same_is_no_other_one(tmp_path: Path) -> None:
    store = made(tmp_path / "a.ome.zarr", 1)
    pyramid = layers.store_pyramid(store)
    for shard in (store.path / "0" / "c").rglob("1"):
        if shard.is_file():
            shard.write_bytes(b"damaged")
    with pytest.raises(InputError, match="make this result again"):
        pyramid.read(0, FAR)
    assert not pyramid.notice
    pyramid.close()


@pytest.mark.long
@pytest.mark.parametrize("kind", ["OME-Zarr", "TIFF"])
def test_a_layer_whose_result_was_replaced_says_so_once(viewer: Any, qtbot: Any, tmp_path: Path, kind: str) -> None:
    from napari_isdnet.io.sink import export

    store = made(tmp_path / "a.ome.zarr", 1)
    path = store.path
    if kind == "TIFF":
        path = tmp_path / "a.tif"
        result_of(export(store, path, "ome-tiff", CLASSES))
    data, keywords, _ = read(path)[0]
    layer = viewer.add_labels(data, **keywords)
    viewer.camera.center, viewer.camera.zoom = (250, 250), 3
    pyramid: Any = pyramid_of(layer)
    qtbot.waitUntil(lambda: bool((pyramid.answer(0, Window(200, 200, 50, 50)) == 1).all()), timeout=10_000)
    notification_manager.records.clear()
    if kind == "TIFF":
        tifffile.imwrite(tmp_path / "b.tif", np.full((2100, 2100), 2, np.uint8), tile=(256, 256))
        (tmp_path / "b.tif").replace(path)
    else:
        made(path, 2)
    for place in ((1500, 1500), (1900, 250), (250, 1900)):
        viewer.camera.center = place
        qtbot.wait(200)
    qtbot.waitUntil(lambda: bool(notification_manager.records), timeout=10_000)
    said = [record.message for record in notification_manager.records]
    assert len(said) == 1
    assert said[0].startswith(f"{path.name} was replaced or removed by another program")
    assert 2 not in layer._slice.image.raw
