"""Shapes turned into pixels without ever holding a full-size mask: *runs*, half-open column intervals on rows.

A shape of any size costs memory for its rows, not for its area. Coordinates are (row, column) with pixel *centres* on
whole numbers, as in napari's data coordinates; a pixel belongs to a shape when its centre does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from napari_isdnet.window import Window

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

TOLERANCE = 1e-6  # pixels; decides the pixels whose centre lies on the outline, so that rounding does not
_BATCH_ROWS = 1 << 20


@dataclass(frozen=True)
class Runs:
    """Disjoint pixel runs sorted by row, then column: columns ``starts[i] .. stops[i] - 1`` of row ``rows[i]``."""

    rows: Ints
    starts: Ints
    stops: Ints

    @cached_property
    def bounds(self) -> Window:
        """The smallest window around all runs, empty if there are none."""
        if not len(self.rows):
            return Window(0, 0, 0, 0)
        return Window.from_bounds(
            int(self.rows[0]), int(self.starts.min()), int(self.rows[-1]) + 1, int(self.stops.max())
        )

    @property
    def area(self) -> int:
        """Number of pixels."""
        return int((self.stops - self.starts).sum())

    def band(self, top: int, bottom: int) -> Runs:
        """The runs of rows ``top .. bottom - 1``."""
        first, last = np.searchsorted(self.rows, (top, bottom))
        return Runs(self.rows[first:last], self.starts[first:last], self.stops[first:last])

    @cached_property
    def _solid(self) -> tuple[int, int]:
        """Columns that are covered on every row of ``bounds``, where each row has a single run."""
        if len(self.rows) != self.bounds.height or (np.diff(self.rows) != 1).any():
            return 0, 0
        return int(self.starts.max()), int(self.stops.min())

    def mask(self, window: Window) -> Mask | bool:
        """``window``'s pixels as a mask; ``True`` when all are covered and ``False`` when none is."""
        bounds = self.bounds
        if bounds.row == window.row and bounds.bottom == window.bottom:
            band = self
            if self._solid[0] <= window.column and window.right <= self._solid[1]:
                return True
        else:
            band = self.band(window.row, window.bottom)
        meets = (band.stops > window.column) & (band.starts < window.right)
        if not meets.any():
            return False
        rows = band.rows[meets] - window.row
        starts = np.maximum(band.starts[meets] - window.column, 0)
        stops = np.minimum(band.stops[meets] - window.column, window.width)
        if int((stops - starts).sum()) == window.area:
            return True
        small = np.int16 if window.width < 1 << 15 else np.int32
        columns = np.arange(window.width, dtype=small)
        mask = np.zeros(window.shape, dtype=np.bool_)
        first = np.flatnonzero(np.diff(rows, prepend=-1))
        rank = np.arange(len(rows)) - np.repeat(first, np.diff(first, append=len(rows)))
        for k in range(int(rank.max()) + 1):  # one pass per run of the same row: nearly always a single one
            at = rank == k
            low, high = starts[at].astype(small)[:, None], stops[at].astype(small)[:, None]
            mask[rows[at]] |= (columns >= low) & (columns < high)
        return mask


def merged(rows: Ints, starts: Ints, stops: Ints, shape: tuple[int, int]) -> Runs:
    """Runs in any order, overlapping or not, clipped to an image of ``shape`` and united."""
    starts, stops = np.maximum(starts, 0), np.minimum(stops, shape[1])
    keep = (stops > starts) & (rows >= 0) & (rows < shape[0])
    rows, starts, stops = rows[keep], starts[keep], stops[keep]
    if not len(rows):
        empty = np.zeros(0, dtype=np.int64)
        return Runs(empty, empty, empty)
    pitch = shape[1] + 1  # larger than any column, so one number orders (row, column) and rows never touch
    low, high = rows * pitch + starts, rows * pitch + stops
    order = np.argsort(low)
    low, high = low[order], np.maximum.accumulate(high[order])
    new = np.ones(len(low), dtype=np.bool_)
    new[1:] = low[1:] > high[:-1]
    first = np.flatnonzero(new)
    last = np.append(first[1:], len(low)) - 1
    row = low[first] // pitch
    return Runs(row, low[first] - row * pitch, high[last] - row * pitch)


def _inside(low: Floats, high: Floats) -> tuple[Ints, Ints]:
    """Whole numbers in the closed interval, as half-open; infinite and crossed intervals come out empty."""
    empty = ~(low <= high + 2 * TOLERANCE)
    low, high = np.where(empty, 0.0, low), np.where(empty, -1.0, high)
    return np.ceil(low - TOLERANCE).astype(np.int64), np.floor(high + TOLERANCE).astype(np.int64) + 1


