"""Thin strokes are taken to the superpixels they lie in: not across an edge, nor over areas, classes or regions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from napari_isdnet_training.finetune import finetune
from napari_isdnet_training.snapshot import take_snapshot
from napari_isdnet_training.spread import SpreadLabels, spread
from napari_isdnet_training.strokecrops import Normaliser, StrokeCrops, _teaching_strokes, held_out

from napari_isdnet.annotation.store import AnnotationStore
from napari_isdnet.annotation.strokes import Brush, Rectangle
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.array import ArraySource
from napari_isdnet.io.intensity import IntensityPolicy
from napari_isdnet.window import Window

SIDE = 1100


def halves(shape: tuple[int, int]) -> np.ndarray[Any, Any]:
    """Red to the left, blue to the right."""
    pixels = np.zeros((*shape, 3), np.float32)
    pixels[:, : shape[1] // 2, 0] = 200
    pixels[:, shape[1] // 2 :, 2] = 200
    return pixels


def test_a_stroke_goes_to_the_edge_and_no_further() -> None:
    labels = np.zeros((128, 128), np.uint8)
    labels[20:100, 58:61] = 2  # 3 pixels from the edge between the colours
    taken = spread(labels, halves(labels.shape), 16)
    assert not taken[:, 64:].any()
    assert (taken > 0).sum() > 2 * (labels > 0).sum()
    assert set(np.unique(taken)) == {0, 2}
    assert not taken[:, :30].any()  # only what was touched


def test_areas_and_disputed_superpixels_stay_as_they_are() -> None:
    area = np.zeros((96, 96), np.uint8)
    area[30:60, 10:40] = 1
    assert np.array_equal(spread(area, halves(area.shape), 16), area)
    whole = np.ones((96, 96), np.uint8)
    assert np.array_equal(spread(whole, halves(whole.shape), 16), whole)
    cut = np.zeros((96, 96), np.uint8)
    cut[30:60, :10] = 1  # goes on beyond the array, so it is wider than it looks
    assert np.array_equal(spread(cut, halves(cut.shape), 16)[:, 16:], cut[:, 16:])
    both = np.zeros((16, 16), np.uint8)  # one superpixel in all
    both[4, 2:6] = 1
    both[10, 2:6] = 2
    assert np.array_equal(spread(both, np.zeros((16, 16, 3), np.float32), 16), both)


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.integers(24, 90), st.integers(24, 90), st.integers(4, 40))
def test_what_is_painted_stays_and_nothing_else_appears(seed: int, height: int, width: int, side: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.zeros((height, width), np.uint8)
    for value in range(1, 4):
        row, column = rng.integers(height - 3), rng.integers(width - 12)
        labels[row : row + 3, column : column + 12] = value
    before = labels.copy()
    taken = spread(labels, rng.uniform(0, 255, (height, width, 3)).astype(np.float32), side)
    assert np.array_equal(labels, before)
    assert np.array_equal(taken[labels > 0], labels[labels > 0])
    assert set(np.unique(taken)) <= set(np.unique(labels))


@pytest.fixture
def image() -> ArraySource:
    rng = np.random.default_rng(0)
    colors = rng.integers(0, 256, (SIDE // 50, SIDE // 50, 3)).astype(np.uint8)
    return ArraySource([colors.repeat(50, axis=0).repeat(50, axis=1)], name="squares")


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with AnnotationStore.create(tmp_path / "store", (SIDE, SIDE), ("a", "b")) as store:
        for number, row in enumerate(range(25, SIDE, 150)):
            store.paint(Brush([(row, 30.0), (row, SIDE - 30.0)], 2), number % 2)
        store.paint(Rectangle(Window(560, 700, 60, 80)), 1)
        yield store


def test_nothing_passes_from_a_chunk_to_another(image: ArraySource, store: AnnotationStore) -> None:
    snapshot = take_snapshot(store)
    pixels = Normaliser(image, IntensityPolicy.from_source(image), (0, 0, 0), (1, 1, 1))
    labels = SpreadLabels(snapshot, pixels, 16)
    whole = labels.read_labels(Window.whole(snapshot.shape))
    plain = snapshot.read_labels(Window.whole(snapshot.shape))
    assert (whole > 0).sum() > 1.5 * (plain > 0).sum()
    assert np.array_equal(whole[plain > 0], plain[plain > 0])
    for window in (Window(0, 0, 300, 300), Window(500, 490, 130, 610), Window(1000, 1000, 100, 100)):
        assert np.array_equal(labels.read_labels(window), whole[window.slices])
    top = whole[:512, :512]
    alone = spread(plain[:512, :512], pixels.pixels(Window(0, 0, 512, 512))[0], 16)
    assert np.array_equal(top, alone)


def test_an_area_that_a_chunk_cuts_stays_an_area(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1024, 512, 3), dtype=np.uint8)
    with AnnotationStore.create(tmp_path / "store", (1024, 512), ("a",)) as store:
        store.paint(Rectangle(Window(360, 100, 157, 157)), 0)  # its last five rows lie in the chunk below
        snapshot = take_snapshot(store)
    image = ArraySource([noise], name="noise")
    labels = SpreadLabels(snapshot, Normaliser(image, IntensityPolicy.from_source(image), (0, 0, 0), (1, 1, 1)), 16)
    whole = Window.whole(snapshot.shape)
    assert np.array_equal(labels.read_labels(whole), snapshot.read_labels(whole))


def test_strokes_that_teach_are_those_in_training_regions_by_age(store: AnnotationStore) -> None:
    snapshot = take_snapshot(store)
    teaches = snapshot.split.mask(Window.whole(snapshot.shape))
    wanted: dict[int, list[tuple[int, int]]] = {}
    for rank, row, column in snapshot.points.tolist():
        if teaches[row, column]:
            wanted.setdefault(rank, []).append((row, column))
    assert len(wanted) > 0
    assert sum(map(len, wanted.values())) < len(snapshot.points)
    found = [[tuple(point) for point in stroke.tolist()] for stroke in _teaching_strokes(snapshot)]
    assert found == [wanted[rank] for rank in sorted(wanted)]


@pytest.mark.long
def test_crops_are_taught_more_and_judged_by_strokes_alone(image: ArraySource, store: AnnotationStore) -> None:
    snapshot = take_snapshot(store)
    pixels = Normaliser(image, IntensityPolicy.from_source(image), (0, 0, 0), (1, 1, 1))
    plain, more = (StrokeCrops(snapshot, pixels, 256, 0, 20, side) for side in (0, 16))
    counts = [[int((crops[n][1] != 255).sum()) for n in range(20)] for crops in (plain, more)]
    assert all(few <= many for few, many in zip(*counts, strict=True))
    assert sum(counts[1]) > 1.5 * sum(counts[0])
    assert snapshot.split.validation
    judged = sum(int((target != 255).sum()) for _, (_, target) in held_out(snapshot, pixels, 256))
    teaches = snapshot.split.mask(Window.whole(snapshot.shape))
    assert judged == int(((snapshot.read_labels(Window.whole(snapshot.shape)) > 0) & ~teaches).sum())


@pytest.mark.parametrize("side", [-1, 3, 129])
def test_sizes_that_make_no_sense_are_refused(side: int, image: ArraySource, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"4 to 128 pixels a side, or 0 for none, got {side}"):
        next(finetune(image, tmp_path, "landcover-lite", output=tmp_path / "m.safetensors", spread=side))
