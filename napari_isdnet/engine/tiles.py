"""A pyramid that answers at once and reads later: :class:`TilePyramid`.

A window on a screen must never wait for a disk. :meth:`TilePyramid.answer` returns what is in memory (tiles of the
level asked for, else the best coarser ones, enlarged), and asks a :class:`~napari_isdnet.engine.viewqueue.ViewQueue`
for what is missing. When tiles arrive, ``on_change`` is called from the worker thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from napari_isdnet.engine.recent import Recent
from napari_isdnet.engine.viewqueue import ViewQueue
from napari_isdnet.window import Grid, Window

Array = npt.NDArray[Any]
TileKey = tuple[int, int]  # (level, index of the tile in the level's grid)

MEMORY = 256 * 2**20


class LivePyramid(Protocol):
    """What a lazy layer shows: a pyramid of arrays that answers at once and tells when it knows more."""

    shapes: tuple[tuple[int, int], ...]
    dtype: np.dtype[Any]
    channels: int | None
    chunk: int
    on_change: Callable[[], None] | None

    def answer(self, level: int, window: Window) -> Array:
        """What is known of ``window`` now, ``(height, width)`` or ``(height, width, channels)``; never blocks."""

    def overview(self) -> Array:
        """The coarsest level: one array that is filled in place as more becomes known."""

    def read(self, level: int, window: Window) -> Array:
        """The truth about ``window``; may take as long as it takes."""

    def close(self) -> None:
        """Stop and join every thread."""


class TilePyramid:
    """Levels of an image of which only looked-at tiles are read, in background threads.

    Parameters
    ----------
    shapes
        Rows and columns of every level, finest first. The coarsest is held in memory whole.
    read
        ``read(level, window)`` returns the pixels of a window that lies inside the level, ``(height, width)`` or
        ``(height, width, channels)``, of ``dtype``. Called from several threads at once.
    channels
        Number of channels, or None for a map without a channel axis.
    fill
        What is shown where nothing is known yet.
    on_error
        ``on_error(error)``, called from a worker thread; the tile stays ``fill`` and is not read again.
    ready
        ``ready(level, window)`` is False where a tile is not to be read yet, but with a later view. Called from several
        threads at once.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, int]],
        read: Callable[[int, Window], Array],
        dtype: npt.DTypeLike = np.uint8,
        channels: int | None = None,
        fill: float = 0,
        chunk: int = 512,
        memory: int = MEMORY,
        threads: int | None = None,
        on_error: Callable[[Exception], None] | None = None,
        ready: Callable[[int, Window], bool] | None = None,
    ) -> None:
        self.shapes = tuple((int(r), int(c)) for r, c in shapes)
        self.dtype = np.dtype(dtype)
        self.channels = channels
        self.chunk = chunk
        self.fill = fill
        self.on_change: Callable[[], None] | None = None
        self.on_error = on_error
        self._reader = read
        self._ready = ready
        self._cache: Recent[TileKey, Array] = Recent(memory)
        self._grids = tuple(Grid(shape, (chunk, chunk)) for shape in self.shapes)
        self._overview = self._blank(self.shapes[-1])
        self._overview_done: set[int] = set()
        self._failed: set[TileKey] = set()
        self._stale: set[TileKey] = set()  # shown as they are until they have been read again
        self._queue: ViewQueue[TileKey] = ViewQueue(self._load, threads, self._report, name="isdnet-view-tiles")

    def _blank(self, shape: tuple[int, int]) -> Array:
        return np.full(shape if self.channels is None else (*shape, self.channels), self.fill, self.dtype)

    # -- worker threads ------------------------------------------------------------------------------------------
    def _load(self, key: TileKey) -> None:
        level, index = key
        if self._known(key):  # arrived between the look at the cache and the wish
            return
        window = self._grids[level][index]
        if self._ready is not None and not self._ready(level, window):
            return
        self._stale.discard(key)  # before reading: what changes meanwhile makes it stale again
        tile = np.asarray(self._reader(level, window), dtype=self.dtype)
        if level == len(self.shapes) - 1:
            self._overview[window.slices] = tile
            self._overview_done.add(index)
        else:
            self._cache.put(key, tile)
        self._tell()

    def _report(self, key: TileKey, error: Exception) -> None:
        self._failed.add(key)
        if self.on_error is not None:
            self.on_error(error)

    def _tell(self) -> None:
        if self.on_change is not None:
            self.on_change()

    # -- the asking side -----------------------------------------------------------------------------------------
    def answer(self, level: int, window: Window) -> Array:
        """What is known of ``window`` now; what is missing is read next, nearest to the middle first."""
        out = self._blank(window.shape)
        missing: list[TileKey] = []
        for index in self._grids[level].touching(window):
            tile_window = self._grids[level][index]
            part = tile_window.intersect(window)
            tile = self._tile((level, index))
            target = out[part.relative_to(window).slices]
            if tile is not None:
                target[...] = tile[part.relative_to(tile_window).slices]
                if (level, index) in self._stale:
                    missing.append((level, index))
            else:
                missing.append((level, index))
                self._enlarge(level, part, target)
        if window.area > 1:  # a single pixel is a question about a value, not a new view
            self._queue.replace(self._order(level, window, missing))
        return out

    def _tile(self, key: TileKey) -> Array | None:
        level, index = key
        if level == len(self.shapes) - 1:
            return self._overview[self._grids[level][index].slices] if index in self._overview_done else None
        return self._cache.get(key)

    def _known(self, key: TileKey) -> bool:
        return key not in self._stale and self._tile(key) is not None

    def _enlarge(self, level: int, part: Window, target: Array) -> None:
        """Fill ``target`` (the pixels ``part`` of ``level``) from the finest coarser level that knows all of it."""
        for coarser in range(level + 1, len(self.shapes)):
            rows = nearest(part.row, part.height, self.shapes[level][0], self.shapes[coarser][0])
            columns = nearest(part.column, part.width, self.shapes[level][1], self.shapes[coarser][1])
            window = Window.from_bounds(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)
            keys = [(coarser, index) for index in self._grids[coarser].touching(window)]
            tiles = [self._tile(key) for key in keys]
            if any(tile is None for tile in tiles):
                continue
            known = self._blank(window.shape)
            for key, tile in zip(keys, tiles, strict=True):
                tile_window = self._grids[coarser][key[1]]
                shared = tile_window.intersect(window)
                assert tile is not None
                known[shared.relative_to(window).slices] = tile[shared.relative_to(tile_window).slices]
            target[...] = known.take(rows - window.row, axis=0).take(columns - window.column, axis=1)
            return

    def _order(self, level: int, window: Window, missing: list[TileKey]) -> Iterator[TileKey]:
        """The overview first (it fills every gap), then the view from its middle, then the next coarser level."""
        row, column = window.center
        last = len(self.shapes) - 1
        if level != last:
            yield from self._overview_missing()
        missing.sort(key=lambda key: self._grids[key[0]][key[1]].distance(row, column))
        yield from (key for key in missing if key not in self._failed)
        if level + 1 < last:
            keys = ((level + 1, index) for index in self._tiles_of(window, level, level + 1))
            yield from (key for key in keys if key not in self._failed and not self._known(key))

    def overview(self) -> Array:
        """The coarsest level, filled in place as it is read; asking for it starts reading it."""
        if self._queue.pending == 0:
            self._queue.replace(self._overview_missing())
        return self._overview

    def _overview_missing(self) -> list[TileKey]:
        last = len(self.shapes) - 1
        keys = [key for key in ((last, index) for index in range(len(self._grids[last]))) if not self._known(key)]
        return [key for key in keys if key not in self._failed]

    def read(self, level: int, window: Window) -> Array:
        """The pixels themselves, read now by the calling thread."""
        return np.asarray(self._reader(level, window), dtype=self.dtype)

    def renew(self, window: Window) -> None:
        """What was read of a level-0 window is no longer true: it is shown until it has been read again."""
        for level in range(len(self.shapes)):
            self._stale.update([(level, index) for index in self._tiles_of(window, 0, level)])
        self._tell()

    def _tiles_of(self, window: Window, level: int, other: int) -> list[int]:
        """Tiles of level ``other`` that show some of ``window``, which is in pixels of ``level``."""
        (top, bottom), (left, right) = (
            (first * size // full, -(-last * size // full))
            for (first, last), size, full in zip(window.spans, self.shapes[other], self.shapes[level], strict=True)
        )
        return self._grids[other].touching(Window.from_bounds(top, left, bottom, right).clipped(self.shapes[other]))

    def wait(self, timeout: float | None = None) -> bool:
        """Block until nothing is left to read (for tests and screenshots)."""
        return self._queue.wait(timeout)

    def close(self) -> None:
        """Stop reading; join the threads."""
        self.on_change = None
        self._queue.close()


def nearest(start: int, length: int, fine: int, coarse: int) -> npt.NDArray[np.intp]:
    """Index on a coarser axis of ``coarse`` samples for each of ``length`` samples of a finer one of ``fine``."""
    # The middle of each fine sample, mapped: exact for factors of two, and right for any other ratio.
    index = (2 * np.arange(start, start + length, dtype=np.int64) + 1) * coarse // (2 * fine)
    return np.minimum(index, coarse - 1).astype(np.intp)
