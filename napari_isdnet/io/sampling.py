"""A region of any size as a small picture: evenly spaced samples of the coarsest level that still has them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from napari_isdnet.io.source import ImageSource
from napari_isdnet.window import Window

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

STRIP_BYTES = 64 * 2**20
"""Of a level that are read at once."""


def level_for(shapes: Sequence[tuple[int, int]], zoom_out: float) -> int:
    """The coarsest level with a pixel for at most every ``zoom_out`` pixels of level 0; the finest where none has."""
    return max(i for i, s in enumerate(shapes) if i == 0 or max(shapes[0]) / max(s) <= zoom_out * 1.01)


def sampled(
    source: ImageSource,
    region: Window,
    longest: int,
    read: Callable[[Window, int], npt.NDArray[Any]] | None = None,
) -> npt.NDArray[Any]:
    """``region`` (level 0) as ``(h, w, channels)`` of at most ``longest`` pixels a side, by nearest sampling.

    Each sample is the middle of its part of the region. Read in strips, so that an image without a pyramid costs time
    but no memory; ``read`` (window, level) takes the place of the source's own.
    """
    import numpy as np

    step = max(1.0, max(region.shape) / longest)
    level = level_for(source.levels, step)
    height, width = (max(1, round(n / step)) for n in region.shape)
    # A scale of its own for each axis: the short side of a long image stops halving at one pixel.
    rows = _samples(region.row, region.height, height, source.shape[0], source.levels[level][0])
    columns = _samples(region.column, region.width, width, source.shape[1], source.levels[level][1])
    left, right = int(columns[0]), int(columns[-1]) + 1
    most = max(1, STRIP_BYTES // ((right - left) * source.channels * source.dtype.itemsize))
    result: list[npt.NDArray[Any]] = []
    start = 0
    while start < height:
        # Where not even the rows between two samples may be held, only the row that is picked is read.
        stop = max(start + 1, int(np.searchsorted(rows, rows[start] + most)))
        window = Window.from_bounds(int(rows[start]), left, int(rows[stop - 1]) + 1, right)
        values = source.read(window, level) if read is None else read(window, level)
        result.append(values[rows[start:stop] - window.row][:, columns - left])
        start = stop
    return np.concatenate(result)


def _samples(start: int, length: int, count: int, full: int, coarse: int) -> npt.NDArray[np.int64]:
    """Indices on a level of ``coarse`` pixels of ``count`` samples over ``start .. start + length`` of ``full``."""
    import numpy as np

    middle = start + (np.arange(count) + 0.5) * length / count
    return np.clip((middle * coarse / full).astype(np.int64), 0, coarse - 1)
