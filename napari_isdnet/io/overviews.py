"""Coarser levels for an image whose file has none: built once into the cache, then found again by its identity.

Levels at 1/4, 1/8, 1/16, ... are written (about 8 % of the image); 1/2 is averaged from level 0 as it is looked at.
:class:`OverviewSource` has all of them from the start and makes what is asked for until they are there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_isdnet.io.base import SourceBase, SourceInfo, as_samples, one_line
from napari_isdnet.io.disk import disk_errors, remove, scratch, unused_for, used_now
from napari_isdnet.io.source import (
    ImageSource,
    TileError,
    quick_identity,
    read_channels,
    resident_bytes,
)
from napari_isdnet.progress import Clock, Progress
from napari_isdnet.system import move
from napari_isdnet.window import Grid, Window, pyramid_shapes

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

#: An image whose coarsest level has a longer side than this is slow to show as a whole.
LARGEST_OVERVIEW = 2048
CORE = 2048
VERSION = 2
"""Of the values in the cache: overviews of another version are not used."""
_ALPHA_VERSION = 3
"""The same of images with alpha, whose hidden pixels came to count for nothing; the others need not be built again."""
_CHUNK = 512
_MOST_KEPT = 64 << 20
"""Bytes of the largest level that is kept in memory while levels are built."""
_DONE = "done.json"
KEPT_DAYS = 90
"""What no image was opened with for so long goes when another one's is built."""


def needs_overviews(source: ImageSource) -> bool:
    """True where the coarsest level of ``source`` is too large to be read for a look at the whole image."""
    return max(source.levels[-1]) > LARGEST_OVERVIEW


def overview_path(source: ImageSource, folder: Path) -> Path:
    """Where the overviews of ``source`` belong: named by the image's identity, so that a changed file has others."""
    version = VERSION if source.alpha is None else _ALPHA_VERSION
    text = json.dumps([version, dict(source.identity())], sort_keys=True, default=str)
    return folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.zarr"


def build_overviews(
    source: ImageSource, folder: Path, show: Callable[[Window, Array], None] | None = None
) -> Generator[Progress, None, Path]:
    """Write the overviews of ``source`` below ``folder``, yielding progress; returns their path.

    They are written under a temporary name and renamed when whole; closing the generator removes what was written.
    ``show`` is called with every window of level 0 that was read, and its pixels at 1/4.
    Memory: two windows of 2048 x 2048 pixels.
    """
    path = overview_path(source, folder)
    if (path / _DONE).exists():
        return path
    with disk_errors(folder), scratch(folder) as prefix:
        part = path.with_name(prefix + path.name)
        part.mkdir()
        try:
            yield from _write_overviews(source, part, show)
            if not (path / _DONE).exists():  # another builder of the same image may have been quicker
                remove(path)  # one that was never finished
                move(part, path)
        finally:
            remove(part)
        for unused in unused_for(KEPT_DAYS, folder.glob(f"*.zarr/{_DONE}")):
            remove(unused.parent)
    return path


