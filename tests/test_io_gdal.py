"""Rasters that only GDAL reads: pixels, identity, indices and levels, each compared with what was written."""

from __future__ import annotations

import math
import re
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import tifffile

from napari_isdnet import system
from napari_isdnet.engine.labels import open_labels
from napari_isdnet.exceptions import InputError
from napari_isdnet.io import geo
from napari_isdnet.io.geo import open_raster
from napari_isdnet.io.intensity import IntensityPolicy
from napari_isdnet.io.open import open_source
from napari_isdnet.io.source import TileError
from napari_isdnet.window import Window
from tests.test_io_formats import check, noise

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def test_gdal_reads_what_tifffile_does_not(tmp_path):
    image = noise(60, 70, 2, dtype=np.int16)
    profile = {"driver": "ENVI", "height": 60, "width": 70, "count": 2, "dtype": "int16", "crs": "EPSG:32632"}
    with rasterio.open(
        tmp_path / "a.img", "w", transform=rasterio.Affine(2, 0, 10, 0, -3, 20), nodata=-5, **profile
    ) as f:
        f.write(np.moveaxis(image, 2, 0))
    source = open_source(tmp_path / "a.img")
    check(source, [image])
    assert source.georeference.crs == "EPSG:32632"
    assert source.georeference.transform == (2, 0, 10, 0, -3, 20)
    assert (source.pixel_size.row, source.pixel_size.column) == (3, 2)
    assert source.nodata == -5
    source.close()
    with pytest.raises(InputError, match="closed"):
        source.read(Window(0, 0, 1, 1))


def test_a_mosaic_is_another_image_when_its_sources_are(tmp_path):
    path, mosaic = tmp_path / "part.tif", tmp_path / "mosaic.vrt"
    with rasterio.open(path, "w", driver="GTiff", height=20, width=30, count=1, dtype="uint8") as data:
        data.write(noise(1, 20, 30))
    mosaic.write_text(
        '<VRTDataset rasterXSize="30" rasterYSize="20"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        '<SourceFilename relativeToVRT="1">part.tif</SourceFilename><SourceBand>1</SourceBand></SimpleSource>'
        "</VRTRasterBand></VRTDataset>"
    )

    def identity():
        with closing(open_source(mosaic)) as source:
            return source.identity()

    before = identity()
    assert before["files"] == 1
    (tmp_path / "mosaic.vrt.aux.xml").write_text("<PAMDataset></PAMDataset>")  # as a viewer leaves it
    assert identity() == before
    with rasterio.open(path, "r+") as data:
        data.write(noise(1, 20, 30))
    assert identity() != before


def test_labels_with_colours_in_a_gdal_raster_are_read_as_indices(tmp_path):
    indices = noise(20, 30) % 4
    with rasterio.open(tmp_path / "a.img", "w", driver="HFA", height=20, width=30, count=1, dtype="uint8") as data:
        data.write(indices[None])
        data.write_colormap(1, {i: (60 * i, 9, 200 - 60 * i, 255) for i in range(4)})
    with closing(open_source(tmp_path / "a.img")) as picture:
        assert picture.channels == 3
    source, classes = open_labels(tmp_path / "a.img")
    with closing(source):
        np.testing.assert_array_equal(source.read(Window(0, 0, 20, 30))[..., 0], indices)
    assert classes is None


def test_a_container_of_several_images_names_them(tmp_path, monkeypatch):
    several = SimpleNamespace(count=0, subdatasets=['NETCDF:"a b.nc":red', "NETCDF:a.nc:green"], dtypes=())
    with pytest.raises(
        InputError, match=r"holds 2 images \(red, green\).*gdal_translate 'NETCDF:\"a b.nc\":red' red.tif"
    ):
        geo._info(several, tmp_path / "a.nc", "a")
    monkeypatch.setattr(system, "WINDOWS", True)
    with pytest.raises(InputError, match=re.escape(r'gdal_translate "NETCDF:\"a b.nc\":red" red.tif')):
        geo._info(several, tmp_path / "a.nc", "a")


def test_gdal_overviews_are_levels(tmp_path):
    path = tmp_path / "a.tif"
    levels = [noise(256, 200, 3), noise(128, 100, 3)]
    with tifffile.TiffWriter(path) as writer:
        for i, level in enumerate(levels):
            writer.write(level, tile=(64, 64), photometric="rgb", subfiletype=int(i > 0), metadata=None)
    check(open_raster(path, "a"), levels)


def mosaic(folder: Path, parts: list[np.ndarray], nodata: tuple[int | None, ...], mask: str | None) -> Path:
    """``parts`` at three corners of a mosaic that is four of them large, so that a fourth is a hole."""
    height, width, bands = parts[0].shape
    sources: list[str] = []
    for number, (part, (y, x)) in enumerate(zip(parts, [(0, 0), (0, width), (height, width)])):
        profile = {"driver": "GTiff", "height": height, "width": width, "count": bands, "dtype": "uint8"}
        with rasterio.open(folder / f"{number}.tif", "w", **profile) as file:
            file.write(np.moveaxis(part, 2, 0))
        size = f'xSize="{width}" ySize="{height}"'
        sources.append(
            f'<SimpleSource><SourceFilename relativeToVRT="1">{number}.tif</SourceFilename><SourceBand>BAND'
            f'</SourceBand><SrcRect xOff="0" yOff="0" {size}/><DstRect xOff="{x}" yOff="{y}" {size}/></SimpleSource>'
        )
    text = f'<VRTDataset rasterXSize="{2 * width}" rasterYSize="{2 * height}">'
    for band, value in zip(range(1, bands + 1), nodata):
        hole = "" if value is None else f"<NoDataValue>{value}</NoDataValue>"
        inner = hole + "".join(sources).replace("BAND", str(band))
        text += f'<VRTRasterBand dataType="Byte" band="{band}">{inner}</VRTRasterBand>'
    if mask is not None:
        inner = "".join(sources).replace("BAND", mask)
        text += f'<MaskBand><VRTRasterBand dataType="Byte">{inner}</VRTRasterBand></MaskBand>'
    (folder / "mosaic.vrt").write_text(f"{text}</VRTDataset>")
    return folder / "mosaic.vrt"


