"""Outlines painted into an annotation, and painted areas as outlines."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from napari_isdnet.annotation.drawn import Drawn, classes_of, no_class, read_drawn
from napari_isdnet.annotation.exchange import IndexView, check_room
from napari_isdnet.annotation.strokes import Brush, Polygon, Stroke
from napari_isdnet.classes import ClassInfo, index_of
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.disk import replacing
from napari_isdnet.io.source import GeoReference, short_name
from napari_isdnet.io.vectors import listed
from napari_isdnet.progress import Clock, Progress
from napari_isdnet.window import Window

if TYPE_CHECKING:
    from napari_isdnet.annotation.store import AnnotationStore

_READ_AT_ONCE, _SECONDS_AT_ONCE = 1000, 0.5
"""After how many shapes a step of reading ends, and after which time one of painting."""


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
        more = f" Where one of {listed(others)} is their class, undo this and say so (--attribute)." if others else ""
        note(f"{without} of {len(drawn)} shapes have no class and are painted as '{default_class}'.{more}")
    called = store.naming().imported((item.name for item in inside if item.name), note)
    inside = [replace(item, name=called.get(item.name or "", item.name) or default_class) for item in inside]
    _check_classes(store, [item.name or "" for item in inside], Path(path).name)
    new = {} if nameless is not None else classes_of(inside)
    return (yield from _paint(store, inside, new))


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
