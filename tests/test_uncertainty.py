"""Entropy and margin against scipy, in numpy and torch."""

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy as scipy_entropy

from napari_isdnet.engine.uncertainty import (
    dequantise,
    entropy,
    margin,
    quantise,
    uncertainty_map,
)
from napari_isdnet.exceptions import InputError


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
