"""GeoJSON (RFC 7946) as QuPath, QGIS and this package read and write it."""

from __future__ import annotations

import gzip
import json
import math
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TextIO

from napari_isdnet.classes import ClassInfo, parse_color
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.lonlat import LON_LAT, from_degrees, move, same_system
from napari_isdnet.io.source import GeoReference, short_name
from napari_isdnet.io.vectors import is_vector, read_features

if TYPE_CHECKING:
    from shapely import Polygon

MAX_BYTES = 2**30
"""Largest GeoJSON file that is read: it is parsed as a whole."""
_EPSG = re.compile(
    # EPSG:n, urn:ogc:def:crs:EPSG::n (or a version of the register), http://www.opengis.net/def/crs/EPSG/0/n
    r"(?:urn:(?:x-)?ogc:def:crs:)?EPSG:(?:[\d.]*:)?(\d+)|https?://www\.opengis\.net/def/crs/EPSG/[\d.]+/(\d+)",
    re.IGNORECASE,
)


class Writer:
    """Writes a FeatureCollection feature by feature."""

    def __init__(self, file: TextIO, classes: Sequence[ClassInfo], reference: GeoReference | None) -> None:
        self._file = file
        self._classes = classes
        self._reference = reference
        self._first = True
        file.write('{"type": "FeatureCollection", ')
        if reference is not None and reference.crs:
            # Not in RFC 7946, but what GDAL and QGIS write and read for other systems than longitude / latitude.
            crs = {"type": "name", "properties": {"name": _crs_name(reference.crs)}}
            file.write(f'"crs": {json.dumps(crs)}, ')
        file.write('"features": [')

    def add(self, index: int, polygon: Polygon, local: Polygon) -> None:
        """Class ``index``; ``polygon`` in image pixels, ``local`` in the pixels that the georeference counts."""
        info = self._classes[index]
        shape = polygon if self._reference is None else to_map(local, self._reference)
        feature = {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": _coordinates(shape)},
            "properties": {
                "objectType": "annotation",
                "classification": {"name": info.name, "color": list(info.color)},
                "class_index": index,
                "area_pixels": _short(polygon.area),
            },
        }
        self._file.write("\n" if self._first else ",\n")
        self._file.write(json.dumps(feature, ensure_ascii=False, separators=(",", ":")))
        self._first = False

    def close(self) -> None:
        """End the collection (not the file)."""
        self._file.write("\n]}\n")


def _coordinates(polygon: Polygon) -> list[Any]:
    import numpy as np
    import shapely

    shape = shapely.orient_polygons(polygon)  # outer rings counter-clockwise, as RFC 7946 has it
    points, ring = shapely.get_coordinates(shapely.get_rings(shape), return_index=True)
    whole = points.astype(np.int64)
    exact = whole if (whole == points).all() else points
    return [part.tolist() for part in np.split(exact, np.flatnonzero(np.diff(ring)) + 1)]


def _short(value: float) -> float | int:
    return int(value) if float(value).is_integer() else value


def _crs_name(crs: str) -> str:
    authority, _, code = crs.partition(":")
    return f"urn:ogc:def:crs:{authority}::{code}" if authority.isalpha() and code.isdigit() else crs


def to_map(shape: Any, reference: GeoReference) -> Any:
    """Pixel corners to map coordinates, rounded to about 1/10,000 pixel."""
    import numpy as np
    import shapely

    a, b, c, d, e, f = reference.transform
    decimals = 4 - math.floor(math.log10(max(abs(v) for v in (a, b, d, e)) or 1.0))

    def move(points: Any) -> Any:
        x, y = points.T
        return np.round(np.stack([a * x + b * y + c, d * x + e * y + f], axis=1), decimals)

    return shapely.transform(shape, move)


def read_items(
    path: str | os.PathLike[str],
    georeference: GeoReference | None = None,
    shape: tuple[int, int] | None = None,
    note: Callable[[str], None] | None = None,
    layer: str | None = None,
) -> tuple[list[tuple[str, Any]], GeoReference | None]:
    """(where it stands, the JSON) of every feature of a FeatureCollection, a bare list, one feature or one geometry.

    Also of a ``layer`` of a GeoPackage, a Shapefile and the like (:mod:`napari_isdnet.io.vectors`), as GeoJSON.

    The second value is ``georeference``, that of the image, where the file is in map coordinates, which it says by
    naming their system (``crs``, as GDAL, QGIS and this package write it); None where it counts pixels. Coordinates in
    another system than the image's are moved to it by rasterio. With the ``shape`` of the image (rows, columns) a file
    without a system may be in longitude and latitude (:func:`~napari_isdnet.io.lonlat.from_degrees`), too. ``note`` is
    told where either was done. Raises :class:`InputError` for what cannot be read or moved.
    """
    file = Path(path)
    items, named = _read_vectors(file, layer, georeference, shape, note) if is_vector(file) else read_json(file)
    reference = None
    if named is not None:
        reference = _in_system(items, named, georeference, shape, file, note)
    elif georeference is not None and georeference.crs and shape and from_degrees(items, georeference, shape, file):
        reference = georeference
        if note is not None:
            note(f"{file.name} names no reference system (crs) and was taken as longitude and latitude.")
    return [(f"{file}, feature {number}", item) for number, item in enumerate(items)], reference


