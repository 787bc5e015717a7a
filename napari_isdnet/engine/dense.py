"""The coarse levels of a pyramid that fills itself, held whole: :class:`DenseLevels`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_isdnet.window import Window

Array = npt.NDArray[Any]


class DenseLevels:
    """Levels ``first`` to the coarsest of a pyramid of ``shapes``, each half of the one before. Thread-safe.

    ``like`` is one pixel, with its channels if it has any: what is shown where nothing is known yet. ``halve`` makes
    the next coarser level of an array of pixels.
    """

    def __init__(
        self, shapes: Sequence[tuple[int, int]], first: int, like: Array, halve: Callable[[Array], Array]
    ) -> None:
        self.first = first
        self._halve = halve
        self._levels = [np.full((*shape, *like.shape), like) for shape in shapes[first:]]
        self._lock = threading.Lock()

    def paint(self, area: Window, values: Array) -> None:
        """Write ``values`` of level ``first`` at ``area``, and bring the coarser levels up to date around it."""
        with self._lock:
            self._levels[0][area.slices] = values
            for finer, coarser in zip(self._levels[:-1], self._levels[1:], strict=True):
                area = area.divided(2)
                rows, columns = finer.shape[:2]
                coarser[area.slices] = self._halve(finer[area.multiplied(2).clipped((rows, columns)).slices])

    def view(self, level: int, window: Window) -> Array:
        """A copy of ``window`` of ``level``, which is one of those held."""
        with self._lock:
            return self._levels[level - self.first][window.slices].copy()

    def enlarged(self, level: int, window: Window) -> Array:
        """``window`` of a finer level than those held, from the finest of them."""
        step = 2 ** (self.first - level)
        rows, columns = (np.arange(start, stop) // step for start, stop in window.spans)
        with self._lock:
            return self._levels[0][rows[0] : rows[-1] + 1].take(rows - rows[0], axis=0).take(columns, axis=1)

    @property
    def coarsest(self) -> Array:
        """The coarsest level itself, filled in place."""
        return self._levels[-1]
