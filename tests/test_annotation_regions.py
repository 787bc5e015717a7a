from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_isdnet.annotation.regions import (
    FEW,
    TRAINING,
    VALIDATION,
    annotated_regions,
    region_hash,
    sample_windows,
    split_regions,
    split_store,
)
from napari_isdnet.annotation.store import AnnotationStore
from napari_isdnet.annotation.strokes import Brush, Rectangle
from napari_isdnet.annotation.suggest import next_regions
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.open import open_source
from napari_isdnet.window import Window

painted = st.dictionaries(st.integers(1, 4), st.integers(1, 5000), min_size=1)
places = st.dictionaries(st.tuples(st.integers(0, 200), st.integers(0, 200)), painted, max_size=90)


@pytest.fixture
def store(tmp_path):
    with AnnotationStore.create(tmp_path / "a.isdnet", (20_000, 20_000), ["a", "b", "c"]) as store:
        yield store


def classes_of(regions, chosen):
    return {value for place in chosen for value in regions[place]}


def only_judged(split, regions):
    return classes_of(regions, split.validation) - classes_of(regions, split.training)


@given(places, st.floats(0.05, 0.9))
def test_every_class_is_taught_and_something_judges_where_that_leaves_a_teacher(regions, fraction):
    split = split_regions(regions, 512, fraction)
    assert sorted((*split.training, *split.validation)) == sorted(regions)
    assert classes_of(regions, split.training) == classes_of(regions, regions)
    assert only_judged(split, regions) == set()
    spared = [p for p in regions if set(regions[p]) <= classes_of(regions, set(regions) - {p})]
    assert bool(split.validation) == bool(spared)
    for place in split.training:
        assert split.side(place) == TRAINING
    for place in split.validation:
        assert split.side(place) == VALIDATION


@given(places, places)
def test_painting_elsewhere_never_moves_a_region(first, later):
    before = split_regions(first, 512)
    after = split_regions({**later, **first}, 512, pins=before.pins)
    assert set(before.training) <= set(after.training)
    assert set(before.validation) <= set(after.validation)


@given(st.lists(st.integers(1, 50), min_size=5, max_size=FEW), st.floats(0.1, 0.5))
def test_of_a_few_regions_the_wanted_share_of_what_is_painted_judges(painted, fraction):
    pixels = {(n, 3 * n): {1: count} for n, count in enumerate(painted)}
    held = sum(pixels[place][1] for place in split_regions(pixels, 512, fraction).validation)
    assert abs(held - fraction * sum(painted)) <= max(painted) / 2 + 1e-9


def test_every_class_has_its_share_of_what_judges():
    pixels = {(n, 0): {1: 100} | ({2: 10} if n % 4 == 0 else {}) for n in range(40)}
    judging = split_regions(pixels, 512).validation
    assert len(judging) in (8, 9)
    assert sum(2 in pixels[place] for place in judging) == 2


def test_a_lone_region_teaches_and_nothing_judges_without_a_share():
    assert region_hash(512, (0, 0)) < 0.2
    assert split_regions({(0, 0): {1: 9}}, 512).training == ((0, 0),)
    both = split_regions({(0, 0): {1: 9}, (5, 5): {1: 9}}, 512)
    assert len(both.validation) == 1
    assert split_regions({(0, 0): {1: 9}, (5, 5): {1: 9}}, 512, 0, both.pins).validation == ()


@given(places, st.floats(0.05, 0.9))
def test_with_its_pins_a_split_is_the_same_whatever_is_known_of_the_classes(regions, fraction):
    split = split_regions(regions, 512, fraction)
    again = split_regions({place: {1: 1} for place in regions}, 512, fraction, split.pins)  # as a snapshot is read
    assert again == split


def test_a_class_that_came_to_a_judging_region_alone_is_taught_by_its_next_place():
    two = {(0, 0): {1: 9}, (5, 5): {1: 9}}
    split = split_regions(two, 512)
    (judge,) = split.validation
    two[judge] = {1: 9, 2: 4}
    again = split_regions(two, 512, pins=split.pins)
    assert again.validation == (judge,)  # a pin stays
    assert only_judged(again, two) == {2}
    two[(9, 9)] = {2: 4}
    third = split_regions(two, 512, pins=again.pins)
    assert (9, 9) in third.training
    assert only_judged(third, two) == set()


