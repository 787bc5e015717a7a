"""Files that are sound and unusual, held against GDAL, and caches and names that are not what one expects."""

from __future__ import annotations

import json
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
import zarr
from PIL import Image

from napari_isdnet.classes import classes_from
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.array import ArraySource
from napari_isdnet.io.geo import open_raster
from napari_isdnet.io.geojson import read_items
from napari_isdnet.io.intensity import IntensityPolicy
from napari_isdnet.io.open import open_source
from napari_isdnet.io.sink import export
from napari_isdnet.io.source import GeoReference
from napari_isdnet.io.store import LabelStore
from napari_isdnet.io.zarr import open_zarr
from napari_isdnet.progress import result_of
from napari_isdnet.window import Window

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
CLASSES = classes_from([("road", "#ffffff"), ("tree", "#00ff00"), ("water", "#0000ff")])


def noise(*shape: int, seed: int = 0, top: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, top, shape).astype(np.uint8)


def pixels(source: Any) -> np.ndarray:
    return source.read(Window.whole(source.shape))


def valid(source: Any) -> np.ndarray:
    found = IntensityPolicy.from_source(source).valid(pixels(source))
    return np.ones(source.shape, bool) if found is None else found


# ----------------------------------------------------------------------------------------------------- TIFF and GDAL


def gdal(path: Path, data: np.ndarray, **profile: Any) -> Path:
    bands = data if data.ndim == 3 else data[None]
    count, height, width = bands.shape
    settings: dict[str, Any] = {"count": count, "height": height, "width": width, "dtype": str(data.dtype)}
    settings = {"driver": "GTiff", **settings, **profile}
    colors, mask = settings.pop("colormap", None), settings.pop("mask", None)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "w", **settings) as target:
        if colors is not None:
            target.write_colormap(1, colors)  # before the pixels, or it goes to a file beside it
        target.write(bands)
        if mask is not None:
            target.write_mask(mask)
    return path


def test_nodata_of_a_palette_hides_its_index_and_no_colour(tmp_path: Path) -> None:
    indices = noise(64, 80, top=3)
    indices[:10] = 255
    colors = {0: (9, 8, 7, 255), 1: (0, 0, 0, 255), 2: (255, 255, 255, 255), 255: (0, 0, 0, 255)}
    path = gdal(tmp_path / "p.tif", indices, nodata=255, colormap=colors)
    with closing(open_source(path)) as source:
        np.testing.assert_array_equal(valid(source), indices != 255)
        expected = np.array([colors[i][:3] for i in indices.ravel()], np.uint8).reshape(64, 80, 3)
        np.testing.assert_array_equal(pixels(source)[..., :3], expected)
        np.testing.assert_array_equal(pixels(source.indices())[..., 0], indices)  # type: ignore[attr-defined]
        assert source.indices().nodata == 255  # type: ignore[attr-defined]


def test_an_exported_class_map_is_read_as_its_colours_with_its_holes(tmp_path: Path) -> None:
    labels = noise(600, 700, top=3)
    labels[:100] = 255
    store = LabelStore.create(tmp_path / "m.ome.zarr", labels.shape, CLASSES)
    for index, part in enumerate(store.shards):
        store.write_shard(index, labels[part.slices])
    result_of(store.finish_pyramid())
    path = result_of(export(store, tmp_path / "m.tif", "geotiff"))
    with closing(open_source(path)) as source:
        np.testing.assert_array_equal(valid(source), labels != 255)
        assert len(source.levels) == len(store.levels)
    with closing(open_source(store.path)) as source:
        assert source.nodata == 255
        np.testing.assert_array_equal(valid(source), labels != 255)


@pytest.mark.parametrize("nodata", [0, 1])
def test_nodata_of_single_bits(tmp_path: Path, nodata: int) -> None:
    bits = noise(50, 70, top=2)
    path = gdal(tmp_path / "b.tif", bits, nbits=1, nodata=nodata)
    with closing(open_source(path)) as source:
        np.testing.assert_array_equal(pixels(source)[..., 0], bits * 255)
        np.testing.assert_array_equal(valid(source), bits != nodata)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_an_internal_mask_counts_whatever_the_samples(tmp_path: Path, dtype: str) -> None:
    data = noise(3, 60, 90).astype(dtype)
    mask = np.full((60, 90), 255, np.uint8)
    mask[:30] = 0
    path = gdal(tmp_path / "m.tif", data, photometric="RGB", mask=mask)
    with closing(open_source(path)) as source:
        np.testing.assert_array_equal(valid(source), mask > 0)
        np.testing.assert_array_equal(pixels(source)[..., :3], np.moveaxis(data, 0, -1))


