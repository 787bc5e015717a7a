"""One level of an annotation as the array-like that napari's multiscale Labels layer wants."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_isdnet.annotation.chunks import CHUNK
from napari_isdnet.exceptions import InputError
from napari_isdnet.window import Window

if TYPE_CHECKING:
    from napari_isdnet.annotation.store import AnnotationStore

LARGEST_ARRAY = 1 << 26


class AnnotationLevel:
    """One level, read on demand: ``shape``, ``dtype``, ``ndim``, ``chunks`` and ``[rows, columns]``."""

    ndim = 2
    dtype = np.dtype(np.uint8)

    def __init__(self, store: AnnotationStore, level: int) -> None:
        self._store = store
        self._level = level
        self.shape = store.levels[level]
        self.chunks = (min(CHUNK, self.shape[0]), min(CHUNK, self.shape[1]))

    @property
    def size(self) -> int:
        """Number of pixels."""
        return self.shape[0] * self.shape[1]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> npt.NDArray[np.uint8]:
        keys = list(key) if isinstance(key, tuple) else [key]
        at = next((i for i, k in enumerate(keys) if k is Ellipsis), len(keys))
        given = len(keys) - (at < len(keys))
        if given > 2:
            raise IndexError(f"an annotation has 2 axes, got {given} indices")
        keys[at : at + 1] = [slice(None)] * (2 - given)
        spans, after = zip(*(_span(k, n) for k, n in zip(keys, self.shape, strict=True)), strict=True)
        (top, bottom), (left, right) = spans
        values = self._store.read_labels(Window.from_bounds(top, left, bottom, right), self._level)
        result: npt.NDArray[np.uint8] = values[tuple(after)]
        return result

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if self.size > LARGEST_ARRAY:
            raise InputError(
                f"An annotation level of {self.shape[0]} x {self.shape[1]} pixels is not turned into one array; read"
                " windows of it, or take a coarser level."
            )
        values = self[:]
        return values if dtype is None else values.astype(dtype)


def _span(key: Any, length: int) -> tuple[tuple[int, int], Any]:
    """First and last-plus-one element that an index needs, and what to apply to those."""
    if isinstance(key, slice):
        picked = range(*key.indices(length))
        if not len(picked):
            return (0, 0), slice(None)
        low, high = min(picked[0], picked[-1]), max(picked[0], picked[-1])
        return (low, high + 1), slice(None, None, key.step)
    index = int(key)
    if not -length <= index < length:
        raise IndexError(f"index {index} is out of range for an axis of {length}")
    index %= length
    return (index, index + 1), 0
