"""Class maps of any size without areas that are too small: the *minimum mapping unit* of a map.

The smallest area goes first, to the neighbour that it shares most border with, which grows by it; and so on until none
is too small that has a neighbour. (GDAL's sieve gives areas to the largest neighbour; those among small ones stay.)
Areas are 4-connected pixels of one class. What windows the map is read in does not show: sizes and borders are counted
over seams before anything is decided, and ties are broken by where an area begins.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_isdnet.classes import IGNORE_INDEX
from napari_isdnet.io.source import ImageSource
from napari_isdnet.progress import Clock, Progress
from napari_isdnet.window import Grid, Window

if TYPE_CHECKING:
    Numbers = npt.NDArray[np.int64]

_NONE = -1
_BOTH = (1 << 32) + 1
"""What a packed pair grows by where both of its numbers grow by one."""
_AT_ONCE = 50_000
"""After so many areas the caller hears of it, and may cancel."""


class Sieved:
    """A class map whose areas of fewer than ``smallest`` pixels went to their neighbours; nodata stays as it is.

    It is read by windows of ``grid`` (those of a map's ``area``), in any order; made by :func:`sieve`. What it holds
    grows with the number of areas, not with the number of pixels: one byte each, a few hundred while it is made.
    """

    def __init__(self, source: ImageSource, area: Window, grid: Grid, tables: dict[int, npt.NDArray[np.uint8]]) -> None:
        self._source, self._area, self._grid, self._tables = source, area, grid, tables
        self.shape = source.shape

    def read(self, window: Window) -> npt.NDArray[np.uint8]:
        """One window of the grid as (height, width, 1)."""
        labels = np.asarray(self._source.read(window)[..., 0])
        local = window.shifted(-self._area.row, -self._area.column)
        height, width = self._grid.core
        index = local.row // height * self._grid.counts[1] + local.column // width
        assert self._grid[index] == local
        table = self._tables.get(index)
        return (labels if table is None else table[_pieces(labels)])[..., None]


def sieve(
    source: ImageSource, smallest: int, area: Window, grid: Grid, clock: Clock
) -> Generator[Progress, None, Sieved]:
    """Look at all of ``area``, window by window of ``grid``, and decide what every small area becomes.

    ``source`` is a class map (class indices, 255 = nodata), which must not change meanwhile or while the result is
    read; its pixels are work for ``clock``.
    """
    found = _Areas(grid)
    for index, local in enumerate(grid):
        window = local.shifted(area.row, area.column)
        found.add(index, np.asarray(source.read(window)[..., 0]), smallest)
        yield clock.step(window.area, "areas", window)
    counted = found.joined(smallest)
    classes, merging = counted.classes.copy(), _Merging(counted, smallest)
    for _ in merging.all():
        yield clock.step(0, "areas")
    for one in np.flatnonzero(counted.sizes < smallest):
        classes[one] = counted.classes[merging.find(int(one))]
    return Sieved(source, area, grid, found.tables(counted, classes))


class _Areas:
    """Pieces of areas, window by window: their pixels, class, first pixel, and how much border two of them share."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._starts = [0]  # of every window: the number of its first piece
        self._sizes: list[Numbers] = []
        self._firsts: list[Numbers] = []
        self._classes: list[npt.NDArray[np.uint8]] = []
        self._same: list[Numbers] = []  # pairs of pieces, packed, that are of one area
        self._pairs: list[Numbers] = []  # of those that are not and touch
        self._lengths: list[Numbers] = []  # and their common border in pixels
        rows, columns = grid.shape
        self._below = np.full(columns, _NONE, np.int64), np.zeros(columns, np.uint8)
        self._beside = np.full(rows, _NONE, np.int64), np.zeros(rows, np.uint8)

    def add(self, index: int, labels: npt.NDArray[np.uint8], smallest: int) -> None:
        """The next window of the grid."""
        window, start = self._grid[index], self._starts[-1]
        pieces = _pieces(labels)
        sizes = np.bincount(pieces.ravel())[1:]
        places = np.flatnonzero(np.diff(np.maximum.accumulate(pieces.ravel()), prepend=0))  # numbered as they begin
        row, column = np.divmod(places, window.width)
        self._sizes.append(sizes)
        self._firsts.append((window.row + row) * self._grid.shape[1] + window.column + column)
        self._classes.append(labels.ravel()[places])
        self._starts.append(start + len(sizes))
        numbers = np.where(pieces > 0, pieces + (start - 1), _NONE).astype(np.int64)
        pairs, lengths = _common(
            np.concatenate([numbers[:, :-1].ravel(), numbers[:-1].ravel()]),
            np.concatenate([numbers[:, 1:].ravel(), numbers[1:].ravel()]),
        )
        # A border of two pieces that are large by themselves is never asked for.
        small = sizes < smallest
        low, high = _unpacked(pairs - start * _BOTH)
        self._keep(pairs, lengths, small[low] | small[high])
        rows, columns = slice(window.row, window.bottom), slice(window.column, window.right)
        for (old, classes), at, line, values in (
            (self._below, columns, numbers[0], labels[0]),
            (self._beside, rows, numbers[:, 0], labels[:, 0]),
        ):
            self._meet(old[at], classes[at], line, values)
        self._below[0][columns], self._below[1][columns] = numbers[-1], labels[-1]
        self._beside[0][rows], self._beside[1][rows] = numbers[:, -1], labels[:, -1]

    def _meet(self, old: Numbers, classes: npt.NDArray[np.uint8], new: Numbers, values: npt.NDArray[np.uint8]) -> None:
        """Both sides of a seam."""
        same = classes == values
        self._same.append(_common(old[same], new[same])[0])
        self._keep(*_common(old[~same], new[~same]))

    def _keep(self, pairs: Numbers, lengths: Numbers, which: Any = slice(None)) -> None:
        self._pairs.append(pairs[which])
        self._lengths.append(lengths[which])

    def joined(self, smallest: int) -> _Counted:
        """Whole areas, once all windows are there, and the borders of the small ones."""
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import connected_components

        pieces = self._starts[-1]
        low, high = _unpacked(np.concatenate(self._same))
        graph = coo_matrix((np.ones(len(low), bool), (low, high)), shape=(pieces, pieces))
        count, area_of = connected_components(graph, directed=False)
        sizes, firsts = np.zeros(count, np.int64), np.full(count, np.iinfo(np.int64).max)
        np.add.at(sizes, area_of, np.concatenate(self._sizes))
        np.minimum.at(firsts, area_of, np.concatenate(self._firsts))
        classes = np.zeros(count, np.uint8)
        classes[area_of] = np.concatenate(self._classes)
        pairs, lengths = np.concatenate(self._pairs), np.concatenate(self._lengths)
        self._pairs.clear()  # of a noisy map these are most of what is held
        self._lengths.clear()
        low, high = (area_of[end] for end in _unpacked(pairs))
        ways = [
            (one.astype(np.int64) << 32 | other, sizes[one] < smallest) for one, other in ((low, high), (high, low))
        ]
        pairs = np.concatenate([packed[small] for packed, small in ways])
        lengths = np.concatenate([lengths[small] for _, small in ways])
        pairs, where = np.unique(pairs, return_inverse=True)
        lengths = np.bincount(where, lengths, len(pairs)).astype(np.int64)
        one, other = _unpacked(pairs)
        rows = np.searchsorted(one, np.arange(count + 1))
        return _Counted(area_of, sizes, firsts, classes, *map(_numbers, (rows, other, lengths)))

    def tables(self, counted: _Counted, classes: npt.NDArray[np.uint8]) -> dict[int, npt.NDArray[np.uint8]]:
        """Of every window where something changes: the class of each of its pieces, nodata first."""
        tables = {}
        for index, own in enumerate(self._classes):
            now = classes[counted.area_of[self._starts[index] : self._starts[index + 1]]]
            if (now != own).any():
                tables[index] = np.concatenate([np.array([IGNORE_INDEX], np.uint8), now])
        return tables


@dataclass(frozen=True)
class _Counted:
    """All areas of a map. Those that touch area k are ``others[rows[k] : rows[k + 1]]``, where k is small."""

    area_of: npt.NDArray[Any]
    """The area of every piece."""
    sizes: Numbers
    firsts: Numbers
    classes: npt.NDArray[np.uint8]
    rows: array[int]
    others: array[int]
    lengths: array[int]


class _Merging:
    """Small areas go to neighbours; :meth:`find` tells where each is.

    Plain arrays, which take few bytes an area and are quick to look into one by one; what was merged is in dicts.
    """

    def __init__(self, counted: _Counted, smallest: int) -> None:
        self._counted, self._smallest = counted, smallest
        self._sizes, self._firsts = _numbers(counted.sizes), _numbers(counted.firsts)
        self._rows, self._others, self._lengths = counted.rows, counted.others, counted.lengths
        self._classes = counted.classes.tobytes()
        self._into = _numbers(np.full(len(counted.sizes), _NONE))
        self._members: dict[int, list[int]] = {}  # of small areas that others went to

    def find(self, area: int) -> int:
        """What an area is a part of now."""
        into = self._into
        while (further := into[area]) != _NONE:
            if (last := into[further]) != _NONE:
                into[area] = last
            area = further
        return area

    def all(self) -> Iterator[None]:
        """Merge until nothing is too small that has a neighbour."""
        grown: list[tuple[int, int, int]] = []  # small still, and queued once more
        for count, (size, _, one) in enumerate(self._queue(grown)):
            if self._into[one] == _NONE and self._sizes[one] == size:  # else it has gone, or grown
                target = self._merge(one)
                if target is not None and self._sizes[target] < self._smallest:
                    heapq.heappush(grown, (self._sizes[target], self._firsts[target], target))
            if count % _AT_ONCE == 0:
                yield

    def _queue(self, grown: list[tuple[int, int, int]]) -> Iterator[tuple[int, int, int]]:
        """Small areas, the smallest first, of one size in the order of where they begin; also those that come later."""
        sizes, firsts = self._counted.sizes, self._counted.firsts
        small = np.flatnonzero(sizes < self._smallest)
        for one in _numbers(small[np.lexsort((firsts[small], sizes[small]))]):
            item = int(sizes[one]), int(firsts[one]), one
            while grown and grown[0] < item:
                yield heapq.heappop(grown)
            yield item
        while grown:
            yield heapq.heappop(grown)

    def _borders(self, area: int) -> dict[int, int]:
        """The areas around a small one, and the border that it shares with each."""
        found: dict[int, int] = {}
        for one in self._members.get(area, (area,)):
            for at in range(self._rows[one], self._rows[one + 1]):
                root = self.find(self._others[at])
                if root != area:
                    found[root] = found.get(root, 0) + self._lengths[at]
        return found

    def _merge(self, area: int) -> int | None:
        """Give an area to a neighbour, which joins those of its class that touch it too; None where it has none."""
        borders = self._borders(area)
        if not borders:
            return None
        target = max(borders, key=lambda other: (borders[other], -self._firsts[other]))
        self._unite(area, target)
        for other in borders:
            if other != target and self._classes[other] == self._classes[target]:
                self._unite(other, target)
        return target

    def _unite(self, area: int, target: int) -> None:
        self._into[area] = target
        self._firsts[target] = min(self._firsts[area], self._firsts[target])
        self._sizes[target] += self._sizes[area]
        more, own = self._members.pop(area, [area]), self._members.pop(target, [target])
        if self._sizes[target] < self._smallest:  # it will be asked for its borders
            self._members[target] = own + more


def _numbers(values: npt.NDArray[Any]) -> array[int]:
    return array("q", values.astype(np.int64).tobytes())


def _pieces(labels: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    """Number of the 4-connected area of one class at every pixel, from 1, as they begin in rows; 0 for nodata."""
    from skimage.measure import label

    return np.asarray(label(labels, background=IGNORE_INDEX, connectivity=1))


def _common(one: Numbers, other: Numbers) -> tuple[Numbers, Numbers]:
    """Pairs of numbers that differ and stand side by side, packed, the lower first; and how often each does."""
    there = (one != other) & (one != _NONE) & (other != _NONE)
    one, other = one[there], other[there]
    return np.unique(np.minimum(one, other) << 32 | np.maximum(one, other), return_counts=True)


def _unpacked(pairs: Numbers) -> tuple[Numbers, Numbers]:
    return pairs >> 32, pairs & 0xFFFF_FFFF