def _write_overviews(
    source: ImageSource, part: Path, show: Callable[[Window, Array], None] | None
) -> Generator[Progress, None, None]:
    import zarr
    from zarr.codecs import ZstdCodec

    shapes = pyramid_shapes(source.shape)
    total = sum(rows * columns for level, (rows, columns) in enumerate(shapes) if level not in (1, 2))
    clock = Clock(total)
    levels = {
        level: zarr.create_array(
            part / str(level), shape=(*shape, source.channels), chunks=(_CHUNK, _CHUNK, source.channels),
            dtype=source.dtype, compressors=ZstdCodec(level=1), config={"write_empty_chunks": True},
        )
        for level, shape in enumerate(shapes) if level >= 2
    }  # fmt: skip
    for core in Grid(source.shape, (CORE, CORE)):
        pixels = _halved(source.read(core), 2, source)
        levels[2][core.divided(4).slices] = pixels
        if show is not None:
            show(core, pixels)
        yield clock.step(core.area, "Building the pyramid", core)
    for level in range(3, len(shapes)):
        for core in Grid(shapes[level], (CORE // 2, CORE // 2)):
            finer = core.multiplied(2).clipped(shapes[level - 1])
            pixels = np.asarray(levels[level - 1][finer.slices])
            levels[level][core.slices] = halve_mean(pixels, source.nodata, source.alpha)
            yield clock.step(core.area, "Building the pyramid")
    (part / _DONE).write_text(json.dumps({"levels": shapes, "identity": dict(source.identity())}, default=str))


def halve_mean(pixels: Array, nodata: float | None = None, alpha: int | None = None) -> Array:
    """Mean of 2 x 2 blocks of ``(height, width, channels)``, odd borders averaged over what is there.

    A pixel whose samples all equal ``nodata``, and a sample that is not finite, do not count; a block of nothing else
    stays nodata (or not a number). A block of bits is set where at least half of it is.

    ``alpha`` is the channel that hides pixels by 0: their colours do not count where another pixel of the block is
    seen. Alpha itself is averaged as it is.
    """
    if alpha is None:
        return _halve(pixels, nodata)
    colors = np.delete(pixels, alpha, axis=2)
    halves = _halve(colors, nodata, _counted(colors, pixels[..., alpha] != 0, nodata))
    return np.insert(halves, alpha, _halve(pixels[..., alpha : alpha + 1])[..., 0], axis=2)


def _counted(colors: Array, shown: Array, nodata: float | None) -> Array | None:
    """Which pixels (h, w) make the mean of their block: those that are ``shown``, or all where none is."""
    if shown.all():
        return None
    seen = shown if nodata is None else shown & (colors != nodata).any(axis=2)
    some = np.zeros((-(-shown.shape[0] // 2), -(-shown.shape[1] // 2)), bool)
    for r in (0, 1):
        for c in (0, 1):
            quarter = seen[r::2, c::2]
            some[: quarter.shape[0], : quarter.shape[1]] |= quarter
    block = np.repeat(np.repeat(some, 2, axis=0), 2, axis=1)[: shown.shape[0], : shown.shape[1]]
    return shown | ~block


def _halve(pixels: Array, nodata: float | None = None, counted: Array | None = None) -> Array:
    """As :func:`halve_mean` without alpha, of the pixels that are ``counted`` (h, w); all where it is None."""
    rows, columns, channels = pixels.shape
    out_shape = (-(-rows // 2), -(-columns // 2), channels)
    work = np.float64 if pixels.dtype.itemsize >= 4 else np.float32
    total, count = np.zeros(out_shape, work), np.zeros(out_shape, np.uint8)
    for r in (0, 1):
        for c in (0, 1):
            quarter = pixels[r::2, c::2]
            valid = np.isfinite(quarter) if pixels.dtype.kind == "f" else np.ones(quarter.shape, bool)
            if nodata is not None and not np.isnan(nodata):
                valid &= (quarter != nodata).any(axis=2, keepdims=True)  # of all bands, as GDAL's mask
            if counted is not None:
                valid &= counted[r::2, c::2, None]
            view = slice(0, quarter.shape[0]), slice(0, quarter.shape[1])
            total[view] += np.where(valid, quarter, 0)
            count[view] += valid
    result = as_samples(total / np.maximum(count, 1), pixels.dtype)
    if nodata is not None and (count == 0).any():
        # A number of 64 bits has no float64 of its own: what the pixels there hold is taken, not what the number says.
        result[count == 0] = pixels[::2, ::2][count == 0]
    elif pixels.dtype.kind == "f":
        result[count == 0] = np.nan
    return result


def _halved(pixels: Array, times: int, source: ImageSource) -> Array:
    """``pixels`` of ``source`` a number of levels coarser; they begin where a pixel of that level does."""
    for _ in range(times):
        pixels = halve_mean(pixels, source.nodata, source.alpha)
    return pixels


class OverviewSource(SourceBase):
    """``source`` with coarser levels: those that :func:`build_overviews` has written, or will when :meth:`build` runs.

    Until then what is asked for is averaged from the image. The coarsest levels, which become :meth:`known` part by
    part, are kept in memory meanwhile, so that each part of the image is read once for them.
    ``to_come``: the levels are not there, and nobody has given up building them.
    """

    def __init__(self, source: ImageSource, folder: Path) -> None:
        super().__init__(SourceInfo.of(source, levels=tuple(pyramid_shapes(source.shape))))
        self.source = source
        self._folder = folder
        self._arrays = _open_levels(overview_path(source, folder), self.levels)
        self.to_come = not self._arrays
        self._cores = Grid(source.shape, (CORE, CORE))
        self._seen: set[int] = set()
        small = self._first_to_keep() if self.to_come else len(self.levels)
        # A part of the image that is read at once is at least a pixel of what is kept.
        self._pictures = {
            level: np.zeros((*shape, self.channels), self.dtype)
            for level, shape in enumerate(self.levels) if small <= level < CORE.bit_length()
        }  # fmt: skip

    def _first_to_keep(self) -> int:
        pixel = self.channels * self.dtype.itemsize
        small = [
            level for level, (rows, columns) in enumerate(self.levels)
            if level >= 2 and max(rows, columns) <= LARGEST_OVERVIEW and rows * columns * pixel <= _MOST_KEPT
        ]  # fmt: skip
        return min(*small[:1], len(self.levels) - 1, CORE.bit_length() - 1)

    @property
    def built(self) -> bool:
        """True where all levels are in the cache."""
        return bool(self._arrays)

    @property
    def format(self) -> str:
        """Name of the image's format, with where its levels are from."""
        return f"{self.info.format}, pyramid from the cache" if self.built else self.info.format

    def ready(self, level: int, window: Window) -> bool:
        """False where nothing of ``window`` is :meth:`known`, and to read it would take long."""
        if not self.to_come or level <= 2:
            return True
        return level in self._pictures and not self._seen.isdisjoint(self._parts(level, window))

    def known(self, window: Window, level: int = 0) -> Array:
        """As :meth:`read`; where levels are to come, what is known now, with 0 in the place of all else."""
        picture = self._pictures.get(level)
        if picture is None or not self.to_come or level <= 2:
            return self.read(window, level)
        return picture[window.slices].copy()

    def build(self) -> Generator[Progress, None, None]:
        """Write the levels to the cache, yielding progress. Closed before its end, or failed, there are none in it."""
        try:
            yield from build_overviews(self.source, self._folder, self._keep)
            self._arrays = _open_levels(overview_path(self.source, self._folder), self.levels)
        finally:
            self.give_up()
        if self.built:
            self._pictures = {}

    def give_up(self) -> None:
        """No level is to come any more: those that are not there are made of what is asked for."""
        self.to_come = False

    def _parts(self, level: int, window: Window) -> list[int]:
        """Which parts of the image the pixels of a window are of."""
        return list(self._cores.touching(window.multiplied(2**level).clipped(self.shape)))

    def _keep(self, core: Window, quarter: Array) -> None:
        pixels, at = quarter, 2
        for level, picture in self._pictures.items():
            pixels, at = _halved(pixels, level - at, self), level
            picture[core.divided(2**level).slices] = pixels
        self._seen.update(self._cores.touching(core))

    def _read(self, window: Window, level: int) -> Array:
        if level == 0:
            return self.source.read(window)
        picture, array = self._pictures.get(level), self._arrays.get(level)
        if array is None and picture is not None:
            for index in set(self._parts(level, window)) - self._seen:
                core = self._cores[index]
                self._keep(core, _halved(self.source.read(core), 2, self))
            return picture[window.slices].copy()
        if array is None:
            return self._averaged(window, level)
        try:
            return np.asarray(array[window.slices])
        except Exception as error:  # damaged since it was opened
            raise TileError(self.name, window, level, f"its cached pyramid is damaged: {one_line(error)}") from error

    def _averaged(self, window: Window, level: int) -> Array:
        """From level 0, or the coarsest that is kept, of which no more is read at once than where levels are built."""
        result = np.empty((*window.shape, self.channels), self.dtype)
        origin = max((kept for kept in self._pictures if kept < level), default=0)
        steps = level - origin
        for part in Grid(window.shape, (CORE >> steps, CORE >> steps)):
            area = part.shifted(window.row, window.column).multiplied(2**steps).clipped(self.levels[origin])
            pixels = self.source.read(area) if origin == 0 else self._read(area, origin)
            result[part.slices] = _halved(pixels, steps, self)
        return result

    def _read_channels(self, window: Window, level: int, channels: Sequence[int]) -> Array:
        if level == 0:
            return read_channels(self.source, window, channels)
        return np.take(self._read(window, level), channels, axis=2)

    def identity(self) -> Mapping[str, Any]:
        """Identity of the image itself."""
        return self.source.identity()

    @property
    def resident_bytes(self) -> int:
        """Those of the image itself."""
        return resident_bytes(self.source)

    def without_overviews(self) -> ImageSource:
        """The image itself."""
        return self.source

    def quick_identity(self) -> Mapping[str, Any]:
        """As :func:`~napari_isdnet.io.source.quick_identity`, of the image itself."""
        return quick_identity(self.source)

    def _release(self) -> None:
        self._pictures = {}
        self.source.close()


def _open_levels(path: Path, levels: Sequence[tuple[int, int]]) -> dict[int, Any]:
    """The arrays of every level that is written, from 1/4 on; none of levels that are not whole, which are removed."""
    if not (path / _DONE).exists():
        return {}
    import zarr

    try:
        arrays = {level: zarr.open_array(path / str(level), mode="r") for level in range(2, len(levels))}
        # Every chunk was written: one that a cleaner of caches took away would read as black.
        whole = all(a.shape[:2] == levels[n] and a.nchunks_initialized == a.nchunks for n, a in arrays.items())
    except Exception:  # whatever the library raises of files that went missing
        whole = False
    if not whole:
        remove(path)
        return {}
    used_now(path / _DONE)
    return arrays


def with_overviews(source: ImageSource, folder: Path) -> ImageSource:
    """``source`` with coarser levels where it needs them, be they in the cache ``folder`` or still to be built."""
    return OverviewSource(source, folder) if needs_overviews(source) else source
