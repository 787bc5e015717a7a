"""Error maps: codes by the stated rules, windows and levels of the lazy source, and the worst windows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt

from napari_isdnet.engine import errors
from napari_isdnet.engine.boundary import boundary
from napari_isdnet.engine.errors import ErrorSource, error_map
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.source import ImageSource
from napari_isdnet.window import Window
from tests.test_evaluate import Labels, maps


class Pyramid(Labels):
    """Levels by taking every second pixel."""

    def __init__(self, array, levels=3, **kwargs):
        super().__init__(array, **kwargs)
        self.arrays = [array[:: 2**n, :: 2**n] for n in range(levels)]
        self.levels = tuple(a.shape for a in self.arrays)

    def read(self, window, level=0):
        return self.arrays[level][window.slices][..., None].copy()


def test_codes_of_one_class_and_of_all():
    truth = np.array([[0, 0, 1, 1, 255, 1]], np.uint8)
    prediction = np.array([[0, 1, 1, 0, 1, 255]], np.uint8)
    assert error_map(prediction, truth, 1).tolist() == [[0, errors.FALSE_ALARM, 0, errors.MISSED, 255, 255]]
    assert error_map(prediction, truth, 0).tolist() == [[0, errors.MISSED, 0, errors.FALSE_ALARM, 255, 255]]
    assert error_map(prediction, truth).tolist() == [[0, errors.WRONG, 0, errors.WRONG, 255, 255]]


@pytest.mark.parametrize("class_index", [None, 1])
def test_errors_at_boundaries_have_codes_of_their_own(class_index):
    prediction, truth = maps()
    plain = error_map(prediction, truth, class_index)
    split = error_map(prediction, truth, class_index, tolerance=2)
    near = distance_transform_edt(~boundary(truth)) <= 2
    wrong = (plain > 0) & (plain < 255)
    assert (wrong & near).any()
    assert (wrong & ~near).any()
    np.testing.assert_array_equal(split, np.where(wrong & near, plain + 3, plain))
    assert set(np.unique(split)) - {0, 255} <= set(errors.ERROR_NAMES) == set(errors.ERROR_COLORS)


@given(row=st.integers(0, 80), column=st.integers(0, 60), height=st.integers(1, 60), width=st.integers(1, 60))
@settings(max_examples=25, deadline=None)
def test_any_window_is_the_crop_of_the_whole(row, column, height, width):
    prediction, truth = maps()
    source = ErrorSource(Labels(prediction), Labels(truth), 1)
    window = Window(row, column, height, width).clipped(source.shape)
    expected = error_map(prediction, truth, 1, 3.0)
    np.testing.assert_array_equal(source.read(window)[..., 0], expected[window.slices])


def test_source_keeps_the_protocol_and_the_levels_of_the_prediction():
    prediction, truth = maps()
    source = ErrorSource(Pyramid(prediction, name="p"), Pyramid(truth, name="t"), 2, ignore=[0])
    assert isinstance(source, ImageSource)
    assert source.name == "p_errors_class2"
    assert (source.channels, source.dtype, source.nodata, source.alpha) == (1, np.uint8, 255.0, None)
    shape = source.levels[2]
    codes = source.read(Window.whole(shape), 2)[..., 0]
    coarse = truth[::4, ::4].copy()
    coarse[coarse == 0] = 255
    np.testing.assert_array_equal(codes, error_map(prediction[::4, ::4], coarse, 2, 1.0))
    assert source.identity()["ignore"] == [0]


def test_truth_without_levels_is_sampled_at_the_nearest_pixel():
    prediction, truth = maps((96, 64))
    source = ErrorSource(Pyramid(prediction), Labels(truth), tolerance=None)
    codes = source.read(Window(3, 2, 20, 10), 2)[..., 0]
    rows, columns = np.arange(3, 23) * 4 + 2, np.arange(2, 12) * 4 + 2
    expected = error_map(prediction[::4, ::4][3:23, 2:12], truth[np.ix_(rows, columns)])
    np.testing.assert_array_equal(codes, expected)


def test_shifted_truth_reaches_only_part():
    from napari_isdnet.io.source import GeoReference

    prediction, truth = maps()
    ours, theirs = (GeoReference("EPSG:3857", (1, 0, x, 0, -1, y)) for x, y in ((0, 0), (10, -20)))
    small = Labels(truth[20:50, 10:40], georeference=theirs)
    codes = ErrorSource(Labels(prediction, georeference=ours), small, tolerance=None).read(Window(0, 0, 90, 70))
    expected = np.full((90, 70), 255, np.uint8)
    expected[20:50, 10:40] = error_map(prediction[20:50, 10:40], truth[20:50, 10:40])
    np.testing.assert_array_equal(codes[..., 0], expected)


def test_bad_arguments_are_refused():
    prediction, truth = maps()
    with pytest.raises(InputError, match="class of an error map"):
        ErrorSource(Labels(prediction), Labels(truth), 255)


def test_one_row_of_pixels_has_errors_at_every_level():
    truth = np.zeros((1, 64), np.uint8)
    prediction = truth.copy()
    prediction[0, 32:] = 1
    source = ErrorSource(Pyramid(prediction), Labels(truth))
    assert source.read(Window(0, 0, 1, 16), 2)[0, :, 0].tolist() == [0] * 8 + [errors.WRONG] * 8
