"""Coarser levels built once into the cache."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_isdnet.exceptions import InputError
from napari_isdnet.io.array import ArraySource
from napari_isdnet.io.overviews import (
    OverviewSource,
    build_overviews,
    halve_mean,
    needs_overviews,
    overview_path,
    with_overviews,
)
from napari_isdnet.io.source import TileError
from napari_isdnet.progress import result_of
from napari_isdnet.window import Window, pyramid_shapes


def image(shape=(2500, 4300)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


def run(generator):
    steps = []
    return result_of(generator, steps.append), steps


def test_levels_are_block_means_and_are_found_again(tmp_path: Path) -> None:
    pixels = image()
    source = ArraySource([pixels], "image")
    assert needs_overviews(source)
    assert with_overviews(source, tmp_path) is source
    path, steps = run(build_overviews(source, tmp_path))
    assert path == overview_path(source, tmp_path)
    assert steps[-1].fraction == 1
    whole = with_overviews(source, tmp_path)
    assert isinstance(whole, OverviewSource)
    assert whole.levels == tuple(pyramid_shapes((2500, 4300)))
    expected = pixels
    for level, shape in enumerate(whole.levels):
        np.testing.assert_array_equal(whole.read(Window.whole(shape), level), expected)
        expected = halve_mean(expected)
    block = pixels[:4, :4].astype(float).reshape(2, 2, 2, 2, 3).mean(axis=(1, 3))
    assert np.abs(halve_mean(pixels[:4, :4]).astype(float) - block).max() <= 0.5
    assert run(build_overviews(source, tmp_path)) == (path, [])


def test_cancelling_leaves_nothing(tmp_path: Path) -> None:
    source = ArraySource([image()], "image")
    work = build_overviews(source, tmp_path)
    next(work)
    work.close()
    assert list(tmp_path.iterdir()) == []
    assert with_overviews(source, tmp_path) is source


@pytest.mark.parametrize("nodata", [7.0, float("nan")])
def test_nodata_does_not_count(nodata: float) -> None:
    pixels = np.array([[1, nodata, 3], [nodata, 5, nodata]], np.float32)[..., None]
    result = halve_mean(pixels, nodata)[..., 0]
    np.testing.assert_allclose(result, [[3, 3]])
    assert np.array_equal(halve_mean(np.full((2, 2, 1), nodata, np.float32), nodata)[0, 0], [nodata], equal_nan=True)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64"])
def test_halving_keeps_what_is_the_same_everywhere(dtype: str) -> None:
    kind = np.dtype(dtype)
    if kind.kind == "f":
        values: tuple[Any, ...] = (np.finfo(kind).min / 8, 0.1, 16_777_216.0)
    else:
        values = (np.iinfo(kind).min, np.iinfo(kind).max, 16_777_217 % 2 ** min(25, 8 * kind.itemsize))
    for value in values:
        block = np.full((3, 4, 2), value, kind)
        np.testing.assert_array_equal(halve_mean(block), block[:2, :2])
        np.testing.assert_array_equal(halve_mean(block, float(block[0, 0, 0])), block[:2, :2])


def test_halving_leaves_out_what_is_missing() -> None:
    broken = np.array([[[1.0], [np.nan]], [[3.0], [np.inf]]], np.float32)
    assert halve_mean(broken).ravel().tolist() == [2.0]
    assert halve_mean(broken, -9999.0).ravel().tolist() == [2.0]
    assert np.isnan(halve_mean(np.full((2, 2, 1), np.nan, np.float32))).all()
    colours = np.array([[[250, 200, 30], [0, 200, 30]], [[0, 200, 30], [0, 200, 30]]], np.uint8)
    assert halve_mean(colours, 0.0).ravel().tolist() == [62, 200, 30]  # a dark band is no missing pixel
    colours[0, 1:] = colours[1] = 0
    assert halve_mean(colours, 0.0).ravel().tolist() == [250, 200, 30]
    bits = np.array([[[True], [False]], [[False], [False]]])
    assert halve_mean(bits).ravel().tolist() == [False]
    assert halve_mean(~bits).ravel().tolist() == [True]


def test_what_is_hidden_leaves_no_fringe(tmp_path: Path) -> None:
    pixels = np.zeros((64, 4200, 4), np.uint8)
    pixels[:30, :4001] = (200, 100, 50, 255)
    pixels[30:] = (9, 9, 9, 0)
    source = ArraySource([pixels], "ortho", rgb=True)
    for _ in build_overviews(source, tmp_path):
        pass
    whole = with_overviews(source, tmp_path)
    np.testing.assert_array_equal(whole.read(Window(0, 0, 64, 4200)), pixels)
    for level, shape in enumerate(whole.levels):
        found = whole.read(Window.whole(shape), level)
        assert set(map(tuple, found[found[..., 3] > 0][:, :3])) == {(200, 100, 50)}
        assert found[..., 3].mean() == pytest.approx(pixels[..., 3].mean(), rel=0.01)
    hidden = halve_mean(pixels[40:42, :2], alpha=3)
    assert hidden.ravel().tolist() == [9, 9, 9, 0]
    plain = image((5, 7))
    seen = np.concatenate([plain, np.full((5, 7, 1), 3, np.uint8)], axis=2)
    np.testing.assert_array_equal(halve_mean(seen, alpha=3)[..., :3], halve_mean(plain))


def test_what_is_hidden_does_not_stand_in_for_what_is_missing() -> None:
    block = np.array([[[90, 0], [7, 255]], [[90, 0], [7, 255]]], np.uint8)  # seen, but nodata
    assert halve_mean(block, 7.0, 1).ravel().tolist() == [90, 128]
    assert halve_mean(block[:, 1:], 7.0, 1).ravel().tolist() == [7, 255]


@pytest.fixture
def wide() -> ArraySource:
    return ArraySource([image((64, 4200))], "wide")


def test_overviews_with_a_hole_are_built_again(wide: ArraySource, tmp_path: Path) -> None:
    path = run(build_overviews(wide, tmp_path))[0]
    assert isinstance(with_overviews(wide, tmp_path), OverviewSource)
    chunk = next(p for p in sorted((path / "2").rglob("*")) if p.is_file() and p.name != "zarr.json")
    chunk.unlink()
    assert with_overviews(wide, tmp_path) is wide
    assert run(build_overviews(wide, tmp_path))[0] == path
    assert isinstance(with_overviews(wide, tmp_path), OverviewSource)
    shutil.rmtree(path / "2")
    assert with_overviews(wide, tmp_path) is wide


def test_overviews_that_were_never_finished_are_replaced(wide: ArraySource, tmp_path: Path) -> None:
    path = overview_path(wide, tmp_path)
    (path / "2").mkdir(parents=True)
    assert run(build_overviews(wide, tmp_path))[0] == path
    assert isinstance(with_overviews(wide, tmp_path), OverviewSource)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_chunk_that_breaks_while_it_is_open_is_a_bad_tile(wide: ArraySource, tmp_path: Path) -> None:
    path = run(build_overviews(wide, tmp_path))[0]
    source = with_overviews(wide, tmp_path)
    for chunk in (path / "2").rglob("*"):
        if chunk.is_file() and chunk.name != "zarr.json":
            chunk.write_bytes(chunk.read_bytes()[:9])
    with pytest.raises(TileError, match="its cached pyramid is damaged"):
        source.read(Window(0, 0, 8, 8), 2)


def test_a_cache_that_cannot_be_written_is_one_sentence(wide: ArraySource, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(InputError, match="cache cannot be written"):
        run(build_overviews(wide, tmp_path / "cache"))


def test_two_builders_of_one_image_leave_one_whole_pyramid(wide: ArraySource, tmp_path: Path) -> None:
    first, second = build_overviews(wide, tmp_path), build_overviews(wide, tmp_path)
    next(first)
    next(second)
    assert run(first)[0] == run(second)[0]
    assert isinstance(with_overviews(wide, tmp_path), OverviewSource)
    assert len(list(tmp_path.iterdir())) == 1
