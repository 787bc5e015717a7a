"""The map behind the procedural world: water, highways, districts, at any point, from the seed alone.

Everything here varies slowly (metres), so it is worked out at the nodes of a fixed lattice of :data:`SPACING` metres
and interpolated to the pixels by :class:`Lattice`. Lengths are metres; (0, 0) is the top left corner of the world.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from napari_isdnet.io.world_noise import Float, Int, Real, hash_grid, mix, octaves, scattered, unit

SPACING = 2.0
DISTRICT = 260.0
SEA_LEVEL = -0.62
WILD, FARM, RESIDENTIAL, DENSE, INDUSTRIAL, PARK, PLOTS = range(7)
_NO_ROAD = 90.0

_ELEVATION = ((2300.0, 0.8), (900.0, 0.5), (340.0, 0.16), (120.0, 0.06), (40.0, 0.022), (15.0, 0.008))
_MOISTURE = ((3200.0, 0.9), (1000.0, 0.35))
_URBANITY = ((1900.0, 0.8), (650.0, 0.4))
_RIVER = ((1500.0, 1.0), (420.0, 0.25), (110.0, 0.05), (40.0, 0.015))
_HIGHWAY = ((2100.0, 1.0), (800.0, 0.2))


@dataclass(frozen=True)
class Districts:
    """Attributes of every district that a read can meet; one entry per district, all arrays of the same length.

    ``cos``/``sin`` turn map axes into street axes. A block is ``block_u`` x ``block_v``, its streets ``street`` half
    wide; lots are ``lot`` wide; a house is half ``side_low..side_high`` of its lot wide and ``depth_low..depth_high``
    metres half deep, ``height`` high and there with probability ``built``.
    """

    row: Float
    column: Float
    kind: npt.NDArray[np.uint8]
    desert: Float
    cos: Float
    sin: Float
    block_u: Float
    block_v: Float
    street: Float
    lot: Float
    side_low: Float
    side_high: Float
    depth_low: Float
    depth_high: Float
    height: Float
    built: Float
    flat: Float
    key: npt.NDArray[np.uint32]


# kind -> block_u (low, high), block_v (low, high), street, lot, side (low, high), depth (low, high), height, built
_FORMS: dict[int, tuple[float, ...]] = {
    WILD: (200, 200, 200, 200, 0, 100, 0, 0, 0, 0, 0, 0),
    FARM: (130, 230, 75, 130, 0, 100, 0, 0, 0, 0, 0, 0),
    RESIDENTIAL: (100, 170, 56, 70, 3.4, 18, 0.26, 0.40, 4.5, 7.5, 5.5, 0.93),
    DENSE: (80, 130, 64, 90, 5.0, 34, 0.30, 0.42, 8.0, 12.0, 11.0, 0.88),
    INDUSTRIAL: (130, 200, 100, 150, 5.0, 62, 0.30, 0.43, 13.0, 21.0, 7.0, 0.84),
    PARK: (200, 200, 200, 200, 0, 100, 0, 0, 0, 0, 0, 0),
    PLOTS: (110, 190, 60, 76, 3.6, 22, 0.26, 0.38, 5.0, 8.0, 6.0, 0.10),
}


def _district_kind(urban: Float, moist: Float, draw: Float) -> npt.NDArray[np.uint8]:
    """What a district is, from how urban and how moist its site is and a draw 0..1."""
    rural_moist = np.where(draw < 0.66, FARM, WILD)
    rural_dry = np.where(draw < 0.84, WILD, np.where(draw < 0.95, PLOTS, FARM))
    rural = np.where(moist > 0, rural_moist, rural_dry)
    fringe = np.where(draw < 0.55, RESIDENTIAL, np.where(draw < 0.70, INDUSTRIAL, np.where(draw < 0.86, PLOTS, PARK)))
    town = np.where(draw < 0.60, RESIDENTIAL, np.where(draw < 0.72, INDUSTRIAL, np.where(draw < 0.86, DENSE, PARK)))
    core = np.where(draw < 0.66, DENSE, np.where(draw < 0.86, RESIDENTIAL, PARK))
    kind = np.where(urban > 0.62, core, np.where(urban > 0.02, town, np.where(urban > -0.12, fringe, rural)))
    return kind.astype(np.uint8)


@dataclass(frozen=True)
class Nodes:
    """The map at crossings of rows and columns: 2-D arrays, metres unless said.

    ``water`` and ``border`` are signed distances to shore and to the edge of the road between districts (negative: in
    water, on the road), ``lake`` the first without rivers; ``highway`` is the distance to the highway's middle, signed
    by side. ``toward_*`` is the unit vector (warped axes) in which ``border`` grows, ``highway_*`` that in which
    ``highway`` grows. ``moist`` and ``tint`` have no unit; ``district`` indexes :class:`Districts`.
    """

    warped_row: Float
    warped_column: Float
    water: Float
    lake: Float
    border: Float
    highway: Float
    moist: Float
    tint: Float
    toward_row: Float
    toward_column: Float
    highway_row: Float
    highway_column: Float
    district: npt.NDArray[np.int32]


class WorldMap:
    """The map of one seed."""

    def __init__(self, seed: int) -> None:
        self.seed = mix(seed, seed >> 32, 0x15D)

    def _key(self, name: str) -> int:
        return mix(self.seed, *name.encode())

    def at(self, rows: Real, columns: Real) -> tuple[Nodes, Districts]:
        """The map at every crossing of 1-D ``rows`` and ``columns`` (metres, float64, ascending)."""
        warped_row = (octaves(rows, columns, self._key("warp row"), ((800, 50), (240, 9))) + rows[:, None]).astype("f4")
        warped_column = (octaves(rows, columns, self._key("warp col"), ((800, 50), (240, 9))) + columns).astype("f4")
        moist = octaves(rows, columns, self._key("moist"), _MOISTURE)
        lake = (octaves(rows, columns, self._key("elevation"), _ELEVATION) - np.float32(SEA_LEVEL)) * np.float32(420)
        river = np.abs(octaves(rows, columns, self._key("river"), _RIVER)) * np.float32(420)
        river -= np.clip(moist * 28 + 6, -40, 22)
        highway, along = self._highway(rows, columns)
        table, low, width = self._districts(warped_row, warped_column)
        district, border, toward = self._borders(warped_row, warped_column, table, low, width)
        tint = octaves(rows, columns, self._key("tint"), ((1300, 0.6), (260, 0.3)))
        water = np.minimum(lake, river)
        nodes = Nodes(warped_row, warped_column, water, lake, border, highway, moist, tint, *toward, *along, district)
        return nodes, table

    def _highway(self, rows: Real, columns: Real) -> tuple[Float, tuple[Float, Float]]:
        """Distance to a level set of smooth noise: value over slope, good near the line, which is where it counts.

        Also the unit vector in which it grows.
        """
        key = self._key("highway")
        here = octaves(rows, columns, key, _HIGHWAY)
        down = (octaves(rows, columns, key, _HIGHWAY, offset=(4, 0)) - here) * np.float32(0.25)
        across = (octaves(rows, columns, key, _HIGHWAY, offset=(0, 4)) - here) * np.float32(0.25)
        slope = np.maximum(np.sqrt(down * down + across * across), np.float32(4e-4))
        vector: tuple[Float, Float] = (down / slope, across / slope)
        distance: Float = here / slope
        return distance, vector

    def _districts(self, warped_row: Float, warped_column: Float) -> tuple[Districts, tuple[int, int], int]:
        """All districts around the given points, in row-major order of their home squares."""
        low = (int(np.floor(warped_row.min() / DISTRICT)) - 2, int(np.floor(warped_column.min() / DISTRICT)) - 2)
        high = (int(np.floor(warped_row.max() / DISTRICT)) + 3, int(np.floor(warped_column.max() / DISTRICT)) + 3)
        i, j = (a.ravel() for a in np.mgrid[low[0] : high[0], low[1] : high[1]])
        draws = [hash_grid(self._key(f"district {k}"), i, j) for k in range(3)]
        row = ((i + 0.5 + 0.66 * (unit(draws[0]) - 0.5)) * DISTRICT).astype(np.float32)
        column = ((j + 0.5 + 0.66 * (unit(draws[1]) - 0.5)) * DISTRICT).astype(np.float32)
        urban = self._points(_URBANITY, "urban", row, column)
        moist = self._points(_MOISTURE, "moist", row, column)
        kind = _district_kind(urban, moist, unit(draws[2]))
        form = np.array([_FORMS[k] for k in range(len(_FORMS))], np.float32)[kind].T
        spin = unit(draws[0], 3) * 2 - 1  # tangent of half the angle: a rotation without trigonometry
        cos, sin = (1 - spin * spin) / (1 + spin * spin), 2 * spin / (1 + spin * spin)
        table = Districts(
            row=row, column=column, kind=kind, desert=(moist <= 0).astype(np.float32),
            cos=cos.astype(np.float32), sin=sin.astype(np.float32),
            block_u=form[0] + (form[1] - form[0]) * unit(draws[1], 3),
            block_v=form[2] + (form[3] - form[2]) * unit(draws[2], 3),
            street=form[4], lot=form[5], side_low=form[6], side_high=form[7], depth_low=form[8], depth_high=form[9],
            height=form[10], built=form[11],
            flat=((moist <= 0) | (kind == DENSE) | (kind == INDUSTRIAL)).astype(np.float32), key=draws[2],
        )  # fmt: skip
        return table, low, high[1] - low[1]

    def _points(self, parts: tuple[tuple[float, float], ...], name: str, row: Float, column: Float) -> Float:
        """The same fields as :func:`octaves`, at scattered points."""
        return scattered(row.astype(np.float64), column.astype(np.float64), self._key(name), parts)

    def _borders(
        self, row: Float, column: Float, table: Districts, low: tuple[int, int], width: int
    ) -> tuple[npt.NDArray[np.int32], Float, tuple[Float, Float]]:
        """Voronoi cells of the districts' sites: own district, distance to the road's edge, direction away from it."""
        home = (np.floor(row / DISTRICT).astype(np.int32) - low[0]) * width
        home += np.floor(column / DISTRICT).astype(np.int32) - low[1]
        around = [dr * width + dc for dr in (-1, 0, 1) for dc in (-1, 0, 1)]
        best, own = np.full(row.shape, np.inf, np.float32), np.zeros(row.shape, np.int32)
        for step in around:
            other = home + step
            square = (row - table.row[other]) ** 2 + (column - table.column[other]) ** 2
            closer = square < best
            np.copyto(best, square, where=closer)
            np.copyto(own, other, where=closer)
        r, c = row - table.row[own], column - table.column[own]
        border, side = np.full(row.shape, np.inf, np.float32), np.zeros(row.shape, np.int8)
        ways = [_toward_neighbour(table, step) for step in around if step]
        for k, (unit_row, unit_column, reach) in enumerate(ways):
            distance = reach[own]
            distance -= r * unit_row[own]
            distance -= c * unit_column[own]
            closer = distance < border
            np.copyto(border, distance, where=closer)
            np.copyto(side, np.int8(k), where=closer)
        away = [-np.stack([way[axis] for way in ways])[side, own] for axis in (0, 1)]
        return own, border, (away[0], away[1])


def _toward_neighbour(table: Districts, step: int) -> tuple[Float, Float, Float]:
    """For every district: unit vector to the site ``step`` further on, and how far it is to the road between them."""
    other = (np.arange(len(table.row)) + step) % len(table.row)
    down, across = table.row[other] - table.row, table.column[other] - table.column
    length = np.maximum(np.sqrt(down * down + across * across), np.float32(1e-3))
    half = _half_widths()[table.kind, table.kind[other]]
    return down / length, across / length, length * np.float32(0.5) - half


def _half_widths() -> Float:
    """Half width of the road between two kinds of district; far below zero where there is none."""
    half = np.full((7, 7), 5.5, np.float32)
    for a in (WILD, FARM):
        for b in (WILD, FARM):
            half[a, b] = 2.6
    half[WILD, WILD] = -_NO_ROAD
    return half


class Lattice:
    """Interpolates :class:`Nodes` to pixels: bilinear, nearest node for what is not continuous."""

    def __init__(self, world: WorldMap, rows: Real, columns: Real, direct: bool) -> None:
        """``rows`` and ``columns`` are pixel positions in metres; ``direct`` works the map out at the pixels."""
        self.direct = direct
        if direct:
            self.nodes, self.districts = world.at(rows, columns)
            return
        self._row = _axis(rows)
        self._column = _axis(columns)
        self.nodes, self.districts = world.at(self._row[0] * SPACING, self._column[0] * SPACING)

    def linear(self, name: str, part: tuple[slice, slice]) -> Float:
        """Field ``name`` at the pixels of ``part``."""
        field: Float = getattr(self.nodes, name)
        if self.direct:
            return field[part].copy()
        _, row_at, row_f = self._row
        _, col_at, col_f = self._column
        at, f = row_at[part[0]], row_f[part[0]][:, None]
        first, last = int(col_at[part[1]][0]), int(col_at[part[1]][-1]) + 2
        strip = field[:, first:last]
        lines = strip[at]
        lines += (strip[at + 1] - lines) * f
        slopes = np.diff(lines, axis=1, append=lines[:, -1:])
        index = col_at[part[1]] - first
        out = slopes[:, index]
        out *= col_f[part[1]]
        out += lines[:, index]
        return out

    def nearest(self, name: str, part: tuple[slice, slice]) -> npt.NDArray[np.int32] | Float:
        """Field ``name`` of the nearest node, at the pixels of ``part``."""
        field = getattr(self.nodes, name)
        if self.direct:
            return field[part]
        _, row_at, row_f = self._row
        _, col_at, col_f = self._column
        rows = row_at[part[0]] + (row_f[part[0]] >= 0.5)
        columns = col_at[part[1]] + (col_f[part[1]] >= 0.5)
        return field[rows][:, columns]


def _axis(values: Real) -> tuple[Int, npt.NDArray[np.intp], Float]:
    """Lattice nodes around ``values``, index of each one's lower node, and how far it is to the next (0..1)."""
    t = values / SPACING
    base = np.floor(t)
    first = base.astype(np.int64)
    if int(first[-1]) - int(first[0]) <= 2 * len(first):
        nodes, at = np.arange(first[0], first[-1] + 2), first - first[0]
    else:
        nodes = np.unique(np.concatenate([first, first + 1]))
        at = np.searchsorted(nodes, first)
    return nodes, at.astype(np.intp), (t - base).astype(np.float32)


__all__ = ["DENSE", "DISTRICT", "FARM", "INDUSTRIAL", "PARK", "PLOTS", "RESIDENTIAL", "WILD", "Lattice", "WorldMap"]
