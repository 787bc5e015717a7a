"""The rule that makes the coarse levels of an annotation pyramid."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from napari_isdnet.io.pyramid import halve_by_mode

Labels = npt.NDArray[np.uint8]


def downsample(values: Labels) -> Labels:
    """Annotation values (H, W), both even, to (H / 2, W / 2).

    A coarse pixel is unlabelled only when all four fine pixels are: a one-pixel stroke stays visible at every level.
    Otherwise it is the most frequent of the labelled ones, and of equally frequent ones the lowest value.
    """
    pairs = np.ascontiguousarray(values).view("<u2")  # left pixel in the low byte, right one in the high byte
    top, bottom = pairs[0::2], pairs[1::2]
    left = top & 255
    # All four are equal when both rows are, and a row is two equal bytes: one multiple of 257.
    mixed = np.flatnonzero((top != bottom) | (top != left * 257))
    coarse = left.astype(np.uint8)
    if len(mixed):  # outlines only: few
        four = np.stack([top.ravel()[mixed], bottom.ravel()[mixed]]).view(np.uint8)
        coarse.ravel()[mixed] = halve_by_mode(four - 1)[0] + 1  # 0 becomes 255, which loses there as 0 does here
    return coarse
