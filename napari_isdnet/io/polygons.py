"""Polygons of a class map of any size: windows polygonised one by one, joined across their seams while they stream.

A piece that touches no seam is finished at once. The others wait in a union-find until every window they can reach is
done; only they are ever unioned. What is in memory is one window, one row of seams and the pieces that still wait.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from typing import TYPE_CHECKING, Any

from napari_isdnet.classes import IGNORE_INDEX
from napari_isdnet.exceptions import InputError, MissingExtra
from napari_isdnet.io.geopackage import check_geopackage
from napari_isdnet.io.source import ImageSource
from napari_isdnet.window import Grid, Window

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from shapely import Polygon

    from napari_isdnet.io.sieve import Sieved

CORE = 2048


@dataclass(frozen=True)
class Joined:
    """What one window finished: polygons in pixel corners (x = column, y = row) of the source, with their classes."""

    window: Window
    classes: list[int]
    polygons: list[Polygon]


def check_polygons(simplify: float, min_area: int = 1, geopackage: bool = False) -> None:
    """:class:`InputError` where polygons cannot be made so, which a long job can say before it starts."""
    if min_area < 1:
        raise InputError(f"The smallest area must be a number of pixels from 1, got {min_area}.")
    if not 0 <= simplify < math.inf:
        raise InputError(f"The tolerance of simplified outlines must be a number of pixels from 0, got {simplify}.")
    if find_spec("rasterio") is None:
        raise MissingExtra("Making polygons", "rasterio", "geo")
    if geopackage:
        check_geopackage()


def polygonise(
    source: ImageSource | Sieved, *, roi: Window | None = None, simplify: float = 0.0, core: int = CORE
) -> Iterator[Joined]:
    """Polygons of every 4-connected area of one class index (255 is left out), window by window, holes kept.

    ``simplify`` > 0 is a tolerance in pixels (Visvalingam-Whyatt on the shared edges of all classes at once, so that
    neighbours keep touching); vertices on a seam or at the image's border stay where they are. Without it areas are
    exact pixel counts, and the set of polygons does not depend on ``core``.
    """
    check_polygons(simplify)
    area = Window.whole(source.shape) if roi is None else roi
    grid = Grid(area.shape, (core, core))
    joiner = _Joiner(grid)
    for index, local in enumerate(grid):
        window = local.shifted(area.row, area.column)
        labels = source.read(window)[..., 0]
        values, pieces = window_polygons(labels, simplify)
        done_values, done = joiner.add(index, values, pieces)
        shifted = _moved(done, area.column, area.row)
        yield Joined(window, done_values, shifted)


def window_polygons(
    labels: npt.NDArray[np.uint8], simplify: float = 0.0
) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any]]:
    """Class indices and polygons of one window, in its own pixel corners."""
    import numpy as np
    import shapely
    from rasterio.features import shapes

    # With simplification nodata is an area like any other, so that its edge is simplified with its neighbour's.
    mask = None if simplify else labels != IGNORE_INDEX
    found = [(int(v), g["coordinates"]) for g, v in shapes(np.ascontiguousarray(labels), mask=mask, connectivity=4)]
    values = np.array([v for v, _ in found], np.int64)
    polygons = _from_rings([rings for _, rings in found])
    if simplify and len(polygons):
        # Junctions must be vertices of both neighbours: put one at every pixel corner.
        dense = shapely.transform(shapely.segmentize(polygons, 1.0), np.round)
        polygons = np.asarray(shapely.coverage_simplify(dense, simplify, simplify_boundary=False))
        keep = values != IGNORE_INDEX
        values, polygons = values[keep], polygons[keep]
    return values, without_collinear(polygons)


def _from_rings(found: list[Any]) -> npt.NDArray[Any]:
    """Polygons from lists of closed rings, built in one go: one by one they cost more than finding them."""
    import numpy as np
    import shapely

    lengths = [len(ring) for rings in found for ring in rings]
    flat = chain.from_iterable(chain.from_iterable(ring) for rings in found for ring in rings)
    points = np.fromiter(flat, np.float64, 2 * sum(lengths)).reshape(-1, 2)
    if not len(points):
        return np.empty(0, object)
    rings = shapely.linearrings(points, indices=np.repeat(np.arange(len(lengths)), lengths))
    owner = np.repeat(np.arange(len(found)), [len(rings) for rings in found])
    return np.asarray(shapely.polygons(rings, indices=owner), object).reshape(-1)


def without_collinear(polygons: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same polygons without vertices that lie on a straight line between their neighbours."""
    import numpy as np
    import shapely

    if not len(polygons):
        return polygons
    rings, owner = shapely.get_rings(polygons, return_index=True)
    points, ring = shapely.get_coordinates(rings, return_index=True)
    last = np.flatnonzero(np.diff(ring, append=-1))
    open_ends = np.ones(len(points), bool)
    open_ends[last] = False  # the closing point repeats the first
    points, ring = points[open_ends], ring[open_ends]
    first = np.flatnonzero(np.diff(ring, prepend=-1))
    last = np.append(first[1:], len(ring)) - 1
    after, before = np.arange(1, len(ring) + 1), np.arange(-1, len(ring) - 1)
    after[last], before[first] = first, last
    ahead, behind = points[after] - points, points - points[before]
    turning = ahead[:, 0] * behind[:, 1] != ahead[:, 1] * behind[:, 0]
    clean = shapely.linearrings(points[turning], indices=ring[turning])
    # The first ring of a polygon is its shell, the others are holes.
    return np.asarray(shapely.polygons(clean, indices=owner), object).reshape(-1)


