"""The minimum mapping unit: what goes to which neighbour, over seams, in chains, at nodata, and in the polygons."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.measure import label

from napari_isdnet.exceptions import InputError
from napari_isdnet.io import sieve as module
from napari_isdnet.io.sieve import sieve
from napari_isdnet.io.vector import export_polygons
from napari_isdnet.progress import Clock, result_of
from napari_isdnet.window import Grid, Window
from tests.label_source import LabelSource

Labels = npt.NDArray[np.uint8]


def sieved(labels: Labels, smallest: int, core: int = 64, area: Window | None = None) -> Labels:
    area = Window.whole(labels.shape) if area is None else area
    grid, source = Grid(area.shape, (core, core)), LabelSource(labels)
    found = result_of(sieve(source, smallest, area, grid, Clock(area.area)))
    result = labels.copy()
    for local in grid:
        window = local.shifted(area.row, area.column)
        result[window.slices] = found.read(window)[..., 0]
    assert source.largest <= core * core
    return result


def one_by_one(labels: Labels, smallest: int) -> Labels:
    """The rule on the whole map, counted anew after every step."""
    labels = labels.copy()
    while True:
        areas = label(labels, background=255, connectivity=1)
        sizes = np.bincount(areas.ravel())
        # skimage numbers areas as they begin in rows
        order = sorted((int(sizes[k]), k) for k in range(1, len(sizes)) if sizes[k] < smallest)
        for _, k in order:
            around: dict[int, int] = {}
            for move in ((0, 1), (0, -1), (1, 0), (-1, 0)):
                beside = np.pad(areas, 1)[1 + move[0] :, 1 + move[1] :][: labels.shape[0], : labels.shape[1]]
                for other in beside[areas == k].tolist():
                    if other not in (0, k):
                        around[other] = around.get(other, 0) + 1
            if around:
                target = max(around, key=lambda other: (around[other], -other))
                labels[areas == k] = labels[areas == target][0]
                break
        else:
            return labels


def noise(shape: tuple[int, int], seed: int, values: tuple[int, ...] = (0, 1, 2, 255)) -> Labels:
    return np.random.default_rng(seed).choice(np.array(values, np.uint8), shape)


def blobs(shape: tuple[int, int], seed: int) -> Labels:
    rng = np.random.default_rng(seed)
    labels = np.argmax([ndimage.gaussian_filter(rng.normal(size=shape), 1.2) for _ in range(3)], axis=0)
    return np.where(ndimage.gaussian_filter(rng.normal(size=shape), 2) > 0.2, 255, labels).astype(np.uint8)


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(1, 24), st.integers(1, 24)),
    st.integers(0, 10**6),
    st.integers(2, 40),
    st.integers(4, 30),
    st.sampled_from([noise, blobs, lambda shape, seed: noise(shape, seed, (0, 1))]),
)
def test_it_is_the_rule_whatever_windows_are_read(
    shape: tuple[int, int], seed: int, smallest: int, core: int, make: Any
) -> None:
    labels = make(shape, seed)
    found = sieved(labels, smallest, core)
    np.testing.assert_array_equal(found, one_by_one(labels, smallest))
    np.testing.assert_array_equal(found == 255, labels == 255)


def test_the_longest_border_decides_not_the_larger_neighbour() -> None:
    labels = np.zeros((20, 20), np.uint8)
    labels[:, 12:] = 1
    labels[9:11, 10:13] = 2  # 6 pixels: of its border 6 are with class 0, 4 with class 1
    assert (sieved(labels, 7)[9:11, 10:13] == 0).all()
    labels[9:11, 10:13] = 0
    labels[9:11, 11:14] = 2
    assert (sieved(labels, 7)[9:11, 11:14] == 1).all()
    assert (sieved(labels, 6) == labels).all()  # 6 pixels are not fewer than 6


def test_a_chain_of_small_areas_and_a_thread_over_many_windows() -> None:
    labels = np.zeros((40, 40), np.uint8)
    labels[10:16, 10:16] = 1
    labels[12:14, 12:14] = 2  # 4 pixels within 32 within the rest
    assert not sieved(labels, 40, core=12).any()
    labels = np.zeros((8, 400), np.uint8)
    labels[4] = 1  # 400 pixels, of which no window holds more than 8
    np.testing.assert_array_equal(sieved(labels, 400, core=8), labels)
    assert not sieved(labels, 401, core=8).any()


def test_what_is_alone_in_nodata_stays_and_a_region_counts_for_itself() -> None:
    labels = np.full((30, 30), 255, np.uint8)
    labels[3:5, 3:5] = 1
    labels[10:, 10:] = 2
    labels[20:24, 8:10] = 0
    found = sieved(labels, 100)
    assert (found[3:5, 3:5] == 1).all()
    assert (found[20:24, 8:10] == 2).all()
    cut = sieved(labels, 7, area=Window(22, 0, 8, 30))  # of the area of 8 pixels 4 lie in it
    assert (cut[22:24, 8:10] == 2).all()
    assert (cut[20:22, 8:10] == 0).all()


def test_a_caller_hears_of_long_merging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_AT_ONCE", 10)
    labels = noise((40, 40), 1)
    steps: list[Any] = []
    clock = Clock(labels.size)
    result_of(
        sieve(LabelSource(labels), 30, Window.whole(labels.shape), Grid(labels.shape, (64, 64)), clock), steps.append
    )
    assert len([step for step in steps if step.window is None]) > 10
    assert {step.fraction for step in steps} == {1.0}


def test_polygons_tile_what_they_did(tmp_path: Path) -> None:
    labels = blobs((150, 130), 4)
    areas = {}
    for smallest in (1, 25):
        steps: list[Any] = []
        path = tmp_path / f"{smallest}.geojson"
        job = export_polygons(LabelSource(labels), path, ["a", "b", "c"], min_area=smallest, core=48)
        result_of(job, steps.append)
        assert steps[-1].fraction == 1.0
        assert [step.fraction for step in steps] == sorted(step.fraction for step in steps)
        shapes = [shapely.geometry.shape(f["geometry"]) for f in json.loads(path.read_text())["features"]]
        areas[smallest] = [shape.area for shape in shapes]
        assert sum(areas[smallest]) == shapely.union_all(shapes).area == np.count_nonzero(labels != 255)
    assert min(areas[1]) < 25
    apart = label(labels != 255, connectivity=1)
    alone = [size for size in np.bincount(apart.ravel())[1:] if size < 25]
    assert sorted(size for size in areas[25] if size < 25) == sorted(alone)


def test_no_area_is_smaller_than_a_pixel(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="number of pixels from 1, got 0"):
        result_of(export_polygons(LabelSource(noise((9, 9), 1)), tmp_path / "a.geojson", ["a"] * 3, min_area=0))
    assert not list(tmp_path.iterdir())
