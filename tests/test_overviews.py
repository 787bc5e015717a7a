"""Coarser levels built once into the cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from napari_isdnet.io.array import ArraySource
from napari_isdnet.io.overviews import (
    OverviewSource,
    build_overviews,
    halve_mean,
    needs_overviews,
    overview_path,
    with_overviews,
)
from napari_isdnet.window import Window, pyramid_shapes


def image(shape=(2500, 4300)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


def run(generator):
    steps = []
    while True:
        try:
            steps.append(next(generator))
        except StopIteration as stop:
            return stop.value, steps


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
