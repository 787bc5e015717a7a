"""GeoJSON that names no reference system: longitude and latitude (RFC 7946), or the pixels of the image (QuPath)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_isdnet.exceptions import InputError
from napari_isdnet.io.source import GeoReference

Points = npt.NDArray[np.float64]
_DEGREES = np.array([180.0, 90.0])


def from_degrees(items: Sequence[Any], reference: GeoReference, shape: tuple[int, int], file: Path) -> bool:
    """Move coordinates in degrees to the system of the image, in place; False for a file that counts pixels.

    ``items`` are the features of a ``file`` without a crs, ``reference`` and ``shape`` (rows, columns) those of the
    image. They are degrees where all of them may be and, so read, meet the image. QuPath and this package mark their
    features by an ``objectType``, and count pixels; so does a file of whole and half numbers only. Raises
    :class:`InputError` for other degrees: those of another place, or where rasterio is missing to tell.
    """
    positions = [] if any(_marked(item) for item in items) else [p for item in items for p in _positions(item)]
    try:
        points = np.array([p[:2] for p in positions], np.float64).reshape(-1, 2)
    except OverflowError:
        return False  # whole numbers beyond any: whoever paints them says so
    if not len(points):
        return False
    if not (np.abs(points) <= _DEGREES).all() or not _may_be_meant(reference, shape):
        return False
    moved = _warped(points, reference, shape)
    if moved is not None and _meets(moved, reference, shape):
        _put(positions, moved, file)
        return True
    if (points * 2 == np.round(points * 2)).all():
        return False
    said = f"{file.name} names no reference system (crs), and its coordinates look like longitude and latitude"
    if moved is None:
        raise InputError(f"{said}; install napari-isdnet[geo] to place them, or save it in the system of the image.")
    raise InputError(
        f"{said} of another place; give the file of this image, or, where they are pixels, give its features the"
        " property objectType, as QuPath does."
    )


def move_degrees(items: Sequence[Any], reference: GeoReference, shape: tuple[int, int] | None, file: Path) -> bool:
    """Move longitudes and latitudes of WGS 84 to the system of the image, in place; False where rasterio is missing.

    Positions that are none are left to whoever reads the shapes. Raises :class:`InputError` for one that the system
    cannot express.
    """
    positions = [p for item in items for p in _positions(item)]
    try:
        points = np.array([p[:2] for p in positions], np.float64).reshape(-1, 2)
    except OverflowError:
        raise InputError(f"{file.name} holds numbers that are no longitude and latitude; save it again.") from None
    moved = _warped(points, reference, shape)
    if moved is not None:
        _put(positions, moved, file)
    return moved is not None


def _put(positions: Sequence[list[Any]], points: Points, file: Path) -> None:
    for position, (x, y) in zip(positions, points.tolist(), strict=True):
        if not (math.isfinite(x) and math.isfinite(y)):
            raise InputError(
                f"{file.name} holds the point {position[0]:g}, {position[1]:g} (longitude, latitude), which has no"
                " place in the reference system of the image; leave out shapes that are far from it."
            )
        position[:2] = x, y


def _marked(item: Any) -> bool:
    properties = item.get("properties") if isinstance(item, dict) else None
    return isinstance(properties, dict) and "objectType" in properties


def _positions(value: Any) -> Iterator[list[Any]]:
    """The positions of a feature or geometry, as the lists that hold them."""
    if isinstance(value, dict):
        for member in ("geometry", "geometries", "coordinates"):
            yield from _positions(value.get(member))
    elif isinstance(value, list):
        if len(value) >= 2 and all(isinstance(v, int | float) for v in value[:2]):
            yield value
        else:
            for part in value:
                yield from _positions(part)


def _may_be_meant(reference: GeoReference, shape: tuple[int, int]) -> bool:
    """True unless the image's own map coordinates are as small as degrees, and yet none."""
    if _is_degrees(reference.crs or ""):
        return True
    a, b, c, d, e, f = reference.transform
    corners = np.array([(0, 0), (shape[1], 0), (0, shape[0]), (shape[1], shape[0])]) @ np.array([[a, d], [b, e]])
    return bool((np.abs(corners + np.array([c, f])) > _DEGREES).any())


def _is_degrees(crs: str) -> bool:
    return crs.upper() in ("EPSG:4326", "OGC:CRS84")


def _warped(points: Points, reference: GeoReference, shape: tuple[int, int] | None) -> Points | None:
    """Longitudes and latitudes in the system of the image, NaN where it has no place for one.

    None where rasterio is missing or does not know the system.
    """
    crs = reference.crs or ""
    if _is_degrees(crs) or not len(points):
        return points if shape is None else _turned(points, reference, shape)
    try:
        from rasterio.crs import CRS
        from rasterio.errors import CRSError
    except ImportError:
        return None
    try:
        system = CRS.from_user_input(crs)
    except CRSError:
        return None
    moved = _transformed(points, system)
    if moved is None:  # one that is out of reach spoils all that are asked for with it
        nowhere = np.full((1, 2), np.nan)
        each = (_transformed(point[None], system) for point in points)
        moved = np.concatenate([nowhere if one is None else one for one in each])
    return moved


def _turned(points: Points, reference: GeoReference, shape: tuple[int, int]) -> Points:
    """Longitudes as an image counts them that lies across 180 degrees, where -179 may be 181."""
    a, b, c, *_ = reference.transform
    middle = c + (a * shape[1] + b * shape[0]) / 2
    return points + np.outer(np.round((middle - points[:, 0]) / 360), (360.0, 0.0))


def _transformed(points: Points, crs: Any) -> Points | None:
    from rasterio.warp import transform

    try:
        return np.stack([np.array(v) for v in transform("EPSG:4326", crs, *points.T.tolist())], axis=1)
    except Exception:  # GDAL's own errors, which rasterio lets through, have no class that is public
        return None


def _meets(points: Points, reference: GeoReference, shape: tuple[int, int]) -> bool:
    """True where the box around map coordinates meets the image."""
    a, b, c, d, e, f = reference.transform
    known = points[np.isfinite(points).all(axis=1)]
    if not len(known):
        return False
    pixels = (known - np.array([c, f])) @ np.linalg.inv(np.array([[a, b], [d, e]])).T
    return bool((pixels.max(axis=0) > 0).all() and (pixels.min(axis=0) < (shape[1], shape[0])).all())
