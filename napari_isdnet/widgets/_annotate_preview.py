"""What is being painted, on the screen at once: only the changed part of what a labels layer displays is sent.

The displayed pixels are painted first (a millisecond), the store follows on its own thread, and then the changed part
is read back from it. Where napari displays the layer in a way that needs all of it (contours, one label alone), the
layer is refreshed instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_isdnet.annotation.store import AnnotationStore
from napari_isdnet.annotation.strokes import Brush, Radius, radii_of
from napari_isdnet.window import Window

Point = tuple[float, float]


class Preview:
    """Paints into the displayed slice of a 2D labels layer over ``store``. Main thread only."""

    def __init__(self, layer: Any, store: AnnotationStore) -> None:
        self._layer, self._store = layer, store
        self._saved: tuple[Any, list[tuple[Window, npt.NDArray[np.uint8]]]] | None = None
        """What is displayed under a line, and of each piece of it, in their order, what it was painted over."""

    @property
    def _turned(self) -> bool:
        """True where rows run across the screen: napari displays, and slices, the axes in the order of its dims."""
        displayed = list(self._layer._slice.slice_input.displayed)
        return displayed != sorted(displayed)

    def _pixels(self, view: bool = False) -> Any:
        """What is displayed (``view``: as it is drawn) with rows first, to be painted in."""
        image = self._layer._slice.image
        pixels = image.view if view else image.raw
        return pixels.T if self._turned else pixels

    def view(self) -> tuple[int, Window]:
        """Displayed level, and the part of it that is displayed."""
        layer = self._layer
        raw = self._pixels()
        if not layer.multiscale:
            return 0, Window(0, 0, *raw.shape)
        level = int(layer.data_level)
        corner = layer.corner_pixels[0]
        return level, Window(int(corner[0]), int(corner[1]), *raw.shape)

    def scale(self, level: int) -> tuple[float, float]:
        """Level-0 pixels per pixel of ``level``, down and across."""
        full, coarse = self._store.levels[0], self._store.levels[level]
        return full[0] / coarse[0], full[1] / coarse[1]

    def brush(self, points: Sequence[Point], radius: Radius, value: int) -> None:
        """Paint a path (level-0 coordinates and radius)."""
        level, shown = self.view()
        rows, columns = self.scale(level)
        path = [((r + 0.5) / rows - 0.5, (c + 0.5) / columns - 0.5) for r, c in points]
        down, across = radii_of(radius)
        radii = max(down / rows, 0.5), max(across / columns, 0.5)
        cover = Brush(path, radii).cover(self._store.levels[level])
        part = cover.bounds.intersect(shown)
        mask = False if part.empty else cover.mask(part)
        if mask is not False:
            at = part.relative_to(shown)
            pixels = self._pixels()[at.slices]
            pixels[...] = np.where(mask, np.uint8(value), pixels)
            self._send(at)

    def line(self, points: Sequence[Point], width: float, value: int) -> None:
        """Show a path in place of the one shown before, ``width`` displayed pixels wide; nothing of it stays."""
        self.clear()
        if points:
            self._saved = self._layer._slice.image.raw, []
            self._add(points, width, value)

    def grow(self, points: Sequence[Point], width: float, value: int) -> None:
        """:meth:`line` of a path that is one shown so far and a point more; as quick however long it is."""
        if self._saved is None or self._saved[0] is not self._layer._slice.image.raw:  # the view has moved
            self.line(points, width, value)
        else:
            self._add(points[-2:], width, value)

    def _add(self, points: Sequence[Point], width: float, value: int) -> None:
        level, shown = self.view()
        rows, columns = self.scale(level)
        low, high = np.min(points, axis=0), np.max(points, axis=0)
        box = Window.from_bounds(
            int(low[0] / rows) - 4, int(low[1] / columns) - 4, int(high[0] / rows) + 5, int(high[1] / columns) + 5
        ).intersect(shown)
        if box.empty:
            return
        assert self._saved is not None
        at = box.relative_to(shown)
        self._saved[1].append((at, self._pixels()[at.slices].copy()))
        self.brush(points, (width / 2 * rows, width / 2 * columns), value)

    def clear(self) -> None:
        """Take the line away."""
        saved, self._saved = self._saved, None
        if saved is None or saved[0] is not self._layer._slice.image.raw or not saved[1]:
            return
        pieces = saved[1]
        for at, values in reversed(pieces):
            self._pixels()[at.slices] = values
        self._send(_around([at for at, _ in pieces]))

    def show(self, dirty: Sequence[Window]) -> None:
        """Read the changed windows (level 0) back from the store."""
        level, shown = self.view()
        factor = 2**level
        parts = [part for part in (w.divided(factor).intersect(shown) for w in dirty) if not part.empty]
        if not parts:
            return
        self.clear()
        box = _around(parts)
        at = box.relative_to(shown)
        self._pixels()[at.slices] = self._store.read_labels(box, level)
        self._send(at)

    def _send(self, at: Window) -> None:
        layer = self._layer
        if not layer.visible or at.empty:
            return
        if layer.contour > 0 or layer.show_selected_label:
            layer.refresh(extent=False, thumbnail=False, highlight=False)
            return
        values = self._pixels()[at.slices]
        self._pixels(view=True)[at.slices] = values  # uint8 is displayed as it is
        if self._turned:
            layer.events.labels_update(data=np.ascontiguousarray(values.T), offset=[at.column, at.row])
        else:
            layer.events.labels_update(data=np.ascontiguousarray(values), offset=[at.row, at.column])


def _around(parts: Sequence[Window]) -> Window:
    """The smallest window that holds all ``parts``."""
    return Window.from_bounds(
        min(p.row for p in parts), min(p.column for p in parts),
        max(p.bottom for p in parts), max(p.right for p in parts),
    )  # fmt: skip
