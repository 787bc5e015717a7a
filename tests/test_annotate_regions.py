"""Areas that one click finds: where they lie on images of any pyramid, and what they see beside nodata."""

from __future__ import annotations

import numpy as np
import pytest

from napari_isdnet.annotation.store import AnnotationStore
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.array import ArraySource
from napari_isdnet.widgets._annotate_controller import class_named
from napari_isdnet.widgets._annotate_regions import predicted_region, stroke_of, superpixel
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