@pytest.mark.parametrize(
    ("nodata", "mask"), [((None,) * 3, "mask,1"), ((0, 1, 2), None), ((None, 0, 0), None), ((0, 0, 0), None)]
)
def test_holes_of_a_mosaic_are_those_of_gdal(tmp_path: Path, nodata: tuple[int | None, ...], mask: str | None) -> None:
    path = mosaic(tmp_path, [noise(40, 50, 3) // 2 + 3 for _ in range(3)], nodata, mask)
    whole = Window.whole((80, 100))
    with closing(open_source(path)) as source, rasterio.open(path) as oracle:
        policy = IntensityPolicy.from_source(source)
        assert policy.channels == (0, 1, 2)
        pixels, seen = source.read(whole), oracle.dataset_mask() > 0
        assert seen.all() == (None in nodata and mask is None)
        np.testing.assert_array_equal(policy.valid(pixels) if not seen.all() else seen, seen)
        np.testing.assert_array_equal(pixels[..., :3].transpose(2, 0, 1), oracle.read())
        picked = tuple(reversed(policy.needed))
        np.testing.assert_array_equal(
            source.read_channels(Window(30, 30, 30, 40), picked), pixels[30:60, 30:70, picked]
        )


def test_a_mosaic_without_one_of_its_files_is_one_sentence(tmp_path: Path) -> None:
    path = mosaic(tmp_path, [noise(40, 50, 3) for _ in range(3)], (None,) * 3, None)
    (tmp_path / "2.tif").rename(tmp_path / "gone.tif")
    with closing(open_source(path)) as source:
        source.read(Window(0, 0, 40, 100))
        with pytest.raises(TileError, match=r"cannot read rows 30-49, .* at level 0 \(.*2\.tif.*\); repair the file"):
            source.read(Window(30, 40, 20, 20))
    with rasterio.open(tmp_path / "0.tif") as file:
        rasterio.shutil.copy(file, tmp_path / "b.vrt", driver="VRT")
    (tmp_path / "0.tif").rename(tmp_path / "gone.tif")
    with pytest.raises(InputError, match=r"b.vrt cannot be read by GDAL \(.*0\.tif.*\); look for the files"):
        open_source(tmp_path / "b.vrt")


def test_a_mask_has_the_levels_of_its_raster(tmp_path: Path) -> None:
    profile = {"driver": "GTiff", "height": 256, "width": 200, "count": 3, "dtype": "uint8"}
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(tmp_path / "a.tif", "w", **profile) as file:
        file.write(noise(3, 256, 200))
        file.write_mask(np.kron(np.eye(8, dtype=np.uint8), np.ones((32, 25), np.uint8)) * 255)
        file.build_overviews([2, 4])
    with closing(open_source(tmp_path / "a.tif")) as own, closing(open_raster(tmp_path / "a.tif", "a")) as other:
        assert (own.levels, own.alpha) == (other.levels, other.alpha) == (((256, 200), (128, 100), (64, 50)), 3)
        for level, shape in enumerate(own.levels):
            np.testing.assert_array_equal(own.read(Window.whole(shape), level), other.read(Window.whole(shape), level))


@pytest.mark.parametrize("driver", ["GTiff", "VRT"])
def test_a_metre_of_web_mercator_is_one_at_the_equator_only(tmp_path: Path, driver: str) -> None:
    path, latitude = tmp_path / "a.tif", math.radians(60)
    northing = 6_378_137 * math.log(math.tan(math.pi / 4 + latitude / 2))
    place = rasterio.Affine(1.0, 0, 1000, 0, -1.0, northing + 20)  # its middle lies at 60 degrees
    with rasterio.open(
        path, "w", driver="GTiff", width=50, height=40, count=1, dtype="uint8", transform=place, crs="EPSG:3857"
    ) as file:
        file.write(np.zeros((1, 40, 50), np.uint8))
    if driver == "VRT":
        rasterio.shutil.copy(path, tmp_path / "a.vrt", driver="VRT")
        path = tmp_path / "a.vrt"
    with closing(open_source(path)) as source:
        assert source.pixel_size is not None
        assert source.pixel_size.row == pytest.approx(0.5)
        assert source.pixel_size.metres == pytest.approx(0.5)
        assert source.georeference is not None
        assert source.georeference.transform == (1.0, 0.0, 1000.0, 0.0, -1.0, northing + 20)


def test_the_area_of_a_sheared_pixel_is_that_of_its_parallelogram(tmp_path: Path) -> None:
    place = rasterio.Affine(0.5, 0.25, 0, 0.25, -0.5, 0)
    sheared = rasterio.Affine(0.5, 0.5, 0, 0, -0.5, 0)
    for number, transform in enumerate((place, sheared)):
        path, size = tmp_path / f"{number}.tif", {"width": 50, "height": 40, "count": 1, "dtype": "uint8"}
        with rasterio.open(path, "w", driver="GTiff", transform=transform, crs="EPSG:32633", **size) as file:
            file.write(np.zeros((1, 40, 50), np.uint8))
        with closing(open_source(path)) as source, closing(open_raster(path, "a")) as raster:
            assert source.pixel_size is not None
            area = source.pixel_size.row * source.pixel_size.column
            assert area == pytest.approx(abs(transform.a * transform.e - transform.b * transform.d))
            assert raster.pixel_size == source.pixel_size
