"""Outlines in the procedural world: where a house, a street, a crown begins, as signed distances in metres.

Both the picture and the truth are made from these arrays, so they cannot disagree. Negative is inside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_isdnet.io.world_map import DENSE, FARM, INDUSTRIAL, PARK, PLOTS, RESIDENTIAL, WILD, Lattice
from napari_isdnet.io.world_noise import Float, Real, UInt, fade, hash_grid, mix, noise, scramble, unit

Bool = npt.NDArray[np.bool_]
Part = tuple[slice, slice]

HIGHWAY_HALF = 11.0
SHADOW_ROW, SHADOW_COLUMN = np.float32(-0.62), np.float32(-0.78)
FAR = np.float32(99)
CROWN_CELLS = (6.7, 4.3)


@dataclass(frozen=True)
class Houses:
    """Lots at the pixels: outline and shadow of the house, position in it, and two hashes that are its own."""

    outline: Float
    shadow: Float
    street: Float
    along: Float
    across: Float
    facing: Float
    key: UInt
    roof: UInt


@dataclass(frozen=True)
class Crowns:
    """One layer of tree crowns: outline, height of the dome 0..1 toward the light, tone 0..1, shadow."""

    outline: Float
    light: Float
    tone: Float
    shadow: Float


class Layers:
    """All outlines at the pixels of ``part`` of a read; ``pixel`` is the pixel size (m) that textures are faded to."""

    def __init__(self, lattice: Lattice, part: Part, rows: Real, columns: Real, pixel: float, seed: int) -> None:
        self.rows, self.columns, self.pixel, self.seed = rows[part[0]], columns[part[1]], pixel, seed
        self.lattice, self.part = lattice, part
        self.water, self.lake = lattice.linear("water", part), lattice.linear("lake", part)
        self.moist, self.tint = lattice.linear("moist", part), lattice.linear("tint", part)
        self.highway_side = lattice.linear("highway", part)
        self.highway = np.abs(self.highway_side)
        self.border = np.maximum(lattice.linear("border", part), 2 - self.lake)
        self.index = lattice.nearest("district", part)
        first = self.index[0, 0]
        self.single = first if bool((self.index == first).all()) else None
        self.kind = self.column("kind")
        self.present = set(np.flatnonzero(np.bincount(self.kind.ravel())).tolist())
        self.middle = self.noise(60, "middle")
        self.fine = self.noise(14, "fine")
        self.blocks()

    def noise(self, wavelength: float, name: str) -> Float:
        """Texture noise, -1..1, the same at every level (outlines depend on it)."""
        return noise(self.rows, self.columns, wavelength, mix(self.seed, *name.encode()), smooth=False)

    def texture(self, wavelength: float, name: str) -> Float | None:
        """Texture noise for colours, faded where the pixels are too coarse for it; None when nothing is left."""
        left = fade(wavelength, self.pixel)
        return None if left == 0 else self.noise(wavelength, name) * np.float32(left)

    def any(self, *kinds: int) -> bool:
        """True where a district of one of ``kinds`` is in this part."""
        return any(k in self.present for k in kinds)

    def column(self, name: str) -> npt.NDArray[Any]:
        """Attribute ``name`` of the district of each pixel."""
        values = getattr(self.lattice.districts, name)
        if self.single is not None:  # most parts lie in one district: no gather
            return np.broadcast_to(values[self.single], self.index.shape)
        return values[self.index]

    def blocks(self) -> None:
        """Street axes: position in the block, block hash and distance to the middle of the next street."""
        cos, sin = self.column("cos"), self.column("sin")
        x = self.lattice.linear("warped_column", self.part) - self.column("column")
        y = self.lattice.linear("warped_row", self.part) - self.column("row")
        self.cos, self.sin = cos, sin
        u, v = cos * x + sin * y, cos * y - sin * x
        self.block_u, self.block_v = self.column("block_u"), self.column("block_v")
        across_u, across_v = np.floor(u / self.block_u), np.floor(v / self.block_v)
        self.u, self.v = u - across_u * self.block_u, v - across_v * self.block_v
        key = self.column("key") ^ (across_u.astype(np.int32).view(np.uint32) * np.uint32(0x9E3779B1))
        key ^= across_v.astype(np.int32).view(np.uint32) * np.uint32(0x85EBCA77)
        self.block_key = scramble(key)
        near_u, near_v = np.minimum(self.u, self.block_u - self.u), np.minimum(self.v, self.block_v - self.v)
        self.to_street = np.minimum(near_u, near_v)

    def houses(self) -> Houses | None:
        """Streets and houses; None where no district here is built up."""
        if not self.any(RESIDENTIAL, DENSE, INDUSTRIAL, PLOTS):
            return None
        half, lot = self.column("street"), self.column("lot")
        open_street = np.maximum(self.to_street - half, 5 - self.water)
        built = self.column("built")
        street = np.where(built > 0, open_street, FAR)
        inner = np.maximum(self.block_u - 2 * half, 1)
        width = inner / np.maximum(np.floor(inner / lot), 1)
        t = (self.u - half) / width
        number = np.floor(t)
        back = self.v > self.block_v * np.float32(0.5)
        a = (t - number - np.float32(0.5)) * width
        b = np.where(back, self.block_v - self.v, self.v)
        key = self.block_key ^ ((number.astype(np.int32) * 2 + back).view(np.uint32) * np.uint32(0xC2B2AE3D))
        key = scramble(key)
        roof = scramble(key ^ np.uint32(0x27D4EB2F))
        low, deep = self.column("side_low"), self.column("depth_low")
        half_a = (low + (self.column("side_high") - low) * unit(key, 1)) * width
        half_b = deep + (self.column("depth_high") - deep) * unit(key, 2)
        a = a - (unit(key, 3) - np.float32(0.5)) * (width * np.float32(0.94) - 2 * half_a)
        b = b - (half + np.float32(4) + half_b)
        # The lot's middle as seen from the pixel, in warped axes: a house is drawn whole or, near a border road, not.
        flip = np.where(back, np.float32(-1), np.float32(1))
        down, right = -(self.sin * a + self.cos * (b * flip)), -(self.cos * a - self.sin * (b * flip))
        reach = np.maximum(half_a, half_b)
        room = self.border + self.slope("toward", down, right) - reach
        beside = np.abs(self.highway_side + self.slope("highway", down, right)) - reach
        there = (unit(roof, 1) < built) & (room > 2.5) & (beside > HIGHWAY_HALF + 8) & (self.water > 13)
        shape = _footprint(a, b, half_a, half_b, roof)
        long = self.column("height") * (np.float32(0.6) + np.float32(0.5) * unit(roof, 2))
        su = self.cos * SHADOW_COLUMN + self.sin * SHADOW_ROW
        sv = (self.cos * SHADOW_ROW - self.sin * SHADOW_COLUMN) * flip
        shadow: Float | np.float32 = FAR
        if self.pixel < 5:
            shadow = np.minimum(
                _footprint(a - su * long, b - sv * long, half_a, half_b, roof),
                _footprint(a - su * long * np.float32(0.5), b - sv * long * np.float32(0.5), half_a, half_b, roof),
            )
        facing = np.where(half_a > half_b, -np.sign(b) * sv, -np.sign(a) * su)
        return Houses(
            np.where(there, shape, FAR),
            np.where(there, shadow, FAR),
            street,
            a,
            b,
            facing.astype(np.float32),
            key,
            roof,
        )

    def slope(self, name: str, down: Float, right: Float) -> Float:
        """What a distance of the map changes by over ``down`` and ``right`` metres."""
        row, column = self.lattice.nearest(f"{name}_row", self.part), self.lattice.nearest(f"{name}_column", self.part)
        return row * down + column * right

    def green(self, houses: Houses | None) -> tuple[Bool, Float]:
        """Ground that is vegetation, and how many of the places for trees there are taken (0..1)."""
        wild = self.moist * np.float32(1.1) + self.middle * np.float32(0.42) + self.fine * np.float32(0.22)
        green = wild > 0.22
        density = np.where(wild > 0.5, np.float32(0.97), np.where(green, np.float32(0.2), np.float32(0.025)))
        if self.any(FARM):
            crop, farm = unit(self.block_key, 1), self.kind == FARM
            hedge = (self.to_street < 2 + self.fine) & (self.moist > -0.1)
            green = np.where(farm, (crop < 0.42) | ((crop > 0.62) & (crop < 0.82)) | hedge, green)
            density = np.where(farm, np.where(hedge, np.float32(0.9), np.float32(0.002)), density)
        if self.any(PARK):
            park = self.kind == PARK
            green = np.where(park, np.abs(self.middle + self.fine * np.float32(0.2)) > 0.09, green)
            density = np.where(park, np.where(self.middle > 0.25, np.float32(0.8), np.float32(0.12)), density)
        if houses is not None:
            lawn = unit(houses.key, 0) < np.clip(np.float32(0.3) + self.moist, 0.12, 0.85)
            home, work = self.kind == RESIDENTIAL, (self.kind == DENSE) | (self.kind == INDUSTRIAL)
            lawn &= houses.street > 1.6
            lawn &= home | (work & (unit(houses.roof, 3) < 0.2))
            green = np.where(houses.street < FAR, lawn, green)
            trees = np.where(home, np.where(lawn, np.float32(0.42), np.float32(0.16)), np.float32(0.06))
            density = np.where(houses.street < FAR, trees, density)
        verge = (self.highway < HIGHWAY_HALF + 12) | ((self.border < 3.5) & (self.kind != WILD) & (self.kind != FARM))
        green = np.where(verge, (self.moist > 0) & (self.fine > -0.5), green)
        density = np.where(verge, np.float32(0.14), density)
        beach = self.water < 5 + 4 * self.middle
        return green & ~beach, np.where(beach, np.float32(0.01), density)

    def crowns(self, density: Float) -> list[Crowns]:
        """Two layers of crowns, one disc in each square of a grid."""
        return [self._crowns(cell, mix(self.seed, k, 0x7EE), density) for k, cell in enumerate(CROWN_CELLS)]

    def _crowns(self, cell: float, key: int, density: Float) -> Crowns:
        i, row_at = np.unique(np.floor(self.rows / cell), return_inverse=True)
        # Every row of squares is shifted by its own amount, else a forest looks like an orchard. What differs along a
        # row of squares only is worked out once per row of squares, then spread to its rows of pixels.
        shift = unit(hash_grid(key ^ 0x51F7, i, np.zeros(1))).astype(np.float64)[:, None]
        across = self.columns / cell + shift
        j = np.floor(across)
        draw = hash_grid(key, i[:, None], j)
        jitter = scramble(draw ^ np.uint32(0x1F123BB5))
        radius = np.float32(cell) * (np.float32(0.2) + np.float32(0.24) * unit(draw, 1))
        spare = np.float32(cell) - 2 * radius
        right = ((across - j) * cell).astype(np.float32) - (radius + spare * unit(jitter, 2))
        middle = radius + spare * unit(jitter, 1)
        down = (self.rows - i[row_at] * cell).astype(np.float32)[:, None] - middle[row_at]
        right, size = right[row_at], radius[row_at]
        there = unit(draw, 0)[row_at] < density
        outline = np.where(there, np.sqrt(down * down + right * right) - size, FAR)
        light = -(down * SHADOW_ROW + right * SHADOW_COLUMN) / size
        down -= SHADOW_ROW * size
        right -= SHADOW_COLUMN * size
        shadow = np.where(there, np.sqrt(down * down + right * right) - size * np.float32(0.9), FAR)
        return Crowns(outline, light, unit(jitter, 3)[row_at], shadow)


def _footprint(a: Float, b: Float, half_a: Float, half_b: Float, key: UInt) -> Float:
    """A rectangle, and for every other house a wing that makes it an L."""
    wide, deep = np.abs(a) - half_a, np.abs(b) - half_b
    full = np.maximum(wide, deep)
    side = np.where((key & np.uint32(8)) > 0, np.float32(0.5), np.float32(-0.5))
    narrow = np.maximum(np.abs(a - side * half_a) - half_a * np.float32(0.5), deep)
    low = np.maximum(wide, np.abs(b + half_b * np.float32(0.4)) - half_b * np.float32(0.6))
    return np.where((key & np.uint32(16)) > 0, full, np.minimum(narrow, low))
