"""Putting strokes into chunks, and chunks into the levels above: no files, no journal."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Iterator

import numpy as np

from napari_isdnet.annotation.chunks import CHUNK, Chunk, ChunkCache, Key, as_array, encode, simplified
from napari_isdnet.annotation.classlist import Table
from napari_isdnet.annotation.counts import Place
from napari_isdnet.annotation.downsample import downsample
from napari_isdnet.annotation.strokes import Cover, Labels, Patch, Stroke
from napari_isdnet.window import Grid, Window

HALF = CHUNK // 2
_PLAIN_BEFORE = 64


class Painter:
    """Changes level 0 of ``cache`` and brings the coarser ``levels`` up to date."""

    def __init__(self, cache: ChunkCache, levels: tuple[tuple[int, int], ...]) -> None:
        self.cache = cache
        self.levels = levels
        self.grid = Grid(levels[0], (CHUNK, CHUNK))
        self._owed: set[Place] | None = None  # chunks of level 0 whose change the levels above do not show yet

    @contextlib.contextmanager
    def later(self) -> Iterator[None]:
        """The coarser levels are brought up to date once, at the end or by :meth:`settle`, and not by every stroke."""
        if self._owed is not None:
            yield
            return
        self._owed = set()
        try:
            yield
        finally:
            owed, self._owed = self._owed, None
            self.raise_levels(owed)

    def settle(self) -> None:
        """Bring the coarser levels up to date now."""
        owed, self._owed = self._owed, None
        if owed is None:
            return
        try:
            self.raise_levels(owed)
        except BaseException:
            self._owed = owed
            raise
        self._owed = set()

    def window(self, place: Place) -> Window:
        """The part of the image in a chunk of level 0."""
        return self.grid[place[0] * self.grid.counts[1] + place[1]]

    def stroke(self, stroke: Stroke, value: int, cover: Cover | None = None) -> dict[Place, Chunk | bytes]:
        """Paint ``value`` (a patch: its own values); returns the chunks that changed as they were before.

        ``cover`` is the stroke's, where it has been asked for already.
        """
        cover = stroke.cover(self.levels[0]) if cover is None else cover
        before: dict[Place, Chunk | bytes] = {}
        for row in range(cover.bounds.row // CHUNK, -(-cover.bounds.bottom // CHUNK)):
            # Row by row of chunks: a slanting stroke touches far fewer than its bounding box holds.
            band = cover.band(row * CHUNK, (row + 1) * CHUNK)
            for index in self.grid.touching(band.bounds):
                place = divmod(index, self.grid.counts[1])
                old = self.cache.get((0, *place))
                new = _painted(old, band, self.grid[index], stroke, value)
                if new is not None:
                    self._replace(before, place, old, new)
        self.raise_levels(before)
        return before

    def recode(self, table: Table) -> dict[Place, Chunk | bytes]:
        """Every value through ``table``; returns the chunks that changed as they were before."""
        before: dict[Place, Chunk | bytes] = {}
        for _, row, column in sorted(self.cache.keys(0)):
            old = self.cache.get((0, row, column))
            new: Chunk = int(table[old]) if isinstance(old, int) else simplified(table[old])
            if not _same(old, new):
                self._replace(before, (row, column), old, new)
        self.raise_levels(before)
        return before

    def restore(self, chunks: Iterable[tuple[Place, Chunk]]) -> list[Place]:
        """Put chunks of level 0 back as they are given."""
        places = []
        for place, chunk in chunks:
            self.cache.put((0, *place), chunk)
            places.append(place)
        self.raise_levels(places)
        return places

    def _replace(self, before: dict[Place, Chunk | bytes], place: Place, old: Chunk, new: Chunk) -> None:
        plain = isinstance(old, int) or len(before) < _PLAIN_BEFORE
        # A huge stroke keeps what was there compressed, so that memory follows what is painted.
        before[place] = old if plain else encode(old) or 0
        self.cache.put((0, *place), new)

    def raise_levels(self, places: Iterable[Place]) -> None:
        """Bring all coarser levels up to date after changes to these chunks of level 0 (:meth:`later`: in the end)."""
        if self._owed is not None:
            self._owed.update(places)
            return
        touched = set(places)
        for level in range(1, len(self.levels)):
            children: defaultdict[Place, list[Place]] = defaultdict(list)
            for row, column in touched:
                children[(row // 2, column // 2)].append((row, column))
            touched = {parent for parent, parts in children.items() if self._raise(level, parent, parts)}

    def _raise(self, level: int, parent: Place, parts: list[Place]) -> bool:
        key: Key = (level, *parent)
        old = self.cache.get(key)
        quarters: list[tuple[tuple[slice, slice], Labels | int]] = []
        for row, column in parts:
            child = self.cache.get((level - 1, row, column))
            top, left = row % 2 * HALF, column % 2 * HALF
            small = child if isinstance(child, int) else downsample(child)
            quarters.append(((slice(top, top + HALF), slice(left, left + HALF)), small))
        if all(isinstance(small, int) for _, small in quarters):
            values = {small for _, small in quarters if isinstance(small, int)}
            first = next(iter(values))
            if len(values) == 1 and (len(quarters) == 4 or (isinstance(old, int) and old == first)):
                if isinstance(old, int) and old == first:
                    return False
                self.cache.put(key, first)
                return True
        new = as_array(old)
        for at, small in quarters:
            new[at] = small
        chunk = simplified(new)
        if _same(old, chunk):
            return False
        self.cache.put(key, chunk)
        return True


def _same(old: Chunk, new: Chunk) -> bool:
    if isinstance(old, int) or isinstance(new, int):
        return isinstance(old, int) and isinstance(new, int) and old == new
    return bool(np.array_equal(old, new))


def _painted(old: Chunk, cover: Cover, window: Window, stroke: Stroke, value: int) -> Chunk | None:
    """The chunk after the stroke, or None when nothing changes."""
    mask = cover.mask(window)
    patch = stroke if isinstance(stroke, Patch) else None
    if mask is False or (patch is None and isinstance(old, int) and old == value):
        return None
    if mask is True and patch is None and window.shape == (CHUNK, CHUNK):
        return value
    new = as_array(old)
    part = new[: window.height, : window.width]
    if patch is not None:
        part = _patch_into(part, window, patch)
    elif mask is True:
        part[...] = value
    else:
        np.copyto(part, np.uint8(value), where=mask)
    chunk = simplified(new)
    return None if _same(old, chunk) else chunk


def _patch_into(part: Labels, window: Window, patch: Patch) -> Labels:
    inside = window.intersect(patch.window)
    to, source = inside.relative_to(window).slices, inside.relative_to(patch.window).slices
    where = True if patch.mask is None else patch.mask[source]
    np.copyto(part[to], patch.values[source], where=where)
    return part
