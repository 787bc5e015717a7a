"""Class maps as polygons in a GeoJSON file or a GeoPackage."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from napari_isdnet.classes import ClassInfo, classes_from
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.disk import replacing
from napari_isdnet.io.geojson import Writer
from napari_isdnet.io.geopackage import GeoPackage
from napari_isdnet.io.polygons import CORE, check_polygons, polygonise
from napari_isdnet.io.sieve import Sieved, sieve
from napari_isdnet.io.source import GeoReference, ImageSource
from napari_isdnet.progress import Clock, Progress
from napari_isdnet.window import Grid, Window


def export_polygons(
    source: ImageSource,
    path: str | os.PathLike[str],
    classes: Sequence[Any] | None = None,
    *,
    map_coordinates: bool | None = None,
    simplify: float = 0.0,
    min_area: int = 1,
    roi: Window | None = None,
    pixels: tuple[float, float] = (1.0, 1.0),
    overwrite: bool = False,
    core: int = CORE,
) -> Generator[Progress, None, Path]:
    """Write the areas of a class map (class indices, 255 = nodata) to a GeoJSON file or ``*.gpkg``; returns the path.

    Coordinates are those of the source's reference system where it has one (or as ``map_coordinates`` says), so that a
    map lies under them; elsewhere pixel corners of the image, x = column and y = row (also for a ``roi``, and for a
    store of a region, which knows its origin), each multiplied by ``pixels`` (rows, columns): how many pixels of the
    image one of a resampled map is. Every feature has QuPath's ``classification`` (name, color) and a ``class_index``;
    :func:`polygonise` explains ``simplify``; an area of fewer than ``min_area`` pixels becomes a part of a neighbour
    (:func:`~napari_isdnet.io.sieve.sieve`), for which the map is read once more.
    """
    check_polygons(simplify, min_area)
    infos = classes_from(classes if classes is not None else getattr(source, "classes", ()) or ())
    placed = source.georeference if map_coordinates is not False else None
    reference = placed if placed is not None and (map_coordinates or placed.crs) else None
    if map_coordinates and reference is None:
        raise InputError(f"{source.name} has no position on the earth; leave map coordinates out to get pixels.")
    area = Window.whole(source.shape) if roi is None else roi
    row, column = getattr(source, "origin", None) or (0, 0)
    path, clock = Path(path), Clock(area.area * (1 if min_area == 1 else 2))
    with replacing(path, overwrite) as temporary, polygon_writer(temporary, infos, reference) as writer:
        labels: ImageSource | Sieved = source
        if min_area > 1:
            labels = yield from sieve(source, min_area, area, Grid(area.shape, (core, core)), clock)
        for joined in polygonise(labels, roi=area, simplify=simplify, core=core):
            for index, polygon in zip(joined.classes, joined.polygons):
                if index >= len(infos):
                    raise InputError(
                        f"{source.name} holds the value {index};"
                        f" class indices 0 to {len(infos) - 1} and 255 are allowed."
                    )
                writer.add(index, _in_image(polygon, (column, row), pixels[::-1]), polygon)
            yield clock.step(joined.window.area, "polygons", joined.window)
    return path


@contextmanager
def polygon_writer(
    path: Path, classes: Sequence[ClassInfo], reference: GeoReference | None
) -> Iterator[Writer | GeoPackage]:
    """What writes polygons to ``path``, by how its name ends: a GeoPackage (``.gpkg``), else GeoJSON."""
    if path.suffix.lower() == ".gpkg":
        writer = GeoPackage(path, classes, reference)
        yield writer
        writer.close()
        return
    with open(path, "w", encoding="utf-8") as file:
        plain = Writer(file, classes, reference)
        yield plain
        plain.close()


def _in_image(polygon: Any, origin: tuple[int, int], factor: tuple[float, float]) -> Any:
    import numpy as np
    import shapely

    if origin == (0, 0) and factor == (1.0, 1.0):
        return polygon
    return shapely.transform(polygon, lambda points: np.add(points, origin) * factor)
