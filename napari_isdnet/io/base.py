"""What the readers share: the facts of a source, and assembling a window from decoded tiles."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_isdnet.exceptions import InputError
from napari_isdnet.io.cache import shared_cache
from napari_isdnet.io.readers import Readers
from napari_isdnet.io.source import GeoReference, ImageSource, PixelSize, TileError, check_window
from napari_isdnet.window import Grid, Window

if TYPE_CHECKING:
    import numpy.typing as npt

POOL_FROM_TILES = 8
"""Windows of fewer tiles are decoded by the thread that asks: handing work over costs more than it saves."""
MAX_TILE_BYTES = 1 << 30
"""A file whose single tile or strip decodes to more than this is refused: it would have to be held whole."""
DECODED_AT_ONCE = 128 << 20
"""Fewer threads decode the tiles of a window where as many tiles would take more than this beside the cache."""
MAX_SIDE, MAX_CHANNELS = (1 << 31) - 1, 1024
"""Limits of what a file may claim: beyond them a header is damaged, and one pixel row would be a memory problem."""
Index = slice | list[int]
_tokens = itertools.count()


@dataclass(frozen=True)
class SourceInfo:
    """The facts of an image (see :class:`~napari_isdnet.io.source.ImageSource`), plus ``format`` and ``notes``.

    ``rgb``: which channels the file says are red, green and blue, where they are not simply the first three.
    """

    name: str
    levels: tuple[tuple[int, int], ...]
    channels: int
    dtype: np.dtype[Any]
    format: str
    pixel_size: PixelSize | None = None
    georeference: GeoReference | None = None
    nodata: float | None = None
    alpha: int | None = None
    notes: tuple[str, ...] = ()
    rgb: tuple[int, int, int] | None = None

    @classmethod
    def of(cls, source: ImageSource, **changes: Any) -> SourceInfo:
        """Those of another source, with ``changes``."""
        more = {name: getattr(source, name) for name in ("format", "notes", "rgb") if hasattr(source, name)}
        facts = ("name", "levels", "channels", "dtype", "pixel_size", "georeference", "nodata", "alpha")
        return cls(**{"format": "image", **{name: getattr(source, name) for name in facts}, **more, **changes})


def check_info(info: SourceInfo) -> None:
    """Raise :class:`InputError` for an image that is empty or holds samples that are no plain numbers."""
    if not info.levels or min(min(shape) for shape in info.levels) < 1 or info.channels < 1:
        raise InputError(f"{info.name} is empty: it must have at least one pixel and one channel.")
    if max(max(shape) for shape in info.levels) > MAX_SIDE or info.channels > MAX_CHANNELS:
        raise InputError(
            f"{info.name} claims {info.levels[0][0]} x {info.levels[0][1]} pixels of {info.channels} channels; at most "
            f"{MAX_SIDE} pixels a side and {MAX_CHANNELS} channels are allowed."
        )
    if info.dtype.kind not in "buif" or info.dtype.itemsize > 8:
        raise InputError(
            f"{info.name} holds {info.dtype} samples; integers and real numbers of up to 64 bit are allowed."
        )


class SourceBase:
    """Facts, bounds check and closing; a reader adds ``_read`` and ``identity``. Thread-safe if ``_read`` is.

    What a reader holds it lets go of in ``_release``, which is called once, when the source is closed and nobody reads.
    """

    origin: tuple[int, int] | None = None
    """Row and column of the image where a result begins that says so, a class map of a region."""

    def __init__(self, info: SourceInfo) -> None:
        check_info(info)
        self.info = info
        self.token = next(_tokens)
        self._readers = Readers()

    @property
    def closed(self) -> bool:
        """True once it was closed: reading is an error."""
        return self._readers.closed

    @property
    def name(self) -> str:
        """File stem, or the name of a layer or array."""
        return self.info.name

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns at level 0."""
        return self.info.levels[0]

    @property
    def channels(self) -> int:
        """Number of channels, alpha included."""
        return self.info.channels

    @property
    def dtype(self) -> np.dtype[Any]:
        """Sample type."""
        return self.info.dtype

    @property
    def levels(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of every level."""
        return self.info.levels

    @property
    def pixel_size(self) -> PixelSize | None:
        """Size of a level-0 pixel, where known."""
        return self.info.pixel_size

    @property
    def georeference(self) -> GeoReference | None:
        """Position on the earth, where known."""
        return self.info.georeference

    @property
    def nodata(self) -> float | None:
        """Sample value that means 'no data', where declared."""
        return self.info.nodata

    @property
    def alpha(self) -> int | None:
        """Index of the alpha channel, where there is one."""
        return self.info.alpha

    @property
    def rgb(self) -> tuple[int, int, int] | None:
        """Which channels the file says are red, green and blue, where they are not simply the first three."""
        return self.info.rgb

    @property
    def format(self) -> str:
        """Name of the format, for people."""
        return self.info.format

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about choices made while opening (a plane that was picked, a colour map that was applied)."""
        return self.info.notes

    def rename(self, name: str) -> None:
        """Give the source another name."""
        self.info = replace(self.info, name=name)

    def read(self, window: Window, level: int = 0) -> npt.NDArray[Any]:
        """Pixels of ``window`` at ``level`` as ``(height, width, channels)``; a new array, free to change."""
        with self._reading():
            check_window(self, window, level)
            return self._read(window, level)

    def read_channels(self, window: Window, channels: Sequence[int], level: int = 0) -> npt.NDArray[Any]:
        """``read(window, level)[..., channels]``; see :func:`~napari_isdnet.io.source.read_channels`."""
        with self._reading():
            check_window(self, window, level)
            return self._read_channels(window, level, channels)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Meanwhile nothing is released; :class:`InputError` where the source was closed."""
        if not self._readers.enter():
            raise InputError(f"{self.name} was closed; open it again to read from it.")
        try:
            yield
        finally:
            if self._readers.leave():
                self._let_go()

    def _read(self, window: Window, level: int) -> npt.NDArray[Any]:
        raise NotImplementedError

    def _read_channels(self, window: Window, level: int, channels: Sequence[int]) -> npt.NDArray[Any]:
        """As :meth:`_read`, of some channels; a reader that need not decode the others says how."""
        return np.take(self._read(window, level), channels, axis=2)

    def identity(self) -> Mapping[str, Any]:
        """JSON-ready facts that tell this image from another."""
        raise NotImplementedError

    def close(self) -> None:
        """Release files and memory, as soon as nobody reads; to begin reading afterwards is an error."""
        if self._readers.close():
            self._let_go()

    def _let_go(self) -> None:
        shared_cache().drop(self.token)
        self._release()

    def _release(self) -> None:
        """Let go of what the reader holds; nobody reads."""


@dataclass(frozen=True)
class Tiling:
    """How the channels ``first .. first + count - 1`` of a level are stored: tiles (or strips) of one shape."""

    tile: tuple[int, int]
    first: int
    count: int


class TiledSource(SourceBase):
    """A source that is stored in tiles: a window is assembled from decoded tiles that a shared cache keeps.

    ``tilings[level]`` lists how each group of channels is stored; a reader adds ``_load``, which decodes one tile.
    """

    def __init__(self, info: SourceInfo, tilings: Sequence[Sequence[Tiling]], threads: int | None = None) -> None:
        super().__init__(info)
        self.tilings = tilings
        self._grids = [[Grid(shape, tiling.tile) for tiling in level] for shape, level in zip(info.levels, tilings)]
        self.threads = min(4, os.cpu_count() or 1) if threads is None else max(1, threads)
        for level in tilings:
            for tiling in level:
                size = tiling.tile[0] * tiling.tile[1] * tiling.count * info.dtype.itemsize
                if size > MAX_TILE_BYTES or min(tiling.tile) < 1:
                    raise InputError(
                        f"{info.name} is stored in tiles or strips of {tiling.tile[0]} x {tiling.tile[1]} pixels; one "
                        f"may decode to at most {MAX_TILE_BYTES >> 20} MiB: save the image tiled (say, 512 x 512)."
                    )
                self.threads = max(1, min(self.threads, DECODED_AT_ONCE // max(1, size)))

    def _load(self, level: int, part: int, index: int, window: Window) -> npt.NDArray[Any]:
        """Decode tile ``index`` of ``tilings[level][part]``: at least ``window.shape`` pixels by ``count``."""
        raise NotImplementedError

    def _tile_window(self, level: int, part: int, index: int) -> Window:
        grid = self._grids[level][part]
        down, right = divmod(index, grid.counts[1])
        row, column = down * grid.core[0], right * grid.core[1]
        return Window(row, column, min(grid.core[0], grid.shape[0] - row), min(grid.core[1], grid.shape[1] - column))

    def _tile(self, level: int, part: int, index: int) -> npt.NDArray[Any]:
        def load() -> npt.NDArray[Any]:
            window = self._tile_window(level, part, index)
            try:
                tile = self._load(level, part, index, window)
                if tile.shape[0] < window.height or tile.shape[1] < window.width:
                    raise ValueError(f"tile of {tile.shape[0]} x {tile.shape[1]} pixels is too small")
            except InputError:
                raise
            except Exception as error:  # codecs raise whatever they like; all of it means 'this tile cannot be read'
                raise TileError(self.name, window, level, one_line(error)) from error
            return tile

        return shared_cache().get((self.token, level, part, index), load)

    def _read(self, window: Window, level: int) -> npt.NDArray[Any]:
        return self._read_channels(window, level, range(self.channels))

    def _read_channels(self, window: Window, level: int, channels: Sequence[int]) -> npt.NDArray[Any]:
        result = np.empty((*window.shape, len(channels)), self.dtype)
        jobs: list[tuple[int, int, int, int]] = []
        places = {part: _places(channels, tiling) for part, tiling in enumerate(self.tilings[level])}
        for part, tiling in enumerate(self.tilings[level]):
            if not places[part]:  # of other channels: not even decoded
                continue
            grid = self._grids[level][part]
            across, (height, width) = grid.counts[1], tiling.tile
            for index in grid.touching(window):
                down, right = divmod(index, across)
                jobs.append((part, index, down * height, right * width))

        def copy(job: tuple[int, int, int, int]) -> None:
            # Plain integers: this runs for every tile of every window, where a few Window objects are felt.
            part, index, row, column = job
            into, out_of = places[part]
            tile, tiling = self._tile(level, part, index), self.tilings[level][part]
            top, left = max(row, window.row), max(column, window.column)
            bottom, right = min(row + tiling.tile[0], window.bottom), min(column + tiling.tile[1], window.right)
            result[
                top - window.row : bottom - window.row,
                left - window.column : right - window.column,
                into,
            ] = tile[top - row : bottom - row, left - column : right - column, out_of]

        run(copy, jobs, self.threads)
        return result


def _places(channels: Sequence[int], tiling: Tiling) -> list[Index]:
    """Where in a result of ``channels`` those of a tiling go, and which of its tiles they are; empty for none of them.

    As slices where they follow each other, which numpy copies several times as fast as what a list picks.
    """
    into = [place for place, channel in enumerate(channels) if 0 <= channel - tiling.first < tiling.count]
    if not into:
        return []
    return [_as_slice(into), _as_slice([channels[place] - tiling.first for place in into])]


def _as_slice(numbers: list[int]) -> Index:
    first, last = numbers[0], numbers[-1] + 1
    return slice(first, last) if numbers == list(range(first, last)) else numbers


def run(function: Callable[[Any], None], jobs: Sequence[Any], threads: int) -> None:
    """Call ``function`` for every job, on the shared pool where there are many and cores to spare.

    Where as many threads read already as the pool has, each does its own: measured on two cores, handing over cost
    two readers a fifth of their speed.
    """
    with _callers as reading:
        if threads < 2 or len(jobs) < POOL_FROM_TILES or reading >= threads:
            for job in jobs:
                function(job)
            return
        tasks = [_pool(threads).submit(function, job) for job in jobs]
        try:
            for task in tasks:
                task.result()
        finally:
            # Where one has failed, those that run still read: what they read from must not be released before.
            wait([task for task in tasks if not task.cancel()])


class _Callers:
    """Counts the threads that are inside, the one that enters included."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0

    def __enter__(self) -> int:
        with self._lock:
            self._inside += 1
            return self._inside

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1


_callers = _Callers()


@lru_cache(maxsize=4)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="isdnet-tiles")


def _forked() -> None:
    """A forked process, as torch's loaders start, has the pools' queues without their threads: it makes its own."""
    global _callers
    _pool.cache_clear()
    _callers = _Callers()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def as_samples(mean: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Means as samples of ``dtype``: rounded, and within what it holds (float64 rounds the ends of 64 bits beyond)."""
    if dtype.kind == "b":
        return mean >= 0.5
    if dtype.kind not in "iu":
        return mean.astype(dtype)
    limits = np.iinfo(dtype)
    rounded = np.rint(mean)
    result = np.clip(rounded, limits.min, np.nextafter(float(limits.max), 0) if dtype.itemsize == 8 else limits.max)
    exact = result.astype(dtype)
    exact[rounded >= float(limits.max)] = limits.max
    return exact


def one_line(error: BaseException, limit: int = 160) -> str:
    """What an exception says, on one line, with its type where it says nothing."""
    text = " ".join(str(error).split())[:limit].rstrip(".")
    return text or type(error).__name__


def file_identity(path: Path) -> dict[str, Any]:
    """Path, size and time of the last change of a file, or of what describes a folder."""
    stat = path.stat()
    return {"path": str(path.resolve()), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
