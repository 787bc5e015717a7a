"""Coordinates of a file moved to the system of the image; without a system: degrees (RFC 7946) or pixels (QuPath)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_isdnet.exceptions import InputError
from napari_isdnet.io.source import GeoReference

LON_LAT = "EPSG:4326"
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


def move(items: Sequence[Any], system: str, reference: GeoReference, shape: tuple[int, int] | None, file: Path) -> bool:
    """Move coordinates in ``system`` to that of the image, in place; False where rasterio is missing or knows it not.

    Positions that are none are left to whoever reads the shapes. Raises :class:`InputError` for one that the system
    of the image cannot express.
    """
    positions = [p for item in items for p in _positions(item)]
    try:
        points = np.array([p[:2] for p in positions], np.float64).reshape(-1, 2)
    except OverflowError:
        raise InputError(f"{file.name} holds numbers that are no coordinates; save it again.") from None
    moved = _warped(points, reference, shape, system)
    if moved is not None:
        _put(positions, moved, file)
    return moved is not None


def same_system(one: str, other: str) -> bool:
    """True for two names (EPSG:32633, WKT) of one reference system, as far as can be told."""
    if one == other:
        return True
    try:
        from rasterio.crs import CRS
        from rasterio.errors import CRSError
    except ImportError:
        return False
    try:
        return bool(CRS.from_user_input(one) == CRS.from_user_input(other))
    except CRSError:
        return False


def _put(positions: Sequence[list[Any]], points: Points, file: Path) -> None:
    for position, (x, y) in zip(positions, points.tolist(), strict=True):
        if not (math.isfinite(x) and math.isfinite(y)):
            raise InputError(
                f"{file.name} holds the point {position[0]:.12g}, {position[1]:.12g}, which has no place in the"
                " reference system of the image; leave out shapes that are far from it."
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
    return crs.upper() in (LON_LAT, "OGC:CRS84")


def _warped(
    points: Points, reference: GeoReference, shape: tuple[int, int] | None, system: str = LON_LAT
) -> Points | None:
    """Coordinates of ``system`` in that of the image, NaN where it has no place for one.

    None where rasterio is missing or does not know one of them.
    """
    crs = reference.crs or ""
    moved: Points | None = points
    if len(points) and not (_is_degrees(crs) and _is_degrees(system)):
        moved = _by_rasterio(points, system, crs)
    if moved is None or shape is None or not _is_degrees(crs):
        return moved
    return _turned(moved, reference, shape)


def _by_rasterio(points: Points, system: str, crs: str) -> Points | None:
    try:
        from rasterio.crs import CRS
        from rasterio.errors import CRSError
    except ImportError:
        return None
    try:
        here, there = CRS.from_user_input(system), CRS.from_user_input(crs)
    except CRSError:
        return None
    moved = _transformed(points, here, there)
    if moved is None:  # one that is out of reach spoils all that are asked for with it
        nowhere = np.full((1, 2), np.nan)
        each = (_transformed(point[None], here, there) for point in points)
        moved = np.concatenate([nowhere if one is None else one for one in each])
    return moved


def _turned(points: Points, reference: GeoReference, shape: tuple[int, int]) -> Points:
    """Longitudes as an image counts them that lies across 180 degrees, where -179 may be 181."""
    a, b, c, *_ = reference.transform
    middle = c + (a * shape[1] + b * shape[0]) / 2
    return points + np.outer(np.round((middle - points[:, 0]) / 360), (360.0, 0.0))


def _transformed(points: Points, here: Any, there: Any) -> Points | None:
    from rasterio.warp import transform

    try:
        return np.stack([np.array(v) for v in transform(here, there, *points.T.tolist())], axis=1)
    except Exception:  # GDAL's own errors, which rasterio lets through, have no class that is public
        return None


def _meets(points: Points, reference: GeoReference, shape: tuple[int, int]) -> bool:
    """True where the box around map coordinates meets the image."""
    known = points[np.isfinite(points).all(axis=1)]
    if not len(known):
        return False
    pixels = reference.pixels(known)
    return bool((pixels.max(axis=0) > 0).all() and (pixels.min(axis=0) < (shape[1], shape[0])).all())