@pytest.mark.parametrize("codec", ["CCITTFAX4", "CCITTFAX3", "CCITTRLE"])
@pytest.mark.parametrize("white", ["MINISBLACK", "MINISWHITE"])
def test_fax_pages_are_black_and_white(tmp_path: Path, codec: str, white: str) -> None:
    bits = noise(64, 96, top=2)
    path = gdal(tmp_path / "f.tif", bits, nbits=1, compress=codec, photometric=white)
    with rasterio.open(path) as data, closing(open_source(path)) as source:
        stored = data.read(1)
        shown = stored if white == "MINISBLACK" else 1 - stored
        np.testing.assert_array_equal(pixels(source)[..., 0], shown * 255)


@pytest.mark.parametrize("profile", [{"interleave": "band", "photometric": "RGB"}, {"photometric": "MINISBLACK"}])
def test_jpeg_of_bands_is_left_to_gdal(tmp_path: Path, profile: dict[str, str]) -> None:
    path = gdal(tmp_path / "j.tif", noise(3, 64, 64), compress="JPEG", jpeg_quality=95, **profile)
    with rasterio.open(path) as data, closing(open_source(path)) as source:
        np.testing.assert_array_equal(pixels(source), np.moveaxis(data.read(), 0, -1))


def test_what_a_sparse_file_does_not_store(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"driver": "GTiff", "height": 2000, "width": 2000, "count": 1, "dtype": "uint8"}
    plain = tmp_path / "s.tif"
    with rasterio.open(plain, "w", **settings, sparse_ok=True, blockysize=2000):
        pass
    with closing(open_source(plain)) as source:
        assert not pixels(source).any()
    painted = tmp_path / "c.tif"
    with rasterio.open(painted, "w", **settings, sparse_ok=True, tiled=True, blockxsize=256, blockysize=256) as data:
        data.write_colormap(1, {0: (10, 200, 30, 255), 1: (1, 2, 3, 255)})
        data.write(np.ones((1, 256, 256), np.uint8), window=rasterio.windows.Window(0, 0, 256, 256))
    with closing(open_source(painted)) as source:
        assert source.read(Window(300, 300, 1, 1)).ravel().tolist() == [10, 200, 30]
        assert source.read(Window(0, 0, 1, 1)).ravel().tolist() == [1, 2, 3]


@pytest.mark.parametrize("interleave", ["pixel", "band"])
@pytest.mark.parametrize("kind", ["nan", "nan in one band", "alpha", "half seen", "whole"])
@pytest.mark.parametrize("codec", ["lerc", "lerc_zstd"])
def test_what_lerc_masks_is_missing(tmp_path: Path, codec: str, kind: str, interleave: str) -> None:
    profile = {"compress": codec, "interleave": interleave, "tiled": True, "blockxsize": 64, "blockysize": 64}
    data: Any = noise(3, 150, 200)
    if "nan" in kind:
        data = data / np.float32(255)
        data[: 3 if kind == "nan" else 1, 70:120, 10:150] = np.nan
        path = gdal(tmp_path / "a.tif", data, nodata=np.nan, **profile)
    else:
        alpha = np.full((1, 150, 200), 255, np.uint8)
        if kind != "whole":
            alpha[:, 10:100, 30:90] = 0 if kind == "alpha" else 100
        data = np.concatenate([data, alpha])
        path = gdal(tmp_path / "a.tif", data, photometric="rgb", alpha="yes", **profile)
    with closing(open_source(path)) as source, rasterio.open(path) as oracle:
        np.testing.assert_array_equal(pixels(source).transpose(2, 0, 1), oracle.read())
        assert (source.format, source.alpha) == ("TIFF", None if "nan" in kind else 3)


