"""How sure a prediction is, as a map of one byte per pixel."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from torch import Tensor

from napari_isdnet.io.pyramid import quantise


def entropy(logits: Tensor) -> Tensor:
    """Entropy of the class probabilities divided by ``log K``: 0 sure, 1 all classes alike, whatever their number.

    ``logits`` (K, ...) of any float type; the result is float32 (...), on the same device. One class alone is always
    sure.
    """
    scaled = logits.float()
    if scaled.shape[0] == 1:
        return scaled[0] * 0
    scaled = scaled - scaled.amax(0, keepdim=True)
    exponentials = scaled.exp()
    total = exponentials.sum(0)
    # -sum p log p = log(sum e^z) - sum(z e^z) / sum e^z, with z shifted so that its largest value is 0.
    value = total.log() - (scaled * exponentials).sum(0) / total
    return (value / math.log(scaled.shape[0])).clip(0, 1)


def uncertainty_map(logits: Tensor) -> npt.NDArray[np.uint8]:
    """The entropy of ``logits`` (K, H, W) as ``round(254 v)`` (H, W); 255 is left for nodata."""
    return quantise(entropy(logits).detach().cpu().numpy())
