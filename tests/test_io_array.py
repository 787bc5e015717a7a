"""Arrays as sources: what their axes and channels mean."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile

from napari_isdnet.io.array import ArraySource
from napari_isdnet.io.intensity import IntensityPolicy
from napari_isdnet.io.open import open_source
from napari_isdnet.io.scaled import resampled
from napari_isdnet.window import Window


def test_the_fourth_channel_of_colours_is_alpha_as_in_a_file(tmp_path) -> None:
    pixels = np.random.default_rng(0).integers(1, 256, (40, 60, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    pixels[:, 30:, 3] = 0
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, photometric="rgb", extrasamples=["unassalpha"])
    found = []
    for source in (ArraySource([pixels], "layer", rgb=True), open_source(path)):
        assert source.alpha == 3
        rgb, valid = IntensityPolicy.from_source(source).apply(source.read(Window(0, 0, 40, 60)))
        assert valid is not None
        np.testing.assert_array_equal(valid, pixels[..., 3] > 0)
        found.append(rgb)
    np.testing.assert_array_equal(*found)


def test_four_channels_that_are_not_said_to_be_colours_have_no_alpha() -> None:
    assert ArraySource([np.zeros((40, 60, 4), np.uint8)], "bands").alpha is None
    assert ArraySource([np.zeros((40, 60, 3), np.uint8)], "picture", rgb=True).alpha is None


@pytest.mark.parametrize(
    ("shape", "rows", "channels"),
    [((9000, 1000, 5), 9000, 5), ((7000, 1000, 5), 7000, 5), ((300, 20, 25), 20, 1), ((5, 1000, 900), 1000, 5)],
)
def test_an_axis_that_is_too_short_for_columns_holds_channels(shape: tuple[int, ...], rows: int, channels: int) -> None:
    source = ArraySource([np.zeros(shape, np.uint8)], "a")
    assert (source.shape[0], source.channels) == (rows, channels)


@pytest.mark.parametrize("dtype", ["uint64", "int64", "uint16", "int8"])
def test_the_largest_numbers_stay_what_they_are_when_resampled(dtype: str) -> None:
    limits = np.iinfo(dtype)
    pixels = np.full((64, 64), limits.max, dtype)
    pixels[:, 32:] = limits.min
    small = resampled(ArraySource([pixels], "a"), 0.5)
    found = small.read(Window.whole(small.shape))[..., 0]
    assert found.dtype == np.dtype(dtype)
    assert (found[:, :14] == limits.max).all()
    assert (found[:, 18:] == limits.min).all()