def test_the_lowest_float_written_with_too_few_digits_is_nodata(tmp_path: Path) -> None:
    data = noise(40, 50).astype(np.float32)
    data[:8] = np.finfo(np.float32).min
    tifffile.imwrite(tmp_path / "f.tif", data, extratags=[(42113, 2, 0, "-3.40282e+38", True)])
    with closing(open_source(tmp_path / "f.tif")) as source:
        assert valid(source).mean() == pytest.approx(0.8)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_planes_that_one_directory_names_are_channels(tmp_path: Path, dtype: str) -> None:
    data = noise(3, 300, 410).astype(dtype)
    tifffile.imwrite(tmp_path / "i.tif", data, imagej=True, truncate=True, metadata={"axes": "CYX"})
    with closing(open_source(tmp_path / "i.tif")) as source:
        assert source.channels == 3
        np.testing.assert_array_equal(pixels(source), np.moveaxis(data, 0, -1))
        np.testing.assert_array_equal(source.read(Window(120, 7, 50, 60)), np.moveaxis(data, 0, -1)[120:170, 7:67])


@pytest.mark.parametrize(
    ("crs", "metres"),
    [("EPSG:2263", 1200 / 3937), ("EPSG:24100", 0.3047972654), ("EPSG:32633", 1.0), ("EPSG:3167", None)],
)
def test_pixel_sizes_are_in_the_units_of_the_system(tmp_path: Path, crs: str, metres: float | None) -> None:
    path = gdal(tmp_path / "u.tif", noise(16, 16), crs=crs, transform=rasterio.Affine(1, 0, 0, 0, -1, 0))
    with closing(open_source(path)) as source, rasterio.open(path) as data:
        assert source.pixel_size is not None
        expected = metres or data.crs.linear_units_factor[1]
        assert source.pixel_size.metres == pytest.approx(expected, rel=1e-6)


def test_a_negative_pixel_height_is_a_height(tmp_path: Path) -> None:
    keys = (1, 1, 0, 2, 1024, 0, 1, 1, 3072, 0, 1, 32633)
    tags = [
        (33550, 12, 3, (2.0, -2.0, 0.0), True),
        (33922, 12, 6, (0, 0, 0, 5e5, 5e6, 0), True),
        (34735, 3, 12, keys, True),
    ]
    tifffile.imwrite(tmp_path / "n.tif", noise(16, 16), extratags=tags)
    with closing(open_source(tmp_path / "n.tif")) as source, rasterio.open(tmp_path / "n.tif") as data:
        assert source.georeference is not None
        assert source.georeference.transform == tuple(data.transform)[:6]


# ------------------------------------------------------------------------------------------------------- GDAL's others


def test_a_palette_that_only_gdal_reads_is_painted(tmp_path: Path) -> None:
    indices = noise(40, 50, top=3)
    picture = Image.fromarray(indices, mode=None)
    picture.putpalette([9, 8, 7, 100, 0, 0, 0, 0, 200])
    picture.save(tmp_path / "p.bmp")
    with closing(open_raster(tmp_path / "p.bmp", "p")) as source:
        expected = np.array([[9, 8, 7], [100, 0, 0], [0, 0, 200]], np.uint8)[indices]
        np.testing.assert_array_equal(pixels(source), expected)


def test_threads_that_come_and_go_leave_few_handles(tmp_path: Path) -> None:
    data = noise(3, 64, 64)
    path = gdal(tmp_path / "g.tif", data, photometric="RGB")
    with closing(open_raster(path, "g")) as source:
        for _ in range(20):
            thread = threading.Thread(target=lambda: source.read(Window(0, 0, 8, 8)))
            thread.start()
            thread.join()
        assert len(source._free) <= 2
        np.testing.assert_array_equal(pixels(source), np.moveaxis(data, 0, -1))
    assert not source._free


def test_a_local_system_has_no_pixel_size(tmp_path: Path) -> None:
    local = 'LOCAL_CS["mine",UNIT["metre",1]]'
    path = gdal(tmp_path / "l.bil", noise(16, 16), driver="ENVI", transform=rasterio.Affine(1, 0, 5, 0, -1, 9))
    (tmp_path / "l.prj").write_text(local)
    header = (tmp_path / "l.hdr").read_text()
    (tmp_path / "l.hdr").write_text(header + f"coordinate system string = {{{local}}}\n")
    with closing(open_source(path)) as source:
        assert source.pixel_size is None