def test_of_many_regions_one_with_a_class_of_its_own_teaches():
    many = {(r, c): {1: 7} for r in range(20) for c in range(20)}
    judge = split_regions(many, 512).validation[3]
    many[judge] = {1: 7, 2: 7}
    split = split_regions(many, 512)
    assert judge in split.training
    assert len(split.pins) == 1
    own = {place: {number: 7} for number, place in enumerate(list(many)[:70], 1)}  # a class of its own to each
    assert split_regions(own, 512).validation == ()


def test_of_many_regions_the_hash_decides():
    many = {(r, c): {1: 7} for r in range(20) for c in range(20)}
    split = split_regions(many, 512)
    assert not split.pins
    assert set(split.validation) == {place for place in many if region_hash(512, place) < 0.2}


def test_hash_is_the_same_on_every_machine():
    assert region_hash(512, (0, 0)) == pytest.approx(0.0837614, abs=1e-6)
    share = np.mean([region_hash(512, (r, c)) < 0.2 for r in range(60) for c in range(60)])
    assert 0.18 < share < 0.22


def test_split_of_a_store_is_remembered_across_reopening(tmp_path):
    with AnnotationStore.create(tmp_path / "a.isdnet", (20_000, 20_000), ["a"]) as store:
        for place in range(3):
            store.paint(Brush([(place * 512 + 200, 5000)], 20), 0)
        split = split_store(store)
        assert len(split.validation) == 1
        assert split_store(store).pins == split.pins
    with AnnotationStore.open(tmp_path / "a.isdnet", rebuild=True) as store:
        for place in range(4, 12):
            store.paint(Brush([(place * 512 + 200, 5000)], 20), 0)
        again = split_store(store)
        assert set(split.validation) <= set(again.validation)
        assert set(split.training) <= set(again.training)
        assert len(again.validation) == 2


def test_regions_count_their_pixels_by_value(store):
    store.paint(Rectangle(Window(1000, 1000, 100, 100)), 0)  # crosses the border at 1024
    store.paint(Rectangle(Window(5000, 5000, 10, 10)), 2)
    assert annotated_regions(store, 1024) == {
        (0, 0): {1: 576}, (0, 1): {1: 1824}, (1, 0): {1: 1824}, (1, 1): {1: 5776}, (4, 4): {3: 100},
    }  # fmt: skip
    with pytest.raises(InputError, match="multiple of 512"):
        annotated_regions(store, 700)


