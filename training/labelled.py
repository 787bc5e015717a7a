"""Whatever holds annotations (a project, a label image or pyramid, GeoJSON) as one snapshot."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TypeAlias

from napari_isdnet_training.snapshot import Snapshot, take_snapshot

from napari_isdnet.annotation.exchange import check_values, import_labels
from napari_isdnet.annotation.geojson import import_geojson, read_drawn
from napari_isdnet.annotation.layout import JOURNAL, store_folder
from napari_isdnet.annotation.store import AnnotationStore
from napari_isdnet.classes import ClassInfo, classes_from
from napari_isdnet.engine.labels import open_labels
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.source import ImageSource
from napari_isdnet.progress import Progress

Annotations: TypeAlias = str | os.PathLike[str] | AnnotationStore | Snapshot


def gather(
    annotations: Annotations, image: ImageSource, values: str, classes: Sequence[ClassInfo], fraction: float = 0.2
) -> Generator[Progress, None, Snapshot]:
    """The state of ``annotations`` of ``image`` now.

    ``classes`` are those of a label image that names none, and what GeoJSON shapes are matched with (more are added).
    Raises :class:`InputError` for a file of another size, 255 among annotation values, or nothing painted.
    """
    check_values(values)
    if isinstance(annotations, Snapshot):
        snapshot = annotations
    elif isinstance(annotations, AnnotationStore):
        snapshot = take_snapshot(annotations, fraction)
    else:
        path = Path(annotations).expanduser()
        if not path.exists():
            raise InputError(f"There are no annotations at {path}; give a project folder, a label image or GeoJSON.")
        folder = store_folder(path)
        if (folder / JOURNAL).is_file():
            snapshot = _of_project(folder, fraction)
        else:
            snapshot = yield from _of_file(path, image, values, classes, fraction)
    if snapshot.shape != image.shape:
        raise InputError(
            f"The annotations are for an image of {snapshot.shape[0]} x {snapshot.shape[1]} pixels, {image.name} has"
            f" {image.shape[0]} x {image.shape[1]}; give the annotations of this very image."
        )
    return snapshot


def _of_project(folder: Path, fraction: float) -> Snapshot:
    try:
        store = AnnotationStore.open(folder)
    except InputError:  # open in a window, or no right to write: what it has saved is enough
        store = AnnotationStore.open(folder, read_only=True)
    with store:
        return take_snapshot(store, fraction)


def _of_file(
    path: Path, image: ImageSource, values: str, classes: Sequence[ClassInfo], fraction: float
) -> Generator[Progress, None, Snapshot]:
    with tempfile.TemporaryDirectory(prefix="isdnet-annotations-") as folder:
        if path.suffix.lower() in (".geojson", ".json"):
            shapes = [item for item in read_drawn(path) if item.name is not None]
            named = classes or classes_from([{"name": n, "color": c} for n, c in _first_colors(shapes)])
            with AnnotationStore.create(folder, image.shape, named) as store:
                import_geojson(store, path)
                return take_snapshot(store, fraction)
        source, own = open_labels(path)
        try:
            found = own or tuple(classes)
            if not found:
                raise InputError(f"{path} does not name its classes; give them with --classes FILE.")
            with AnnotationStore.create(folder, image.shape, found) as store:
                yield from import_labels(store, source, values)
                return take_snapshot(store, fraction)
        finally:
            source.close()


def _first_colors(shapes: Sequence[object]) -> list[tuple[str, tuple[int, int, int] | None]]:
    colors: dict[str, tuple[int, int, int] | None] = {}
    for shape in shapes:
        colors.setdefault(shape.name, shape.color)  # type: ignore[attr-defined]
    if not colors:
        raise InputError("The GeoJSON file names no class; set the classification of its shapes.")
    return list(colors.items())
