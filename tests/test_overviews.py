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


def in_cache(source: ArraySource, folder: Path) -> bool:
    whole = with_overviews(source, folder)
    assert isinstance(whole, OverviewSource)
    return whole.built


def test_levels_are_block_means_and_are_found_again(tmp_path: Path) -> None:
    pixels = image()
    source = ArraySource([pixels], "image")
    assert needs_overviews(source)
    assert not in_cache(source, tmp_path)
    path, steps = run(build_overviews(source, tmp_path))
    assert path == overview_path(source, tmp_path)
    assert steps[-1].fraction == 1
    whole = with_overviews(source, tmp_path)
    assert isinstance(whole, OverviewSource)
    assert whole.format.endswith("pyramid from the cache")
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
    assert not in_cache(source, tmp_path)


class Counting(ArraySource):
    """Remembers what is read of it."""

    def __init__(self, pixels: np.ndarray) -> None:
        super().__init__([pixels], "image")
        self.windows: list[Window] = []

    def _read(self, window: Window, level: int) -> np.ndarray:
        self.windows.append(window)
        return super()._read(window, level)


@pytest.mark.parametrize("shape", [(2501, 4303), (70, 9001)])
def test_levels_that_are_not_built_yet_hold_what_they_will(tmp_path: Path, shape: tuple[int, int]) -> None:
    pixels = image(shape)
    run(build_overviews(ArraySource([pixels], "image"), tmp_path))
    built = with_overviews(ArraySource([pixels], "image"), tmp_path)
    source = Counting(pixels)
    to_come = with_overviews(source, tmp_path / "empty")
    assert isinstance(to_come, OverviewSource)
    assert (to_come.levels, to_come.built) == (built.levels, False)
    for level, (rows, columns) in reversed(list(enumerate(built.levels))):
        part = Window(rows // 3, columns // 5, rows - rows // 3 - rows // 7, columns - columns // 5)
        for window in (part, Window.whole((rows, columns))):
            np.testing.assert_array_equal(to_come.read(window, level), built.read(window, level))
        assert level == 0 or max(read.area for read in source.windows) <= 2048**2
    coarse = next(level for level, found in enumerate(built.levels) if level >= 2 and max(found) <= 2048)
    source.windows.clear()
    for level in range(coarse, len(built.levels)):
        to_come.read(Window.whole(built.levels[level]), level)
    assert source.windows == []  # all of it is known by now


def test_what_is_built_is_ready_part_by_part(tmp_path: Path) -> None:
    pixels = image((2500, 4300))
    source = Counting(pixels)
    whole = with_overviews(source, tmp_path)
    assert isinstance(whole, OverviewSource)
    last = len(whole.levels) - 1
    left = Window(0, 0, 2048 >> last, 2048 >> last)
    assert all(whole.ready(level, Window(0, 0, 9, 9)) for level in (0, 1, 2))  # a look at a part of the image
    assert not whole.ready(last, left)
    work = whole.build()
    while not whole.ready(last, left):
        next(work)
    assert not whole.built
    right = Window(0, (2048 >> last) + 40, 8, 8)
    assert not whole.ready(last, right)
    everything = Window.whole(whole.levels[last])
    assert whole.ready(last, everything)  # a part of it
    assert not whole.known(everything, last)[right.slices].any()
    source.windows.clear()
    expected = pixels
    for _ in range(last):
        expected = halve_mean(expected)
    for found in (whole.known(everything, last)[left.slices], whole.read(left, last)):
        np.testing.assert_array_equal(found, expected[left.slices])
    assert source.windows == []
    np.testing.assert_array_equal(whole.read(everything, last), expected)  # who must know all of it waits
    run(work)
    assert whole.built
    assert whole.ready(last, Window.whole(whole.levels[last]))
    np.testing.assert_array_equal(whole.read(Window.whole(whole.levels[last]), last), expected)


def test_a_pyramid_that_is_given_up_is_made_of_what_one_looks_at(tmp_path: Path) -> None:
    pixels = image((2500, 4300))
    whole = with_overviews(ArraySource([pixels], "image"), tmp_path)
    assert isinstance(whole, OverviewSource)
    work = whole.build()
    next(work)
    work.close()
    assert list(tmp_path.iterdir()) == []
    everything = Window.whole(whole.levels[-1])
    assert whole.ready(len(whole.levels) - 1, everything)
    expected = pixels
    for _ in whole.levels[1:]:
        expected = halve_mean(expected)
    np.testing.assert_array_equal(whole.read(everything, len(whole.levels) - 1), expected)


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
    assert in_cache(wide, tmp_path)
    chunk = next(p for p in sorted((path / "2").rglob("*")) if p.is_file() and p.name != "zarr.json")
    chunk.unlink()
    assert not in_cache(wide, tmp_path)
    assert run(build_overviews(wide, tmp_path))[0] == path
    assert in_cache(wide, tmp_path)
    shutil.rmtree(path / "2")
    assert not in_cache(wide, tmp_path)


def test_overviews_that_were_never_finished_are_replaced(wide: ArraySource, tmp_path: Path) -> None:
    path = overview_path(wide, tmp_path)
    (path / "2").mkdir(parents=True)
    assert run(build_overviews(wide, tmp_path))[0] == path
    assert in_cache(wide, tmp_path)
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
    assert in_cache(wide, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
