"""Where a prediction is wrong: maps of the errors (Figure 6 of the ISDNet paper)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from napari_isdnet.classes import IGNORE_INDEX
from napari_isdnet.engine.annotated import indices_of
from napari_isdnet.engine.boundary import boundary_halo, check_tolerance, near_true_boundary
from napari_isdnet.engine.labels import LabelPair, leave_out, pair_labels, read_labels
from napari_isdnet.engine.metrics import Labels
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.base import SourceBase
from napari_isdnet.io.sampling import level_for
from napari_isdnet.io.source import ImageSource
from napari_isdnet.window import Window

# Codes of an error map. 255 is 'not evaluated': no truth, an ignored class, or no prediction.
CORRECT: Final = 0
MISSED: Final = 1
FALSE_ALARM: Final = 2
WRONG: Final = 3
MISSED_AT_BOUNDARY: Final = 4
FALSE_ALARM_AT_BOUNDARY: Final = 5
WRONG_AT_BOUNDARY: Final = 6
NOT_EVALUATED: Final = IGNORE_INDEX
_TO_BOUNDARY: Final = MISSED_AT_BOUNDARY - MISSED

ERROR_NAMES: Final[Mapping[int, str]] = {
    MISSED: "missed",
    FALSE_ALARM: "false alarm",
    WRONG: "wrong class",
    MISSED_AT_BOUNDARY: "missed, at a boundary",
    FALSE_ALARM_AT_BOUNDARY: "false alarm, at a boundary",
    WRONG_AT_BOUNDARY: "wrong class, at a boundary",
}
# Red and blue as in Figure 6; errors at a boundary, which may be the drawing's as well as the network's, are paler.
ERROR_COLORS: Final[Mapping[int, tuple[int, int, int]]] = {
    MISSED: (220, 38, 38),
    FALSE_ALARM: (37, 99, 235),
    WRONG: (217, 70, 239),
    MISSED_AT_BOUNDARY: (248, 165, 165),
    FALSE_ALARM_AT_BOUNDARY: (147, 187, 253),
    WRONG_AT_BOUNDARY: (240, 188, 247),
}


def error_map(
    prediction: Labels, truth: Labels, class_index: int | None = None, tolerance: float | None = None
) -> Labels:
    """Error codes of two uint8 maps of the same shape.

    For one class: missed (truth is the class, the prediction is not) and false alarm (the reverse); for all classes
    (``class_index=None``): wrong class. With a ``tolerance``, errors within that many pixels of a boundary of truth
    get the codes of their own. Pixels that either map leaves out (255) are ``NOT_EVALUATED``.
    """
    codes = np.zeros(truth.shape, np.uint8)
    if class_index is None:
        codes[prediction != truth] = WRONG
    else:
        codes[(truth == class_index) & (prediction != class_index)] = MISSED
        codes[(truth != class_index) & (prediction == class_index)] = FALSE_ALARM
    if tolerance is not None:
        codes[near_true_boundary(truth, tolerance) & (codes > 0)] += _TO_BOUNDARY
    codes[(truth == IGNORE_INDEX) | (prediction == IGNORE_INDEX)] = NOT_EVALUATED
    return codes


class ErrorSource(SourceBase):
    """The error map as a lazy :class:`~napari_isdnet.io.source.ImageSource` on the prediction's grid.

    Nothing is stored: a window is computed when it is read, from the two maps, which whoever opened them closes. Level
    ``n`` compares level ``n`` of the prediction with truth of the same shape. Where truth has no such level (a plain
    PNG), or is shifted against the prediction, truth is sampled at the nearest pixel of its coarsest level that is fine
    enough; where it has one, that level's own reduction (2x2 mode in results of this package) is kept. The tolerance is
    in level-0 pixels.
    """

    def __init__(
        self,
        prediction: ImageSource,
        truth: ImageSource,
        class_index: int | None = None,
        tolerance: float | None = 3.0,
        ignore: Iterable[int] = (),
    ) -> None:
        self._pair: LabelPair = pair_labels(prediction, truth, ignore)
        if class_index is not None and not 0 <= class_index < IGNORE_INDEX:
            raise InputError(f"The class of an error map must be 0 to 254 or None for all, got {class_index}.")
        what = "errors" if class_index is None else f"errors_class{class_index}"
        super().__init__(indices_of(prediction, name=f"{prediction.name}_{what}"))
        self._class = class_index
        self._tolerance = None if tolerance is None else check_tolerance(tolerance)

    @property
    def offset(self) -> tuple[int, int]:
        """Pixel (0, 0) of the prediction is this pixel of truth."""
        return self._pair.offset

    def _read(self, window: Window, level: int) -> npt.NDArray[Any]:
        """Error codes of ``window`` as ``(height, width, 1)`` uint8."""
        tolerance = None
        outer = window
        if self._tolerance is not None:
            # Never less than a pixel, or coarse levels would have no boundary at all.
            factor = max(self.shape) / max(self.levels[level])
            tolerance = max(min(1.0, self._tolerance), self._tolerance / factor)
            outer = window.expanded(boundary_halo(tolerance)).clipped(self.levels[level])
        prediction = read_labels(self._pair.prediction, outer, level)
        codes = error_map(prediction, self._truth(outer, level), self._class, tolerance)
        return codes[window.relative_to(outer).slices][..., None]

    def _truth(self, window: Window, level: int) -> Labels:
        """Truth over ``window`` of the prediction's ``level``; 255 where truth does not reach."""
        truth, shape = self._pair.truth, self.levels[level]
        if truth.shape == self.shape and self._pair.offset == (0, 0) and shape in truth.levels:
            values = read_labels(truth, window, truth.levels.index(shape))
        else:
            values = _sample(truth, self.shape, shape, self._pair.offset, window)
        return leave_out(values, self._pair.ignore)

    def identity(self) -> Mapping[str, Any]:
        """What tells this map from another: both maps' identities and the settings."""
        return {
            "prediction": dict(self._pair.prediction.identity()),
            "truth": dict(self._pair.truth.identity()),
            "class": self._class,
            "tolerance": self._tolerance,
            "ignore": list(self._pair.ignore),
        }


