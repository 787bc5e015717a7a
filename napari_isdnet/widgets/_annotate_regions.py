"""Areas that one click finds: the superpixel, or the predicted region, under the pointer; as strokes at level 0.

Only a window around the click is read, at the level that is displayed, so the work does not depend on the image's
size. Coordinates are (row, column) at level 0 with pixel centres on whole numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_isdnet.annotation.strokes import Polygon, Region, Stroke
from napari_isdnet.classes import IGNORE_INDEX
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.source import ImageSource
from napari_isdnet.window import Window

METHODS = ("slic", "felzenszwalb")
REACH = 1024
"""Side of the window in which a predicted region is followed, in displayed pixels."""
_LARGEST_MASK = 1 << 22

Mask = npt.NDArray[np.bool_]
Point = tuple[float, float]


def window_around(point: Point, shape: tuple[int, int], full: tuple[int, int], side: int) -> tuple[Window, Point]:
    """A window of ``side`` pixels around a level-0 point on a level of ``shape``, and the pixel hit inside it."""
    at = [int((p + 0.5) * n / f) for p, n, f in zip(point, shape, full, strict=True)]
    if not all(0 <= a < n for a, n in zip(at, shape, strict=True)):
        raise InputError("The click is outside the image; click inside it.")
    window = Window(at[0] - side // 2, at[1] - side // 2, side, side).clipped(shape)
    return window, (at[0] - window.row, at[1] - window.column)


def level_for(shapes: Sequence[tuple[int, int]], zoom_out: float) -> int:
    """The coarsest level with at least one pixel per displayed pixel (``zoom_out`` level-0 pixels wide)."""
    fitting = [k for k, shape in enumerate(shapes) if max(shapes[0]) / max(shape) <= max(zoom_out, 1.0) * 1.01]
    return max(fitting, default=0)


def superpixel(source: ImageSource, point: Point, size: float, zoom_out: float, method: str = "slic") -> Stroke:
    """The superpixel of about ``size`` displayed pixels a side under ``point``.

    ``zoom_out`` is the number of level-0 pixels per displayed pixel. ``method``: ``slic`` (compact) or
    ``felzenszwalb`` (follows edges). Achanta et al., TPAMI 2012; Felzenszwalb and Huttenlocher, IJCV 2004.
    """
    from skimage.segmentation import felzenszwalb, slic

    if method not in METHODS:
        raise InputError(f"Superpixels are made by slic or felzenszwalb, got '{method}'.")
    level = level_for(source.levels, zoom_out)
    factor = max(source.shape) / max(source.levels[level])
    side = int(np.clip(size * max(zoom_out, 1.0 / 16) / factor, 8, 128))
    window, hit = window_around(point, source.levels[level], source.shape, 6 * side)
    pixels = _grey_or_rgb(source, source.read(window, level))
    if method == "slic":
        count = max(1, round(window.area / side**2))
        segments = slic(pixels, n_segments=count, compactness=20.0, sigma=1.0, start_label=1, channel_axis=-1)
    else:
        segments = felzenszwalb(pixels, scale=side * 3.0, sigma=0.8, min_size=max(4, side**2 // 4), channel_axis=-1)
    return stroke_of(_component(segments == segments[hit], hit), window, source.levels[level], source.shape)


def _grey_or_rgb(source: ImageSource, pixels: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    kept = [k for k in range(pixels.shape[2]) if k != source.alpha][:3]
    if len(kept) == 2:
        kept = kept[:1]
    values = np.nan_to_num(pixels[..., kept].astype(np.float32))
    low, high = float(values.min()), float(values.max())
    values = (values - low) / max(high - low, 1e-6)
    return np.repeat(values, 3, axis=2) if len(kept) == 1 else values


def _component(mask: Mask, hit: Point) -> Mask:
    from scipy.ndimage import label

    labels, _ = label(mask)
    found: Mask = labels == labels[hit]
    return found


def predicted_region(levels: Sequence[Any], point: Point, zoom_out: float) -> tuple[int, Stroke]:
    """Value and area of the connected region under ``point`` in a label pyramid (arrays, finest first).

    It is followed at most ``REACH`` / 2 displayed pixels far. Raises :class:`InputError` where nothing is predicted.
    """
    shapes = [(int(level.shape[-2]), int(level.shape[-1])) for level in levels]
    level = level_for(shapes, zoom_out)
    window, hit = window_around(point, shapes[level], shapes[0], REACH)
    values = np.asarray(levels[level][window.slices])
    value = int(values[hit])
    if value == IGNORE_INDEX:
        raise InputError("Nothing is predicted here (yet); wait for the segmentation, or click elsewhere.")
    mask = _component(values == value, hit)
    return value, stroke_of(mask, window, shapes[level], shapes[0], "prediction")


def stroke_of(
    mask: Mask, window: Window, shape: tuple[int, int], full: tuple[int, int], origin: str = "superpixel"
) -> Stroke:
    """A mask on a level of ``shape`` as a stroke at level 0: its pixels, or outlines of its runs where it is large."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    inner = Window.from_bounds(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)
    mask, place = mask[inner.slices], inner.shifted(window.row, window.column)
    factors = [2 ** round(np.log2(f / n)) for f, n in zip(full, shape, strict=True)]
    factor = max(factors)
    if max(full[0] / shape[0], full[1] / shape[1]) > factor * 1.1 or place.area * factor**2 > _LARGEST_MASK:
        return _rectangles(mask, place, (full[0] / shape[0], full[1] / shape[1]))
    large = np.repeat(np.repeat(mask, factor, axis=0), factor, axis=1)
    return Region(place.multiplied(factor), large, origin)


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