def _read_vectors(
    file: Path,
    layer: str | None,
    image: GeoReference | None,
    shape: tuple[int, int] | None,
    note: Callable[[str], None] | None,
) -> tuple[list[Any], str | None]:
    items, named, whole = read_features(file, layer, image, shape)
    if whole and not items:
        raise InputError(f"0 of {whole} shapes of {file.name} lie on the image; give those of this place on the earth.")
    if note is not None and len(items) < whole:
        note(f"{len(items)} of {whole} shapes of {file.name} lie near the image and were read.")
    return items, named


def read_json(file: Path) -> tuple[list[Any], str | None]:
    """Features of a GeoJSON file, also a packed one, and the reference system that it names."""
    try:
        content = json.loads(_bytes_of(file).decode("utf-8-sig"))
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{file} cannot be read ({why}); give a GeoJSON file.") from error
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file} is no JSON ({error}); give a GeoJSON file.") from None
    items = content.get("features", [content]) if isinstance(content, dict) else content
    if not isinstance(items, list):
        raise InputError(f"{file} is no GeoJSON: 'features' must be a list of features.")
    return items, _named_system(content)


def _bytes_of(file: Path) -> bytes:
    """What a file holds, or what is packed in it: QuPath's export offers gzip, and a zip of one GeoJSON file."""
    with file.open("rb") as raw:
        head = raw.read(4)
        raw.seek(0)
        if head[:2] == b"\x1f\x8b":
            with gzip.open(raw) as packed:
                return _limited(packed, file)
        if head != b"PK\3\4":
            return _limited(raw, file)
        with zipfile.ZipFile(raw) as archive:
            names = [n for n in archive.namelist() if n.lower().endswith((".geojson", ".json"))]
            names = [n for n in names if not n.startswith("__MACOSX/")]  # what macOS says of a file beside it
            if len(names) != 1:
                raise InputError(f"{file} holds {len(names)} GeoJSON files, one is allowed; unpack it and choose one.")
            with archive.open(names[0]) as packed:
                return _limited(packed, file)


def _limited(stream: IO[bytes] | gzip.GzipFile, file: Path) -> bytes:
    data = stream.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise InputError(f"{file} is larger than {MAX_BYTES >> 20} MiB; split it into several files.")
    return data


def _named_system(content: Any) -> str | None:
    found = content.get("crs") if isinstance(content, dict) else None
    properties = found.get("properties") if isinstance(found, dict) else None
    named = properties.get("name") if isinstance(properties, dict) else None
    return named if isinstance(named, str) else None


def _in_system(
    items: list[Any],
    named: str,
    georeference: GeoReference | None,
    shape: tuple[int, int] | None,
    file: Path,
    note: Callable[[str], None] | None,
) -> GeoReference:
    """That of the image, to which coordinates of another system are moved; :class:`InputError` where they cannot be."""
    own = "" if georeference is None else georeference.crs or ""
    if georeference is None or not own:
        raise InputError(
            f"{file} is in the reference system {short_name(named)}, and the image names none; give the image its"
            " position (a GeoTIFF, or a world file and a .prj beside it), or draw over its pixels."
        )
    system = _system(named)
    degrees, other = system == LON_LAT, not same_system(system, _system(own))
    # Degrees also where they are the image's: one that lies across 180 of them counts on.
    if (degrees or other) and not move(items, system, georeference, shape, file) and other:
        raise InputError(
            f"{file} is in the reference system {short_name(named)}, the image in {short_name(own)}; save it in that of"
            " the image first (in QGIS: Export > Save Features As), or install napari-isdnet[geo], which moves it."
        )
    if other and not degrees and note is not None:
        note(f"{file.name} was moved from {short_name(system)} to {short_name(own)}, the system of the image.")
    return georeference


def _system(name: str) -> str:
    """One spelling for one reference system; GDAL and QGIS write EPSG:4326, x before y, as CRS84."""
    if name.upper().endswith((":CRS84", "/CRS84")):
        return LON_LAT
    found = _EPSG.fullmatch(name.strip())
    return f"EPSG:{found[1] or found[2]}" if found else name


def name_in(classification: Mapping[str, Any]) -> str | None:
    """The name of QuPath's ``classification``, as QuPath shows it; None where it has none.

    A class that derives from another is called 'Tumor: Positive': since QuPath 0.4 a list of ``names``, before that a
    ``parentClass`` around it.
    """
    name, names = classification.get("name"), classification.get("names")
    if isinstance(names, list) and names and all(isinstance(text, str) and text.strip() for text in names):
        return ": ".join(names)
    if not isinstance(name, str) or not name.strip():
        return None
    parent = classification.get("parentClass")
    above = name_in(parent) if isinstance(parent, Mapping) else None
    return name if above is None else f"{above}: {name}"


def color_in(classification: Mapping[str, Any]) -> tuple[int, int, int] | None:
    """The colour of QuPath's ``classification``; one that is none is no reason to refuse the shape."""
    color = classification.get("color")
    try:
        signed = classification.get("colorRGB")  # QuPath up to 0.3: a signed 32-bit ARGB number
        if color is None and signed is not None:
            color = f"#{int(signed) & 0xFFFFFF:06x}"
        if isinstance(color, list) and len(color) == 4:  # QuPath writes how opaque it is behind blue
            color = color[:3]
        return None if color is None else ClassInfo("any", parse_color(color)).color
    except (InputError, TypeError, ValueError, OverflowError):
        return None


def number_name(value: Any) -> str | None:
    """The name of a class that a file gives as a number (``1`` and ``1.0`` are the same); None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return str(int(value)) if float(value).is_integer() else str(value)