def _moved(polygons: list[Any], columns: float, rows: float) -> list[Any]:
    import numpy as np
    import shapely

    if not polygons or not (columns or rows):
        return polygons
    return list(shapely.transform(np.array(polygons, object), lambda points: np.add(points, (columns, rows))))


class _Joiner:
    """Joins pieces of one class across seams. Pieces come window by window in the grid's order."""

    def __init__(self, grid: Grid) -> None:
        import numpy as np

        self._grid = grid
        self._below = np.full(grid.shape[1], -1, np.int64)  # piece ids along the lower edge of the row of windows above
        self._beside = np.empty(0, np.int64)  # piece ids along the right edge of the window to the left
        self._next = 0
        self._parent: dict[int, int] = {}  # of every piece that waits
        # Of every component that waits, by its root: class, pieces and their ids, seams that no window has met yet.
        self._value: dict[int, int] = {}
        self._pieces: dict[int, list[Any]] = {}
        self._members: dict[int, list[int]] = {}
        self._pending: dict[int, int] = {}

    def add(self, index: int, values: Any, pieces: Any) -> tuple[list[int], list[Any]]:
        """Pieces of window ``index`` in its own pixels; returns what is finished now, in the grid's pixels."""
        import numpy as np

        window = self._grid[index]
        columns = slice(window.column, window.right)
        sides = _sides(pieces, window.shape)
        seams = {
            "left": window.column > 0,
            "top": window.row > 0,
            "right": window.right < self._grid.shape[1],
            "bottom": window.bottom < self._grid.shape[0],
        }
        waiting = np.zeros(len(pieces), bool)
        for name, there in seams.items():
            ids = sides[name]
            if there:
                waiting[ids[ids >= 0]] = True
        done_values = [int(v) for v in values[~waiting]]
        done = _moved(list(pieces[~waiting]), window.column, window.row)
        numbers = np.full(len(pieces) + 1, -1, np.int64)  # the last entry keeps -1 as -1
        numbers[np.flatnonzero(waiting)] = self._next + np.arange(waiting.sum())
        self._next += int(waiting.sum())
        moved = _moved(list(pieces[waiting]), window.column, window.row)
        for number, value, piece in zip(numbers[np.flatnonzero(waiting)], values[waiting], moved):
            key = int(number)
            self._parent[key], self._value[key], self._pending[key] = key, int(value), 0
            self._pieces[key], self._members[key] = [piece], [key]
        for name in ("right", "bottom"):
            for number in np.unique(numbers[sides[name]]) if seams[name] else ():
                if number >= 0:
                    self._pending[int(number)] += 1
        met: set[int] = {int(n) for n in numbers[:-1] if n >= 0}
        if seams["left"]:
            met |= self._meet(self._beside, numbers[sides["left"]])
        if seams["top"]:
            met |= self._meet(self._below[columns], numbers[sides["top"]])
        self._beside = numbers[sides["right"]]
        self._below[columns] = numbers[sides["bottom"]]
        for root in sorted({self._find(n) for n in met}):
            if self._pending[root] == 0:
                done_values.append(self._value.pop(root))
                done.append(self._finish(root))
        return done_values, done

    def _meet(self, old: Any, new: Any) -> set[int]:
        """Join pieces of one class that lie side by side on a seam; the old ones' seam is dealt with."""
        import numpy as np

        for number in np.unique(old[old >= 0]):
            self._pending[self._find(int(number))] -= 1
        pairs = np.unique(np.stack([old, new], axis=1)[(old >= 0) & (new >= 0)], axis=0)
        for a, b in pairs:
            first, second = self._find(int(a)), self._find(int(b))
            if first != second and self._value[first] == self._value[second]:
                if len(self._pieces[first]) < len(self._pieces[second]):
                    first, second = second, first
                self._parent[second] = first
                del self._value[second]
                self._pieces[first] += self._pieces.pop(second)
                self._members[first] += self._members.pop(second)
                self._pending[first] += self._pending.pop(second)
        return {int(n) for n in np.unique(old[old >= 0])}

    def _find(self, number: int) -> int:
        while self._parent[number] != number:
            self._parent[number] = self._parent[self._parent[number]]
            number = self._parent[number]
        return number

    def _finish(self, root: int) -> Any:
        import numpy as np
        import shapely

        pieces = self._pieces.pop(root)
        del self._pending[root]
        for number in self._members.pop(root):
            del self._parent[number]
        whole = pieces[0] if len(pieces) == 1 else shapely.union_all(pieces)
        return without_collinear(np.array([whole], object))[0]


def _sides(pieces: Any, shape: tuple[int, int]) -> dict[str, Any]:
    """For each side of a window, the index of the piece at every pixel of it, -1 where there is none."""
    import numpy as np
    import shapely

    height, width = shape
    result = {n: np.full(height if n in ("left", "right") else width, -1, np.int64) for n in
              ("left", "right", "top", "bottom")}  # fmt: skip
    if not len(pieces):
        return result
    rings, owner = shapely.get_rings(pieces, return_index=True)
    points, ring = shapely.get_coordinates(rings, return_index=True)
    same = ring[1:] == ring[:-1]
    start, end, who = points[:-1][same], points[1:][same], owner[ring[1:][same]]
    for name, axis, place in (("left", 0, 0), ("right", 0, width), ("top", 1, 0), ("bottom", 1, height)):
        on = (start[:, axis] == place) & (end[:, axis] == place)
        a, b = start[on, 1 - axis], end[on, 1 - axis]
        for low, high, piece in zip(np.minimum(a, b), np.maximum(a, b), who[on]):
            result[name][int(low) : int(high)] = piece
    return result
