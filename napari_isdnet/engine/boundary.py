"""Boundary F1 per class, exact when streamed: a block and its halo give what the whole image gives.

Definition. Pixels that truth or prediction leaves out (255) are first taken out of both maps. A *boundary pixel* of
class k is a pixel of class k with a 4-neighbour of another class; a neighbour that is left out, or the image's border,
makes no boundary. A boundary pixel whose counterpart could lie where nothing is known is *not judged*: one within the
tolerance of a left-out pixel or of a 4-neighbour of one (whether that neighbour is a boundary is not known either).
Precision is the share of the judged predicted boundary pixels of k with a true boundary pixel of k, judged or not, at
Euclidean distance <= tolerance, recall the same with the maps exchanged, and F1 their harmonic mean, or the one of them
that exists. All pixels of the image are summed before dividing.

So whatever is left out, a judged boundary pixel finds the counterpart it has in the full maps, and a prediction that
is truth moved by no more than the tolerance keeps an F1 of 1. What lies beyond the image's border is not left out.

One pixel has one class, so a byte carries the boundary of eight classes as bits and one dilation by OR serves them all.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from napari_isdnet.classes import IGNORE_INDEX
from napari_isdnet.engine.metrics import Counts, Figures, Labels, mean, ratio
from napari_isdnet.exceptions import InputError
from napari_isdnet.window import Window

Mask = npt.NDArray[np.bool_]


def boundary(labels: Labels) -> Mask:
    """Pixels with a 4-neighbour of another class; 255 is no class and the array's border no boundary."""
    edge = np.zeros(labels.shape, bool)
    known = labels != IGNORE_INDEX
    for one, other in (
        ((slice(1, None), slice(None)), (slice(None, -1), slice(None))),
        ((slice(None), slice(1, None)), (slice(None), slice(None, -1))),
    ):
        differ = labels[one] != labels[other]
        differ &= known[one]
        differ &= known[other]
        edge[one] |= differ
        edge[other] |= differ
    return edge


def dilate(bits: Labels, radius: float) -> Labels:
    """OR of ``bits`` (uint8 flags, rows x columns) over the Euclidean disc of ``radius`` around each pixel."""
    result = np.zeros_like(bits)
    rows = bits.shape[0]
    wide: dict[int, Labels] = {}
    for offset in range(int(radius + 1e-9) + 1):
        # 1e-9: sqrt(2) squared is a hair more or less than 2, and the diagonal neighbour must count either way.
        reach = math.isqrt(int(radius * radius + 1e-9) - offset * offset)
        if reach not in wide:
            wide[reach] = _dilate_rows(bits, reach)
        row = wide[reach]
        if offset >= rows:
            break
        result[offset:] |= row[: rows - offset]
        if offset:
            result[:-offset] |= row[offset:]
    return result


def _dilate_rows(bits: Labels, reach: int) -> Labels:
    """OR along each row over ``-reach .. reach``."""
    result = bits.copy()
    for offset in range(1, min(reach, bits.shape[1] - 1) + 1):
        result[:, offset:] |= bits[:, :-offset]
        result[:, :-offset] |= bits[:, offset:]
    return result


def near_true_boundary(truth: Labels, tolerance: float) -> Mask:
    """Pixels within ``tolerance`` of a boundary pixel (of any class) of ``truth``."""
    return dilate(boundary(truth).view(np.uint8), tolerance).view(bool)


def not_judged(left_out: Mask, tolerance: float) -> Mask:
    """Pixels at which a boundary has no known counterpart: within ``tolerance`` of ``left_out`` or a 4-neighbour of it.

    The neighbours count because a boundary against a left-out pixel is lost: without them a boundary moved by the
    whole tolerance would be judged against nothing.
    """
    if not left_out.any():
        return np.zeros(left_out.shape, bool)
    return dilate(dilate(left_out.view(np.uint8), 1), tolerance).view(bool)


def boundary_halo(tolerance: float) -> int:
    """Pixels that must be read around a block for its boundary counts to be exact.

    A match lies within the tolerance and takes one more pixel to be seen as a boundary; what is left out reaches just
    as far (see :func:`not_judged`).
    """
    return int(tolerance + 1e-9) + 1


