"""Of an image of many channels those are read that the network is shown."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import tifffile
import zarr
from rasterio.enums import ColorInterp

from napari_isdnet.engine.patches import PatchReader
from napari_isdnet.io.array import ArraySource
from napari_isdnet.io.base import DECODED_AT_ONCE
from napari_isdnet.io.geo import open_raster
from napari_isdnet.io.intensity import IntensityPolicy
from napari_isdnet.io.open import open_source
from napari_isdnet.io.overviews import build_overviews, with_overviews
from napari_isdnet.io.sampling import STRIP_BYTES, sampled
from napari_isdnet.io.scaled import resampled
from napari_isdnet.io.source import read_channels
from napari_isdnet.window import Window
from tests.test_patches import MODEL

BANDS = 11
IMAGE = np.random.default_rng(0).integers(0, 4000, (90, 130, BANDS)).astype(np.uint16)
TILED: dict[str, Any] = {"tile": (32, 48), "photometric": "minisblack", "compression": "zlib"}


def interleaved(folder: Path) -> Any:
    tifffile.imwrite(folder / "a.tif", IMAGE, planarconfig="contig", **TILED)
    return open_source(folder / "a.tif")


def planar(folder: Path) -> Any:
    tifffile.imwrite(folder / "a.tif", np.moveaxis(IMAGE, 2, 0), planarconfig="separate", **TILED)
    return open_source(folder / "a.tif")


def chunked(folder: Path) -> Any:
    data = np.moveaxis(IMAGE, 2, 0).copy()
    zarr.create_array(store=folder / "a.zarr", data=data, chunks=(3, 40, 50), dimension_names=("c", "y", "x"))
    return open_source(folder / "a.zarr")


def gdal(folder: Path) -> Any:
    with rasterio.open(
        folder / "a.tif", "w", driver="GTiff", height=90, width=130, count=BANDS, dtype="uint16",
        transform=rasterio.Affine(2, 0, 100, 0, -2, 50),
    ) as file:  # fmt: skip
        file.write(np.moveaxis(IMAGE, 2, 0))
    return open_raster(folder / "a.tif", "a")


def masked(folder: Path) -> Any:
    tifffile.imwrite(folder / "a.tif", IMAGE, planarconfig="contig", **TILED)
    tifffile.imwrite(folder / "a.tif.msk", np.eye(90, 130, dtype=np.uint8) * 255, photometric="minisblack")
    return open_source(folder / "a.tif")


def lazy(folder: Path) -> Any:
    da = pytest.importorskip("dask.array")
    return open_source(da.from_array(IMAGE, chunks=(90, 70, 4)), axes="yxc")


def array(folder: Path) -> Any:
    return open_source(np.moveaxis(IMAGE, 2, 0), axes="cyx")


def scaled(folder: Path) -> Any:
    return resampled(array(folder), 0.7)


def viewed(folder: Path) -> Any:
    source = ArraySource([np.tile(IMAGE, (1, 17, 1))], "a", axes="yxc")
    for _ in build_overviews(source, folder):
        pass
    return with_overviews(source, folder)


@pytest.mark.parametrize("make", [interleaved, planar, chunked, gdal, masked, lazy, array, scaled, viewed])
def test_some_channels_are_those_of_all(make: Callable[[Path], Any], tmp_path: Path) -> None:
    source = make(tmp_path)
    last = source.channels - 1
    for level, (rows, columns) in enumerate(source.levels[:3]):
        for window in (Window.whole((rows, columns)), Window(rows // 3, columns // 5, rows // 2, columns // 2)):
            whole = source.read(window, level)
            for chosen in ((0, 1, 2), (4,), (5, last, 0), (last, 7), tuple(range(last, -1, -1))):
                found = read_channels(source, window, chosen, level)
                assert found.dtype == whole.dtype
                np.testing.assert_array_equal(found, whole[..., list(chosen)])
    source.close()


@pytest.mark.parametrize(("make", "most"), [(planar, 2), (chunked, 6)])
def test_channels_that_are_stored_apart_are_not_decoded(
    make: Callable[[Path], Any], most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make(tmp_path)
    load, decoded = source._load, 0

    def counted(*arguments: Any) -> Any:
        nonlocal decoded
        tile = load(*arguments)
        decoded += tile.shape[2]
        return tile

    monkeypatch.setattr(source, "_load", counted)
    source.read_channels(Window(0, 0, 20, 20), (9, 8))
    assert decoded <= most


@pytest.mark.parametrize("chosen", [(0, 1, 2), (9, 3, 0), (7,)])
def test_patches_are_those_of_an_image_of_the_chosen_channels(chosen: tuple[int, ...]) -> None:
    many = ArraySource([IMAGE], "many", axes="yxc")
    few = ArraySource([IMAGE[..., list(chosen)]], "few", axes="yxc")
    readers = [
        PatchReader(many, IntensityPolicy.from_source(many, channels=chosen), MODEL),
        PatchReader(few, IntensityPolicy.from_source(few, channels=range(len(chosen))), MODEL),
    ]
    window = Window(10, 20, 60, 70)
    np.testing.assert_array_equal(*[reader.read(window)[0] for reader in readers])
    assert [reader.pixel_bytes for reader in readers] == [2 * len(chosen)] * 2


def test_alpha_masks_wherever_it_lies() -> None:
    image = np.random.default_rng(1).integers(1, 256, (40, 50, 4), dtype=np.uint8)
    image[10:20, :, 3] = 0
    source = ArraySource([image], "a", rgb=True)
    policy = IntensityPolicy.from_source(source, channels=(1,))
    patch, valid = PatchReader(source, policy, MODEL).read(Window(0, 0, 40, 50))
    assert valid is not None
    np.testing.assert_array_equal(valid, image[..., 3] > 0)
    expected, _ = policy.apply(image)
    reader = PatchReader(source, policy, MODEL)
    np.testing.assert_array_equal(patch, reader._normalise(expected, valid))


def test_a_window_of_many_channels_takes_no_memory_for_them() -> None:
    source = ArraySource([np.broadcast_to(IMAGE[:1, :1, :1], (500, 500, 128))], "a", axes="yxc")
    reader = PatchReader(source, IntensityPolicy.from_source(source, (0, 4000)), MODEL)
    tracemalloc.start()
    reader.read(Window(0, 0, 500, 500))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 500 * 500 * 60  # where the window itself would take 256 bytes a pixel


def test_few_threads_decode_large_tiles(tmp_path: Path) -> None:
    zarr.create_array(store=tmp_path / "a.zarr", shape=(8192, 8192), chunks=(8192, 8192), dtype="uint8")
    assert open_source(tmp_path / "a.zarr", threads=8).threads == DECODED_AT_ONCE >> 26 == 2
    zarr.create_array(store=tmp_path / "b.zarr", shape=(8192, 8192), chunks=(512, 512), dtype="uint8")
    assert open_source(tmp_path / "b.zarr", threads=8).threads == 8


def test_an_overlay_of_many_channels_keeps_nothing_of_what_it_read() -> None:
    source = ArraySource([np.broadcast_to(IMAGE[:1, :1, :1], (3000, 1000, 60))], "a", axes="yxc")
    tracemalloc.start()
    all_of_it = sampled(source, Window(0, 0, 3000, 1000), 300)
    whole = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    some = sampled(source, Window(0, 0, 3000, 1000), 300, lambda w, level: read_channels(source, w, (5, 0), level))
    part = tracemalloc.get_traced_memory()[1] - all_of_it.nbytes
    tracemalloc.stop()
    assert (all_of_it.shape, some.shape) == ((300, 100, 60), (300, 100, 2))
    assert whole < 3.5 * STRIP_BYTES  # a strip, once more as it is copied, and the result; all would be 360 MB
    assert part < STRIP_BYTES / 2


@pytest.mark.parametrize("driver", ["GTiff", "VRT"])
@pytest.mark.parametrize(
    "names", [("blue", "green", "red", "undefined"), ("nir", "red", "green", "blue"), ("blue", "green", "red")]
)
def test_bands_are_the_colours_that_the_file_says(tmp_path: Path, driver: str, names: tuple[str, ...]) -> None:
    path = tmp_path / "bands.tif"
    bands = np.random.default_rng(0).integers(0, 256, (len(names), 40, 50), dtype=np.uint8)
    with rasterio.open(
        path, "w", driver="GTiff", width=50, height=40, count=len(names), dtype="uint8", photometric="MINISBLACK",
        transform=rasterio.Affine(0.5, 0, 0, 0, -0.5, 0), crs="EPSG:32633",
    ) as file:  # fmt: skip
        file.write(bands)
        file.colorinterp = [ColorInterp[name] for name in names]
    if driver == "VRT":
        rasterio.shutil.copy(path, tmp_path / "bands.vrt", driver="VRT")
        path = tmp_path / "bands.vrt"
    with closing(open_source(path)) as source:
        policy = IntensityPolicy.from_source(source)
        assert policy.channels == tuple(names.index(color) for color in ("red", "green", "blue"))
        assert policy.chosen_channels(source) is None  # any reader takes them
        rgb, _ = policy.apply(source.read(Window(3, 4, 20, 30)))
        expected = [bands[names.index(color), 3:23, 4:34] for color in ("red", "green", "blue")]
        np.testing.assert_array_equal(rgb, np.stack(expected, axis=2))
        assert IntensityPolicy.from_source(source, channels=(0, 1, 2)).channels == (0, 1, 2)  # asked for
        assert IntensityPolicy.from_source(resampled(source, 0.5)).channels == policy.channels
