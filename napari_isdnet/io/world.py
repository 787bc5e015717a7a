"""A procedural aerial world: a picture of any size with class-exact truth, made as it is read.

Nothing is stored: a pixel is a function of its position and the seed, with the same bits in every window, thread and
process. It serves as a sample, as a supplement to training data and as the subject of every test of something large.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_isdnet.exceptions import InputError
from napari_isdnet.io.base import SourceBase, SourceInfo
from napari_isdnet.io.source import PixelSize
from napari_isdnet.io.world_layers import Layers
from napari_isdnet.io.world_map import SPACING, Lattice, WorldMap
from napari_isdnet.io.world_noise import Real
from napari_isdnet.io.world_paint import Painter, classify
from napari_isdnet.landcover import LANDCOVER_CLASSES
from napari_isdnet.window import Grid, Window, pyramid_shapes

MAX_SIDE = 100_000
WORLD_VERSION = 1
"""Raised whenever the same seed gives other pixels, so that a ledger does not take one world for another."""
_BLOCK = 1024
_SPARSE_BLOCK = 256
_PART = (128, 256)


class _View(SourceBase):
    """What picture and truth share: levels, and working through a window in parts that fit a processor's cache."""

    kind = ""

    def __init__(self, world: WorldMap, shape: tuple[int, int], seed: int, pixel_size: float, channels: int) -> None:
        super().__init__(
            SourceInfo(
                name=f"world-{shape[0]}x{shape[1]}-seed{seed}" + (f"-{self.kind}" if channels == 1 else ""),
                levels=tuple(pyramid_shapes(shape)),
                channels=channels,
                dtype=np.dtype(np.uint8),
                format="procedural world",
                pixel_size=PixelSize(pixel_size, pixel_size, "m"),
            )
        )
        self.seed, self.metres = seed, pixel_size
        self._world = world

    def identity(self) -> Mapping[str, Any]:
        """Everything that the pixels depend on."""
        return {
            "world": self.kind, "version": WORLD_VERSION, "seed": self.seed,
            "shape": list(self.shape), "pixel_size": self.metres,
        }  # fmt: skip

    def _positions(self, start: int, count: int, level: int, size: int) -> Real:
        """Where the samples lie that stand for the pixels ``start ..`` of ``level``, in metres."""
        raise NotImplementedError

    def _part(self, lattice: Lattice, part: tuple[slice, slice], rows: Real, columns: Real, level: int) -> Any:
        raise NotImplementedError

    def _direct(self, level: int) -> bool:  # noqa: ARG002
        return False

    def _read(self, window: Window, level: int) -> npt.NDArray[Any]:
        out = np.empty((*window.shape, self.channels), np.uint8)
        if window.empty:
            return out
        rows = self._positions(window.row, window.height, level, self.shape[0])
        columns = self._positions(window.column, window.width, level, self.shape[1])
        # A map node is a few hundred numbers' work: blocks bound how many there are at once, not the answer.
        side = _BLOCK if self.metres * 2**level < SPACING / 2 else _SPARSE_BLOCK
        for block in Grid(window.shape, (side, side)):
            inside = block.slices
            lattice = Lattice(self._world, rows[inside[0]], columns[inside[1]], self._direct(level))
            for part in Grid(block.shape, _PART):
                target = part.shifted(block.row, block.column).slices
                out[target] = self._part(lattice, part.slices, rows[inside[0]], columns[inside[1]], level)
        return out


class WorldTruth(_View):
    """Class indices of a world (see :data:`~napari_isdnet.landcover.LANDCOVER_CLASSES`), one channel.

    A pixel of level ``k`` holds exactly what level 0 holds at the middle of its square, row
    ``min(row * 2**k + 2**k // 2, rows - 1)`` and likewise for the column.
    """

    kind = "truth"
    classes = LANDCOVER_CLASSES

    def _positions(self, start: int, count: int, level: int, size: int) -> Real:
        index = np.arange(start, start + count, dtype=np.int64) * 2**level + 2**level // 2
        return (np.minimum(index, size - 1) + 0.5) * self.metres

    def _part(self, lattice: Lattice, part: tuple[slice, slice], rows: Real, columns: Real, level: int) -> Any:  # noqa: ARG002
        return classify(Layers(lattice, part, rows, columns, self.metres, self._world.seed))[..., None]


class ProceduralWorld(_View):
    """An aerial picture of towns, fields, forest, desert and water; uint8 RGB.

    Exact: level 0 pixels, and every level's pixels, depend on position, seed and pixel size alone, and the size of the
    world only cuts. Approximate: a pixel of level ``k`` is worked out at its own middle with outlines anti-aliased
    over, and textures faded to, its own size; it differs from the average of level 0 by a few grey values (the tests
    say how many), without reading level 0.

    :param size: rows and columns, 1 to 100,000 each.
    :param seed: any integer; another seed is another world.
    :param pixel_size: metres per pixel, 0.05 to 2.
    """

    kind = "picture"
    classes = LANDCOVER_CLASSES

    def __init__(self, size: tuple[int, int] = (4096, 4096), seed: int = 0, pixel_size: float = 0.3) -> None:
        rows, columns = (int(v) for v in size)
        if not (1 <= rows <= MAX_SIDE and 1 <= columns <= MAX_SIDE):
            raise InputError(f"A world is 1 to {MAX_SIDE} pixels a side, got {rows} x {columns}.")
        if not 0.05 <= pixel_size <= 2:
            raise InputError(f"The pixel size of a world is 0.05 to 2 metres, got {pixel_size}.")
        world = WorldMap(seed)
        super().__init__(world, (rows, columns), int(seed), float(pixel_size), 3)
        self.truth = WorldTruth(world, (rows, columns), int(seed), float(pixel_size), 1)

    def _positions(self, start: int, count: int, level: int, size: int) -> Real:  # noqa: ARG002
        return (np.arange(start, start + count) + 0.5) * (2**level * self.metres)

    def _direct(self, level: int) -> bool:
        return self.metres * 2**level >= SPACING

    def _part(self, lattice: Lattice, part: tuple[slice, slice], rows: Real, columns: Real, level: int) -> Any:
        return Painter(Layers(lattice, part, rows, columns, self.metres * 2**level, self._world.seed)).paint()
