"""How sure a prediction is, as maps of one byte per pixel, and which window to annotate next.

Both measures run from 0 (sure) to 1 (no idea) whatever the number of classes, and are kept as ``round(254 v)`` with 255
for nodata (:func:`quantise`, :func:`dequantise`: error at most 1/508).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from napari_isdnet.classes import IGNORE_INDEX
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.pyramid import dequantise as dequantise
from napari_isdnet.io.pyramid import quantise as quantise
from napari_isdnet.io.source import ImageSource
from napari_isdnet.progress import Clock, Progress
from napari_isdnet.window import Grid, Window

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


@dataclass(frozen=True)
class Suggestion:
    """A window (level 0) worth annotating: mean uncertainty 0..1, pixels to the nearest annotation, and the score."""

    window: Window
    uncertainty: float
    distance: float
    score: float


def suggest_windows(
    uncertainty: ImageSource,
    annotated: Sequence[Window] = (),
    size: int = 512,
    count: int = 10,
    reach: float = 2048.0,
    level: int | None = None,
    block: int = 2048,
) -> Generator[Progress, None, list[Suggestion]]:
    """Rank windows of ``size`` level-0 pixels by where annotating teaches most; the list is the return value.

    The score is ``mean uncertainty * (1 - exp(-distance / reach))``: what the network doubts, away from what it was
    already told. ``distance`` (level-0 pixels) goes from a window's middle to the nearest middle of a window in
    ``annotated`` or of a better suggestion, so that the list spreads over the image. Windows that touch ``annotated``
    are left out. ``uncertainty`` holds what :func:`quantise` writes; ``level`` defaults to the coarsest level where a
    window still has 16 pixels a side.
    """
    if size < 1 or count < 0 or reach <= 0:
        raise InputError(f"Suggestions need a size and reach above 0, got size {size}, count {count}, reach {reach}.")
    level = _level_for(uncertainty, size) if level is None else level
    grid = Grid(uncertainty.shape, (size, size))
    sums, known = np.zeros(grid.counts), np.zeros(grid.counts, np.int64)
    shape = uncertainty.levels[level]
    blocks = Grid(shape, (block, block))
    clock = Clock(float(len(blocks)))
    for window in blocks:
        values = uncertainty.read(window, level)[..., 0]
        rows, columns = (
            ((np.arange(start, start + length) + 0.5) * full / coarse / size).astype(np.int64)
            for start, length, full, coarse in zip((window.row, window.column), window.shape, uncertainty.shape, shape)
        )
        valid = values != IGNORE_INDEX
        where = (rows[:, None] * grid.counts[1] + columns)[valid]
        sums += np.bincount(where, values[valid] / 254.0, len(grid)).reshape(grid.counts)
        known += np.bincount(where, minlength=len(grid)).reshape(grid.counts)
        yield clock.step(1, "Ranking", window)
    return _spread(grid, sums / np.maximum(known, 1), known > 0, annotated, count, reach)


def _level_for(source: ImageSource, size: int) -> int:
    for level in range(len(source.levels) - 1, 0, -1):
        if size * source.levels[level][0] / source.shape[0] >= 16:
            return level
    return 0


def _spread(
    grid: Grid,
    means: npt.NDArray[np.float64],
    free: npt.NDArray[np.bool_],
    annotated: Sequence[Window],
    count: int,
    reach: float,
) -> list[Suggestion]:
    """Take the best window, count it as annotated, and so on."""
    windows = list(grid)
    centers = np.array([w.center for w in windows]).reshape(-1, 2)
    value, open_, distance = means.ravel(), free.ravel().copy(), np.full(len(windows), np.inf)
    for window in annotated:
        open_[grid.touching(window)] = False
        distance = np.minimum(distance, np.hypot(*(centers - window.center).T))
    found: list[Suggestion] = []
    while len(found) < count and open_.any():
        score = np.where(open_, value * (1 - np.exp(-distance / reach)), -1.0)
        best = int(score.argmax())
        found.append(Suggestion(windows[best], float(value[best]), float(distance[best]), float(score[best])))
        open_[best] = False
        distance = np.minimum(distance, np.hypot(*(centers - centers[best]).T))
    return found
