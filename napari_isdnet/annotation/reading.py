"""The part of the annotation store that reads: windows at every level, and how much of which class is where."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from napari_isdnet.annotation.chunks import CHUNK, Chunk, ChunkCache, FrozenChunks
from napari_isdnet.annotation.counts import Counts, Place, by_class, count
from napari_isdnet.annotation.journal import Journal
from napari_isdnet.annotation.naming import Naming, naming_of
from napari_isdnet.annotation.painting import Painter
from napari_isdnet.annotation.saving import Saver, State
from napari_isdnet.classes import ClassInfo
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
    _cache: ChunkCache | FrozenChunks
    _painter: Painter
    _now: State

    @property
    def classes(self) -> tuple[ClassInfo, ...]:
        """Names and colours; class k is annotation value k + 1."""
        return tuple(c.info for c in self._now.classes)

    @property
    def pins(self) -> Mapping[str, str]:
        """Regions fixed to one side of the split (see :mod:`~napari_isdnet.annotation.regions`)."""
        return self._now.pins

    def chunk_counts(self) -> dict[Place, Counts]:
        """Labelled pixels by annotation value for every 512-chunk (row, column) of level 0 that holds any."""
        raise NotImplementedError

    def chunk(self, place: Place) -> Chunk:
        """All values of one 512-chunk (row, column) of level 0, 0 outside the image; do not change the array."""
        with self._lock:
            return self._cache.get((0, *place))

    def class_counts(self) -> tuple[int, ...]:
        """Number of painted pixels of each class."""
        with self._lock:  # classes and counts of one moment
            classes, found = len(self._now.classes), self.chunk_counts()
        return by_class(found.values(), classes)

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
        """Annotation values of ``window`` at ``level`` as (height, width); an array of its own.

        It waits for no stroke: of one that is being painted meanwhile it may hold a part (see :meth:`Live.still` and
        :meth:`Live.frozen`).
        """
        result = np.zeros(window.shape, dtype=np.uint8)
        grid = Grid(self.levels[level], (CHUNK, CHUNK))
        for index in grid.touching(window):
            row, column = divmod(index, grid.counts[1])
            chunk = self._cache.get((level, row, column))
            inside = window.intersect(grid[index])
            at = inside.relative_to(window).slices
            if isinstance(chunk, int):
                result[at] = chunk
            else:
                result[at] = chunk[inside.shifted(-row * CHUNK, -column * CHUNK).slices]
        return result

    def naming(self) -> Naming:
        """What the classes were called, and are called now."""
        return naming_of(self.journal, self.position)

    def identity(self) -> dict[str, Any]:
        """Path and journal position, which together tell one state from another."""
        return {"path": str(self.folder), "position": self.position, "id": self.last_id}

    @property
    def last_id(self) -> str:
        """Identifier of the last journal entry."""
        return self.journal.last_id

    @property
    def memory(self) -> int:
        """Bytes of decoded chunks held now; at most ``cache_bytes`` and one chunk."""
        return self._cache.memory


class Frozen(Reading):
    """An annotation as it was at one moment, whatever is painted since: pixels, classes, counts and position agree.

    It reads from the store, which must stay open; what is replaced there is kept, compressed, as long as this lives.
    ``strokes``: numbers of the journal entries that stood, oldest first.
    """

    def __init__(self, store: Live) -> None:
        with store.still():
            self.folder, self.levels, self.journal = store.folder, store.levels, store.journal
            self._lock, self._painter, self._now = store._lock, store._painter, store._now
            self._cache = store._cache.freeze()
            self._counts = store.chunk_counts()
            self._position, self._last_id = store.position, store.last_id
            self.strokes = tuple(sorted(store.journal.done))

    def chunk_counts(self) -> dict[Place, Counts]:
        """Labelled pixels by annotation value for every 512-chunk (row, column) of level 0 that holds any."""
        return dict(self._counts)

    @property
    def position(self) -> int:
        """Number of the last journal entry at that moment."""
        return self._position

    @property
    def last_id(self) -> str:
        """Identifier of that entry."""
        return self._last_id

    def frozen(self) -> Frozen:
        """Itself."""
        return self


class Live(Reading):
    """The annotation as it is now."""

    _cache: ChunkCache
    _saver: Saver

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

    @contextlib.contextmanager
    def still(self) -> Iterator[None]:
        """Nothing is changed by another thread inside; whoever paints waits, so keep it short."""
        with self._lock:
            yield

    def frozen(self) -> Frozen:
        """This moment, to be read while others go on painting."""
        return Frozen(self)