def check_tolerance(tolerance: float) -> float:
    """The tolerance in pixels; raises :class:`InputError` unless it is 0 to 256."""
    if not 0 <= tolerance <= 256:
        raise InputError(f"The boundary tolerance must be 0 to 256 pixels, got {tolerance}.")
    return float(tolerance)


class BoundaryScore:
    """Boundary counts per class over any number of blocks; each array is ``(K,)`` int64.

    ``predicted`` and ``true`` count judged boundary pixels, ``predicted_hit`` and ``true_hit`` those of them within the
    tolerance of the other map's boundary of the same class.
    """

    def __init__(self, classes: int, tolerance: float = 3.0) -> None:
        self.tolerance = check_tolerance(tolerance)
        self.predicted: Counts = np.zeros(classes, np.int64)
        self.predicted_hit: Counts = np.zeros(classes, np.int64)
        self.true: Counts = np.zeros(classes, np.int64)
        self.true_hit: Counts = np.zeros(classes, np.int64)

    @property
    def halo(self) -> int:
        """Pixels to read around a block (less only where the image ends)."""
        return boundary_halo(self.tolerance)

    def update(self, prediction: Labels, truth: Labels, core: Window | None = None) -> None:
        """Count the pixels of ``core`` (in the arrays' own coordinates; default: all) of two uint8 maps.

        The arrays reach :attr:`halo` pixels beyond ``core`` wherever the image does; 255 is left out, and boundaries
        near it are not judged.
        """
        core = core or Window.whole((prediction.shape[0], prediction.shape[1]))
        left_out = (prediction == IGNORE_INDEX) | (truth == IGNORE_INDEX)
        prediction, truth = prediction.copy(), truth.copy()
        prediction[left_out] = IGNORE_INDEX
        truth[left_out] = IGNORE_INDEX
        predicted, true = boundary(prediction), boundary(truth)
        judged = ~not_judged(left_out, self.tolerance)
        # What is not judged may still be the match of a pixel that is, one step further from what is left out.
        self._count(prediction, predicted & judged, truth, true, core, self.predicted, self.predicted_hit)
        self._count(truth, true & judged, prediction, predicted, core, self.true, self.true_hit)

    def _count(
        self, labels: Labels, edge: Mask, others: Labels, others_edge: Mask, core: Window, total: Counts, hit: Counts
    ) -> None:
        inside = edge[core.slices]
        classes = labels[core.slices][inside]
        if not classes.size:
            return
        if int(classes.max()) >= len(total):
            raise InputError(f"Value {classes.max()} is no class: allowed are 0 to {len(total) - 1} and 255.")
        total += np.bincount(classes, minlength=len(total))
        for group in np.unique(classes >> 3):
            bits = np.where(others_edge & (others >> 3 == group), np.uint8(1) << (others & 7), np.uint8(0))
            near = dilate(bits, self.tolerance)[core.slices][inside]
            mine = (classes >> 3) == group
            found = classes[mine & ((near >> (classes & 7)) & 1).astype(bool)]
            hit += np.bincount(found, minlength=len(hit))

    def merge(self, other: BoundaryScore) -> None:
        """Add the counts of another part of the image."""
        self.predicted += other.predicted
        self.predicted_hit += other.predicted_hit
        self.true += other.true
        self.true_hit += other.true_hit

    @property
    def precision(self) -> Figures:
        """Share of judged predicted boundary pixels near a true one; NaN where there is none to judge."""
        return ratio(self.predicted_hit, self.predicted)

    @property
    def recall(self) -> Figures:
        """Share of judged true boundary pixels near a predicted one; NaN where there is none to judge."""
        return ratio(self.true_hit, self.true)

    @property
    def f1(self) -> Figures:
        """Boundary F1 of each class; NaN without any boundary to judge, 0 where only one map has one.

        Where one map's boundaries are all left out and the other's are not, it is the precision or recall that exists:
        the judged ones may well have met those left out.
        """
        precision, recall = self.precision, self.recall
        precision, recall = (np.where(np.isnan(a), b, a) for a, b in ((precision, recall), (recall, precision)))
        score = np.nan_to_num(ratio(2 * precision * recall, precision + recall))
        return np.where(self.predicted + self.true > 0, score, np.nan)

    @property
    def mean_f1(self) -> float:
        """Mean boundary F1 over the classes that have one; NaN where none has."""
        return mean(self.f1)
