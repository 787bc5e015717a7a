"""The part of the annotation store that reads: windows at every level, and how much of which class is where."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from napari_isdnet.annotation.chunks import CHUNK, ChunkCache
from napari_isdnet.annotation.counts import Counts, Place, count
from napari_isdnet.annotation.journal import Journal
from napari_isdnet.annotation.painting import Painter
from napari_isdnet.annotation.saving import Saver, State
from napari_isdnet.io.source import ImageSource, check_window
from napari_isdnet.window import Grid, Window

Labels = npt.NDArray[np.uint8]


class Reading:
    """An :class:`~napari_isdnet.io.source.ImageSource` of annotation values with one channel."""

    channels = 1
    dtype: np.dtype[Any] = np.dtype(np.uint8)
    pixel_size = None
    georeference = None
    nodata = None
    alpha = None

    folder: Path
    levels: tuple[tuple[int, int], ...]
    journal: Journal
    _lock: threading.RLock  # type: ignore[valid-type]
    _cache: ChunkCache
    _painter: Painter
    _saver: Saver
    _now: State

    def chunk_counts(self) -> dict[Place, Counts]:
        """Labelled pixels by annotation value for every 512-chunk (row, column) of level 0 that holds any."""
        with self._lock:
            counts = self._saver.counts()
            for key in self._cache.waiting(0):
                found = count(self._cache.get(key))
                counts.pop(key[1:], None)
                if found:
                    counts[key[1:]] = found
            return counts

    def class_counts(self) -> tuple[int, ...]:
        """Number of painted pixels of each class."""
        totals = [0] * len(self._now.classes)
        for counts in self.chunk_counts().values():
            for value, number in counts.items():
                totals[value - 1] += number
        return tuple(totals)

    def annotated_windows(self) -> list[Window]:
        """The 512-chunks of level 0 that hold any label, in row-major order."""
        return [self._painter.window(place) for place in sorted(self.chunk_counts())]

    @property
    def name(self) -> str:
        """Name of the folder without its ending."""
        return self.folder.name.removesuffix(".isdnet")

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns at level 0."""
        return self.levels[0]

    @property
    def position(self) -> int:
        """Journal position: the number of the last entry; what a model was trained on."""
        return self.journal.position

    def read(self, window: Window, level: int = 0) -> Labels:
        """Annotation values of ``window`` at ``level`` as (height, width, 1)."""
        check_window(cast(ImageSource, self), window, level)
        return self.read_labels(window, level)[..., None]

    def read_labels(self, window: Window, level: int = 0) -> Labels:
        """Annotation values of ``window`` at ``level`` as (height, width); an array of its own."""
        result = np.zeros(window.shape, dtype=np.uint8)
        grid = Grid(self.levels[level], (CHUNK, CHUNK))
        for index in grid.touching(window):
            row, column = divmod(index, grid.counts[1])
            with self._lock:
                chunk = self._cache.get((level, row, column))
            inside = window.intersect(grid[index])
            at = inside.relative_to(window).slices
            if isinstance(chunk, int):
                result[at] = chunk
            else:
                result[at] = chunk[inside.shifted(-row * CHUNK, -column * CHUNK).slices]
        return result

    def identity(self) -> dict[str, Any]:
        """Path and journal position, which together tell one state from another."""
        return {"path": str(self.folder), "position": self.position, "id": self.journal.last_id}

    @property
    def memory(self) -> int:
        """Bytes of decoded chunks held now; at most ``cache_bytes`` and one chunk."""
        return self._cache.memory
