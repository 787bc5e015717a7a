"""Entropy against scipy, and its map of bytes."""

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy as scipy_entropy

from napari_isdnet.engine.uncertainty import entropy, uncertainty_map
from napari_isdnet.io.pyramid import QUANTA, quantise


def test_entropy_equals_scipy():
    logits = np.random.default_rng(0).normal(0, 4, (5, 5, 6, 7)).astype(np.float32)
    p = softmax(logits.astype(np.float64), axis=0)
    np.testing.assert_allclose(entropy(torch.from_numpy(logits)), scipy_entropy(p, axis=0) / np.log(5), atol=2e-6)


def test_extremes_and_half_precision():
    assert entropy(torch.tensor([1e4, 0, -1e4])[:, None, None]).item() == 0
    tie = torch.zeros(3, 1, 1)
    assert entropy(tie).item() == pytest.approx(1)
    assert entropy(tie.half()).dtype == torch.float32
    assert entropy(torch.ones(1, 2, 2).half()).tolist() == [[0, 0], [0, 0]]


def test_quantised_maps_lose_little():
    values = np.linspace(0, 1, 1001, dtype=np.float32)
    assert np.abs(quantise(values) / np.float32(QUANTA) - values).max() <= 1 / 508 + 1e-6
    found = uncertainty_map(torch.tensor([[[0.0, 1e4]], [[0.0, 0.0]]]))
    assert found.dtype == np.uint8
    assert found.tolist() == [[254, 0]]
