"""The shapes of a file (GeoJSON of QuPath and QGIS, GeoPackage, Shapefile, ...) as strokes with the names of classes.

Files count pixel corners (x = column, y = row), strokes count pixel centres: half a pixel is the difference. Polygons
keep their holes; lines and points, which a class map cannot hold, become brush strokes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from napari_isdnet.annotation.strokes import Brush, Polygon, Stroke
from napari_isdnet.classes import ClassInfo
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.geojson import color_in, name_in, number_name, read_items
from napari_isdnet.io.source import GeoReference
from napari_isdnet.io.vectors import listed

_KINDS = (
    "Polygon", "LineString", "Point", "MultiPolygon", "MultiLineString", "MultiPoint", "GeometryCollection",
)  # fmt: skip
CLASS_KEYS = ("classification", "class", "class_name", "label", "name")
"""Attributes that are a shape's class, the first that is there, in any case of letters."""
_LINE_WIDTH = 3.0


@dataclass(frozen=True)
class Drawn:
    """A stroke of a file and its class name and colour, where it says so."""

    stroke: Stroke
    name: str | None
    color: tuple[int, int, int] | None
    placed: bool = False
    """True where the file names the system of its map coordinates; else they count pixels."""
    index: int | None = None
    """The number of the named class in the list of whoever wrote the file, as this package's own files say it."""
    attributes: tuple[str, ...] = ()
    """What a shape without a class has in its place."""


def read_drawn(
    path: str | os.PathLike[str],
    georeference: GeoReference | None = None,
    classes: Sequence[ClassInfo] = (),
    note: Callable[[str], None] | None = None,
    shape: tuple[int, int] | None = None,
    layer: str | None = None,
    attribute: str | None = None,
) -> Iterator[Drawn]:
    """The shapes of a FeatureCollection, a list of features (QuPath), one feature or one geometry, or of a ``layer``.

    A feature without a class but with a ``class_index`` gets the name of that one of ``classes``, else the number.
    Features without a geometry (null or empty, which GeoJSON allows) are left out, and ``note`` is told how many.
    With the ``shape`` of the image a file may be in longitude and latitude
    (:func:`~napari_isdnet.io.geojson.read_items`). Raises :class:`InputError` where no shape has the ``attribute``.
    """
    items, reference = read_items(path, georeference, shape, note, layer)
    if attribute is not None:
        _check_attribute(attribute, [item for _, item in items], Path(path).name)
    empty = 0
    for where, item in items:
        try:
            found = list(_feature(item, reference, classes, attribute))
        except InputError as error:
            raise InputError(f"{where} cannot be used: {error}") from None
        empty += not found
        yield from found
    if empty and note is not None:
        note(f"{empty} of {len(items)} features have no geometry and are left out.")


def _check_attribute(attribute: str, items: Sequence[Any], name: str) -> None:
    known: dict[str, None] = {}
    for item in items:
        properties = item.get("properties") if isinstance(item, dict) else None
        known.update(dict.fromkeys(properties if isinstance(properties, dict) else ()))
    if items and attribute not in known:
        there = f"there are {listed(tuple(known))}" if known else "they have none"
        raise InputError(f"No shape of {name} has the attribute '{attribute}'; {there}.")


def _feature(
    item: Any, reference: GeoReference | None, classes: Sequence[ClassInfo], attribute: str | None
) -> Iterator[Drawn]:
    if not isinstance(item, dict):
        raise InputError(f"it is no feature or geometry but {str(item)[:40]!r}; features are allowed.")
    properties, geometry = item.get("properties"), item
    if not isinstance(properties, dict | None):
        raise InputError(f"its properties are {str(properties)[:40]!r}; give an object of names and values.")
    properties = properties or {}
    if item.get("type") == "Feature":
        if "geometry" not in item:
            raise InputError("it has no member 'geometry'; give it one, which may be null.")
        geometry = item["geometry"]
    if geometry is None:
        return
    name, color = _class(properties) if attribute is None else (_text(properties.get(attribute)), None)
    text = number_name(properties.get("class_index"))
    index = int(text) if text is not None and text.isdecimal() else None
    if name is None and text is not None:
        name, index = classes[index].name if index is not None and index < len(classes) else text, None
    others = tuple(properties) if name is None and "objectType" not in properties else ()
    for stroke in _strokes(geometry, partial(_width, properties), reference):
        yield Drawn(stroke, name, color, reference is not None, index, others)


