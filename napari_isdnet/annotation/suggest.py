"""Where the next stroke would help most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_isdnet.exceptions import InputError
from napari_isdnet.io.source import ImageSource
from napari_isdnet.window import Grid, Window

if TYPE_CHECKING:
    from napari_isdnet.annotation.store import AnnotationStore

Floats = npt.NDArray[np.float64]
_PIXELS_PER_WINDOW = 8
TRUST_FROM = 8.0
"""Windows that are painted when uncertainty counts as much as typicality."""
_DISAGREEMENT_WEIGHT = 0.5
_REMOTENESS_WEIGHT = 0.25
_REACH = 4.0
"""Distance in windows from which on a window is as remote as can be."""


@dataclass(frozen=True)
class Suggestion:
    """A window at level 0 and why: its score and the parts of it, each 0..1.

    ``trust`` is the share of the uncertainty in the score, the rest of which is typicality.
    """

    window: Window
    score: float
    uncertainty: float
    disagreement: float
    remoteness: float
    typicality: float = 0.0
    trust: float = 1.0


@dataclass(frozen=True)
class Unpainted:
    """An image without an annotation, as one in which nothing is painted."""

    shape: tuple[int, int]

    def annotated_windows(self) -> list[Window]:
        """None."""
        return []

    def read_labels(self, window: Window) -> npt.NDArray[np.uint8]:
        """Zeros (h, w)."""
        return np.zeros(window.shape, np.uint8)


def place_side(shape: tuple[int, int]) -> int:
    """Side in pixels of a place that one looks at while painting: a quarter of a small image, 1024 of a large one."""
    return int(np.clip(min(shape) // 4, 32, 1024))


def next_regions(
    uncertainty: Any,
    store: AnnotationStore | Unpainted,
    *,
    disagreement: Any = None,
    window: int = 1024,
    count: int = 10,
    trust_from: float = TRUST_FROM,
) -> list[Suggestion]:
    """The ``count`` windows of a grid of ``window`` pixels where annotation would help most, best first.

    ``uncertainty`` (entropy or 1 - margin) and ``disagreement`` (of the branches alone) are maps of the whole image at
    any resolution: an array (rows, columns) or a source, of which a coarse level is read; NaN and a source's nodata
    are left out. A window's value is its mean, scaled so that the least and the greatest of all windows become 0 and 1.

    A few strokes at the hardest places teach less than a few at ordinary ones; what is hard pays when there are many
    (Hacohen et al., 'Active Learning on a Budget', ICML 2022). So typicality ``t``, 1 for the window of median
    uncertainty and 0 for the extremes, gives way to uncertainty as the number ``n`` of windows grows that are annotated
    or suggested already: ``v = T u + (1 - T) t`` with the trust ``T = n / (n + trust_from)``. Remoteness ``r`` is the
    distance to the nearest such window, in windows, over 4, at most 1.
    ``score = (v + T w_d d + w_r r) / (1 + T w_d + w_r)``; picking goes window by window, so that suggestions do not sit
    side by side, and windows that hold annotation come only when no other is left.
    """
    if window < 1 or count < 0:
        raise InputError(f"Cannot suggest {count} windows of {window} pixels; ask for 0 or more of at least 1 pixel.")
    grid = Grid(store.shape, (window, window))
    u = _scaled(_means(uncertainty, grid))
    d = np.zeros(grid.counts) if disagreement is None else _scaled(_means(disagreement, grid))
    w_d, w_r = 0.0 if disagreement is None else _DISAGREEMENT_WEIGHT, _REMOTENESS_WEIGHT
    taken = _annotated(store, grid)
    usable = np.isfinite(u)
    t = _typicality(u)
    u, d = np.nan_to_num(u), np.nan_to_num(d)
    distance = _distances(taken)
    rows, columns = np.indices(grid.counts)
    result = []
    known = int(taken.sum())
    for number in range(known, known + min(count, int(usable.sum()))):
        r = np.minimum(distance / _REACH, 1.0)
        trust = number / (number + trust_from) if number else float(trust_from == 0)
        value = trust * u + (1 - trust) * t
        score = (value + trust * w_d * d + w_r * r) / (1 + trust * w_d + w_r)
        best = np.unravel_index(int(np.where(usable, score - 2.0 * taken, -np.inf).argmax()), grid.counts)
        at = int(best[0] * grid.counts[1] + best[1])
        parts = {"uncertainty": u, "disagreement": d, "remoteness": r, "typicality": t}
        values = {name: float(part[best]) for name, part in parts.items()}
        result.append(Suggestion(grid[at], float(score[best]), trust=trust, **values))
        usable[best] = False
        distance = np.minimum(distance, np.hypot(rows - best[0], columns - best[1]))
    return result


def _typicality(u: Floats) -> Floats:
    """1 for the windows of median uncertainty, 0 for the least and the most uncertain one, by rank."""
    from scipy.stats import rankdata

    result, known = np.zeros(u.shape), np.isfinite(u)
    if known.any():
        ranks = (rankdata(u[known]) - 0.5) / known.sum()
        result[known] = 1 - 2 * np.abs(ranks - 0.5)
    return result


def _annotated(store: AnnotationStore | Unpainted, grid: Grid) -> npt.NDArray[np.bool_]:
    taken = np.zeros(len(grid), dtype=np.bool_)
    for chunk in store.annotated_windows():
        for index in grid.touching(chunk):
            inside = grid[index].intersect(chunk)
            # A chunk that lies in two windows may hold labels in one of them alone: look at the pixels.
            taken[index] = taken[index] or inside == chunk or bool(store.read_labels(inside).any())
    return taken.reshape(grid.counts)


def _distances(taken: npt.NDArray[np.bool_]) -> Floats:
    """Distance of every window to the nearest annotated one, in windows; infinite where there is none."""
    if not taken.any():
        return np.full(taken.shape, np.inf)
    from scipy.ndimage import distance_transform_edt

    distance: Floats = distance_transform_edt(~taken)
    return distance


def _means(data: Any, grid: Grid) -> Floats:
    """Mean of a map over every window of the grid; NaN where there is no value."""
    values = _coarse(data, grid)
    rows = _edges(grid.counts[0], grid.core[0], grid.shape[0], values.shape[0])
    columns = _edges(grid.counts[1], grid.core[1], grid.shape[1], values.shape[1])
    known = np.isfinite(values)
    sums = _block_sums(np.where(known, values, 0.0), rows, columns)
    numbers = _block_sums(known.astype(np.float64), rows, columns)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(numbers > 0, sums / numbers, np.nan)


def _edges(count: int, core: int, length: int, samples: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """First and last-plus-one sample of every window; at least one, also where windows are finer than the map."""
    start = np.minimum(np.arange(count) * core * samples // length, samples - 1)
    stop = np.minimum(np.arange(1, count + 1) * core * samples // length, samples)
    return start, np.maximum(stop, start + 1)


def _block_sums(
    values: Floats,
    rows: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]],
    columns: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]],
) -> Floats:
    table = np.pad(values, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    lower, upper = table[rows[1]], table[rows[0]]
    result: Floats = lower[:, columns[1]] - lower[:, columns[0]] - upper[:, columns[1]] + upper[:, columns[0]]
    return result


def _coarse(data: Any, grid: Grid) -> Floats:
    if isinstance(data, ImageSource):
        if data.shape != grid.shape:
            raise InputError(
                f"{data.name} is {data.shape[0]} x {data.shape[1]}, the annotated image {grid.shape[0]} x"
                f" {grid.shape[1]}; give the map of the same image."
            )
        enough = grid.counts[0] * _PIXELS_PER_WINDOW, grid.counts[1] * _PIXELS_PER_WINDOW
        fitting = [k for k, s in enumerate(data.levels) if s[0] >= min(enough[0], grid.shape[0])]
        level = max(fitting, default=0)
        return _read_by_windows(data, level)
    values = np.asarray(data, dtype=np.float64)
    if values.ndim != 2 or not values.size:
        raise InputError(f"A map for suggestions needs rows and columns, got an array of shape {values.shape}.")
    return values


def _read_by_windows(source: ImageSource, level: int) -> Floats:
    """A level as floats; one that is still large is averaged down while it is read."""
    rows, columns = source.levels[level]
    step = max(1, -(-max(rows, columns) // 4096))
    result = np.full((-(-rows // step), -(-columns // step)), np.nan)
    for part in Grid((rows, columns), (step * 512, step * 512)):
        values = source.read(part, level)[..., 0].astype(np.float64)
        if source.nodata is not None:
            values[values == source.nodata] = np.nan
        padded = np.pad(values, [(0, -n % step) for n in values.shape], constant_values=np.nan)
        blocks = padded.reshape(padded.shape[0] // step, step, padded.shape[1] // step, step)
        known = np.isfinite(blocks)
        number = known.sum(axis=(1, 3))
        mean = np.where(known, blocks, 0.0).sum(axis=(1, 3)) / np.maximum(number, 1)
        at = part.divided(step)
        result[at.slices] = np.where(number > 0, mean, np.nan)
    return result


def _scaled(values: Floats) -> Floats:
    known = values[np.isfinite(values)]
    if not known.size:
        return values
    low, high = float(known.min()), float(known.max())
    return (values - low) / (high - low) if high > low else np.where(np.isfinite(values), 0.5, np.nan)
