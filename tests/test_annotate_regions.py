"""Areas that one click finds: where they lie on images of any pyramid, and what they see beside nodata; next places."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("qtpy")  # the package of widgets needs it, these functions do not

from napari_isdnet.annotation.store import AnnotationStore
from napari_isdnet.annotation.suggest import Suggestion
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.array import ArraySource
from napari_isdnet.io.sampling import level_for
from napari_isdnet.widgets._annotate_controller import class_named
from napari_isdnet.widgets._annotate_regions import predicted_region, stroke_of, superpixel, window_around
from napari_isdnet.widgets._next_region import Guide, mixed, why
from napari_isdnet.window import Window


class Heights(ArraySource):
    nodata = -9999.0


def covered(stroke, full: tuple[int, int]) -> np.ndarray:
    return np.broadcast_to(stroke.cover(full).mask(Window.whole(full)), full)


@pytest.mark.parametrize("factor", [1.5, 3, 6, 9, 12])
def test_an_area_of_a_level_lies_where_the_level_does_also_when_its_factor_is_no_power_of_two(factor: float) -> None:
    shape, at = (60, 80), (slice(50, 55), slice(70, 76))  # far from the origin, where an error has added up
    full = (int(shape[0] * factor), int(shape[1] * factor))
    rows, columns = (np.floor((np.arange(n) + 0.5) / factor).astype(int) for n in full)
    expected = np.zeros(shape, bool)
    expected[at] = True
    stroke = stroke_of(np.ones((5, 6), bool), Window(50, 70, 5, 6), shape, full)
    assert np.array_equal(covered(stroke, full), expected[np.ix_(rows, columns)])


@pytest.mark.parametrize("full", [(6001, 8003), (6000, 8003)])
def test_a_level_of_rounded_sides_is_still_one_of_a_power_of_two(full: tuple[int, int]) -> None:
    stroke = stroke_of(np.ones((2, 2), bool), Window(10, 20, 2, 2), (1500, 2000), full)  # 4.0007, 4.0015
    assert stroke.kind == "region"
    assert np.argwhere(covered(stroke, full)).min(axis=0).tolist() == [40, 80]


def test_a_prediction_on_a_pyramid_of_factor_3_is_accepted_under_the_pointer() -> None:
    fine = np.zeros((600, 600), np.uint8)
    fine[450:540, 480:570] = 1
    value, stroke = predicted_region([fine, fine[1::3, 1::3]], (500, 520), 3.0)
    assert value == 1
    assert np.array_equal(covered(stroke, fine.shape), fine == 1)


@pytest.mark.parametrize("method", ["slic", "felzenszwalb"])
def test_a_superpixel_beside_nodata_sees_the_edge_and_stays_on_the_image(method: str) -> None:
    pixels = np.full((300, 300), 0.2, np.float32)
    pixels[:, 150:] = 0.8
    pixels[:120] = -9999
    source = Heights([pixels], "height")
    found = covered(superpixel(source, (140, 135), 40, 1.0, method), (300, 300))
    assert found[140, 135]
    assert not found[:, 152:].any()
    assert not found[:120].any()
    with pytest.raises(InputError, match="no data here"):
        superpixel(source, (20, 20), 40, 1.0, method)


def test_a_class_that_differs_in_case_is_the_same_class(tmp_path) -> None:
    with AnnotationStore.create(tmp_path / "a.isdnet", (64, 64), ["Building"]) as store:
        assert class_named(store, "building") == 0
        assert class_named(store, "road") == 1
        assert [c.name for c in store.classes] == ["Building", "road"]
        store.rename_class(0, "house")
        assert class_named(store, "building") == 0  # in a map that was made before
        assert class_named(store, "hut") == 2


@given(st.integers(0, 4), st.integers(0, 60), st.integers(0, 60), st.integers(0, 2**32 - 1))
def test_a_mask_of_any_level_covers_its_pixels_at_level_0(level: int, row: int, column: int, seed: int) -> None:
    factor = 2**level
    mask = np.random.default_rng(seed).random((9, 7)) < 0.5
    mask[4, 3] = True
    full = (80 * factor - factor // 2, 90 * factor)
    shape = (80, 90)
    expected = np.zeros(shape, bool)
    expected[row : row + 9, column : column + 7] = mask
    large = np.repeat(np.repeat(expected, factor, 0), factor, 1)[: full[0], : full[1]]
    stroke = stroke_of(mask, Window(row, column, 9, 7), shape, full)
    assert np.array_equal(stroke.cover(full).mask(Window.whole(full)), large)


def test_a_large_region_is_kept_as_outlines_and_is_exact(monkeypatch) -> None:
    from napari_isdnet.widgets import _annotate_regions as regions

    mask = np.random.default_rng(0).random((12, 12)) < 0.5
    args = (mask, Window(3, 5, 12, 12), (32, 32), (128, 128))
    small = stroke_of(*args)
    monkeypatch.setattr(regions, "_LARGEST_MASK", 1)
    large = stroke_of(*args)
    assert (small.kind, large.kind) == ("region", "polygon")
    whole = Window(0, 0, 128, 128)
    assert np.array_equal(small.cover((128, 128)).mask(whole), large.cover((128, 128)).mask(whole))


def test_predicted_region_reads_a_bounded_window_of_the_displayed_level() -> None:
    class Level:
        def __init__(self, side: int) -> None:
            self.shape = (side, side)

        def __getitem__(self, key: tuple[slice, slice]) -> np.ndarray:
            rows, columns = (k.stop - k.start for k in key)
            assert rows * columns <= 1024 * 1024
            assert self.shape == (25_000, 25_000)
            return np.full((rows, columns), 2, np.uint8)

    value, stroke = predicted_region([Level(100_000), Level(50_000), Level(25_000)], (50_000, 50_000), 5.0)
    assert value == 2
    assert stroke.cover((100_000, 100_000)).bounds.area == (4 * 1024) ** 2


def test_superpixel_stops_at_an_edge_and_works_in_grey_and_16_bit() -> None:
    pixels = np.full((600, 600), 1000, np.uint16)
    pixels[:, 300:] = 9000
    source = ArraySource([pixels], "grey")
    for method in ("slic", "felzenszwalb"):
        cover = superpixel(source, (300, 280), 40, 1.0, method).cover((600, 600))
        mask = cover.mask(Window.whole((600, 600)))
        assert mask[300, 280]
        assert mask[:, 302:].sum() == 0
    with pytest.raises(InputError, match="slic or felzenszwalb"):
        superpixel(source, (1, 1), 40, 1.0, "magic")
    with pytest.raises(InputError, match="outside the image"):
        window_around((700, 0), (600, 600), (600, 600), 10)


def test_the_level_that_is_read_has_a_pixel_for_each_on_the_screen() -> None:
    shapes = [(1000, 800), (500, 400), (250, 200)]
    assert [level_for(shapes, z) for z in (0.1, 1, 1.9, 2, 3.9, 4, 100)] == [0, 0, 0, 1, 1, 2, 2]


def test_reasons_and_mixed_maps() -> None:
    labels = np.zeros((4, 4))
    labels[:, 2:] = 1
    labels[3, 0] = np.nan
    found = mixed(labels)
    assert found[0].tolist() == [0, 1, 0, 0]
    assert np.isnan(found[3, 0])
    place = Suggestion(Window(0, 0, 5, 5), 0.9, 0.8, 0.4, 1.0)
    assert why(place, Guide(uncertainty=object())).startswith("The network is unsure here (80% of")
    ordinary = replace(place, uncertainty=0.3, typicality=0.9, trust=0.2)
    assert why(ordinary, Guide(uncertainty=object())).startswith("An ordinary place, which teaches most")
    assert why(replace(ordinary, trust=0.7), Guide(prediction=object())).startswith("The prediction is mixed here")
    assert "branches disagree (40%)" in why(place, Guide(branches=(object(), object())))
    assert why(place, Guide()).startswith("Far from what is painted. Segment")
