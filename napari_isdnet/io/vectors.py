"""Outlines as geographic programs keep them (GeoPackage, Shapefile, KML, ...), by pyogrio (extra ``geo``)."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from napari_isdnet.exceptions import InputError, MissingExtra
from napari_isdnet.io.source import GeoReference

ENDINGS = (
    ".gpkg", ".shp", ".shz", ".fgb", ".kml", ".kmz", ".gml", ".gdb", ".sqlite", ".tab", ".mif", ".dxf", ".gpx",
    ".geojsonl", ".geojsons", ".topojson",
)  # fmt: skip
WRITTEN = ("geojson", "gpkg")
"""Formats that polygons are written in, called as their files end."""
MAX_BYTES = 2**32
"""Largest file of these that is read; of one with an index only what lies on the image comes into memory."""
_MARGIN = 0.01
"""By which share of its sides the box of an image is widened where it is moved to another system, whose lines bend."""


def is_vector(path: Path) -> bool:
    """True for a file that pyogrio reads, by its name; for a zip file by what is packed in it."""
    if path.suffix.lower() in ENDINGS:
        return True
    if path.suffix.lower() != ".zip" or not path.is_file():
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.lower().endswith((".shp", ".gpkg")) for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False  # whoever reads it says what is wrong


def layers_of(path: Path) -> dict[str, list[str]]:
    """The layers of a file that hold shapes, and the attributes of each.

    Raises :class:`InputError` for what cannot be read.
    """
    pyogrio, names = _pyogrio(path), _names(path)
    try:
        return {name: [str(f) for f in pyogrio.read_info(path, layer=name)["fields"]] for name in names}
    except Exception as error:
        raise _unreadable(path, error) from error


def read_features(
    path: Path, layer: str | None = None, image: GeoReference | None = None, shape: tuple[int, int] | None = None
) -> tuple[list[dict[str, Any]], str | None, int]:
    """Features of one layer as GeoJSON, the name or WKT of its reference system, and how many there are in all.

    Of a file in a known system those are read whose boxes meet the box of the ``image`` of ``shape`` (rows, columns).
    ``layer`` may be left out where there is one. Raises :class:`InputError` for a file that cannot be read and a layer
    that is not there.
    """
    pyogrio = _pyogrio(path)
    if path.is_file() and path.stat().st_size > MAX_BYTES:
        raise InputError(f"{path} is larger than {MAX_BYTES >> 30} GiB; save the part that lies on the image.")
    layer = _layer(path, layer, _names(path))
    try:
        about = pyogrio.read_info(path, layer=layer)
        box = None if image is None or shape is None else _box(image, shape, about["crs"])
        meta, _, shapes, columns = pyogrio.raw.read(path, layer=layer, force_2d=True, bbox=box)
    except Exception as error:
        raise _unreadable(path, error) from error
    whole = max(int(about["features"]), len(shapes))
    return _as_geojson(path, shapes, [str(f) for f in meta["fields"]], columns), meta["crs"], whole


def _pyogrio(path: Path) -> Any:
    if find_spec("pyogrio") is None:
        raise MissingExtra(f"Reading {path.name}", "pyogrio", "geo")
    import pyogrio

    if not path.exists():
        raise InputError(f"{path} does not exist; give a file of outlines.")
    return pyogrio


def _names(path: Path) -> list[str]:
    """The layers that hold shapes; a GeoPackage has tables beside them."""
    try:
        return [str(name) for name, kind in _pyogrio(path).list_layers(path) if kind is not None]
    except InputError:
        raise
    except Exception as error:  # GDAL's own, of many classes
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> InputError:
    why = str(error).split(";")[0].replace(f"'{path}' ", "").rstrip(". ") or type(error).__name__
    return InputError(f"{path} cannot be read ({why}); save it anew, or as GeoJSON.")


def _layer(path: Path, layer: str | None, names: Sequence[str]) -> str:
    if layer is not None and layer not in names:
        raise InputError(f"{path.name} has no layer '{layer}'; there are {listed(names)}.")
    if layer is None and len(names) != 1:
        raise InputError(
            f"{path.name} holds no layer with shapes; give one that does."
            if not names
            else f"{path.name} has {len(names)} layers; import one of {listed(names)} into the annotation"
            " (napari-isdnet annotation import --layer NAME)."
        )
    return names[0] if layer is None else layer


def listed(names: Sequence[str]) -> str:
    """Names of layers or attributes in a sentence."""
    return ", ".join(f"'{name}'" for name in names[:10]) + (" and others" if len(names) > 10 else "")


def _box(image: GeoReference, shape: tuple[int, int], crs: str | None) -> tuple[float, float, float, float] | None:
    """The box of an image in the system of a file (left, bottom, right, top); None where it is not known."""
    if not image.crs or not crs:
        return None
    a, b, c, d, e, f = image.transform
    corners = [(a * x + b * y + c, d * x + e * y + f) for y in (0, shape[0]) for x in (0, shape[1])]
    xs, ys = zip(*corners)
    box = min(xs), min(ys), max(xs), max(ys)
    try:
        from rasterio.crs import CRS
        from rasterio.warp import transform_bounds

        own, other = CRS.from_user_input(image.crs), CRS.from_user_input(crs)
        left, bottom, right, top = box if own == other else transform_bounds(own, other, *box)
    except Exception:  # a system that rasterio does not know, or an image beyond the reach of the file's system
        return None
    if not left < right or not bottom < top:  # across 180 degrees, where a box has two parts
        return None
    width, height = (right - left) * _MARGIN, (top - bottom) * _MARGIN
    return left - width, bottom - height, right + width, top + height


def _as_geojson(path: Path, shapes: Any, fields: Sequence[str], columns: Sequence[Any]) -> list[dict[str, Any]]:
    import shapely

    try:
        geometries = shapely.to_geojson(shapely.from_wkb(shapes))
    except (shapely.errors.ShapelyError, ValueError) as error:
        raise InputError(
            f"{path.name} holds shapes that are not read ({error}); turn curves and surfaces into polygons first."
        ) from None
    values = [column.tolist() for column in columns]
    return [
        {
            "type": "Feature",
            "geometry": None if geometry is None else json.loads(geometry),
            "properties": dict(zip(fields, row)),
        }
        for geometry, row in zip(geometries, zip(*values) if values else [()] * len(geometries))
    ]