def test_mask_of_a_side_is_the_union_of_its_regions(store):
    split = split_regions({(0, 0): {1: 1}, (3, 3): {1: 1}}, 512)
    window = Window(300, 200, 1200, 900)
    training, validation = split.mask(window), split.mask(window, VALIDATION)
    assert (training ^ validation).all()
    for row, column in [(0, 0), (500, 800), (1199, 899)]:
        side = split.side(((window.row + row) // 512, (window.column + column) // 512))
        assert training[row, column] == (side == TRAINING)


def test_windows_hold_annotation_of_their_side_and_all_classes_alike(store):
    rng = np.random.default_rng(0)
    for _ in range(30):
        store.paint(Brush([rng.uniform(0, 20_000, 2)], 60), 0)
    store.paint(Brush([(10_000, 10_000)], 3), 1)
    split = split_store(store, 1024)
    windows = sample_windows(store, 60, 400, seed=3, split=split)
    assert windows == sample_windows(store, 60, 400, seed=3, split=split)
    assert windows != sample_windows(store, 60, 400, seed=4, split=split)
    rare = 0
    for window in windows:
        assert Window.whole(store.shape).contains(window)
        assert window.shape == (400, 400)
        assert (store.read_labels(window)[split.mask(window)] > 0).any()
        rare += window.intersect(Window(9_990, 9_990, 20, 20)).area > 0
    if split.side((9, 9)) == TRAINING:
        assert rare >= 30
    held_out = sample_windows(store, 20, 400, seed=3, split=split, side=VALIDATION)
    assert all((store.read_labels(w)[split.mask(w, VALIDATION)] > 0).any() for w in held_out)


def test_windows_of_an_empty_or_small_image(tmp_path):
    with AnnotationStore.create(tmp_path / "b.isdnet", (100, 300), ["a"]) as store:
        assert sample_windows(store, 5, 256, seed=0) == []
        store.paint(Brush([(99, 299)], 2), 0)
        assert {w.shape for w in sample_windows(store, 5, 256, seed=0)} == {(100, 256)}


def test_suggestions_prefer_uncertain_places_far_from_annotation_and_from_each_other(store):
    uncertainty = np.random.default_rng(0).random((200, 200)) * 0.05
    uncertainty[10:20, 10:20] += 1  # window (1, 1) of 20 x 20: annotated already
    uncertainty[100:110, 150:160] += 0.9  # window (10, 15)
    uncertainty[100:110, 160:170] += 0.7  # beside it
    uncertainty[180:190, 20:30] += 0.68  # as good, far away
    uncertainty[:, :5] = np.nan  # nodata (only half of each window)
    store.paint(Rectangle(Window(1100, 1100, 50, 50)), 0)
    found = next_regions(uncertainty, store, window=1000, count=4, trust_from=0)
    assert [s.window for s in found[:3]] == [
        Window(10_000, 15_000, 1000, 1000),
        Window(18_000, 2_000, 1000, 1000),
        Window(10_000, 16_000, 1000, 1000),
    ]
    assert all(0 <= s.score <= 1 for s in found)
    assert Window(1000, 1000, 1000, 1000) not in [s.window for s in found]


def test_a_window_that_only_touches_an_annotated_chunk_is_not_annotated(store):
    store.paint(Rectangle(Window(700, 700, 20, 20)), 0)  # its chunk, 512 to 1024, lies in four windows of 634
    found = next_regions(np.ones((20, 20)), store, window=634, count=1, trust_from=8)
    assert found[0].trust == 1 / 9


def test_a_source_gives_the_suggestions_of_its_array(tmp_path):
    coarse = np.random.default_rng(1).random((24, 30)).astype("f4")
    with AnnotationStore.create(tmp_path / "c.isdnet", (2400, 3000), ["a"]) as store:
        store.paint(Rectangle(Window(0, 0, 5, 5)), 0)
        from_array = next_regions(coarse, store, window=100, count=5)
        from_source = next_regions(
            open_source(coarse.repeat(100, 0).repeat(100, 1), name="map"), store, window=100, count=5
        )
        assert [s.window for s in from_source] == [s.window for s in from_array]
        assert [s.score for s in from_source] == pytest.approx([s.score for s in from_array], abs=1e-5)


def test_disagreement_changes_the_order(store):
    even = np.full((20, 20), 0.5)
    disagreement = np.zeros((20, 20))
    disagreement[4, 7] = 1
    best = next_regions(even, store, disagreement=disagreement, window=1000, count=1, trust_from=0)[0]
    assert best.window == Window(4000, 7000, 1000, 1000)
    assert best.disagreement == 1


def test_few_strokes_go_to_typical_places_and_more_to_hard_ones(store):
    hard = np.arange(400.0).reshape(20, 20)  # the last window is the hardest, the middle ones are typical
    early = next_regions(hard, store, window=1000, count=5)
    assert early[0].trust == 0
    assert early[0].typicality > 0.99
    assert all(0.2 < s.uncertainty < 0.8 for s in early)
    for row in range(12):
        store.paint(Rectangle(Window(1000 * row, 0, 50, 50)), 0)
    late = next_regions(hard, store, window=1000, count=20)
    assert late[0].trust == 12 / 20
    assert [s.trust for s in late] == sorted(s.trust for s in late)
    assert np.mean([s.uncertainty for s in late]) > np.mean([s.uncertainty for s in early]) + 0.1


def test_equally_unsure_places_are_equally_typical(store):
    found = next_regions(np.ones((20, 20)), store, window=1000, count=400)
    assert {s.typicality for s in found} == {1.0}


@given(st.integers(1, 40), st.integers(1, 40), st.integers(100, 3000))
@settings(max_examples=30, deadline=None)
def test_means_of_any_resolution_equal_numpy(rows, columns, window):
    from napari_isdnet.annotation.suggest import _means
    from napari_isdnet.window import Grid

    grid = Grid((4000, 5000), (window, window))
    data = np.random.default_rng(rows * columns).random((rows, columns))
    data[data < 0.1] = np.nan
    means = _means(data, grid)
    for index in range(0, len(grid), 7):
        r, c = divmod(index, grid.counts[1])
        top, left = min(r * window * rows // 4000, rows - 1), min(c * window * columns // 5000, columns - 1)
        bottom = max(min((r + 1) * window * rows // 4000, rows), top + 1)
        right = max(min((c + 1) * window * columns // 5000, columns), left + 1)
        part = data[top:bottom, left:right]
        expected = np.nan if np.isnan(part).all() else np.nanmean(part)
        assert means[r, c] == pytest.approx(expected, nan_ok=True, abs=1e-9)


def test_maps_of_another_image_are_refused(store):
    with pytest.raises(InputError, match="map of the same image"):
        next_regions(open_source(np.zeros((10, 10), "f4"), name="map"), store)
    with pytest.raises(InputError, match="rows and columns"):
        next_regions(np.zeros(5), store)
