"""Whatever holds annotations (a project, a label image or pyramid, GeoJSON) as one snapshot."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
from napari_isdnet_training.presets import HELD_OUT
from napari_isdnet_training.snapshot import Snapshot, take_snapshot

from napari_isdnet.annotation.drawn import Drawn, classes_of, no_class, read_drawn
from napari_isdnet.annotation.exchange import AUTO, check_values, import_labels, values_of
from napari_isdnet.annotation.files import check_meant, holds_outlines
from napari_isdnet.annotation.layout import JOURNAL, store_folder
from napari_isdnet.annotation.moment import at_one_moment
from napari_isdnet.annotation.outlines import import_outlines
from napari_isdnet.annotation.store import AnnotationStore
from napari_isdnet.classes import IGNORE_INDEX, ClassInfo, classes_from, index_of
from napari_isdnet.engine.labels import open_labels
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.source import ImageSource
from napari_isdnet.progress import Progress, result_of
from napari_isdnet.window import Grid

_BLOCK = 2048
Annotations: TypeAlias = str | os.PathLike[str] | AnnotationStore | Snapshot


def gather(
    annotations: Annotations,
    image: ImageSource,
    values: str,
    classes: Sequence[ClassInfo],
    fraction: float = HELD_OUT,
    layer: str | None = None,
    attribute: str | None = None,
) -> Generator[Progress, None, Snapshot]:
    """The state of ``annotations`` of ``image`` now.

    ``classes`` are those of a label image that names none, and what outlines are matched with (more are added).
    ``layer`` and ``attribute`` say which outlines of a file are meant and what holds their class.
    ``values`` may be ``'auto'`` (:func:`~napari_isdnet.annotation.exchange.values_of`). Raises :class:`InputError` for
    a file of another size, 255 among annotation values, or nothing painted.
    """
    check_values(values, auto=True)
    if isinstance(annotations, Snapshot):
        snapshot = annotations
    elif isinstance(annotations, AnnotationStore):
        snapshot = take_snapshot(annotations, fraction)
    else:
        path = Path(annotations).expanduser()
        if not path.exists():
            raise InputError(f"There are no annotations at {path}; give a project folder, a label image or outlines.")
        check_meant(path, layer, attribute)
        folder = store_folder(path)
        if (folder / JOURNAL).is_file():
            snapshot = _of_project(folder, fraction)
        else:
            snapshot = yield from _of_file(path, image, values, classes, fraction, layer, attribute)
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
        return _saved(folder, fraction)
    with store:
        return take_snapshot(store, fraction)


def _saved(folder: Path, fraction: float) -> Snapshot:
    """What a project has saved, of one moment, while another process may be writing to it."""

    def read() -> Snapshot:
        with AnnotationStore.open(folder, read_only=True) as store:
            return take_snapshot(store, fraction)

    return at_one_moment(folder, read)


def _of_file(
    path: Path,
    image: ImageSource,
    values: str,
    classes: Sequence[ClassInfo],
    fraction: float,
    layer: str | None,
    attribute: str | None,
) -> Generator[Progress, None, Snapshot]:
    outlines = holds_outlines(path)
    with tempfile.TemporaryDirectory(prefix="isdnet-annotations-") as folder:
        if outlines:
            place = image.georeference
            drawn = read_drawn(path, place, classes, shape=image.shape, layer=layer, attribute=attribute)
            colors = _own_classes(path, list(drawn))
            named = classes or classes_from([{"name": n, "color": c} for n, c in colors.items()])
            with AnnotationStore.create(folder, image.shape, named) as store:
                steps = import_outlines(
                    store, path, georeference=place, classes=classes, layer=layer, attribute=attribute
                )
                result_of(steps)
                return _painted(store, path, fraction)
        source, own = open_labels(path)
        own = _as_the_model_writes(own, classes)
        try:
            found = own or tuple(classes)
            if not found:
                raise InputError(f"{path} does not name its classes; give them with --classes FILE.")
            with AnnotationStore.create(folder, image.shape, found) as store:
                try:
                    yield from import_labels(store, source, values, own, place=image.georeference)
                except InputError as error:
                    wrong = _wrong_value(path, source, values, store, bool(own))
                    raise error if wrong is None else InputError(wrong) from error
                return _painted(store, path, fraction)
        finally:
            source.close()


def _as_the_model_writes(own: Sequence[ClassInfo] | None, model: Sequence[ClassInfo]) -> tuple[ClassInfo, ...] | None:
    """The classes of a file, those that the model knows under the model's name (``Building`` is its ``building``)."""
    if own is None:
        return None
    found, names = list(own), [c.name for c in own]
    for info in model:
        index = index_of(info.name, names)
        if index is not None:
            found[index] = replace(found[index], name=info.name)
    return tuple(found)


def _painted(store: AnnotationStore, path: Path, fraction: float) -> Snapshot:
    """The snapshot of a file's annotation; a file without any is named, not the folder that it was unpacked into."""
    if not any(store.class_counts()):
        raise InputError(f"{path} holds no painted pixel; annotate at least two classes before fine-tuning.")
    return take_snapshot(store, fraction)


def _wrong_value(path: Path, labels: ImageSource, values: str, store: AnnotationStore, own: bool) -> str | None:
    """What is wrong with the pixel values of a refused label image, with the options that mend it; None: nothing.

    The import names Python arguments, which someone at a command line has not got.
    """
    if labels.shape != store.shape or labels.channels != 1 or labels.dtype.kind not in "uib":
        return None
    if values == AUTO:
        values = result_of(values_of(labels, own, str(path)))
    seen: set[int] = set()
    for window in Grid(labels.shape, (_BLOCK, _BLOCK)):
        seen.update(int(v) for v in np.unique(labels.read(window)))
    mask, count = values == "mask", len(store.classes)
    if not mask and max(seen) == IGNORE_INDEX:
        return (
            f"{path} holds 255, which marks ignored pixels of a mask of class indices; add --values mask, or replace"
            " 255 by 0."
        )
    last = count - 1 if mask else count
    wrong = max((v for v in seen if not 0 <= v <= last and not (mask and v == IGNORE_INDEX)), default=None)
    if wrong is None:
        return None
    # Classes that a file names itself go before those of --classes.
    mend = "correct the file or its class names" if own else "name every class with --classes FILE, or correct the file"
    return (
        f"{path} holds the value {wrong}; with {count} classes and --values {values} 0 to {last} are allowed: {mend}."
    )


def _own_classes(path: Path, shapes: Sequence[Drawn]) -> dict[str, tuple[int, int, int] | None]:
    """Classes of the shapes; every shape must have one."""
    if not shapes:
        raise InputError(f"{path} holds no shape; draw at least two classes before fine-tuning.")
    for number, shape in enumerate(shapes):
        if shape.name is None:
            raise InputError(f"{no_class(path, number, shape)}.")
    return classes_of(shapes)
