"""Class maps to polygons and back: GeoJSON export, import, and the pixel-centre rule."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_isdnet.classes import IGNORE_INDEX, ClassInfo, classes_from, index_of
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.disk import replacing
from napari_isdnet.io.geojson import Feature, Writer, read_geojson
from napari_isdnet.io.polygons import CORE, Joined, polygonise
from napari_isdnet.io.source import ImageSource
from napari_isdnet.progress import Clock, Progress
from napari_isdnet.window import Window

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from shapely.geometry.base import BaseGeometry

__all__ = ["Feature", "Joined", "export_polygons", "polygon_mask", "polygonise", "rasterise", "read_geojson"]


def export_polygons(
    source: ImageSource,
    path: str | os.PathLike[str],
    classes: Sequence[Any] | None = None,
    *,
    map_coordinates: bool | None = None,
    simplify: float = 0.0,
    roi: Window | None = None,
    pixels: tuple[float, float] = (1.0, 1.0),
    overwrite: bool = False,
    core: int = CORE,
) -> Generator[Progress, None, Path]:
    """Write the areas of a class map (class indices, 255 = nodata) as a GeoJSON FeatureCollection; returns the path.

    Coordinates are those of the source's reference system where it has one (or as ``map_coordinates`` says), so that a
    map lies under them; elsewhere pixel corners of the image, x = column and y = row (also for a ``roi``, and for a
    store of a region, which knows its origin), each multiplied by ``pixels`` (rows, columns): how many pixels of the
    image one of a resampled map is. Every feature has QuPath's ``classification`` (name, color) and a ``class_index``;
    :func:`polygonise` explains ``simplify``.
    """
    infos = classes_from(classes if classes is not None else getattr(source, "classes", ()) or ())
    placed = source.georeference if map_coordinates is not False else None
    reference = placed if placed is not None and (map_coordinates or placed.crs) else None
    if map_coordinates and reference is None:
        raise InputError(f"{source.name} has no position on the earth; leave map coordinates out to get pixels.")
    area = Window.whole(source.shape) if roi is None else roi
    row, column = getattr(source, "origin", (0, 0))
    path, clock = Path(path), Clock(area.area)
    with replacing(path, overwrite) as temporary, open(temporary, "w", encoding="utf-8") as file:
        writer = Writer(file, infos, reference)
        for joined in polygonise(source, roi=area, simplify=simplify, core=core):
            for index, polygon in zip(joined.classes, joined.polygons):
                if index >= len(infos):
                    raise InputError(
                        f"{source.name} holds the value {index};"
                        f" class indices 0 to {len(infos) - 1} and 255 are allowed."
                    )
                writer.add(index, _in_image(polygon, (column, row), pixels[::-1]), polygon)
            yield clock.step(joined.window.area, "polygons", joined.window)
        writer.close()
    return path


def _in_image(polygon: Any, origin: tuple[int, int], factor: tuple[float, float]) -> Any:
    import numpy as np
    import shapely

    if origin == (0, 0) and factor == (1.0, 1.0):
        return polygon
    return shapely.transform(polygon, lambda points: np.add(points, origin) * factor)


def rasterise(
    features: Iterable[Feature],
    window: Window,
    classes: Sequence[ClassInfo],
    *,
    scale: float = 1.0,
    unknown: str = "error",
) -> npt.NDArray[np.uint8]:
    """Class indices ``(height, width)`` of ``window``, 255 where no feature is; later features lie on top.

    A pixel belongs to a polygon that holds its centre. ``scale`` is how many level-0 pixels one pixel of ``window``
    measures (``2**level``). A feature's class is found by name (:func:`~napari_isdnet.classes.index_of`); a name
    that is not among ``classes`` raises :class:`InputError`, or is left out with ``unknown="ignore"``.
    """
    import numpy as np

    names = [c.name for c in classes]
    result = np.full(window.shape, IGNORE_INDEX, np.uint8)
    for feature in features:
        index = index_of(feature.name, names) if feature.name is not None else None
        if index is None:
            if unknown == "ignore":
                continue
            raise InputError(
                f"A polygon is of class {feature.name!r}; allowed are {', '.join(names)}:"
                " rename its classification or add the class."
            )
        inside, part = polygon_mask(feature.geometry, window, scale)
        result[part.relative_to(window).slices][inside] = index
    return result


def polygon_mask(geometry: BaseGeometry, window: Window, scale: float = 1.0) -> tuple[npt.NDArray[np.bool_], Window]:
    """Which pixel centres lie in a polygon (even-odd rule over all its rings), and the part of ``window`` it covers.

    A centre exactly on an edge belongs to the polygon right of or below that edge, so that polygons which share an
    edge share no pixel and leave none out.
    """
    import numpy as np
    import shapely

    x0, y0, x1, y1 = (v / scale for v in geometry.bounds)
    part = Window.from_bounds(
        int(np.floor(y0)), int(np.floor(x0)), int(np.ceil(y1)), int(np.ceil(x1))
    ).intersect(window)  # fmt: skip
    if part.empty:
        return np.zeros((0, 0), bool), Window(window.row, window.column, 0, 0)
    rings = shapely.get_rings(shapely.get_parts(geometry))
    points, ring = shapely.get_coordinates(rings, return_index=True)
    # Rows of pixel centres are whole numbers now; an edge crosses those in [low, high).
    points = points / scale - 0.5 - (part.column, part.row)
    same = ring[1:] == ring[:-1]
    start, end = points[:-1][same], points[1:][same]
    flat = np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1])
    first = np.clip(np.ceil(flat[0]), 0, part.height).astype(np.int64)
    count = np.clip(np.ceil(flat[1]), 0, part.height).astype(np.int64) - first
    edge = np.repeat(np.arange(len(count)), count)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    slope = (end[edge, 0] - start[edge, 0]) / (end[edge, 1] - start[edge, 1])
    crossing = start[edge, 0] + (row - start[edge, 1]) * slope
    column = np.clip(np.ceil(crossing), 0, part.width).astype(np.int64)
    # Every crossing turns 'inside' over for all pixels right of it.
    turns = np.bincount(row * (part.width + 1) + column, minlength=part.height * (part.width + 1))
    parity = np.cumsum(turns.reshape(part.height, part.width + 1), axis=1)[:, :-1] & 1
    return parity.astype(bool), part
