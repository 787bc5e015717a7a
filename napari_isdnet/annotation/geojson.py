"""GeoJSON annotations (QuPath, QGIS) to strokes, and painted areas to GeoJSON polygons.

Files count pixel corners (x = column, y = row), strokes count pixel centres: half a pixel is the difference. Polygons
keep their holes; lines and points, which a class map cannot hold, become brush strokes.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_isdnet.annotation.exchange import IndexView, check_room
from napari_isdnet.annotation.strokes import Brush, Polygon, Stroke
from napari_isdnet.classes import ClassInfo, index_of
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.disk import replacing
from napari_isdnet.io.geojson import color_in, name_in, number_name, read_items
from napari_isdnet.io.source import GeoReference, short_name
from napari_isdnet.progress import Clock, Progress
from napari_isdnet.window import Window

if TYPE_CHECKING:
    from napari_isdnet.annotation.store import AnnotationStore

_KINDS = (
    "Polygon", "LineString", "Point", "MultiPolygon", "MultiLineString", "MultiPoint", "GeometryCollection",
)  # fmt: skip
CLASS_KEYS = ("classification", "class", "class_name", "label", "name")
"""Attributes that are a shape's class, the first that is there, in any case of letters."""
_LINE_WIDTH = 3.0
_READ_AT_ONCE, _SECONDS_AT_ONCE = 1000, 0.5
"""After how many shapes a step of reading ends, and after which time one of painting."""


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


def import_outlines(
    store: AnnotationStore,
    path: str | os.PathLike[str],
    *,
    default_class: str | None = None,
    georeference: GeoReference | None = None,
    note: Callable[[str], None] | None = None,
    classes: Sequence[ClassInfo] | None = None,
    layer: str | None = None,
    attribute: str | None = None,
) -> Generator[Progress, None, list[Window]]:
    """Paint everything in a file of outlines, later features on top, as one step to undo; returns what changed.

    Yields about twice a second; what is painted stays where it is closed before its end.

    A class is found by name, also by one that it had before, and added (with its colour) when it is missing; features
    without one get ``default_class``, and are refused when that is not given. It is what ``attribute`` says, or
    (unless given) 'classification', 'class', 'class_name', 'label' or 'name'. ``layer`` is that of a file that has
    several (:mod:`~napari_isdnet.io.vectors`). A ``class_index`` counts ``classes`` (default: those of the annotation);
    an annotation without classes, or with those that a new one begins with and nothing painted, gets those of the file
    in its order (:func:`classes_of`). Lines are ``properties.width`` pixels wide, or 3; points are discs of that
    diameter.
    ``georeference`` is the image's, for files in map coordinates (:func:`~napari_isdnet.io.geojson.read_items`). A file
    with anything that cannot be used is refused as a whole, before a pixel is painted, and so is one without a shape
    that lies on the image or covers a pixel; ``note`` is told in a sentence when some of them do not, how many features
    have no geometry or no class, and which classes have another name now.
    """
    counted, drawn, clock = store.classes if classes is None else classes, [], Clock(1)
    for item in read_drawn(path, georeference, counted, note, store.shape, layer, attribute):
        drawn.append(item)
        if len(drawn) % _READ_AT_ONCE == 0:
            yield clock.step(0, "read")
    nameless = next((i for i, item in enumerate(drawn) if item.name is None), None)
    if nameless is not None and default_class is None:
        raise InputError(f"{no_class(path, nameless, drawn[nameless])}, or give a default class.")
    inside = _inside(store, drawn, Path(path).name, georeference)
    if note is not None and (len(inside) < len(drawn) or not drawn):
        counts = f"{len(inside)} of {len(drawn)} shapes lie on the image"
        note(f"{counts}; the others are left out." if drawn else f"{Path(path).name} holds no shape.")
    without = sum(item.name is None for item in inside)
    if note is not None and without:
        others = next(item.attributes for item in inside if item.name is None)
        more = f" Where one of {_listed(others)} is their class, undo this and say so (--attribute)." if others else ""
        note(f"{without} of {len(drawn)} shapes have no class and are painted as '{default_class}'.{more}")
    called = store.naming().imported((item.name for item in inside if item.name), note)
    inside = [replace(item, name=called.get(item.name or "", item.name) or default_class) for item in inside]
    _check_classes(store, [item.name or "" for item in inside], Path(path).name)
    new = {} if nameless is not None else classes_of(inside)
    return (yield from _paint(store, inside, new))


def no_class(path: str | os.PathLike[str], number: int, shape: Drawn) -> str:
    """A sentence, without its end, for a shape that needs a class and has none."""
    there = _listed(shape.attributes)
    how = f"name the attribute that holds it ({there})" if there else "set its classification"
    return f"{path}, shape {number} has no class; {how}"


def _paint(
    store: AnnotationStore, drawn: Sequence[Drawn], new: Mapping[str, tuple[int, int, int] | None]
) -> Generator[Progress, None, list[Window]]:
    dirty: dict[Window, None] = {}
    clock, waiting = Clock(len(drawn)), deque(drawn)
    with store.step() as step:
        with store.group(step), store.still():
            store.drop_placeholders([item.name or "" for item in drawn])
            if not store.classes:
                for name, color in new.items():
                    store.add_class(name, color)
        while waiting:
            end, before = time.monotonic() + _SECONDS_AT_ONCE, len(waiting)
            # Not around the yield: what the caller paints there is no part of the import.
            with store.group(step), store.at_once():
                while waiting:
                    item = waiting.popleft()
                    known = index_of(item.name or "", [c.name for c in store.classes])
                    index = store.add_class(item.name or "", item.color) if known is None else known
                    dirty.update(dict.fromkeys(store.paint(item.stroke, index)))
                    if time.monotonic() > end:
                        break
            yield clock.step(before - len(waiting), "paint")
    return list(dirty)


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