# ------------------------------------------------------------------------------------------------------ names and text


@pytest.mark.parametrize("name", ["{}/keep/mask", "../keep/mask", "../../up", "well A/B", "...", ""])
def test_a_source_that_is_named_like_a_path_touches_nothing_there(tmp_path: Path, name: str) -> None:
    (tmp_path / "keep").mkdir()
    (tmp_path / "keep" / "data.txt").write_text("somebody's")
    (tmp_path / "out").mkdir()
    source = ArraySource([noise(40, 50, 1, top=3)], name.format(tmp_path))
    result_of(export(source, tmp_path / "out" / "x.png", "png", CLASSES))
    assert (tmp_path / "keep" / "data.txt").read_text() == "somebody's"
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["x.png"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["keep", "out"]


def test_the_names_of_classes_do_not_outlive_their_map(tmp_path: Path) -> None:
    labels = LabelStore.create(tmp_path / "l.ome.zarr", (40, 50), CLASSES)
    unsure = LabelStore.create(tmp_path / "u.ome.zarr", (40, 50), CLASSES, kind="uncertainty")
    for store, values in ((labels, noise(40, 50, top=3)), (unsure, noise(40, 50, 1))):
        store.write_shard(0, values)
        result_of(store.finish_pyramid())
    result_of(export(labels, tmp_path / "s.tif", "geotiff"))
    assert (tmp_path / "s.tif.aux.xml").exists()
    result_of(export(unsure, tmp_path / "s.tif", "geotiff", overwrite=True))
    assert not (tmp_path / "s.tif.aux.xml").exists()


@pytest.mark.parametrize("name", ["urn:ogc:def:crs:OGC:1.3:CRS84", "urn:ogc:def:crs:EPSG::4326", "EPSG:4326"])
def test_longitude_and_latitude_have_several_names(tmp_path: Path, name: str) -> None:
    degrees = GeoReference("EPSG:4326", (1e-5, 0, 10.0, 0, -1e-5, 50.0))
    crs = {"type": "name", "properties": {"name": name}}
    (tmp_path / "q.geojson").write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": []}))
    assert read_items(tmp_path / "q.geojson", degrees)[1] == degrees
    utm = GeoReference("EPSG:32633", degrees.transform)
    assert read_items(tmp_path / "q.geojson", utm)[1] is utm  # they are moved there


@pytest.mark.parametrize("header", ["{'descr': '|u1', 'fortran_order': False, 'shape': (2,2", "{'shape': (True,4)}"])
def test_a_damaged_array_header_is_one_sentence(tmp_path: Path, header: str) -> None:
    text = header.encode().ljust(117) + b"\n"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(8))
    with pytest.raises(InputError, match="no array file that can be read"):
        open_source(tmp_path / "a.npy")


def test_zarr_folders_with_colons_and_without_a_scale(tmp_path: Path) -> None:
    path = tmp_path / "a::b.zarr"
    group = zarr.create_group(store=path, zarr_format=3)
    group.create_array("0", data=noise(64, 80))
    axes = [{"name": n, "type": "space", "unit": "micrometer"} for n in "yx"]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": [{"path": "0"}]}]}
    with closing(open_zarr(path, "a")) as source:
        assert source.pixel_size is None  # a unit without a scale says nothing
        assert source.shape == (64, 80)


def test_levels_with_other_channels_are_refused(tmp_path: Path) -> None:
    group = zarr.create_group(store=tmp_path / "a.zarr", zarr_format=3)
    group.create_array("0", data=noise(3, 64, 80))
    group.create_array("1", data=noise(1, 32, 40))
    axes = [{"name": n, "type": "channel" if n == "c" else "space"} for n in "cyx"]
    datasets = [{"path": "0"}, {"path": "1"}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    with pytest.raises(InputError, match="different numbers of channels"):
        open_zarr(tmp_path / "a.zarr", "a")
