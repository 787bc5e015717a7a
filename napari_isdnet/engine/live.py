"""The prediction as a pyramid that fills itself where one looks: :class:`PredictionPyramid`.

A fixed grid of windows, anchored at the image's origin, is segmented window by window, nearest to the middle of the
view first. The grid does not depend on the view, so whatever order someone looks around in, the labels are those of
the whole grid. Finished windows are kept compressed; low zoom is answered from coarser levels of what is done.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from napari_isdnet.classes import IGNORE_INDEX
from napari_isdnet.engine.dense import DenseLevels
from napari_isdnet.engine.recent import Recent
from napari_isdnet.engine.viewqueue import ViewQueue, nearest_first
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.pyramid import halve_by_mode
from napari_isdnet.window import Grid, Window, pyramid_shapes

Labels = npt.NDArray[np.uint8]

#: Levels of at most this many pixels are held whole; finer ones as compressed windows.
DENSE_PIXELS = 2**24
MEMORY = 512 * 2**20
UNPACKED = 32 * 2**20


class PredictionPyramid:
    """Labels of an image, computed where and when they are looked at.

    Parameters
    ----------
    shape
        Rows and columns of the image at level 0.
    core
        Rows and columns of the windows of the grid; even sizes, better multiples of a high power of two.
    compute
        ``compute(window)`` returns the class indices of a grid window as uint8 ``(height, width)``; it is called from
        worker threads (as many as ``threads``; a network uses several cores by itself, so one is the default).
    everything
        Go on with the rest of the image, nearest first, once what is looked at is done.
    within
        Only windows that touch this part of the image are computed (a region someone drew).
    memory
        Bytes of compressed windows that are kept; beyond it the ones looked at longest ago are computed again.
    on_window, on_error
        ``on_window(window, labels)`` and ``on_error(window, error)`` are called from the worker thread.
    """

    dtype = np.dtype(np.uint8)
    channels: int | None = None

    def __init__(
        self,
        shape: tuple[int, int],
        core: tuple[int, int],
        compute: Callable[[Window], Labels],
        threads: int = 1,
        everything: bool = False,
        within: Window | None = None,
        memory: int = MEMORY,
        on_window: Callable[[Window, Labels], None] | None = None,
        on_error: Callable[[Window, Exception], None] | None = None,
    ) -> None:
        self.grid = Grid(shape, core)
        self.shapes = tuple(pyramid_shapes(shape))
        self.chunk = 512
        self.everything = everything
        self.within = within or Window.whole(shape)
        self.on_change: Callable[[], None] | None = None
        self._followers: list[Callable[[Window], None]] = []
        self._compute, self._on_window, self._on_error = compute, on_window, on_error
        self._dense = DenseLevels(self.shapes, self._first_dense(core), np.array(IGNORE_INDEX, np.uint8), halve_by_mode)
        self._packed: Recent[int, list[bytes]] = Recent(memory, _bytes)  # per window: its levels below the dense ones
        self._unpacked: Recent[tuple[int, int], Labels] = Recent(UNPACKED)  # by level and window
        self._done = np.zeros(len(self.grid), dtype=bool)  # computed by ``compute`` as it is: coarse levels are right
        self._fine = np.zeros(len(self.grid), dtype=bool)  # of those, not dropped for memory since: all levels are
        self._failed = np.zeros(len(self.grid), dtype=bool)
        self._allowed = np.zeros(len(self.grid), dtype=bool)
        self._allowed[self.grid.touching(self.within)] = True
        self._lock = threading.Lock()
        self._version = 0  # of ``compute``
        self._over = False
        self._view: tuple[Window, int] | None = None  # and the level it was looked at
        self._queue: ViewQueue[int] = ViewQueue(self._work, threads, self._report, name="isdnet-view-live")

    def _first_dense(self, core: tuple[int, int]) -> int:
        for level, (rows, columns) in enumerate(self.shapes):
            whole = all(side % 2 ** (level + 1) == 0 for side in core) or len(self.grid) == 1
            if rows * columns <= DENSE_PIXELS or not whole:
                if rows * columns > 64 * DENSE_PIXELS:
                    raise InputError(
                        f"Windows of {core[0]} x {core[1]} pixels cannot be shown live on an image of this size; "
                        "use a window size that is a multiple of 32."
                    )
                return level
        return len(self.shapes) - 1

    # -- worker threads ------------------------------------------------------------------------------------------
    def _work(self, index: int) -> None:
        if self._fine[index]:  # finished between the look at the list and the wish
            return
        window = self.grid[index]
        with self._lock:
            compute, version = self._compute, self._version
        try:
            labels = np.ascontiguousarray(compute(window), dtype=np.uint8)
        except Exception:
            if version == self._version:
                raise
            self._work(index)  # replaced meanwhile, and closed: its failure says nothing of the new function
            return
        if labels.shape != window.shape:
            raise ValueError(f"compute() returned {labels.shape} for a window of {window.shape}")
        levels, packed = labels, []
        for _ in range(self._dense.first):
            packed.append(zlib.compress(levels.tobytes(), 1))
            levels = halve_by_mode(levels)
        with self._lock:
            current = version == self._version
            if current:
                self._keep(index, packed)
                first = self._dense.first
                self._dense.paint(window.divided(2**first).clipped(self.shapes[first]), levels)
                self._done[index] = self._fine[index] = True
        if not current:  # the function was replaced meanwhile
            self._work(index)
            return
        if self._on_window is not None:
            self._on_window(window, labels)
        for follower in tuple(self._followers):
            follower(window)
        if self.on_change is not None:
            self.on_change()

    def _keep(self, index: int, packed: list[bytes]) -> None:
        if not packed:
            return
        for old in self._packed.put(index, packed):
            self._fine[old] = False  # its coarse levels stay; at full zoom it is computed again when looked at
        for level in range(len(packed)):
            self._unpacked.drop((level, index))

    def _report(self, index: int, error: Exception) -> None:
        self._failed[index] = True
        if self._on_error is not None:
            self._on_error(self.grid[index], error)

    # -- the asking side -----------------------------------------------------------------------------------------
    def answer(self, level: int, window: Window) -> Labels:
        """What is known of ``window`` at ``level`` now (255 elsewhere); what is missing there is computed next."""
        if window.area > 1:  # a single pixel is a question about a value, not a new view
            self.look_at(self._at_level_0(level, window), level)
        return self.known(level, window)

    def follow(self, follower: Callable[[Window], None]) -> Callable[[], None]:
        """Call ``follower(window)`` from the worker thread after every finished window; returns what ends that."""
        self._followers.append(follower)
        return lambda: self._followers.remove(follower) if follower in self._followers else None

    def known(self, level: int, window: Window) -> Labels:
        """What is known of ``window`` at ``level`` now, 255 elsewhere; nothing is computed for it."""
        return self._gather(level, window) if level < self._dense.first else self._dense.view(level, window)

    def _at_level_0(self, level: int, window: Window) -> Window:
        return window.multiplied(2**level).clipped(self.shapes[0])

    def _gather(self, level: int, window: Window) -> Labels:
        out = np.full(window.shape, IGNORE_INDEX, np.uint8)
        for index in self.grid.touching(self._at_level_0(level, window)):
            area = self.grid[index].divided(2**level).clipped(self.shapes[level])
            shared = area.intersect(window)
            if shared.empty:
                continue
            labels = self._labels(level, index, area)
            out[shared.relative_to(window).slices] = (
                # one that was dropped for memory: from the dense level, until it is computed again
                self._dense.enlarged(level, shared) if labels is None else labels[shared.relative_to(area).slices]
            )
        return out

    def _labels(self, level: int, index: int, area: Window) -> Labels | None:
        """What is kept of a window at a level finer than the dense ones."""
        with self._lock:
            packed, labels = self._packed.get(index), self._unpacked.get((level, index))
        if packed is not None and labels is None:
            labels = np.frombuffer(zlib.decompress(packed[level]), np.uint8).reshape(area.shape)
            with self._lock:
                if self._packed.get(index) is packed:  # not computed anew meanwhile
                    self._unpacked.put((level, index), labels)
        return None if packed is None else labels

    def look_at(self, view: Window, level: int = 0) -> None:
        """Compute what is missing in ``view`` (level 0), nearest to its middle first; earlier wishes are dropped.

        ``level`` is the one that is shown: what was dropped for memory is computed again only where it is seen.
        """
        self._view = view, level
        inside = np.zeros(len(self.grid), dtype=bool)
        inside[self.grid.touching(view)] = True
        wanted = ~self._done if self.everything else inside & ~self._done
        wanted |= inside & ~self._known_at(level)
        wanted &= self._allowed & ~self._failed
        parts = (np.flatnonzero(wanted & inside), np.flatnonzero(wanted & ~inside))
        self._queue.replace(index for cells in parts for index in nearest_first(self.grid, cells, view))

    def _known_at(self, level: int) -> npt.NDArray[np.bool_]:
        """Which windows are known at ``level``."""
        return self._fine if level < self._dense.first else self._done

    def overview(self) -> Labels:
        """The coarsest level, filled in place."""
        return self._dense.coarsest

    def read(self, level: int, window: Window) -> Labels:
        """The labels of ``window``, computed now by the calling thread where they are missing.

        Once it has ended, what is known, and 255 elsewhere.
        """
        for index in self.grid.touching(self._at_level_0(level, window)):
            if self._over:
                break
            if not self._known_at(level)[index]:
                try:
                    self._work(index)
                except Exception:
                    if not self._over:  # else the network went while it was at work
                        raise
        return self.known(level, window)

    @property
    def progress(self) -> tuple[int, int]:
        """(done, total) windows of those that may be computed."""
        return int((self._done & self._allowed).sum()), int(self._allowed.sum())

    @property
    def pending(self) -> int:
        """Windows that wait or are being computed."""
        return self._queue.pending

    def go_on(self, everything: bool) -> None:
        """What is looked at, or ``everything`` of the region after it, from now on."""
        self.everything = everything
        if self._view is not None:
            self.look_at(*self._view)

    def replace(self, compute: Callable[[Window], Labels], everything: bool | None = None) -> None:
        """Answer by another function from now on (a better one, say).

        What is known is shown until its window has been computed anew, beginning with what is looked at now.
        """
        with self._lock:
            self._compute = compute
            self._version += 1
            self._done[:] = self._fine[:] = False
            self._failed[:] = False
            self._unpacked.clear()
        self.go_on(self.everything if everything is None else everything)

    def wait(self, timeout: float | None = None) -> bool:
        """Block until nothing waits; False when ``timeout`` seconds passed first."""
        return self._queue.wait(timeout)

    def end(self) -> None:
        """Compute nothing more from now on; returns at once."""
        self._over = True
        self.on_change = None

    def close(self) -> None:
        """Finish the window at hand, drop the rest, join the threads."""
        self.end()
        self._queue.close()


def _bytes(packed: list[bytes]) -> int:
    return sum(map(len, packed))
