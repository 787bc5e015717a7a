"""From samples to RGB: what is stretched, what is masked, and that every pixel is mapped by itself."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_isdnet.exceptions import InputError
from napari_isdnet.io.array import ArraySource
from napari_isdnet.io.intensity import IntensityPolicy, parse_channels, parse_contrast, sample_windows
from napari_isdnet.io.open import open_source
from napari_isdnet.io.overviews import build_overviews, with_overviews
from napari_isdnet.io.scaled import resampled
from napari_isdnet.io.source import TileError
from napari_isdnet.window import Window

RNG = np.random.default_rng(5)


class WithFacts(ArraySource):
    """An array that declares nodata or alpha and can be told to fail in places."""

    def __init__(self, data, nodata=None, alpha=None, bad=()):
        super().__init__([data], "array")
        self._nodata, self._alpha, self._bad = nodata, alpha, bad
        self.pixels_read = 0

    @property
    def nodata(self):
        return self._nodata

    @property
    def alpha(self):
        return self._alpha

    def _read(self, window, level):
        self.pixels_read += window.area
        for place in self._bad:
            if not place.intersect(window).empty:
                raise TileError(self.name, place, level, "bad")
        return super()._read(window, level)


def test_eight_bit_is_never_stretched():
    image = RNG.integers(40, 60, (30, 40, 3), np.uint8)
    for contrast in ("auto", "none"):
        rgb, valid = IntensityPolicy.from_source(open_source(image), contrast).apply(image)
        assert rgb.dtype == np.float32
        assert valid is None
        np.testing.assert_array_equal(rgb, image)


def test_grey_becomes_rgb():
    image = RNG.integers(0, 255, (30, 40), np.uint8)
    rgb, _ = IntensityPolicy.from_source(open_source(image)).apply(image[..., None])
    np.testing.assert_array_equal(rgb, np.dstack([image] * 3))


@pytest.mark.parametrize("dtype", [np.uint16, np.float32, np.int16, np.float64])
def test_others_by_percentiles_of_each_channel(dtype):
    image = (RNG.random((80, 90, 3)) * (1000, 300, 50) + 7).astype(dtype)
    policy = IntensityPolicy.from_source(open_source(image))
    rgb, _ = policy.apply(image)
    for c in range(3):
        low, high = np.percentile(image[..., c].astype(float), (0.5, 99.5))
        expected = np.clip((image[..., c].astype(float) - low) / (high - low) * 255, 0, 255)
        np.testing.assert_allclose(rgb[..., c], expected, atol=1e-3)


def test_none_and_given_limits():
    image = np.array([[[0], [13107], [65535]]], np.uint16)
    source = open_source(image[..., 0])
    np.testing.assert_allclose(IntensityPolicy.from_source(source, "none").apply(image)[0][0, :, 0], [0, 51, 255])
    rgb, _ = IntensityPolicy.from_source(source, (0, 26214)).apply(image)
    np.testing.assert_allclose(rgb[0, :, 1], [0, 127.5, 255])
    rgb, _ = IntensityPolicy.from_source(source, "0,26214").apply(image)
    np.testing.assert_allclose(rgb[0, :, 1], [0, 127.5, 255])
    rgb, _ = IntensityPolicy.from_source(open_source(np.array([[10, 20]], np.uint8)), (10, 20)).apply(
        np.array([[[10], [20]]], np.uint8)
    )
    np.testing.assert_allclose(rgb[0, :, 0], [0, 255])


def test_channels_are_picked_and_alpha_is_never_a_colour():
    image = RNG.integers(0, 255, (20, 20, 5), np.uint8)
    rgb, _ = IntensityPolicy.from_source(open_source(image, axes="yxc"), channels=(4, 0, 2)).apply(image)
    np.testing.assert_array_equal(rgb, image[..., [4, 0, 2]])
    image[..., 1] = np.where(np.arange(20) < 7, 0, 255)
    policy = IntensityPolicy.from_source(WithFacts(image[..., :2], alpha=1))
    assert policy.channels == (0,)
    rgb, valid = policy.apply(image[..., :2])
    np.testing.assert_array_equal(valid, np.broadcast_to(np.arange(20) >= 7, (20, 20)))
    assert (rgb[~valid] == 0).all()
    np.testing.assert_array_equal(rgb[valid][:, 2], image[..., 0][valid])
    assert IntensityPolicy.from_source(WithFacts(image[..., :4], alpha=0)).channels == (1, 2, 3)
    for bad in ((0, 1), (0, 1, 5), (-1,), ()):
        with pytest.raises(InputError, match="channels 0 to 4"):
            IntensityPolicy.from_source(open_source(image, axes="yxc"), channels=bad)


def test_a_band_that_is_named_is_no_mask_though_the_file_calls_it_alpha():
    image = np.full((8, 9, 4), 90, np.uint8)
    image[2, 3, 3] = 0  # near infrared
    source = WithFacts(image, alpha=3)
    pixels, valid = IntensityPolicy.from_source(source, "auto", (3, 0, 1)).apply(image)
    assert valid is None
    assert pixels[2, 3].tolist() == [0, 90, 90]
    _, valid = IntensityPolicy.from_source(source).apply(image)
    assert valid is not None
    assert not valid[2, 3]


def test_nodata_counts_only_where_every_band_has_it_and_is_no_part_of_the_percentiles():
    image = RNG.integers(1000, 2000, (50, 60, 3)).astype(np.int16)
    image[:20] = -9999
    image[30, :, 0] = -9999
    policy = IntensityPolicy.from_source(WithFacts(image, nodata=-9999))
    _, valid = policy.apply(image)
    assert not valid[:20].any()
    assert valid[20:].all()
    assert min(policy.low[1:]) >= 1000


def test_not_finite_is_never_valid():
    image = RNG.random((20, 30, 3)).astype(np.float32)
    image[3, 4, 1], image[5, 6, 0], image[7, 8, 2] = np.nan, np.inf, -np.inf
    policy = IntensityPolicy.from_source(open_source(image))
    with np.errstate(all="raise"):
        rgb, valid = policy.apply(image)
    assert np.isfinite(rgb).all()
    assert sorted(map(tuple, np.argwhere(~valid))) == [(3, 4), (5, 6), (7, 8)]


def test_one_value_or_none_at_all():
    for image in (np.full((9, 9), 500, np.uint16), np.full((9, 9), np.nan, np.float32), np.full((9, 9), -2.5)):
        policy = IntensityPolicy.from_source(open_source(image))
        assert np.isfinite(policy.apply(image[..., None])[0]).all()


@given(st.data())
def test_every_pixel_is_mapped_by_itself(data):
    seed = data.draw(st.integers(0, 99))
    image = np.random.default_rng(seed).integers(0, 4000, (24, 31, 3)).astype(np.uint16)
    policy = IntensityPolicy.from_source(WithFacts(image, nodata=0))
    top, left = data.draw(st.integers(0, 23)), data.draw(st.integers(0, 30))
    part = slice(top, data.draw(st.integers(top, 24))), slice(left, data.draw(st.integers(left, 31)))
    whole, valid = policy.apply(image)
    crop, crop_valid = policy.apply(image[part])
    np.testing.assert_array_equal(crop, whole[part])
    np.testing.assert_array_equal(crop_valid, valid[part])


def test_little_is_read_of_a_large_image_without_a_pyramid():
    source = WithFacts(np.broadcast_to(np.arange(40_000, dtype=np.uint16), (40_000, 40_000)))
    policy = IntensityPolicy.from_source(source)
    assert source.pixels_read <= 4 << 20
    assert policy.low[0] < 1500
    assert policy.high[0] > 38_500
    level, windows = sample_windows(source)
    assert all(Window.whole(source.levels[level]).contains(w) for w in windows)


def test_the_coarse_level_is_used_and_bad_tiles_are_passed_over():
    coarse = np.full((300, 300), 77, np.uint16)
    source = ArraySource([np.zeros((2400, 2400), np.uint16), coarse], "a")
    assert IntensityPolicy.from_source(source).low == (77.0,)
    image = np.broadcast_to(np.arange(3000, dtype=np.uint16), (3000, 3000))
    policy = IntensityPolicy.from_source(WithFacts(image, bad=[Window(0, 0, 500, 500)]))
    assert policy.high[0] > 2900


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_overviews_that_were_built_for_looking_change_nothing(tmp_path, factor):
    source = ArraySource([RNG.integers(0, 60_000, (96, 12_000)).astype(np.uint16)], "a")
    before = IntensityPolicy.from_source(resampled(source, factor))
    for _ in build_overviews(source, tmp_path):
        pass
    whole = with_overviews(source, tmp_path)
    assert whole.levels[1:] != source.levels[1:]
    assert IntensityPolicy.from_source(resampled(whole, factor)) == before


def test_json_holds_all_of_it():
    for nodata in (None, 0.0, float("nan"), -9999.0):
        policy = IntensityPolicy((2, 1, 0), (0.5, 1.0, 2.0), (10.0, 20.0, 30.25), "auto", nodata, 3)
        told = json.loads(json.dumps(policy.to_dict(), allow_nan=False))
        values = {"channels": [2, 1, 0], "low": [0.5, 1.0, 2.0], "high": [10.0, 20.0, 30.25], "contrast": "auto"}
        assert told == values | {"nodata": "nan" if nodata != nodata else nodata, "alpha": 3}
    with pytest.raises(InputError):
        IntensityPolicy((0,), (5.0,), (5.0,))
    with pytest.raises(InputError):
        policy.apply(np.zeros((4, 4, 2), np.uint8))


def test_what_users_type():
    assert parse_contrast("auto") == "auto"
    assert parse_contrast("-3,1e3") == (-3.0, 1000.0)
    assert parse_channels("3,0,1") == (3, 0, 1)
    assert parse_channels(" 2") == (2,)
    for text in ("", "5", "9,3", "nan,5", "1,2,3", "a,b"):
        with pytest.raises(InputError, match="LOW below HIGH"):
            parse_contrast(text)
    for text in ("red", "", "1,2", "-1", "0,1,2,3"):
        with pytest.raises(InputError, match="three channel numbers"):
            parse_channels(text)


def test_nodata_that_the_samples_cannot_hold_matches_nothing() -> None:
    policy = IntensityPolicy(channels=(0,), low=(0.0,), high=(255.0,), contrast="none", nodata=-9999.0, alpha=None)
    raw = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    valid = policy.valid(raw)
    assert valid is None or valid.all()
    float_policy = IntensityPolicy(channels=(0,), low=(0.0,), high=(1.0,), contrast="none", nodata=0.1, alpha=None)
    assert float_policy.valid(np.full((2, 2, 1), 0.1, np.float32)).tolist() == [[False, False], [False, False]]