def _check_classes(store: AnnotationStore, names: Sequence[str], file: str) -> None:
    """Refuse a file whose classes are too many or nameless, before its first shape is painted."""
    known = [c.name for c in store.classes]
    for name in dict.fromkeys(names):
        if index_of(name, known) is None:
            known.append(ClassInfo(name, (0, 0, 0)).name)
    check_room(len(store.classes), len(known) - len(store.classes), file)


def _inside(store: AnnotationStore, drawn: Sequence[Drawn], name: str, image: GeoReference | None) -> list[Drawn]:
    """The shapes that lie on the image; :class:`InputError` where there are shapes, and none does or covers a pixel."""
    inside = [item for item in drawn if _lies_on(item.stroke, store.shape)]
    if drawn and not inside and drawn[0].placed:
        raise InputError(f"0 of {len(drawn)} shapes of {name} lie on the image; give those of this place on the earth.")
    if drawn and not inside:
        other = ", or name the system of its map coordinates (crs)" if image is not None else ""
        raise InputError(
            f"0 of {len(drawn)} shapes lie on the image; {name} must count the pixels of this image{other}."
        )
    # As a rule the first shape covers something; all of them are looked at only where the file is to be refused.
    if inside and all(item.stroke.cover(store.shape).bounds.empty for item in inside):
        if inside[0].placed:
            raise InputError(f"No shape of {name} covers the centre of a pixel; draw larger ones.")
        crs = None if image is None else image.crs
        system = "pixels" if not crs else f"system {short_name(crs)}"
        raise InputError(
            f"No shape of {name} covers the centre of a pixel: its coordinates, which name no system (crs), are taken"
            " as pixels of the image; where they are longitude and latitude, reproject the file to the image's"
            f" {system}."
        )
    return inside


def _lies_on(stroke: Stroke, shape: tuple[int, int]) -> bool:
    """True where the box around a stroke meets the image; pixels are not looked at, which would paint twice."""
    assert isinstance(stroke, Brush | Polygon)
    reach = np.array(stroke.radii if isinstance(stroke, Brush) else (0.0, 0.0))
    groups = [stroke.points] if isinstance(stroke, Brush) else stroke.rings
    points = np.concatenate([np.asarray(group, float) for group in groups])
    low, high = points.min(axis=0) - reach, points.max(axis=0) + reach
    return bool((high > -0.5).all() and (low < np.array(shape) - 0.5).all())


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
        there = f"there are {_listed(tuple(known))}" if known else "they have none"
        raise InputError(f"No shape of {name} has the attribute '{attribute}'; {there}.")


def _listed(attributes: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in attributes[:12]) + (" and others" if len(attributes) > 12 else "")


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


def export_outlines(
    store: AnnotationStore,
    path: str | os.PathLike[str],
    *,
    georeference: GeoReference | None = None,
    overwrite: bool = False,
) -> Generator[Progress, None, Path]:
    """Write every painted area as a polygon with its class, as GeoJSON or to ``*.gpkg``; returns the path.

    Yields after every window that was read. Written is the annotation of this moment, also while it is painted on.
    Exact pixel outlines, holes kept. What is read are the boxes around annotated places that hang together: all of the
    image for one stroke from corner to corner. With ``georeference`` coordinates are map coordinates.
    """
    from napari_isdnet.io.polygons import polygonise
    from napari_isdnet.io.vector import polygon_writer

    moment, path = store.frozen(), Path(path)
    view = IndexView(moment)
    with replacing(path, overwrite) as temporary, polygon_writer(temporary, moment.classes, georeference) as writer:
        groups = connected(moment.annotated_windows())
        clock = Clock(sum(group.area for group in groups))
        for group in groups:
            for joined in polygonise(view, roi=group):
                for index, polygon in zip(joined.classes, joined.polygons, strict=True):
                    writer.add(index, polygon, polygon)
                yield clock.step(joined.window.area, "polygons", joined.window)
    return path


def connected(windows: Sequence[Window]) -> list[Window]:
    """Boxes that do not touch one another and hold all ``windows``: an area never lies in two of them."""
    boxes = sorted(windows)
    while True:
        apart: list[Window] = []
        near: list[Window] = []  # those that reach down to where the next ones begin
        for box in boxes:
            apart += [other for other in near if other.bottom < box.row]
            near = [other for other in near if other.bottom >= box.row]
            met = [box, *(other for other in near if other.column <= box.right and box.column <= other.right)]
            near = [other for other in near if other not in met]
            near.append(
                Window.from_bounds(
                    min(w.row for w in met), min(w.column for w in met),
                    max(w.bottom for w in met), max(w.right for w in met),
                )
            )  # fmt: skip
        merged = sorted([*apart, *near])
        if len(merged) == len(boxes):  # else one that has grown may touch others now
            return merged
        boxes = merged
