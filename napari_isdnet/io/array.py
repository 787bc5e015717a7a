"""Arrays as sources: numpy, dask, zarr, anything with shape, dtype and slices; one or a list of pyramid levels."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_isdnet.exceptions import InputError
from napari_isdnet.io.base import SourceBase, SourceInfo, TileError, one_line
from napari_isdnet.io.intensity import sample_windows
from napari_isdnet.io.source import GeoReference, PixelSize
from napari_isdnet.window import Window

if TYPE_CHECKING:
    import numpy.typing as npt

_MOST_LAST_CHANNELS = 4
_FEWEST_COLUMNS = 32  # of what can be segmented
_SAMPLE_SIDE = 32
_HASHED_AT_ONCE = 8 << 20  # bytes


@dataclass(frozen=True)
class Axes:
    """Where rows, columns and channels are among the axes of an array; index 0 is taken of every other axis."""

    ndim: int
    row: int
    column: int
    channel: int | None
    notes: tuple[str, ...] = ()

    def channels(self, shape: Sequence[int]) -> int:
        """Number of channels of an array of ``shape``."""
        return 1 if self.channel is None else int(shape[self.channel])

    def crop(self, array: Any, window: Window, channels: slice = slice(None)) -> npt.NDArray[Any]:
        """``window`` of ``array`` as (height, width, channels), of all or some consecutive channels."""
        index: list[int | slice] = [0] * self.ndim
        index[self.row], index[self.column] = window.slices
        if self.channel is not None:
            index[self.channel] = channels
        data = np.asarray(array[tuple(index)])
        kept = sorted(a for a in (self.row, self.column, self.channel) if a is not None)
        if self.channel is None:
            return data.transpose(kept.index(self.row), kept.index(self.column))[..., np.newaxis]
        return data.transpose(kept.index(self.row), kept.index(self.column), kept.index(self.channel))


def find_axes(shape: Sequence[int], names: Sequence[str] | None = None, rgb: bool | None = None) -> Axes:
    """Axes by name (``names``, one letter each such as 'c', 'y', 'x'), else by shape.

    By shape: a last axis of at most 4 holds channels, as in napari, and so does one that is too short for columns or
    shorter than the first of three axes, unless that is so long that it may well be planes; else the axis before rows
    and columns does if it is the smallest. ``rgb`` says which where the caller knows.
    """
    ndim = len(shape)
    if ndim < 2:
        raise InputError(f"An image needs rows and columns, got an array of shape {tuple(shape)}.")
    if names is not None:
        return _named_axes(shape, [n.lower() for n in names])
    if ndim == 2:
        return Axes(2, 0, 1, None)
    few = shape[-1] <= _MOST_LAST_CHANNELS or shape[-1] < min(_FEWEST_COLUMNS, *shape[-3:-1])
    last = bool(rgb) if rgb is not None else few or shape[-1] < shape[-3] <= shape[-2] * 8
    if last:
        return _with_notes(shape, ndim - 3, ndim - 2, ndim - 1)
    first = rgb is None and shape[-3] < min(shape[-2:])
    return _with_notes(shape, ndim - 2, ndim - 1, ndim - 3 if first else None)


def _named_axes(shape: Sequence[int], names: list[str]) -> Axes:
    if len(names) != len(shape) or len(set(names)) != len(names) or not {"y", "x"} <= set(names):
        raise InputError(
            f"Axes {''.join(names)!r} do not name the {len(shape)} axes of the array; y and x must be there."
        )
    channel = next((names.index(n) for n in ("c", "s") if n in names), None)
    return _with_notes(shape, names.index("y"), names.index("x"), channel, names)


def _with_notes(
    shape: Sequence[int], row: int, column: int, channel: int | None, names: Sequence[str] | None = None
) -> Axes:
    notes = tuple(
        f"axis {names[axis] if names else axis} has {size} planes, the first is used"
        for axis, size in enumerate(shape)
        if axis not in (row, column, channel) and size > 1
    )
    return Axes(len(shape), row, column, channel, notes)


class ArraySource(SourceBase):
    """Slices of arrays that stay where they are; nothing is copied but the window that is read.

    ``rgb=True`` says that the last axis is red, green, blue and, where there is a fourth, alpha, as napari's ``rgb``.
    """

    def __init__(
        self,
        levels: Sequence[Any],
        name: str,
        axes: str | None = None,
        rgb: bool | None = None,
        pixel_size: PixelSize | None = None,
        georeference: GeoReference | None = None,
    ) -> None:
        if not levels:
            raise InputError("A list of pyramid levels needs at least one array, got none.")
        first = levels[0]
        found = find_axes(first.shape, list(axes) if axes else None, rgb)
        if any(len(level.shape) != len(first.shape) or level.dtype != first.dtype for level in levels):
            raise InputError(f"The pyramid levels of {name} must agree in sample type and number of axes.")
        channels = found.channels(first.shape)
        if any(found.channels(level.shape) != channels for level in levels):
            raise InputError(f"The pyramid levels of {name} must have the same number of channels.")
        shapes = tuple((int(a.shape[found.row]), int(a.shape[found.column])) for a in levels)
        if any(b[0] > a[0] or b[1] > a[1] for a, b in itertools.pairwise(shapes)):
            raise InputError(f"The pyramid levels of {name} must be listed from the largest to the smallest.")
        dtype = np.dtype(first.dtype)
        info = SourceInfo(
            name=name,
            levels=shapes,
            channels=channels,
            dtype=dtype.newbyteorder("=") if dtype.kind in "buif" else dtype,
            format=f"{type(first).__module__.split('.')[0]} array",
            pixel_size=pixel_size,
            georeference=georeference,
            # Four channels alone tell nothing (they may be infrared); that they are shown as colours does.
            alpha=3 if rgb and channels == 4 else None,
            notes=found.notes,
        )
        super().__init__(info)
        self._arrays = list(levels)
        self._axes = found

    def _read(self, window: Window, level: int) -> npt.NDArray[Any]:
        return np.array(self._crop(window, level, slice(None)), dtype=self.dtype)

    def _read_channels(self, window: Window, level: int, channels: Sequence[int]) -> npt.NDArray[Any]:
        # A range, since not every lazy array takes a list of numbers.
        first, last = min(channels), max(channels)
        crop = self._crop(window, level, slice(first, last + 1))
        return np.take(crop, [c - first for c in channels], axis=2).astype(self.dtype, copy=False)

    def _crop(self, window: Window, level: int, channels: slice) -> npt.NDArray[Any]:
        try:
            return self._axes.crop(self._arrays[level], window, channels)
        except InputError:
            raise
        except Exception as error:  # a lazy array may fail in any way that whoever made it thought of
            raise TileError(self.name, window, level, one_line(error)) from error

    def identity(self) -> dict[str, Any]:
        """What :meth:`quick_identity` says, and what tells whether a single pixel was changed, as far as it can be had.

        Of an array in memory a hash of every byte of level 0, in blocks by several threads: about two seconds a
        gigabyte on one core, so not on a thread that anybody waits for. It is never kept, since whoever owns the array
        may write to it at any time. Of an array that is mapped from a file, the file's size and modification time. Of
        any other (dask, zarr), which would have to be computed as a whole, a hash of the windows of
        :func:`~napari_isdnet.io.intensity.sample_windows`: a change between them goes unnoticed.
        """
        with self._reading():
            return {**self._quick_identity(), **self._content()}

    def quick_identity(self) -> dict[str, Any]:
        """Shape, sample type and a hash of few pixels all over the coarsest level: names an image in no time."""
        with self._reading():
            return self._quick_identity()

    def _quick_identity(self) -> dict[str, Any]:
        return {
            "format": "array",
            "shape": [*self.shape, self.channels],
            "dtype": self.dtype.str,
            "sample": self._sample_hash(),
        }

    def _content(self) -> dict[str, Any]:
        array = self._arrays[0]
        mapped = _mapped_file(array)
        if mapped is not None:
            return {"size": mapped.st_size, "mtime_ns": mapped.st_mtime_ns}
        if isinstance(array, np.ndarray):
            return {"content": self._full_hash(array)}
        level, windows = sample_windows(self)
        digest = hashlib.sha256()
        for window in windows:
            digest.update(self._read(window, level).tobytes())
        return {"content": digest.hexdigest()}

    def _full_hash(self, array: npt.NDArray[Any]) -> str:
        rows, columns = self.shape
        step = max(1, _HASHED_AT_ONCE // (columns * self.channels * array.dtype.itemsize))

        def block(top: int) -> bytes:
            pixels = self._axes.crop(array, Window(top, 0, min(step, rows - top), columns))
            return hashlib.sha256(np.ascontiguousarray(pixels).reshape(-1).view(np.uint8).data).digest()

        digest = hashlib.sha256()
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            for part in pool.map(block, range(0, rows, step)):
                digest.update(part)
        return digest.hexdigest()

    def _sample_hash(self) -> str:
        digest = hashlib.sha256()
        level = len(self.levels) - 1
        rows, columns = self.levels[level]
        array = self._arrays[level]
        if isinstance(array, np.ndarray):
            # Rounded-up strides give at most 256 x 256 pixels that reach over the whole image.
            index: list[int | slice] = [0] * self._axes.ndim
            index[self._axes.row] = slice(None, None, -(-rows // 256))
            index[self._axes.column] = slice(None, None, -(-columns // 256))
            if self._axes.channel is not None:
                index[self._axes.channel] = slice(None)
            digest.update(np.ascontiguousarray(array[tuple(index)]).tobytes())
            return digest.hexdigest()
        for part_row, part_column in ((0.0, 0.0), (0.0, 1.0), (0.5, 0.5), (1.0, 0.0), (1.0, 1.0)):
            height, width = min(_SAMPLE_SIDE, rows), min(_SAMPLE_SIDE, columns)
            corner = int(part_row * (rows - height)), int(part_column * (columns - width))
            digest.update(self._read(Window(*corner, height, width), level).tobytes())
        return digest.hexdigest()

    def _release(self) -> None:
        self._arrays = []


def _mapped_file(array: Any) -> os.stat_result | None:
    """The state of the file that an array, or what it is a view of, is mapped from; None for any other array."""
    while isinstance(array, np.ndarray):
        if isinstance(array, np.memmap) and array.filename is not None:
            try:
                return os.stat(array.filename)
            except OSError:  # the name is gone, the pixels are not
                return None
        array = array.base
    return None
