"""A rendered map as a pyramid that fills itself where one looks: :class:`RenderPyramid`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from napari_isdnet.engine.dense import DenseLevels
from napari_isdnet.engine.recent import Recent
from napari_isdnet.engine.viewqueue import ViewQueue, nearest_first
from napari_isdnet.window import Grid, Window, pyramid_shapes

Picture = npt.NDArray[np.uint8]
UNIT = 128
DENSE_CELLS = 2**24
MEMORY = 256 * 2**20


def halve(picture: Picture) -> Picture:
    """Mean of every 2x2 cells of RGBA (h, w, 4); an odd last row or column counts twice."""
    if picture.shape[0] % 2 or picture.shape[1] % 2:
        picture = np.pad(picture, ((0, picture.shape[0] % 2), (0, picture.shape[1] % 2), (0, 0)), mode="edge")
    wide = picture.astype(np.uint16)
    total = wide[::2, ::2] + wide[1::2, ::2] + wide[::2, 1::2] + wide[1::2, 1::2]
    return ((total + 2) // 4).astype(np.uint8)


class RenderPyramid:
    """RGBA of a part of a map, computed unit by unit in a background thread, nearest to the middle of the view first.

    ``paint(window)`` returns RGBA (height, width, 4) of a window of the map, in cells; ``part`` is the window of the
    map that the pyramid covers, its own coordinates begin there. What is not known yet is transparent. Levels of up to
    16 million cells are held whole; of finer ones the units looked at last. ``on_error(error)`` comes from the worker
    thread, once.
    """

    dtype = np.dtype(np.uint8)
    channels: int | None = 4
    chunk = 256

    def __init__(
        self,
        part: Window,
        paint: Callable[[Window], Picture],
        unit: int = UNIT,
        on_error: Callable[[Exception], None] | None = None,
        memory: int = MEMORY,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        self.part = part
        self.shapes = tuple(pyramid_shapes(part.shape))
        self.grid = Grid(part.shape, (unit, unit))
        self.on_change: Callable[[], None] | None = None
        self._paint, self._on_error, self._on_close = paint, on_error, on_close
        sizes = [rows * columns for rows, columns in self.shapes]
        first = next(i for i, size in enumerate(sizes) if size <= DENSE_CELLS)
        self._dense = DenseLevels(self.shapes, first, np.zeros(4, np.uint8), halve)
        self._fine: Recent[tuple[int, int], Picture] = Recent(memory)  # by level and unit
        self._done = np.zeros(len(self.grid), bool)
        self._failed = False
        self._view: Window | None = None  # of a level that is held whole, while the queue holds its units
        self._queue: ViewQueue[int] = ViewQueue(self._work, 1, self._report, name="isdnet-view-features")

    # -- worker thread -------------------------------------------------------------------------------------------
    def _work(self, index: int) -> None:
        if not any(self._missing(index, level) for level in range(self._dense.first + 1)):
            return
        window = self.grid[index]
        picture = self._paint(window.shifted(self.part.row, self.part.column))
        first = self._dense.first
        for level in range(first):
            self._fine.put((level, index), picture)
            picture = halve(picture)
        self._dense.paint(window.divided(2**first).clipped(self.shapes[first]), picture)
        self._done[index] = True
        if self.on_change is not None:
            self.on_change()

    def _report(self, _: int, error: Exception) -> None:
        first, self._failed = not self._failed, True
        self._queue.replace(())
        if first and self._on_error is not None:
            self._on_error(error)

    def _missing(self, index: int, level: int) -> bool:
        return not self._done[index] or (level < self._dense.first and self._fine.get((level, index)) is None)

    # -- the asking side -----------------------------------------------------------------------------------------
    def answer(self, level: int, window: Window) -> Picture:
        """What is known of ``window`` now; what is missing is computed next."""
        view = window.multiplied(2**level).clipped(self.part.shape)
        if window.area > 1 and not self._failed:
            self._look_at(view, level)
        if level >= self._dense.first:
            return self._dense.view(level, window)
        out = self._dense.enlarged(level, window)
        for index in self.grid.touching(view):
            self._copy(level, index, window, out)
        return out

    def _look_at(self, view: Window, level: int) -> None:
        """Compute what is missing of ``view`` (cells of the part) next."""
        whole = level >= self._dense.first
        if whole and view == self._view:  # all of it is wished for already, and what is done there stays
            return
        self._view = view if whole else None
        units = np.array(self.grid.touching(view), np.intp)
        wanted = units[~self._done[units] if whole else [self._missing(index, level) for index in units.tolist()]]
        self._queue.replace(nearest_first(self.grid, wanted, view))

    def _copy(self, level: int, index: int, window: Window, out: Picture) -> None:
        """What of a unit's picture lies in ``window``, where it is held."""
        picture = self._fine.get((level, index))
        if picture is None:
            return
        area = self.grid[index].divided(2**level).clipped(self.shapes[level])
        shared = area.intersect(window)
        if not shared.empty:
            out[shared.relative_to(window).slices] = picture[shared.relative_to(area).slices]

    def overview(self) -> Picture:
        """The coarsest level, filled in place."""
        return self._dense.coarsest

    def read(self, level: int, window: Window) -> Picture:
        """The picture of ``window``, computed now by the calling thread where it is missing."""
        units = self.grid.touching(window.multiplied(2**level).clipped(self.part.shape))
        if level >= self._dense.first:
            for index in units:
                self._work(index)
            return self._dense.view(level, window)
        out = np.zeros((*window.shape, 4), np.uint8)
        for index in units:  # one after the other: all of them may be more than the memory holds
            self._work(index)
            self._copy(level, index, window, out)
        return out

    @property
    def progress(self) -> tuple[int, int]:
        """(done, total) units."""
        return int(self._done.sum()), len(self.grid)

    def wait(self, timeout: float | None = None) -> bool:
        """Block until nothing is left to compute; False when ``timeout`` seconds passed first."""
        return self._queue.wait(timeout)

    def close(self) -> None:
        """Finish the unit at hand, drop the rest, join the thread; then ``on_close()``, once."""
        self.on_change = None
        self._queue.close()
        after, self._on_close = self._on_close, None
        if after is not None:
            after()
