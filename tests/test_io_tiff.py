"""Every kind of TIFF, written by tifffile or GDAL and read by another reader than ours for comparison."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio
import tifffile
from rasterio.enums import Resampling

from napari_isdnet.io.open import open_source
from napari_isdnet.window import Window
from tests.tiff_tools import check, from_origin, picture

# GDAL warns about every image that lies nowhere on the earth; most of these do not.
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


LAYOUTS = [
    {"tile": (64, 48), "compression": "zlib", "predictor": True},
    {"tile": (64, 64), "compression": "lzw", "byteorder": ">"},
    {"tile": (64, 64), "compression": "zstd", "bigtiff": True},
    {"tile": (64, 64)},
    {"rowsperstrip": 7, "compression": "zlib"},
    {"rowsperstrip": 7},
    {"rowsperstrip": 1000},
    {"rowsperstrip": 1000, "byteorder": ">", "bigtiff": True},
]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
@pytest.mark.parametrize("layout", LAYOUTS, ids=[str(i) for i in range(len(LAYOUTS))])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_layouts_against_gdal(tmp_path, dtype, layout, planar):
    image = picture(dtype=dtype)
    options = dict(layout)
    if options.get("predictor") and np.dtype(dtype).kind == "f":
        options["predictor"] = 3
    data = image if planar == "contig" else np.moveaxis(image, 2, 0)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, data, photometric="rgb", planarconfig=planar, metadata=None, **options)
    with rasterio.open(path) as dataset:
        truth = np.moveaxis(dataset.read(), 0, 2)
    np.testing.assert_array_equal(truth, image)
    source = open_source(path)
    check(source, [truth])
    source.close()


def test_jpeg_pyramid_in_subifds_equals_tifffile(tmp_path):
    path = tmp_path / "pyramid.tif"
    levels = [picture(300, 260), picture(150, 130), picture(75, 65)]
    with tifffile.TiffWriter(path) as writer:
        options = {"tile": (64, 64), "compression": "jpeg", "photometric": "rgb"}
        writer.write(levels[0], subifds=2, **options)
        for level in levels[1:]:
            writer.write(level, subfiletype=1, **options)
    with tifffile.TiffFile(path) as tif:
        truth = [level.asarray() for level in tif.series[0].levels]
    check(open_source(path), truth)


def test_gdal_jpeg_ycbcr_overviews_nodata_and_position(tmp_path):
    path = tmp_path / "geo.tif"
    image = picture(300, 260)
    transform = from_origin(500000, 5400000, 0.25, 0.5)
    profile = {
        "driver": "GTiff",
        "height": 300,
        "width": 260,
        "count": 3,
        "dtype": "uint8",
        "crs": "EPSG:32632",
    }
    with rasterio.open(
        path,
        "w",
        tiled=True,
        blockxsize=64,
        blockysize=64,
        compress="JPEG",
        photometric="YCBCR",
        nodata=0,
        transform=transform,
        **profile,
    ) as dataset:
        dataset.write(np.moveaxis(image, 2, 0))
    with rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2, 4], Resampling.average)
    truth = []
    for options in ({}, {"OVERVIEW_LEVEL": 0}, {"OVERVIEW_LEVEL": 1}):
        with rasterio.open(path, **options) as dataset:
            truth.append(np.moveaxis(dataset.read(), 0, 2))
    source = open_source(path)
    with tifffile.TiffFile(path) as tif:
        check(source, [page.asarray() for page in tif.pages])
    for level, expected in enumerate(truth):
        # GDAL brings its own JPEG decoder, which interpolates the subsampled colours differently: compare the luma.
        crop = source.read(Window(0, 0, *expected.shape[:2]), level)
        difference = (crop.astype(float) - expected) @ (0.299, 0.587, 0.114)
        assert np.abs(difference).mean() < 1
    assert source.georeference.crs == "EPSG:32632"
    assert source.georeference.transform == tuple(transform)[:6]
    assert (source.pixel_size.row, source.pixel_size.column, source.pixel_size.unit) == (0.5, 0.25, "m")
    assert source.nodata == 0
    assert source.format == "GeoTIFF"


def test_cog_with_internal_mask_has_alpha(tmp_path):
    path = tmp_path / "cog.tif"
    image = picture(200, 200)
    mask = np.zeros((200, 200), np.uint8)
    mask[20:150, 30:170] = 255
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(
            path, "w", driver="GTiff", height=200, width=200, count=3, dtype="uint8", tiled=True, blockxsize=64,
            blockysize=64, compress="DEFLATE", photometric="RGB", crs="EPSG:3857", transform=from_origin(0, 0, 1, 1),
        ) as dataset,
    ):  # fmt: skip
        dataset.write(np.moveaxis(image, 2, 0))
        dataset.write_mask(mask)
    source = open_source(path)
    assert (source.channels, source.alpha) == (4, 3)
    check(source, [np.dstack([image, mask])])


def test_sparse_tiles_are_nodata(tmp_path):
    path = tmp_path / "sparse.tif"
    profile = {
        "driver": "GTiff",
        "height": 256,
        "width": 256,
        "count": 1,
        "dtype": "uint16",
        "nodata": 77,
        "tiled": True,
    }
    with rasterio.open(
        path, "w", blockxsize=64, blockysize=64, sparse_ok=True, compress="DEFLATE", crs="EPSG:3857",
        transform=from_origin(0, 0, 1, 1), **profile,
    ) as dataset:  # fmt: skip
        dataset.write(np.full((1, 64, 64), 5, np.uint16), window=rasterio.windows.Window(64, 64, 64, 64))
    with rasterio.open(path) as dataset:
        truth = dataset.read(1)
    assert set(np.unique(truth)) == {5, 77}
    check(open_source(path), [truth])


def test_rgba_palette_and_bilevel(tmp_path):
    rgba = np.dstack([picture(), np.full((150, 201), 255, np.uint8)])
    tifffile.imwrite(tmp_path / "rgba.tif", rgba, photometric="rgb", extrasamples=["unassalpha"], tile=(64, 64))
    source = open_source(tmp_path / "rgba.tif")
    assert source.alpha == 3
    check(source, [rgba])
    indices = picture(channels=1)[..., 0]
    with rasterio.open(tmp_path / "pal.tif", "w", driver="GTiff", height=150, width=201, count=1, dtype="uint8",
                       crs="EPSG:3857", transform=from_origin(0, 0, 1, 1)) as dataset:  # fmt: skip
        table = {i: (i, 255 - i, i // 2, 255) for i in range(256)}
        dataset.write_colormap(1, table)
        dataset.write(indices, 1)
    check(open_source(tmp_path / "pal.tif"), [np.array([table[i][:3] for i in range(256)], np.uint8)[indices]])
    bits = indices > 128
    tifffile.imwrite(tmp_path / "bits.tif", bits, photometric="minisblack", rowsperstrip=9)
    check(open_source(tmp_path / "bits.tif"), [bits * np.uint8(255)])