def _capsules(p: Floats, q: Floats, radius: float, stretch: float, rows: Ints, at: Ints) -> tuple[Ints, Ints]:
    """Column interval of each row in ``rows`` within ``radius`` of the segment ``p[at] - q[at]``.

    The columns of ``p`` and ``q`` are ``stretch`` times those of the image.

    A capsule is convex, so its row is one interval: the hull of the rows of its two discs and of its two long sides
    (sides along a row lie in the hull of the discs).
    """
    y = rows.astype(np.float64)
    low, high = np.full(len(y), np.inf), np.full(len(y), -np.inf)
    for end in (p, q):
        square = radius**2 - (y - end[at, 0]) ** 2
        half = np.where(square >= -TOLERANCE, np.sqrt(np.maximum(square, 0)), -np.inf)
        middle = end[at, 1]
        np.minimum(low, middle - half, out=low)
        np.maximum(high, middle + half, out=high)
    step = q - p
    length = np.hypot(step[:, 0], step[:, 1])
    normal = np.stack([-step[:, 1], step[:, 0]], axis=1) * (radius / np.maximum(length, 1e-12))[:, None]
    steep = np.abs(step[:, 0]) > 1e-9
    slope = np.where(steep, step[:, 1], 0.0) / np.where(steep, step[:, 0], 1.0)
    slope = slope[at]
    for shift in (normal, -normal):
        a, b = p + shift, q + shift
        # An empty span of rows for sides along a row.
        top = np.where(steep, np.minimum(a[:, 0], b[:, 0]), np.inf)[at]
        bottom = np.where(steep, np.maximum(a[:, 0], b[:, 0]), -np.inf)[at]
        crosses = (y >= top) & (y <= bottom)
        x = a[at, 1] + (y - a[at, 0]) * slope
        np.minimum(low, x, out=low, where=crosses)
        np.maximum(high, x, out=high, where=crosses)
    return _inside(low / stretch, high / stretch)


def brush_runs(points: Floats, radii: tuple[float, float], shape: tuple[int, int]) -> Runs:
    """Pixels whose centre an ellipse touches that moves along ``points`` (N, 2), N >= 1, clipped to ``shape``.

    ``radii`` are its half axes, down and across.
    """
    radius, stretch = radii[0], radii[0] / radii[1]  # with stretched columns it is a circle
    p = np.asarray(points, dtype=np.float64) * (1.0, stretch)
    p, q = (p, p) if len(p) == 1 else (p[:-1], p[1:])
    top = np.ceil(np.minimum(p[:, 0], q[:, 0]) - radius - TOLERANCE)
    bottom = np.floor(np.maximum(p[:, 0], q[:, 0]) + radius + TOLERANCE) + 1
    top, bottom = np.clip(top, 0, shape[0]).astype(np.int64), np.clip(bottom, 0, shape[0]).astype(np.int64)
    counts = np.maximum(bottom - top, 0)
    parts: list[tuple[Ints, Ints, Ints]] = []
    ends = np.cumsum(counts)
    first = 0
    while first < len(counts):  # batches keep a long path with a huge brush within tens of megabytes
        done = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, done + _BATCH_ROWS)))
        at = np.repeat(np.arange(first, last), counts[first:last])
        offset = np.arange(len(at)) - np.repeat(ends[first:last] - counts[first:last] - done, counts[first:last])
        rows = top[at] + offset
        runs = merged(rows, *_capsules(p, q, radius, stretch, rows, at), shape)
        parts.append((runs.rows, runs.starts, runs.stops))
        first = last
    if len(parts) == 1:
        return Runs(*parts[0])
    rows, starts, stops = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return merged(rows, starts, stops, shape)


def polygon_runs(rings: Sequence[Floats], shape: tuple[int, int], nonzero: bool = False) -> Runs:
    """Pixels whose centre is inside closed ``rings`` of (N, 2) corners.

    With the even-odd rule further rings are holes (or islands); with ``nonzero`` a pixel is inside when the outline
    winds around it, so that a free-hand loop that crosses itself has no holes.
    """
    rows, xs, turns = [], [], []
    for ring in rings:
        a = np.asarray(ring, dtype=np.float64)
        b = np.roll(a, -1, axis=0)
        down = a[:, 0] < b[:, 0]
        upper, lower = np.where(down[:, None], a, b), np.where(down[:, None], b, a)
        # Half open in rows, so that a corner on a row of pixel centres is crossed once.
        first = np.clip(np.ceil(upper[:, 0]), 0, shape[0]).astype(np.int64)
        last = np.clip(np.ceil(lower[:, 0]), 0, shape[0]).astype(np.int64)
        counts = last - first
        at = np.repeat(np.arange(len(a)), counts)
        y = first[at] + np.arange(len(at)) - np.repeat(np.cumsum(counts) - counts, counts)
        u, v = upper[at], lower[at]
        rows.append(y)
        xs.append(u[:, 1] + (y - u[:, 0]) * (v[:, 1] - u[:, 1]) / (v[:, 0] - u[:, 0]))
        turns.append(np.where(down[at], 1, -1))
    row, x, turn = np.concatenate(rows), np.concatenate(xs), np.concatenate(turns)
    order = np.lexsort((x, row))
    row, x, turn = row[order], x[order], turn[order]
    # Every row's crossings sum to zero (and are even in number), so running sums need no reset per row.
    inside = np.cumsum(turn) != 0 if nonzero else np.arange(1, len(row) + 1) % 2 == 1
    begin = np.flatnonzero(inside)
    column = np.ceil(np.clip(x, -1.0, shape[1] + 1.0) - TOLERANCE).astype(np.int64)
    return merged(row[begin], column[begin], column[np.minimum(begin + 1, len(column) - 1)], shape)
