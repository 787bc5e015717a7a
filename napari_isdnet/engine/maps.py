"""Feature maps of a whole image, computed unit by unit when first needed, kept in RAM, in a file or on the device.

A file is read and written with ``pread`` / ``pwrite`` rather than mapped, so that what was spilled does not count as
resident memory. Samples lie channels-last: a row of a window is one contiguous piece.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from napari_isdnet.io.disk import disk_errors
from napari_isdnet.window import Grid, Window

Array = npt.NDArray[Any]
Values = Array | Tensor
"""(rows, columns, channels) of a map: an array, or a tensor where it is kept on the device."""


class Storage(Protocol):
    """Where the values of a map are kept."""

    shape: tuple[int, int]

    def write(self, window: Window, values: Any) -> None:
        """Store ``values`` (height, width, channels) at ``window``."""

    def read(self, window: Window) -> Any:
        """Values (height, width, channels) of ``window``; not to be changed."""

    def sync(self) -> None:
        """Force what was written to where it outlives the process, if anywhere."""

    def close(self) -> None:
        """Release memory or file."""


class DeviceMap:
    """A (rows, columns, channels) tensor in the memory of the device that computes it; dies with the process."""

    def __init__(self, shape: tuple[int, int], channels: int, dtype: torch.dtype, device: torch.device) -> None:
        self.shape = shape
        self._tensor: Tensor | None = torch.zeros((*shape, channels), dtype=dtype, device=device)

    def write(self, window: Window, values: Tensor) -> None:
        """Store ``values`` (height, width, channels) at ``window``."""
        assert self._tensor is not None, "closed"
        self._tensor[window.slices] = values

    def read(self, window: Window) -> Tensor:
        """Values (height, width, channels) of ``window``; a view."""
        assert self._tensor is not None, "closed"
        return self._tensor[window.slices]

    def sync(self) -> None:
        """Nothing outlives the process."""

    def close(self) -> None:
        """Release the memory."""
        self._tensor = None


class MapStorage:
    """A (rows, columns, channels) array in RAM (``path`` None) or in a sparse file, which may hold some already."""

    def __init__(self, shape: tuple[int, int], channels: int, dtype: np.dtype[Any], path: Path | None) -> None:
        self.shape, self.channels, self.dtype, self.path = shape, channels, np.dtype(dtype), path
        self._array: Array | None = None
        self._file: int | None = None
        self._seek = threading.Lock()
        if path is None:
            self._array = np.zeros((*shape, channels), self.dtype)
        else:
            with disk_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                self._file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
                os.ftruncate(self._file, self.nbytes)

    @property
    def nbytes(self) -> int:
        """Size of the map in bytes."""
        return self.shape[0] * self.shape[1] * self.channels * self.dtype.itemsize

    def _pieces(self, window: Window) -> Iterable[tuple[int, int]]:
        pixel = self.channels * self.dtype.itemsize
        if window.width == self.shape[1]:  # whole rows are one piece
            return [((window.row * self.shape[1]) * pixel, window.area * pixel)]
        return [
            ((row * self.shape[1] + window.column) * pixel, window.width * pixel)
            for row in range(window.row, window.bottom)
        ]

    def write(self, window: Window, values: Array) -> None:
        """Store ``values`` (height, width, channels) at ``window``."""
        if self._array is not None:
            self._array[window.slices] = values
            return
        data = _bytes_of(np.ascontiguousarray(values, self.dtype))
        done = 0
        assert self.path is not None
        with disk_errors(self.path):
            for offset, count in self._pieces(window):
                self._pwrite(data[done : done + count], offset)
                done += count

    def read(self, window: Window) -> Array:
        """Values (height, width, channels) of ``window``; a copy from a file, a view in RAM."""
        if self._array is not None:
            return self._array[window.slices]
        result = np.empty((*window.shape, self.channels), self.dtype)
        view = _bytes_of(result)
        done = 0
        assert self.path is not None
        with disk_errors(self.path):
            for offset, count in self._pieces(window):
                self._pread(view[done : done + count], offset)
                done += count
        return result

    def _pwrite(self, data: memoryview, offset: int) -> None:
        assert self._file is not None
        while len(data):
            if hasattr(os, "pwrite"):
                written = os.pwrite(self._file, data, offset)
            else:
                with self._seek:
                    os.lseek(self._file, offset, os.SEEK_SET)
                    written = os.write(self._file, data)
            data, offset = data[written:], offset + written

    def _pread(self, target: memoryview, offset: int) -> None:
        assert self._file is not None
        while len(target):
            if hasattr(os, "preadv"):
                got = os.preadv(self._file, [target], offset)
            else:
                with self._seek:
                    os.lseek(self._file, offset, os.SEEK_SET)
                    piece = os.read(self._file, len(target))
                got = len(piece)
                target[:got] = piece
            if got == 0:
                raise OSError(f"{self.path} ended early")
            target, offset = target[got:], offset + got

    def sync(self) -> None:
        """Force what was written to the disk, so that a ledger may say so."""
        if self._file is not None:
            assert self.path is not None
            with disk_errors(self.path):
                getattr(os, "fdatasync", os.fsync)(self._file)

    def close(self) -> None:
        """Release the array or the file (which stays)."""
        self._array = None
        if self._file is not None:
            os.close(self._file)
            self._file = None


def map_is_stored(shape: tuple[int, int], channels: int, dtype: np.dtype[Any], path: Path | None) -> bool:
    """True where a file of that map is there, whole."""
    size = shape[0] * shape[1] * channels * dtype.itemsize
    return path is not None and path.is_file() and path.stat().st_size == size


def _bytes_of(values: Array) -> memoryview:
    return memoryview(values.data).cast("B")


class UnitLog(Protocol):
    """Where finished units are written down (the job's ledger)."""

    def done(self, stage: str) -> Iterable[int]:
        """Units of ``stage`` whose values are stored."""

    def sums(self, stage: str, unit: int) -> npt.NDArray[np.float64]:
        """The partial sums that were recorded with a unit."""

    def forget(self, stage: str) -> None:
        """Write down that no unit of ``stage`` is stored any more."""

    def record(self, stage: str, unit: int, sums: npt.NDArray[np.float64]) -> None:
        """Write down that a unit is stored, with its partial sums."""


Compute = Callable[[int, Window], Values | None]


class LazyMap:
    """A feature map whose units are computed when first read.

    ``compute(unit, window)`` returns the values (height, width, channels) of that unit's window, or None when it has
    put them itself; ``done`` and ``record`` ask and tell a ledger, so that a job that was killed goes on where it
    stopped.
    """

    def __init__(
        self,
        name: str,
        storage: Storage,
        core: int,
        compute: Compute,
        done: Iterable[int] = (),
        record: Callable[[int, Any], None] | None = None,
    ) -> None:
        self.name, self.storage = name, storage
        self.grid = Grid(storage.shape, (core, core))
        self._compute, self._record = compute, record
        self._done = set(done)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the map."""
        return self.storage.shape

    def is_done(self, unit: int) -> bool:
        """True when that unit's values are stored."""
        return unit in self._done

    def missing(self) -> list[int]:
        """Units that are not computed yet, ascending."""
        return [u for u in range(len(self.grid)) if u not in self._done]

    def mark_done(self, units: Iterable[int]) -> None:
        """Units that another process has stored in the same file."""
        self._done.update(units)

    def put(self, unit: int, values: Values) -> None:
        """Store a unit that was computed elsewhere (several maps come out of one pass)."""
        self.storage.write(self.grid[unit], values)
        if self._record is not None:
            self._record(unit, values)
        self._done.add(unit)

    def ensure(self, unit: int) -> None:
        """Compute a unit unless it is there."""
        if unit not in self._done:
            values = self._compute(unit, self.grid[unit])
            if values is not None:
                self.put(unit, values)

    def read(self, window: Window) -> Any:
        """Values (height, width, channels) of ``window``, computing what is missing."""
        for unit in self.grid.touching(window):
            self.ensure(unit)
        return self.storage.read(window)
