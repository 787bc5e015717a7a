"""Polygons of a placed image lie where a map has them: what QGIS is given, and gives back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile

from napari_isdnet.annotation.outlines import import_outlines
from napari_isdnet.annotation.store import AnnotationStore
from napari_isdnet.classes import classes_from
from napari_isdnet.io.open import open_source
from napari_isdnet.progress import result_of
from tests.cli_tools import Runner

pytest.importorskip("rasterio")


@pytest.fixture
def placed(tmp_path: Path) -> Path:
    """96 x 128 pixels of half a metre, in UTM zone 40."""
    import rasterio

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, 96, 128), dtype=np.uint8)
    path = tmp_path / "utm.tif"
    options = {"driver": "GTiff", "count": 3, "height": 96, "width": 128, "dtype": "uint8", "crs": "EPSG:32640"}
    with rasterio.open(path, "w", transform=rasterio.Affine(0.5, 0, 325_000, 0, -0.5, 2_785_000), **options) as file:
        file.write(pixels)
    return path


def extent(path: Path) -> tuple[float, float, float, float]:
    content = json.loads(path.read_text(encoding="utf-8"))
    points = np.concatenate([np.array(ring) for f in content["features"] for ring in f["geometry"]["coordinates"]])
    return (*points.min(0).tolist(), *points.max(0).tolist())


@pytest.mark.long
def test_the_command_writes_map_coordinates_and_annotations_take_them_back(
    cli: Runner, placed: Path, tmp_path: Path
) -> None:
    ran = cli("segment", placed, "--output", tmp_path / "out", "--format", "geotiff", "--polygons", "--json")
    assert ran.code == 0, ran.err
    path = tmp_path / "out" / "utm.geojson"
    assert json.loads(path.read_text())["crs"]["properties"]["name"] == "urn:ogc:def:crs:EPSG::32640"
    assert extent(path) == (325_000, 2_785_000 - 48, 325_064, 2_785_000)
    labels = tifffile.imread(tmp_path / "out" / "utm.tif")
    source = open_source(placed)
    found = [{"name": n} for n in ("building", "land", "road", "vegetation", "water")]
    with AnnotationStore.create(tmp_path / "a.isdnet", source.shape, classes_from(found)) as store:
        result_of(import_outlines(store, path, georeference=source.georeference))
        from napari_isdnet.window import Window

        np.testing.assert_array_equal(store.read(Window.whole(source.shape))[..., 0] - 1, labels)
    source.close()


@pytest.mark.long
def test_a_resampled_map_without_a_place_counts_the_files_pixels(cli: Runner, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tifffile.imwrite(tmp_path / "a.tif", rng.integers(0, 256, (96, 128, 3), dtype=np.uint8), photometric="rgb")
    ran = cli("segment", tmp_path / "a.tif", "--output", tmp_path / "out", "--scale", "0.5", "--polygons", "--json")
    assert ran.code == 0, ran.err
    assert extent(tmp_path / "out" / "a.geojson") == (0, 0, 128, 96)
