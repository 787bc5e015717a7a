"""Areas that one click finds: the superpixel, or the predicted region, under the pointer; as strokes at level 0.

Only a window around the click is read, at the level that is displayed, so the work does not depend on the image's
size. Coordinates are (row, column) at level 0 with pixel centres on whole numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_isdnet.annotation.strokes import Polygon, Region, Stroke
from napari_isdnet.classes import IGNORE_INDEX
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.intensity import IntensityPolicy
from napari_isdnet.io.sampling import level_for
from napari_isdnet.io.source import ImageSource
from napari_isdnet.widgets._places import in_units
from napari_isdnet.window import Window

METHODS = ("slic", "felzenszwalb")
REACH = 1024
"""Side of the window in which a predicted region is followed, in displayed pixels."""
_LARGEST_MASK = 1 << 22

Mask = npt.NDArray[np.bool_]
Point = tuple[float, float]


def window_around(point: Point, shape: tuple[int, int], full: tuple[int, int], side: int) -> tuple[Window, Point]:
    """A window of ``side`` pixels around a level-0 point on a level of ``shape``, and the pixel hit inside it."""
    at = _pixel(point, shape, full)
    if at is None:
        raise InputError("The click is outside the image; click inside it.")
    window = Window(at[0] - side // 2, at[1] - side // 2, side, side).clipped(shape)
    return window, (at[0] - window.row, at[1] - window.column)


def _pixel(point: Point, shape: tuple[int, int], full: tuple[int, int]) -> tuple[int, int] | None:
    """The pixel of a level of ``shape`` under a level-0 point; None outside."""
    row, column = (math.floor((p + 0.5) * n / f) for p, n, f in zip(point, shape, full, strict=True))
    return (row, column) if 0 <= row < shape[0] and 0 <= column < shape[1] else None


@dataclass(frozen=True)
class Placing:
    """Where a label map lies: its pixel ``p`` is ``matrix @ p + offset`` on the annotated image (row, column)."""

    matrix: tuple[tuple[float, float], tuple[float, float]] = ((1.0, 0.0), (0.0, 1.0))
    offset: Point = (0.0, 0.0)

    @classmethod
    def between(cls, labels: Any, image: Any) -> Placing:
        """As two layers of napari lie, with whatever places them: origin, scale, rotation."""
        start, down, across = (
            np.asarray(image.world_to_data(in_units(labels, p, image.units)), float)[-2:]
            for p in ((0, 0), (1, 0), (0, 1))
        )
        # Without the noise of going to the world and back: a pixel that lies on a pixel is to stay one.
        columns = np.round(np.stack([down - start, across - start], axis=1), 9)
        (a, b), (c, d) = columns.tolist()
        row, column = np.round(start, 6).tolist()
        return cls(((a, b), (c, d)), (row, column))

    def back(self, point: Point) -> Point:
        """A point of the image on the label map."""
        moved = np.subtract(point, self.offset)
        row, column = np.linalg.solve(np.array(self.matrix), moved).tolist()
        return row, column

    @property
    def scale(self) -> float:
        """Pixels of the image per pixel of the label map."""
        return math.sqrt(abs(float(np.linalg.det(np.array(self.matrix)))))

    @property
    def shift(self) -> tuple[int, int] | None:
        """The offset in whole pixels where that is all; None where pixels do not lie on pixels."""
        whole = self.matrix == ((1.0, 0.0), (0.0, 1.0)) and all(float(v).is_integer() for v in self.offset)
        return (int(self.offset[0]), int(self.offset[1])) if whole else None

    def polygon(self, stroke: Polygon) -> Polygon:
        """A polygon of the label map on the image."""
        matrix = np.array(self.matrix).T
        return Polygon([(np.asarray(ring) @ matrix + self.offset).tolist() for ring in stroke.rings])


def superpixel(
    source: ImageSource,
    point: Point,
    size: float,
    zoom_out: float,
    method: str = "slic",
    policy: IntensityPolicy | None = None,
) -> Stroke:
    """The superpixel of about ``size`` displayed pixels a side under ``point``.

    ``zoom_out`` is the number of level-0 pixels per displayed pixel. ``method``: ``slic`` (compact) or
    ``felzenszwalb`` (follows edges). Achanta et al., TPAMI 2012; Felzenszwalb and Huttenlocher, IJCV 2004.
    ``policy`` says how the image's samples become colours, which takes a sample of the whole image to find out
    (default: its own). Raises :class:`InputError` for a point outside the image, or where it has no data.
    """
    from skimage.segmentation import felzenszwalb, slic

    if method not in METHODS:
        raise InputError(f"Superpixels are made by slic or felzenszwalb, got '{method}'.")
    level = level_for(source.levels, zoom_out)
    factor = max(source.shape) / max(source.levels[level])
    side = int(np.clip(size * max(zoom_out, 1.0 / 16) / factor, 8, 128))
    window, hit = window_around(point, source.levels[level], source.shape, 6 * side)
    pixels, valid = _colors(source.read(window, level), policy or IntensityPolicy.from_source(source))
    if valid is not None and not valid[hit]:
        raise InputError("The image has no data here; click where it shows something.")
    if method == "slic":
        area = window.area if valid is None else int(np.count_nonzero(valid))
        count = max(1, round(area / side**2))
        options: dict[str, Any] = {"compactness": 20.0, "sigma": 1.0, "start_label": 1, "channel_axis": -1}
        segments = slic(pixels, n_segments=count, mask=valid, **options)
    else:
        segments = felzenszwalb(pixels, scale=side * 3.0, sigma=0.8, min_size=max(4, side**2 // 4), channel_axis=-1)
    found: Mask = segments == segments[hit]
    found = found if valid is None else found & valid
    return stroke_of(_component(found, hit), window, source.levels[level], source.shape)


def _colors(raw: npt.NDArray[Any], policy: IntensityPolicy) -> tuple[npt.NDArray[np.float32], Mask | None]:
    """RGB on 0..1 over the range that the valid pixels have, and which are valid (None: all).

    Pixels without data count for nothing: beside -9999, the range of what is seen would be one shade of grey.
    """
    rgb, valid = policy.apply(raw)
    seen = rgb if valid is None else rgb[valid]
    if not seen.size:
        return rgb, valid
    low, high = float(seen.min()), float(seen.max())
    rgb = (rgb - low) / max(high - low, 1e-6)
    if valid is not None:
        rgb[~valid] = rgb[valid].mean(axis=0)  # smoothing carries it into the pixels beside
    return rgb, valid


def _component(mask: Mask, hit: Point) -> Mask:
    from scipy.ndimage import label

    labels, _ = label(mask)
    found: Mask = labels == labels[hit]
    return found


def predicted_region(
    levels: Sequence[Any], point: Point, zoom_out: float, placing: Placing | None = None
) -> tuple[int, Stroke]:
    """Value and area of the connected region under ``point`` in a label pyramid (arrays, finest first).

    ``point`` and the area are on the annotated image, ``placing`` says where the pyramid lies on it. The region is
    followed at most ``REACH`` / 2 displayed pixels far. Raises :class:`InputError` where nothing is predicted.
    """
    placing = placing or Placing()
    shapes = [(int(level.shape[-2]), int(level.shape[-1])) for level in levels]
    level = level_for(shapes, zoom_out / placing.scale)
    point = placing.back(point)
    if _pixel(point, shapes[level], shapes[0]) is None:
        raise InputError("The prediction does not reach this place; click inside it, or segment this place first.")
    window, hit = window_around(point, shapes[level], shapes[0], REACH)
    values = np.asarray(levels[level][window.slices])
    value = int(values[hit])
    if value == IGNORE_INDEX:
        raise InputError("Nothing is predicted here (yet); wait for the segmentation, or click elsewhere.")
    mask = _component(values == value, hit)
    return value, _on_image(mask, window, shapes[level], shapes[0], placing)


def _on_image(mask: Mask, window: Window, shape: tuple[int, int], full: tuple[int, int], placing: Placing) -> Stroke:
    """A mask on a level of a label map as a stroke on the annotated image."""
    shift = placing.shift
    if shift is None:
        scale = (full[0] / shape[0], full[1] / shape[1])
        return placing.polygon(_rectangles(*_trimmed(mask, window), scale))
    stroke = stroke_of(mask, window, shape, full, "prediction")
    if isinstance(stroke, Polygon):
        return stroke if shift == (0, 0) else placing.polygon(stroke)
    assert isinstance(stroke, Region)
    inside = stroke.window.clipped(full)  # a pixel of a coarse level may reach over the edge of the prediction
    kept = stroke.mask[inside.relative_to(stroke.window).slices]
    return Region(inside.shifted(*shift), kept, stroke.origin)


def _trimmed(mask: Mask, window: Window) -> tuple[Mask, Window]:
    """The part of a mask that holds anything, and its place."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    inner = Window.from_bounds(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)
    return mask[inner.slices], inner.shifted(window.row, window.column)