def _sample(
    truth: ImageSource, full: tuple[int, int], shape: tuple[int, int], offset: tuple[int, int], window: Window
) -> Labels:
    """Truth at the middle of each pixel of ``window`` on a level of ``shape`` of an image of ``full`` pixels.

    Rows are read one strip per output row block, so that memory stays with the output and not with level 0.
    """
    factor = max(full) / max(shape)
    level = level_for(truth.levels, factor)
    rows, in_rows = _nearest(window.row, window.height, full[0], shape[0], offset[0], truth, level, 0)
    columns, in_columns = _nearest(window.column, window.width, full[1], shape[1], offset[1], truth, level, 1)
    result = np.full(window.shape, IGNORE_INDEX, np.uint8)
    if not in_rows.any() or not in_columns.any():
        return result
    left, right = int(columns[in_columns].min()), int(columns[in_columns].max()) + 1
    strip = max(1, 256 // max(1, round(factor)))
    for start in range(0, window.height, strip):
        chosen = np.arange(start, min(start + strip, window.height))
        chosen = chosen[in_rows[chosen]]
        if not chosen.size:
            continue
        top, bottom = int(rows[chosen[0]]), int(rows[chosen[-1]]) + 1
        values = read_labels(truth, Window.from_bounds(top, left, bottom, right), level)
        picked = values[rows[chosen] - top][:, columns[in_columns] - left]
        result[np.ix_(chosen, np.flatnonzero(in_columns))] = picked
    return result


def _nearest(
    start: int, count: int, full: int, size: int, offset: int, truth: ImageSource, level: int, axis: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Index on ``level`` of truth for each of ``count`` pixels, and which of them truth reaches."""
    middle = np.floor((np.arange(start, start + count) + 0.5) * full / size).astype(np.int64)
    wanted = np.minimum(middle, full - 1) + offset
    inside = (wanted >= 0) & (wanted < truth.shape[axis])
    scale = truth.levels[level][axis] / truth.shape[axis]
    index = np.clip((wanted * scale).astype(np.int64), 0, truth.levels[level][axis] - 1)
    return index, inside
