"""Confusion matrix and the figures that follow from it, streamed block by block in exact integers.

What counts, once for the whole package:

* A pixel is *evaluated* when truth has a class there that is not ignored and the prediction has a class there.
* Truth 255, and truth of an ignored class, leaves the pixel out of every figure (counted in ``ignored``).
* Prediction 255 (nodata) where truth has a class is neither right nor wrong: it is counted by class in
  ``unpredicted`` and shown, never hidden in another figure.
* A class that is in neither map has no figures (NaN), and a mean is taken over the classes that have one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_isdnet.classes import IGNORE_INDEX, MAX_CLASSES
from napari_isdnet.exceptions import InputError

Labels = npt.NDArray[np.uint8]
Counts = npt.NDArray[np.int64]
Figures = npt.NDArray[np.float64]

# Pixels whose pair codes are counted at once: small enough that the int64 copy bincount makes stays in the cache.
_CHUNK = 1 << 17


def pair_counts(prediction: Labels, truth: Labels) -> Counts:
    """How often each pair occurs: ``(256, 256)`` int64, row = truth value, column = predicted value.

    ``prediction`` and ``truth`` are uint8 arrays of the same shape.
    """
    if prediction.shape != truth.shape:
        raise InputError(f"Prediction is {prediction.shape} and truth {truth.shape}; both must have the same shape.")
    if prediction.dtype != np.uint8 or truth.dtype != np.uint8:
        raise InputError(f"Label blocks must be uint8, got {prediction.dtype} and {truth.dtype}.")
    codes = truth.astype(np.uint16).ravel()
    codes <<= 8
    codes |= prediction.ravel()
    counts = np.zeros(1 << 16, np.int64)
    for start in range(0, codes.size, _CHUNK):
        counts += np.bincount(codes[start : start + _CHUNK], minlength=1 << 16)
    return counts.reshape(256, 256)


class ConfusionMatrix:
    """Counts of (truth, prediction) pairs over any number of blocks.

    ``counts[t, p]`` is the number of evaluated pixels of class ``t`` that were called ``p`` (K x K, int64);
    ``unpredicted[t]`` those without a prediction; ``ignored`` those without truth.
    """

    def __init__(self, classes: int, ignored_classes: Iterable[int] = ()) -> None:
        if not 1 <= classes <= MAX_CLASSES:
            raise InputError(f"There must be 1 to {MAX_CLASSES} classes, got {classes}.")
        self.ignored_classes = check_ignored(ignored_classes, classes)
        self.counts: Counts = np.zeros((classes, classes), np.int64)
        self.unpredicted: Counts = np.zeros(classes, np.int64)
        self.ignored = 0

    @property
    def classes(self) -> int:
        """Number of classes K."""
        return len(self.unpredicted)

    def update(self, prediction: Labels, truth: Labels, ignore: int = IGNORE_INDEX) -> None:
        """Count one block of class indices (uint8, same shape); truth equal to ``ignore`` is left out.

        Raises :class:`InputError` for a value that is neither a class index nor 255.
        """
        self.add_pairs(pair_counts(prediction, truth), ignore)

    def add_pairs(self, pairs: Counts, ignore: int = IGNORE_INDEX) -> None:
        """Count what :func:`pair_counts` found in a block."""
        pairs = pairs.copy()
        left_out = {IGNORE_INDEX, ignore, *self.ignored_classes}
        for value in left_out:
            self.ignored += int(pairs[value].sum())
            pairs[value] = 0
        k = self.classes
        for name, totals in (("truth", pairs.sum(axis=1)), ("the prediction", pairs.sum(axis=0))):
            wrong = np.flatnonzero(totals[k:IGNORE_INDEX])
            if wrong.size:
                raise InputError(f"Value {wrong[0] + k} in {name} is no class: allowed are 0 to {k - 1} and 255.")
        self.counts += pairs[:k, :k]
        self.unpredicted += pairs[:k, IGNORE_INDEX]

    @property
    def evaluated(self) -> int:
        """Number of evaluated pixels."""
        return int(self.counts.sum())

    @property
    def accuracy(self) -> float:
        """Overall accuracy: share of the evaluated pixels that are right; NaN where there are none."""
        return float(ratio(np.trace(self.counts), self.evaluated))

    @property
    def intersection(self) -> Counts:
        """True positives of each class."""
        return np.diag(self.counts).copy()

    @property
    def iou(self) -> Figures:
        """Intersection over union of each class: TP / (TP + FP + FN)."""
        union = self.counts.sum(axis=0) + self.counts.sum(axis=1) - self.intersection
        return self._shown(ratio(self.intersection, union))

    @property
    def precision(self) -> Figures:
        """TP / (TP + FP); NaN for a class that was never predicted."""
        return self._shown(ratio(self.intersection, self.counts.sum(axis=0)))

    @property
    def recall(self) -> Figures:
        """TP / (TP + FN); NaN for a class that truth does not hold."""
        return self._shown(ratio(self.intersection, self.counts.sum(axis=1)))

    @property
    def f1(self) -> Figures:
        """Harmonic mean of precision and recall: 2 TP / (2 TP + FP + FN)."""
        return self._shown(ratio(2 * self.intersection, self.counts.sum(axis=0) + self.counts.sum(axis=1)))

    @property
    def mean_iou(self) -> float:
        """mIoU: mean over the classes that are in either map and not ignored."""
        return mean(self.iou)

    @property
    def mean_f1(self) -> float:
        """Mean F1 over the classes that are in either map and not ignored."""
        return mean(self.f1)

    def _shown(self, figures: Figures) -> Figures:
        figures[list(self.ignored_classes)] = np.nan
        return figures


def check_ignored(ignored: Iterable[int], classes: int) -> tuple[int, ...]:
    """Ascending indices of the ignored classes; raises :class:`InputError` for one that does not exist."""
    result = tuple(sorted({int(i) for i in ignored} - {IGNORE_INDEX}))
    for index in result:
        if not 0 <= index < classes:
            raise InputError(f"Class {index} cannot be ignored: there are classes 0 to {classes - 1}.")
    if len(result) == classes:
        raise InputError("Every class is ignored; leave at least one to evaluate.")
    return result


def ratio(part: Any, whole: Any) -> Figures:
    """``part / whole`` in float64, NaN where ``whole`` is 0."""
    part, whole = np.broadcast_arrays(np.asarray(part, np.float64), np.asarray(whole, np.float64))
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole != 0)


def mean(figures: Figures) -> float:
    """Mean of the figures that exist; NaN where there are none."""
    known = figures[~np.isnan(figures)]
    return float(known.mean()) if known.size else float("nan")
