"""``.ovr`` and ``.msk`` beside a TIFF, ``.msk`` beside a picture, as GDAL and QGIS write them, held against GDAL."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from PIL import Image
from rasterio.enums import Resampling

from napari_isdnet.engine.labels import open_labels
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.open import open_source
from napari_isdnet.io.overviews import needs_overviews
from napari_isdnet.window import Window
from tests.test_io_mishaps import gdal, noise, valid

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
FACTORS = (2, 4, 8)


def with_files(path: Path, *, overviews: bool = True, mask: np.ndarray | None = None) -> Path:
    """Let GDAL write the coarse levels and the mask of an image beside it."""
    if mask is not None:
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as target:
            target.write_mask(mask)
    if overviews:
        with rasterio.Env(TIFF_USE_OVR=True), rasterio.open(path, "r+") as target:
            target.build_overviews(FACTORS, Resampling.average)
    return path


def image(folder: Path, rows: int = 301, columns: int = 203, **profile: Any) -> Path:
    tiled = {"tiled": True, "blockxsize": 64, "blockysize": 64}
    return gdal(folder / "a.tif", noise(3, rows, columns), photometric="RGB", **tiled, **profile)


def whole(source: Any, level: int) -> np.ndarray:
    return source.read(Window.whole(source.levels[level]), level)


def test_coarse_levels_beside_the_file_are_those_of_gdal(tmp_path: Path) -> None:
    path = with_files(image(tmp_path))
    assert path.with_name("a.tif.ovr").is_file()
    with closing(open_source(path)) as source:
        assert source.levels == ((301, 203), (151, 102), (76, 51), (38, 26))
        for level in range(4):
            view = {} if level == 0 else {"overview_level": level - 1}
            with rasterio.open(path, **view) as data:
                np.testing.assert_array_equal(whole(source, level), np.moveaxis(data.read(), 0, 2))
        assert "its coarse levels come from a.tif.ovr" in source.notes  # type: ignore[attr-defined]


def test_a_large_image_with_coarse_levels_beside_it_needs_no_pyramid_in_the_cache(tmp_path: Path) -> None:
    path = gdal(tmp_path / "large.tif", np.zeros((2100, 2100), np.uint8), compress="deflate", tiled=True)
    with closing(open_source(path)) as source:
        assert needs_overviews(source)
    with_files(path)
    with closing(open_source(path)) as source:
        assert not needs_overviews(source)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("overviews", [True, False])
def test_a_mask_beside_the_file_hides_what_gdal_hides(tmp_path: Path, dtype: str, overviews: bool) -> None:
    mask = np.where(noise(301, 203, seed=1) > 99, 255, 0).astype(np.uint8)
    path = gdal(tmp_path / "a.tif", noise(3, 301, 203).astype(dtype), photometric="RGB")
    with closing(open_source(path)) as source:
        before = dict(source.identity())
    with_files(path, overviews=overviews, mask=mask)
    assert path.with_name("a.tif.msk").is_file()
    with closing(open_source(path)) as source:
        assert (source.channels, source.alpha, len(source.levels)) == (4, 3, 4 if overviews else 1)
        assert dict(source.identity()) != before  # a result depends on it
        np.testing.assert_array_equal(valid(source), mask != 0)
        for level in range(len(source.levels)):
            view = {} if level == 0 else {"overview_level": level - 1}
            with rasterio.open(path, **view) as data:
                np.testing.assert_array_equal(whole(source, level)[..., 3] != 0, data.dataset_mask() != 0)


@pytest.mark.parametrize("driver", ["PNG", "JPEG"])
def test_a_mask_beside_a_picture_hides_what_gdal_hides(tmp_path: Path, driver: str) -> None:
    mask = np.where(noise(301, 203, seed=1) > 99, 255, 0).astype(np.uint8)
    path = tmp_path / f"a.{driver.lower()}"
    own = gdal(tmp_path / "own.tif", noise(3, 301, 203), photometric="RGB", mask=mask)
    with rasterio.open(own) as data:
        rasterio.shutil.copy(data, path, driver=driver, **({"INTERNAL_MASK": "NO"} if driver == "JPEG" else {}))
    path.with_name(f"{path.name}.msk").rename(tmp_path / "later")
    with closing(open_source(path)) as source:
        before, pixels = dict(source.identity()), whole(source, 0)
    (tmp_path / "later").rename(path.with_name(f"{path.name}.msk"))
    assert path.with_name(f"{path.name}.msk").is_file()
    with closing(open_source(path)) as source:
        assert (source.channels, source.alpha) == (4, 3)
        assert dict(source.identity()) != before
        np.testing.assert_array_equal(valid(source), mask != 0)
        np.testing.assert_array_equal(whole(source, 0)[..., :3], pixels)
        with rasterio.open(path) as data:
            np.testing.assert_array_equal(whole(source, 0)[..., 3] != 0, data.dataset_mask() != 0)
        window = Window(20, 30, 40, 50)
        np.testing.assert_array_equal(source.read(window), whole(source, 0)[window.slices])
        assert f"{path.name}.msk says which pixels are valid" in source.notes  # type: ignore[attr-defined]


def test_a_mask_beside_a_photograph_is_turned_with_it(tmp_path: Path) -> None:
    mask = np.zeros((30, 50), np.uint8)
    mask[:5, :9] = 255
    exif = Image.Exif()
    exif[0x112] = 6  # a quarter turn to the right
    Image.fromarray(noise(30, 50, 3)).save(tmp_path / "a.jpg", exif=exif)
    gdal(tmp_path / "a.jpg.msk", mask)
    with closing(open_source(tmp_path / "a.jpg")) as source:
        np.testing.assert_array_equal(valid(source), np.rot90(mask != 0, -1))


@pytest.mark.parametrize("wrong", ["another size", "damaged", "cut off"])
def test_a_mask_of_a_picture_that_cannot_be_used_is_left_out_and_said(tmp_path: Path, wrong: str) -> None:
    Image.fromarray(noise(301, 203, 3)).save(tmp_path / "a.png")
    mask = gdal(tmp_path / "a.png.msk", noise(300 if wrong == "another size" else 301, 203))
    if wrong != "another size":
        mask.write_bytes(b"II*\0 no such file" if wrong == "damaged" else mask.read_bytes()[:40000])
    with closing(open_source(tmp_path / "a.png")) as source:
        assert source.channels == 3
        assert [note for note in source.notes if "is ignored" in note]  # type: ignore[attr-defined]


@pytest.mark.parametrize("mode", ["L", "P"])
def test_a_label_picture_is_read_as_stored_whatever_its_mask_says(tmp_path: Path, mode: str) -> None:
    indices = noise(301, 203, top=3)
    picture = Image.fromarray(indices, mode=mode)
    if mode == "P":
        picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    picture.save(tmp_path / "a.png")
    gdal(tmp_path / "a.png.msk", np.full((301, 203), 255, np.uint8))
    labels, _ = open_labels(tmp_path / "a.png")
    with closing(labels):
        np.testing.assert_array_equal(whole(labels, 0)[..., 0], indices)


def test_files_that_do_not_fit_or_are_damaged_are_left_out_and_said(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    mask = np.full((130, 203), 255, np.uint8)
    other = with_files(image(tmp_path / "other", rows=130), mask=mask)
    path = image(tmp_path)
    for suffix in (".ovr", ".msk"):
        shutil.copy(other.with_name(f"a.tif{suffix}"), path.with_name(f"a.tif{suffix}"))
    with closing(open_source(path)) as source:
        assert (source.channels, len(source.levels)) == (3, 1)
        assert sum("does not fit" in note for note in source.notes) == 2  # type: ignore[attr-defined]
    for suffix in (".ovr", ".msk"):
        path.with_name(f"a.tif{suffix}").write_bytes(b"II*\0 no such file")
    with closing(open_source(path)) as source:
        assert (source.channels, len(source.levels)) == (3, 1)
        assert sum("cannot be read" in note for note in source.notes) == 2  # type: ignore[attr-defined]


def test_levels_and_alpha_of_the_file_itself_go_first(tmp_path: Path) -> None:
    path = image(tmp_path)
    with rasterio.Env(TIFF_USE_OVR=False), rasterio.open(path, "r+") as target:
        target.build_overviews(FACTORS, Resampling.nearest)
    (tmp_path / "a.tif.ovr").write_bytes(b"II*\0")
    with closing(open_source(path)) as source:
        assert len(source.levels) == 4
        assert not source.notes  # type: ignore[attr-defined]


def test_a_label_map_is_read_as_stored_and_refused_with_a_mask(tmp_path: Path) -> None:
    indices = noise(301, 203, top=3)
    colors = {0: (255, 0, 0, 255), 1: (0, 255, 0, 255), 2: (0, 0, 255, 255)}
    path = with_files(gdal(tmp_path / "a.tif", indices, colormap=colors))
    labels, _ = open_labels(path)
    with closing(labels):
        np.testing.assert_array_equal(whole(labels, 0)[..., 0], indices)
        assert labels.channels == 1
        assert labels.levels == ((301, 203), (151, 102), (76, 51), (38, 26))
        assert set(np.unique(whole(labels, 1))) <= {0, 1, 2, 3}
    with_files(path, overviews=False, mask=np.full((301, 203), 255, np.uint8))
    with pytest.raises(InputError, match="a label map has one channel"):
        open_labels(path)


@pytest.mark.parametrize("colors", [None, {0: (255, 0, 0, 255), 1: (0, 255, 0, 255), 2: (0, 0, 255, 255)}])
def test_a_label_map_keeps_the_place_and_the_levels_that_files_beside_it_tell(tmp_path: Path, colors: Any) -> None:
    path = with_files(gdal(tmp_path / "a.tif", noise(301, 203, top=3), colormap=colors))
    (tmp_path / "a.tfw").write_text("0.5\n0\n0\n-0.5\n100.25\n199.75\n")
    labels, _ = open_labels(path)
    with closing(labels):
        assert labels.georeference is not None
        assert labels.georeference.transform == (0.5, 0.0, 100.0, 0.0, -0.5, 200.0)
        assert len(labels.levels) == 4


def test_a_palette_png_keeps_the_place_of_its_world_file(tmp_path: Path) -> None:
    picture = Image.fromarray(noise(40, 30, top=3), mode="P")
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    picture.save(tmp_path / "a.png")
    (tmp_path / "a.pgw").write_text("0.5\n0\n0\n-0.5\n100.25\n199.75\n")
    labels, _ = open_labels(tmp_path / "a.png")
    with closing(labels):
        assert labels.georeference is not None
        assert labels.georeference.transform == (0.5, 0.0, 100.0, 0.0, -0.5, 200.0)


def test_a_grey_png_with_nodata_as_gdal_writes_it_is_a_label_map(tmp_path: Path) -> None:
    values = noise(40, 30, top=3)
    values[5:9, 3:7] = 255
    path = gdal(tmp_path / "a.tif", values, nodata=2, crs="EPSG:32633", transform=rasterio.Affine(2, 0, 5, 0, -2, 9))
    with rasterio.open(path) as data:
        rasterio.shutil.copy(data, tmp_path / "a.png", driver="PNG")
    labels, _ = open_labels(tmp_path / "a.png")
    with closing(labels):
        np.testing.assert_array_equal(whole(labels, 0)[..., 0], np.where(values == 2, 255, values))
        assert labels.georeference is not None
        assert labels.georeference.crs == "EPSG:32633"
