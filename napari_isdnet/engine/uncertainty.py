"""How sure a prediction is, as maps of one byte per pixel.

Both measures run from 0 (sure) to 1 (no idea) whatever the number of classes, and are kept as ``round(254 v)`` with 255
for nodata (:func:`quantise`, :func:`dequantise`: error at most 1/508).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from napari_isdnet.classes import IGNORE_INDEX
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.pyramid import dequantise as dequantise
from napari_isdnet.io.pyramid import quantise as quantise

MEASURES: Final = ("entropy", "margin")


def entropy(logits: Any, axis: int = 0) -> Any:
    """Entropy of the class probabilities divided by ``log K``: 0 sure, 1 all classes alike.

    ``logits`` is a numpy array or torch tensor with the classes along ``axis``; the result is float32 without that
    axis, of the same library and on the same device. One class alone is always sure.
    """
    scaled, total, exponentials, library = _softmax_parts(logits, axis)
    classes = logits.shape[axis]
    if classes == 1:
        return total * 0
    # -sum p log p = log(sum e^z) - sum(z e^z) / sum e^z, with z shifted so that its largest value is 0.
    value = library.log(total) - (scaled * exponentials).sum(axis) / total
    return (value / float(np.log(classes))).clip(0, 1)


def margin(logits: Any, axis: int = 0) -> Any:
    """One minus the difference of the two largest probabilities: 0 sure, 1 a tie. Shapes as in :func:`entropy`."""
    _, total, exponentials, library = _softmax_parts(logits, axis)
    if logits.shape[axis] == 1:
        return total * 0
    if library is np:
        best = np.partition(exponentials, -2, axis=axis)
        first, second = best.take(-1, axis), best.take(-2, axis)
    else:
        first, second = exponentials.topk(2, axis).values.unbind(axis)
    return (1 - (first - second) / total).clip(0, 1)


def uncertainty_map(
    logits: Any, measure: str = "entropy", axis: int = 0, valid: npt.NDArray[np.bool_] | None = None
) -> npt.NDArray[np.uint8]:
    """The measure as a uint8 map (numpy, without ``axis``); pixels outside ``valid`` become 255."""
    if measure not in MEASURES:
        raise InputError(f"The measure of uncertainty must be entropy or margin, got '{measure}'.")
    values = (entropy if measure == "entropy" else margin)(logits, axis)
    result = quantise(values if isinstance(values, np.ndarray) else values.detach().cpu().numpy())
    if valid is not None:
        result[~valid] = IGNORE_INDEX
    return result


def _softmax_parts(logits: Any, axis: int) -> tuple[Any, Any, Any, Any]:
    """Logits less their maximum, sum of exponentials, exponentials, and the library (numpy or torch)."""
    if isinstance(logits, np.ndarray):
        scaled = logits.astype(np.float32)
        scaled -= scaled.max(axis, keepdims=True)
        exponentials = np.exp(scaled)
        return scaled, exponentials.sum(axis), exponentials, np
    import torch

    scaled = logits.float()
    scaled = scaled - scaled.amax(axis, keepdim=True)
    exponentials = scaled.exp()
    return scaled, exponentials.sum(axis), exponentials, torch
