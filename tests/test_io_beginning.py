"""Where an OME-Zarr says that it begins, and that its results begin there as well."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from napari_isdnet.io.describe import describe
from napari_isdnet.io.open import open_source
from napari_isdnet.io.scaled import resampled
from napari_isdnet.io.sink import export
from napari_isdnet.io.source import PixelSize
from napari_isdnet.io.store import LabelStore
from napari_isdnet.window import Window
from tests.test_io_formats import noise, write_ome_zarr

both = pytest.mark.parametrize("version", ["0.4", "0.5"])


def place(path: Path, version: str, level: list[Any] | None = None, whole: list[Any] | None = None) -> None:
    """Add transformations to those of level 0, and to the multiscale as a whole."""
    attributes: Any = zarr.open_group(str(path), mode="r+").attrs
    holder = dict(attributes) if version == "0.4" else attributes["ome"]
    (multiscale,) = holder["multiscales"]
    multiscale["datasets"][0]["coordinateTransformations"] += level or []
    multiscale["coordinateTransformations"] = whole or []
    attributes.update({"multiscales": [multiscale]} if version == "0.4" else {"ome": holder})


@both
def test_an_ome_zarr_begins_where_it_says(tmp_path: Path, version: str) -> None:
    path = tmp_path / "scene.ome.zarr"
    write_ome_zarr(path, [np.moveaxis(noise(90, 110, 3), 2, 0)], "cyx", version)
    assert open_source(path).pixel_size.start == (0, 0)
    assert describe(open_source(path))["translation"] is None
    own = [{"type": "translation", "translation": [7, 100, -20.5]}]
    place(path, version, own)
    assert open_source(path).pixel_size.start == (100, -20.5)
    # Those of the whole come after those of the level, and scale what that said as well.
    place(
        path, version, whole=[{"type": "scale", "scale": [1, 2, 3]}, {"type": "translation", "translation": [0, 4, 5]}]
    )
    source = open_source(path)
    assert source.pixel_size == PixelSize(1.0, 0.75, "µm", (204, -56.5))
    assert json.loads(json.dumps(describe(source)))["translation"] == [204, -56.5]
    assert open_source(source).pixel_size.start == (204, -56.5)
    half = resampled(source, 0.5).pixel_size  # whose first pixel has its corner there and its centre further in
    assert half == PixelSize(2.0, 1.5, "µm", (204.5, -56.125))
    place(path, version, whole=[{"type": "translation", "translation": [0, math.nan, 5]}])
    assert open_source(path).pixel_size == PixelSize(0.5, 0.25, "µm")


@both
def test_a_result_lies_where_its_image_does(tmp_path: Path, version: str) -> None:
    path = tmp_path / "scene.ome.zarr"
    write_ome_zarr(path, [noise(90, 110, 1)[..., 0] % 3], "yx", version)
    place(path, version, [{"type": "translation", "translation": [100, -20]}])
    source, written = open_source(path), tmp_path / "map.ome.zarr"
    for _ in export(source, written, "ome-zarr", classes=["a", "b", "c"], roi=Window(10, 20, 70, 80)):
        pass
    transforms = zarr.open_group(written, mode="r").attrs["ome"]["multiscales"][0]["datasets"]
    scale, move = transforms[0]["coordinateTransformations"]
    assert (scale["scale"], move["translation"]) == ([0.5, 0.25], [100 + 10 * 0.5, -20 + 20 * 0.25])
    store = LabelStore.open(written)
    assert (store.pixel_size, store.origin) == (source.pixel_size, (10, 20))
    assert open_source(written).pixel_size.start == (105, -15)  # as any other viewer sees it
    store.move(PixelSize(0.5, 0.25, "µm"), None)
    assert open_source(written).pixel_size.start == (5, 5)
    assert LabelStore.open(written).pixel_size == PixelSize(0.5, 0.25, "µm")
