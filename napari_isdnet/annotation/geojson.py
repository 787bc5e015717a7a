"""GeoJSON annotations (QuPath, QGIS) to strokes, and painted areas to GeoJSON polygons.

Files count pixel corners (x = column, y = row), strokes count pixel centres: half a pixel is the difference. Polygons
keep their holes; lines and points, which a class map cannot hold, become brush strokes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_isdnet.annotation.exchange import IndexView
from napari_isdnet.annotation.strokes import Brush, Polygon, Stroke
from napari_isdnet.classes import parse_color
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.disk import replacing
from napari_isdnet.io.geojson import read_items
from napari_isdnet.io.source import GeoReference
from napari_isdnet.window import Window

if TYPE_CHECKING:
    from napari_isdnet.annotation.store import AnnotationStore


@dataclass(frozen=True)
class Drawn:
    """A stroke of a file and its class name and colour, where it says so."""

    stroke: Stroke
    name: str | None
    color: tuple[int, int, int] | None


def import_geojson(
    store: AnnotationStore,
    path: str | os.PathLike[str],
    *,
    default_class: str | None = None,
    line_width: float = 3.0,
    georeference: GeoReference | None = None,
    note: Callable[[str], None] | None = None,
) -> list[Window]:
    """Paint everything in a GeoJSON file, later features on top, as one step to undo; returns what changed.

    A class is found by name and added (with its colour) when it is missing; features without one get
    ``default_class``, and are refused when that is not given. Lines are ``properties.width`` pixels wide, or
    ``line_width``; points are discs of that diameter. ``georeference`` is the image's, for files in
    map coordinates (:func:`~napari_isdnet.io.geojson.read_items`). A file
    with anything that cannot be used is refused as a whole, before a pixel is painted, and so is one without a shape
    that lies on the image; ``note`` is told in a sentence when some of them do not.
    """
    drawn = list(read_drawn(path, line_width, georeference))
    nameless = next((i for i, item in enumerate(drawn) if item.name is None), None)
    if nameless is not None and default_class is None:
        raise InputError(f"{path}, shape {nameless} has no class; set its classification, or give a default class.")
    inside = [item for item in drawn if _lies_on(item.stroke, store.shape)]
    counts = f"{len(inside)} of {len(drawn)} shapes lie on the image"
    if drawn and not inside:
        other = ", or name the system of its map coordinates (crs)" if georeference is not None else ""
        raise InputError(f"{counts}; {Path(path).name} must count the pixels of this image{other}.")
    if note is not None and (len(inside) < len(drawn) or not drawn):
        note(f"{counts}; the others are left out." if drawn else f"{Path(path).name} holds no shape.")
    dirty: dict[Window, None] = {}
    with store.group():
        for item in inside:
            name = item.name or default_class or ""
            known = {c.name: k for k, c in enumerate(store.classes)}
            index = known[name] if name in known else store.add_class(name, item.color)
            dirty.update(dict.fromkeys(store.paint(item.stroke, index)))
    return list(dirty)


def _lies_on(stroke: Stroke, shape: tuple[int, int]) -> bool:
    """True where the box around a stroke meets the image; pixels are not looked at, which would paint twice."""
    assert isinstance(stroke, Brush | Polygon)
    reach = stroke.radius if isinstance(stroke, Brush) else 0.0
    groups = [stroke.points] if isinstance(stroke, Brush) else stroke.rings
    points = np.concatenate([np.asarray(group, float) for group in groups])
    low, high = points.min(axis=0) - reach, points.max(axis=0) + reach
    return bool((high > -0.5).all() and (low < np.array(shape) - 0.5).all())


def read_drawn(
    path: str | os.PathLike[str], line_width: float = 3.0, georeference: GeoReference | None = None
) -> Iterator[Drawn]:
    """The shapes of a FeatureCollection, a list of features (QuPath), one feature or one geometry."""
    items, reference = read_items(path, georeference)
    for where, item in items:
        try:
            yield from _feature(item, line_width, reference)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise InputError(f"{where} cannot be used: {error}") from None


def _feature(item: Any, line_width: float, reference: GeoReference | None) -> Iterator[Drawn]:
    properties = item.get("properties") or {}
    geometry = item["geometry"] if item.get("type") == "Feature" else item
    name, color = _class(properties)
    width = float(properties.get("width", line_width))
    for stroke in _strokes(geometry, width, reference):
        yield Drawn(stroke, name, color)


def _class(properties: Mapping[str, Any]) -> tuple[str | None, tuple[int, int, int] | None]:
    found = properties.get("classification")
    if isinstance(found, dict) and isinstance(found.get("name"), str):
        color = found.get("color")
        if color is None and "colorRGB" in found:  # QuPath up to 0.3: a signed 32-bit ARGB number
            color = f"#{int(found['colorRGB']) & 0xFFFFFF:06x}"
        try:
            return found["name"], None if color is None else parse_color(color)
        except (InputError, TypeError, ValueError):
            return found["name"], None  # a colour of another kind is no reason to refuse the shape
    texts = (properties.get(key) for key in ("classification", "class", "label", "name"))
    return next((text for text in texts if isinstance(text, str) and text.strip()), None), None


def _strokes(geometry: Mapping[str, Any], width: float, reference: GeoReference | None) -> Iterator[Stroke]:
    kind = geometry.get("type")
    if kind == "GeometryCollection":
        for part in geometry["geometries"]:
            yield from _strokes(part, width, reference)
        return
    coordinates = geometry.get("coordinates")
    if kind in ("MultiPolygon", "MultiLineString", "MultiPoint"):
        parts = coordinates or []
        kind = kind.removeprefix("Multi")
    elif kind in ("Polygon", "LineString", "Point"):
        parts = [coordinates]
    else:
        raise InputError(f"it is a {kind}; polygons, lines, points and collections of them are allowed.")
    for part in parts:
        if kind == "Polygon":
            yield Polygon([_centres(ring, reference) for ring in part])
        elif kind == "LineString":
            yield Brush(_centres(part, reference), width / 2)
        else:
            yield Brush(_centres([part], reference), width / 2)


def _centres(points: Any, reference: GeoReference | None) -> Any:
    """Corner coordinates (x, y) to (row, column) with centres on whole numbers."""
    xy = np.array([point[:2] for point in points], dtype=np.float64).reshape(-1, 2)
    if reference is not None:
        a, b, c, d, e, f = reference.transform
        xy = (xy - (c, f)) @ np.linalg.inv(np.array([[a, b], [d, e]])).T
    return xy[:, ::-1] - 0.5


def export_geojson(
    store: AnnotationStore,
    path: str | os.PathLike[str],
    *,
    georeference: GeoReference | None = None,
    simplify: float = 0.0,
    overwrite: bool = False,
) -> Path:
    """Write every painted area as a polygon with QuPath's classification; returns the path.

    Exact pixel outlines, holes kept (``simplify`` > 0: a tolerance in pixels). What is read are the boxes around
    annotated places that hang together: all of the image for one stroke from corner to corner. With ``georeference``
    coordinates are map coordinates.
    """
    from napari_isdnet.io.geojson import Writer
    from napari_isdnet.io.polygons import polygonise

    view, path = IndexView(store), Path(path)
    with replacing(path, overwrite) as temporary, open(temporary, "w", encoding="utf-8") as file:
        writer = Writer(file, store.classes, georeference)
        for group in connected(store.annotated_windows()):
            for joined in polygonise(view, roi=group, simplify=simplify):
                for index, polygon in zip(joined.classes, joined.polygons, strict=True):
                    writer.add(index, polygon, polygon)
        writer.close()
    return path


def connected(windows: Sequence[Window]) -> list[Window]:
    """Boxes that do not touch one another and hold all ``windows``: an area never lies in two of them."""
    boxes = list(windows)
    while True:
        merged: list[Window] = []
        for box in sorted(boxes):
            for number, other in enumerate(merged):
                if not box.expanded(1).intersect(other).empty:
                    merged[number] = Window.from_bounds(
                        min(box.row, other.row),
                        min(box.column, other.column),
                        max(box.bottom, other.bottom),
                        max(box.right, other.right),
                    )
                    break
            else:
                merged.append(box)
        if len(merged) == len(boxes):
            return merged
        boxes = merged