def stroke_of(
    mask: Mask, window: Window, shape: tuple[int, int], full: tuple[int, int], origin: str = "superpixel"
) -> Stroke:
    """A mask on a level of ``shape`` as a stroke at level 0: its pixels, or outlines of its runs where it is large."""
    mask, place = _trimmed(mask, window)
    factor = _whole_factor(shape, full)
    if factor is None or place.area * factor**2 > _LARGEST_MASK:
        return _rectangles(mask, place, (full[0] / shape[0], full[1] / shape[1]))
    large = np.repeat(np.repeat(mask, factor, axis=0), factor, axis=1)
    return Region(place.multiplied(factor), large, origin)


def _whole_factor(shape: tuple[int, int], full: tuple[int, int]) -> int | None:
    """The power of two by which a level of ``shape`` was made from ``full``; None for any other factor.

    Sides are rounded when they are halved (odd sides; 4.0002 in slide files), which is less than one pixel of the level
    over the whole image. A factor such as 3 or 1.5, taken for a power of two, would be off by more with every pixel.
    """
    factor: int = 2 ** round(math.log2(max(f / n for f, n in zip(full, shape, strict=True))))
    exact = all(abs(n * factor - f) < factor for f, n in zip(full, shape, strict=True))
    return factor if exact else None


def _rectangles(mask: Mask, place: Window, scale: tuple[float, float]) -> Polygon:
    """Runs of a mask as disjoint rectangles of one polygon (even-odd): exact, and small whatever the scale."""
    edges = np.diff(np.pad(mask.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    rings = []
    for row in range(mask.shape[0]):
        starts, stops = np.flatnonzero(edges[row] == 1), np.flatnonzero(edges[row] == -1)
        top, bottom = ((place.row + row + k) * scale[0] - 0.5 for k in (0, 1))
        for start, stop in zip(starts, stops, strict=True):
            left, right = ((place.column + int(k)) * scale[1] - 0.5 for k in (start, stop))
            rings.append(((top, left), (top, right), (bottom, right), (bottom, left)))
    return Polygon(rings)