def _width(properties: Mapping[str, Any]) -> float:
    width = properties.get("width")
    if width is None:  # QGIS writes the attributes that a feature has not got as null
        return _LINE_WIDTH
    try:
        return float(width)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"its width is {str(width)[:40]!r}; give a number of pixels above 0.") from None


def _class(properties: Mapping[str, Any]) -> tuple[str | None, tuple[int, int, int] | None]:
    properties = {key.lower(): value for key, value in properties.items()}  # tables of a GIS often shout: CLASS
    found = properties.get("classification")
    if isinstance(found, dict) and (name := name_in(found)) is not None:
        return name, color_in(found)
    # The name of an object of QuPath is what its user calls this one, 'Biopsy 3', and no class.
    keys = CLASS_KEYS[:-1] if "objecttype" in properties else CLASS_KEYS
    texts = (properties.get(key) for key in keys)
    named = next((text for text in texts if isinstance(text, str) and text.strip()), None)
    # A number is a class where nothing has a name: tables often hold both, a number and what it stands for.
    inner = found.get("name") if isinstance(found, dict) else found
    numbers = (number_name(value) for value in (inner, properties.get("class"), properties.get("label")))
    color = color_in(properties) if named is not None and isinstance(properties.get("color"), str) else None
    return named or next((number for number in numbers if number is not None), None), color


def _text(value: Any) -> str | None:
    """The value of an attribute as the name of a class; None for one that is empty."""
    return value if isinstance(value, str) and value.strip() else number_name(value)


def _strokes(geometry: Any, width: Callable[[], float], reference: GeoReference | None) -> Iterator[Stroke]:
    if not isinstance(geometry, dict):
        raise InputError(f"its geometry is {str(geometry)[:40]!r}; give an object with a type and coordinates.")
    kind = geometry.get("type")
    member = "geometries" if kind == "GeometryCollection" else "coordinates"
    if kind not in _KINDS:
        raise InputError(f"it is a {kind}; polygons, lines, points and collections of them are allowed.")
    parts = geometry.get(member)
    if not isinstance(parts, list):
        raise InputError(f"its {kind} has {member} {str(parts)[:40]!r}; give a list.")
    if kind == "GeometryCollection":
        for part in parts:
            yield from _strokes(part, width, reference)
        return
    if not kind.startswith("Multi"):
        parts = [parts]
    for part in parts:
        if part == []:  # an empty geometry, as shapely and PostGIS write it
            continue
        if kind.endswith("Polygon"):
            if not isinstance(part, list):
                raise InputError(f"its {kind} has {str(part)[:40]!r} for a ring; give a list of points.")
            yield Polygon([_centres(ring, reference) for ring in part])
        elif kind.endswith("LineString"):
            yield Brush(_centres(part, reference), width() / 2)
        else:
            yield Brush(_centres([part], reference), width() / 2)


def _centres(points: Any, reference: GeoReference | None) -> Any:
    """Corner coordinates (x, y) to (row, column) with centres on whole numbers."""
    try:
        numbers = all(isinstance(v, int | float) for point in points for v in point[:2])
        if not numbers or any(len(point) < 2 for point in points):
            raise ValueError
        xy = np.array([point[:2] for point in points], dtype=np.float64).reshape(-1, 2)
    except (TypeError, ValueError, KeyError, OverflowError):
        raise InputError(f"its coordinates hold {str(points)[:40]!r}; give lists of points of two numbers.") from None
    if reference is not None:
        xy = reference.pixels(xy)
    return xy[:, ::-1] - 0.5


def classes_of(drawn: Sequence[Drawn]) -> dict[str, tuple[int, int, int] | None]:
    """Names and colours of shapes that all have a name.

    By ``class_index`` where each of them has one, the same for all shapes of a class and for no other; else in the
    order of the file.
    """
    colors: dict[str, tuple[int, int, int] | None] = {}
    for item in drawn:
        colors.setdefault(item.name or "", item.color)
    numbers = {(item.index, item.name or "") for item in drawn if item.index is not None}
    if not len(numbers) == len({index for index, _ in numbers}) == len(colors) or any(d.index is None for d in drawn):
        return colors
    return {name: colors[name] for _, name in sorted(numbers)}


def no_class(path: str | os.PathLike[str], number: int, shape: Drawn) -> str:
    """A sentence, without its end, for a shape that needs a class and has none."""
    there = listed(shape.attributes)
    how = f"name the attribute that holds it ({there})" if there else "set its classification"
    return f"{path}, shape {number} has no class; {how}"
