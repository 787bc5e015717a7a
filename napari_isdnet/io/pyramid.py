"""One level of a pyramid from the one below: 2x2 mode for labels, 2x2 mean for quantised maps. Both know nodata."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from napari_isdnet.classes import IGNORE_INDEX

QUANTA = 254
"""A quantised map holds ``round(value * 254)`` for values 0..1; 255 is nodata."""


def quantise(values: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """Values 0..1 as uint8 (``round(254 v)``, largest error 1/508); values outside are clipped, NaN becomes 255."""
    scaled = np.asarray(values, dtype=np.float32) * QUANTA
    missing = np.isnan(scaled)
    np.clip(np.rint(scaled, out=scaled), 0, QUANTA, out=scaled)
    scaled[missing] = IGNORE_INDEX
    return scaled.astype(np.uint8)


def halve_by_mode(labels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The commonest class of every 2x2 block of ``(H, W)``, as ``(ceil(H/2), ceil(W/2))``.

    Ties go to the smallest class index. 255 (nodata) loses against any class, however few pixels that has: it is the
    result only where all four are 255. What an odd edge lacks counts as nodata.
    """
    a, b, c, d = _quarters(labels)
    # Sorting network on four values; 255 sorts last.
    a, b = np.minimum(a, b), np.maximum(a, b)
    c, d = np.minimum(c, d), np.maximum(c, d)
    lowest, high = np.minimum(a, c), np.maximum(a, c)
    low, highest = np.minimum(b, d), np.maximum(b, d)
    low, high = np.minimum(low, high), np.maximum(low, high)
    # Sorted s0 <= s1 <= s2 <= s3: a pair at the bottom wins (ties included), then a pair (or three) in the middle,
    # then a pair at the top, else all differ and the smallest wins. A pair of 255 is no candidate.
    result = lowest.copy()
    apart = lowest != low
    np.copyto(result, highest, where=apart & (high == highest) & (highest != IGNORE_INDEX))
    np.copyto(result, low, where=apart & (low == high) & (low != IGNORE_INDEX))
    return result


def halve_by_mean(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Mean of the valid pixels of every 2x2 block of ``(H, W)``, halves rounded up; 255 where none is valid."""
    total: npt.NDArray[np.uint16] | None = None
    count: npt.NDArray[np.uint16] | None = None
    for quarter in _quarters(values):
        valid = quarter != IGNORE_INDEX
        part = np.where(valid, quarter, 0).astype(np.uint16)
        total = part if total is None else total + part
        count = valid.astype(np.uint16) if count is None else count + valid
    assert total is not None
    assert count is not None
    mean = (2 * total + count) // np.maximum(2 * count, 1)
    return np.where(count == 0, IGNORE_INDEX, mean).astype(np.uint8)


def _quarters(array: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.uint8]]:
    rows, columns = array.shape
    if rows % 2 or columns % 2:
        array = np.pad(array, ((0, rows % 2), (0, columns % 2)), constant_values=IGNORE_INDEX)
    return [array[r::2, c::2] for r in (0, 1) for c in (0, 1)]
