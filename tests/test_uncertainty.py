"""Entropy and margin against scipy, in numpy and torch, and the ranking of windows to annotate."""

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy as scipy_entropy
from test_evaluate import Labels, finish

from napari_isdnet.engine.uncertainty import (
    dequantise,
    entropy,
    margin,
    quantise,
    suggest_windows,
    uncertainty_map,
)
from napari_isdnet.exceptions import InputError
from napari_isdnet.window import Window


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("axis", [0, 1])
def test_measures_equal_scipy(library, axis):
    logits = np.random.default_rng(0).normal(0, 4, (5, 5, 6, 7)).astype(np.float32)
    p = softmax(logits.astype(np.float64), axis=axis)
    best = np.sort(p, axis=axis)
    given = logits if library == "numpy" else torch.from_numpy(logits)
    np.testing.assert_allclose(np.asarray(entropy(given, axis)), scipy_entropy(p, axis=axis) / np.log(5), atol=2e-6)
    expected = 1 - (best.take(-1, axis) - best.take(-2, axis))
    np.testing.assert_allclose(np.asarray(margin(given, axis)), expected, atol=2e-6)


def test_extremes_and_half_precision():
    sure = np.array([1e4, 0, -1e4], np.float32)[:, None, None]
    tie = np.zeros((3, 1, 1), np.float32)
    for measure in (entropy, margin):
        assert measure(sure).item() == 0
        assert measure(tie).item() == pytest.approx(1)
        assert measure(torch.from_numpy(tie).half()).dtype == torch.float32
        assert measure(np.ones((1, 2, 2), np.float16)).tolist() == [[0, 0], [0, 0]]


def test_quantised_maps_keep_nodata_and_lose_little():
    values = np.linspace(0, 1, 1001, dtype=np.float32)
    assert np.abs(dequantise(quantise(values)) - values).max() <= 1 / 508 + 1e-6
    valid = np.array([[True, False]])
    result = uncertainty_map(np.zeros((4, 1, 2), np.float32), "margin", valid=valid)
    assert result.tolist() == [[254, 255]]
    with pytest.raises(InputError, match="entropy or margin"):
        uncertainty_map(np.zeros((4, 1, 2)), "doubt")


def test_suggestions_follow_doubt_away_from_annotations_and_spread():
    values = np.full((100, 100), 25, np.uint8)
    values[:20, :20] = 200
    values[:20, 20:40] = 190
    values[80:, 80:] = 150
    values[40:60, 40:60] = 255
    source = Labels(values)
    found, progress = finish(suggest_windows(source, size=20, count=3, reach=50, block=33))
    assert [s.window for s in found[:2]] == [Window(0, 0, 20, 20), Window(80, 80, 20, 20)]
    assert found[0].uncertainty == pytest.approx(200 / 254)
    assert found[1].distance == pytest.approx(80 * 2**0.5)
    assert progress[-1].fraction == 1
    near, _ = finish(suggest_windows(source, [Window(5, 5, 3, 3)], size=20, count=30, reach=50))
    assert near[0].window == Window(80, 80, 20, 20)
    windows = [s.window for s in near]
    assert Window(0, 0, 20, 20) not in windows
    assert Window(40, 40, 20, 20) not in windows
    assert len(windows) == 23


def test_bad_suggestions_are_refused():
    with pytest.raises(InputError, match="size and reach above 0"):
        finish(suggest_windows(Labels(np.zeros((4, 4), np.uint8)), size=0))
