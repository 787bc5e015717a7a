"""Label images in and out: as annotation values (0 = unlabelled) or as a mask of class indices (255 = ignored)."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_isdnet.annotation.naming import renamed
from napari_isdnet.annotation.strokes import Labels, Patch
from napari_isdnet.classes import (
    ANNOTATION,
    IGNORE_INDEX,
    MAX_CLASSES,
    ClassInfo,
    annotation_mark,
    from_annotation,
    index_of,
    to_annotation,
)
from napari_isdnet.engine.annotated import AnnotationIndices
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.source import GeoReference, ImageSource
from napari_isdnet.progress import Clock, Progress
from napari_isdnet.window import Grid, Window

if TYPE_CHECKING:
    from napari_isdnet.annotation.reading import Frozen
    from napari_isdnet.annotation.store import AnnotationStore
    from napari_isdnet.io.tiff_pyramid import Tick

VALUES = ("annotation", "mask")
AUTO = "auto"
"""Ask the file what its values are (:func:`values_of`)."""
_READ_AS = {
    "annotation": "annotation values (0 is unlabelled, 1 the first class)",
    "mask": "class indices (0 is the first class, 255 unlabelled)",
}
_CORE = 2048
_TILE = 512


class IndexView:
    """An annotation as a source of class indices with 255 where nothing is painted (for exporters and training).

    It shows the moment at which it was made: classes and pixels agree, whatever is painted or renumbered meanwhile.
    """

    channels = 1
    dtype: np.dtype[Any] = np.dtype(np.uint8)
    nodata: float | None = float(IGNORE_INDEX)
    alpha = None

    def __init__(self, store: AnnotationStore | Frozen, image: ImageSource | None = None) -> None:
        self._store = store.frozen()
        self.name = store.name
        self.shape = store.shape
        self.levels = store.levels
        self.classes = self._store.classes
        self.pixel_size = image.pixel_size if image is not None else None
        self.georeference = image.georeference if image is not None else None

    def read(self, window: Window, level: int = 0) -> Labels:
        """Class indices of ``window`` as (height, width, 1)."""
        return from_annotation(self._store.read(window, level))

    def identity(self) -> Mapping[str, Any]:
        """Path and journal position of the annotation."""
        return self._store.identity()

    def close(self) -> None:
        """Nothing to release: the store stays open."""


def check_values(values: str, auto: bool = False) -> None:
    """Raise :class:`InputError` unless ``values`` is ``'annotation'`` or ``'mask'``, or ``'auto'`` where allowed."""
    if values not in VALUES and not (auto and values == AUTO):
        more = ", or 'auto' (the file decides)" if auto else ""
        raise InputError(
            f"Label values are 'annotation' (0 = unlabelled) or 'mask' (255 = ignored){more}, got '{values}'."
        )


def values_of(
    source: ImageSource, named: bool, name: str | None = None, clock: Clock | None = None, classes: int | None = None
) -> Generator[Progress, None, str]:
    """What a label image holds, ``'annotation'`` or ``'mask'``, by what only one of them has.

    Class names (``named``: it carries some), 255 declared as nodata, or 255 beside other values than 0 make it a mask.
    0 declared as nodata, no 0 at all, or 0 in more than half of the pixels (few paint that much) make it an annotation;
    the last not where it was said that there are ``classes``, and its values are indices of them. Raises
    :class:`InputError` for anything else, under ``name``. Pixels are read in windows, up to the first sign.
    """
    if named or source.nodata == IGNORE_INDEX:
        return "mask"
    if source.nodata == 0:
        return "annotation"
    grid = Grid(source.shape, (_CORE, _CORE))
    clock = clock or Clock(len(grid))
    zeros, seen = 0, np.zeros(0, source.dtype)
    for window in grid:
        data = source.read(window)[..., 0]
        seen = np.union1d(seen, data)
        if IGNORE_INDEX in seen and ((seen > 0) & (seen < IGNORE_INDEX)).any():
            return "mask"
        zeros += int(np.count_nonzero(data == 0))
        yield clock.step(1, "look", window)
    if IGNORE_INDEX in seen:
        raise InputError(
            f"{name or source.name} holds only 0 and 255: in a mask of class indices 255 is ignored, in a picture of"
            " black and white it is the class; save white as 1, or add --values mask."
        )
    indices = classes is not None and zeros > 0 and seen.size > 0 and int(seen[-1]) < classes
    if indices or 0 < 2 * zeros <= source.shape[0] * source.shape[1]:
        raise InputError(
            f"{name or source.name} has neither class names nor 255, so that its 0 may be a class or unlabelled: add"
            " --values mask (0 is the first class) or --values annotation (0 is unlabelled)."
        )
    return "annotation"


def annotation_values(data: npt.NDArray[Any], values: str, classes: int, name: str) -> Labels:
    """Pixels of a label image as annotation values, checked against the number of ``classes``.

    Raises :class:`InputError` for 255 in a file of annotation values (that is a mask), and for a class that there
    is not.
    """
    check_values(values)
    if data.dtype.kind not in "uib":
        raise InputError(f"{name} holds {data.dtype} samples; a label image needs whole numbers.")
    found = np.unique(data)
    if values == "annotation":
        if found.size and found[-1] == IGNORE_INDEX:
            raise InputError(
                f"{name} holds 255, which marks ignored pixels of a mask of class indices; read it with values='mask',"
                " or replace 255 by 0."
            )
        allowed, last = found, classes
    else:
        allowed, last = found[found != IGNORE_INDEX], classes - 1
    if allowed.size and not classes:
        raise InputError(f"{name} does not name its classes; give them (--classes FILE: JSON, or one name per line).")
    if allowed.size and not 0 <= int(allowed[0]) <= int(allowed[-1]) <= last:
        wrong = int(allowed[-1]) if int(allowed[-1]) > last else int(allowed[0])
        raise InputError(
            f"{name} holds the value {wrong}; with {classes} classes and values='{values}' 0 to {last} are allowed:"
            " add the missing classes first."
        )
    labels = data.astype(np.uint8)
    return to_annotation(labels) if values == "mask" else labels


def import_labels(
    store: AnnotationStore,
    labels: str | os.PathLike[str] | ImageSource,
    values: str = "annotation",
    names: Sequence[ClassInfo] | None = None,
    note: Callable[[str], None] | None = None,
    place: GeoReference | None = None,
) -> Generator[Progress, None, list[Window]]:
    """Paint a label image or pyramid (a file or a source) of the same size over the annotation, as one step to undo.

    A label image that lies elsewhere on the earth than the image, of which ``place`` is told, is refused.

    ``names`` are the classes that its values count; without them those that a file carries itself. They are found in
    the annotation by name, also by one that they had before, and added where they are painted and missing. Where there
    are none, its values count the classes of the annotation. ``values`` may be ``'auto'`` (:func:`values_of`; the
    ``names`` of a source are taken for its own), and ``note`` is told what was found. Unlabelled (ignored) pixels leave
    what is there. The whole file is checked before a pixel is painted; it is read in windows of 2048, never as a whole.
    Returns the windows that changed.
    """
    check_values(values, auto=True)
    if not isinstance(labels, str | os.PathLike):
        _check_place(labels, place)
        return (yield from _import(store, labels, values, names, names is not None, note=note))
    from napari_isdnet.annotation.layout import JOURNAL, store_folder
    from napari_isdnet.annotation.saving import read_state
    from napari_isdnet.engine.labels import open_labels, unchanged

    path = Path(labels)
    source, own = open_labels(path)  # indices, where the file has a palette
    named, folder = own is not None, store_folder(path)
    if (folder / JOURNAL).is_file():  # the pyramid of a project: its names are known, newer than in its metadata
        state = read_state(folder)
        own = None if state is None else tuple(c.info for c in state.classes)
    try:
        _check_place(source, place)
        said = None if names is None else len(names)
        with unchanged(path, source):
            return (yield from _import(store, source, values, names or own, named, said, note))
    finally:
        source.close()


def _check_place(labels: ImageSource, place: GeoReference | None) -> None:
    own = labels.georeference
    if place is None or own is None:
        return
    (a, b, c, d, e, f), (a2, b2, c2, d2, e2, f2) = place.transform, own.transform
    pixel = max(math.hypot(a, d), math.hypot(b, e))
    # By how much the four corners lie apart, in pixels.
    corners = [(row, column) for row in (0, labels.shape[0]) for column in (0, labels.shape[1])]
    apart = [math.hypot((a - a2) * x + (b - b2) * y + c - c2, (d - d2) * x + (e - e2) * y + f - f2) for y, x in corners]
    # A system may be spelt in several ways; two numbers of one register are two systems.
    other = own.crs != place.crs and all((crs or "").startswith("EPSG:") for crs in (own.crs, place.crs))
    if other or max(apart) > 0.5 * pixel:
        where = (
            f"x {c2:.12g}, y {f2:.12g} ({own.crs or 'no system'})",
            f"x {c:.12g}, y {f:.12g} ({place.crs or 'no system'})",
        )
        how = f"its corner is at {where[0]}, that of the image at {where[1]}"
        if where[0] == where[1]:
            sides = [f"{height:g} x {width:g}" for height, width in (own.sides, place.sides)]
            how = f"its pixels are {sides[0]} instead of {sides[1]}"
            how = how if sides[0] != sides[1] else f"{how}, and turned"
        raise InputError(f"{labels.name} lies elsewhere than the image: {how}; bring it onto the image's grid first.")


def _import(
    store: AnnotationStore,
    source: ImageSource,
    values: str,
    names: Sequence[ClassInfo] | None,
    named: bool,
    said: int | None = None,
    note: Callable[[str], None] | None = None,
) -> Generator[Progress, None, list[Window]]:
    if isinstance(source, AnnotationIndices):
        values = "mask"  # it knows what it holds, whatever was said of the file
    if source.shape != store.shape or source.channels != 1:
        raise InputError(
            f"{source.name} is {source.shape[0]} x {source.shape[1]} with {source.channels} channels; a label image for"
            f" this annotation needs {store.shape[0]} x {store.shape[1]} and one."
        )
    grid = Grid(store.shape, (_CORE, _CORE))
    clock = Clock((3 if values == AUTO else 2) * len(grid))
    if values == AUTO:
        values = yield from values_of(source, named, clock=clock, classes=said)
        if note is not None:
            note(f"{source.name} was read as {_READ_AS[values]}.")
        clock.done = float(len(grid))  # not all of it was needed where a sign came early
    before = store.classes
    classes = len(before if names is None else names)
    labelled, seen = [], np.zeros(256, dtype=np.bool_)
    for window in grid:
        found = annotation_values(source.read(window)[..., 0], values, classes, source.name)
        if found.any():
            labelled.append(window)
            seen[np.unique(found)] = True
        yield clock.step(1, "check", window)
    dirty: dict[Window, None] = {}
    used = np.flatnonzero(seen[1:]).tolist()
    with store.step() as step:
        with store.group(step), store.still():
            if names is None:
                _check_unchanged(store, before, used, source.name)
            table = _recoding(store, names, used, source.name, note)
            known = store.classes
        targets = [int(table[k + 1]) - 1 for k in used]
        for window in labelled:
            found = table[annotation_values(source.read(window)[..., 0], values, classes, source.name)]
            patch = Patch(window, found, found > 0, origin="import")
            # Not around the yield: what the caller paints there is no part of the import.
            with store.group(step), store.still():
                _check_unchanged(store, known, targets, source.name)
                dirty.update(dict.fromkeys(store.paint(patch)))
            yield clock.step(1, "paint", window)
    return list(dirty)


def _check_unchanged(store: AnnotationStore, known: Sequence[ClassInfo], used: Sequence[int], name: str) -> None:
    """Refuse to go on where one of the ``used`` classes is no longer the one that it was in ``known``."""
    now = store.classes
    if any(k >= len(now) or now[k].name != known[k].name for k in used):
        raise InputError(
            f"The classes were changed while {name} was imported, so its values would be painted as others; undo what"
            " it has painted, and import it again."
        )


def check_room(own: int, more: int, name: str) -> None:
    """Refuse a file that would give an annotation of ``own`` classes too many ``more``."""
    if own + more > MAX_CLASSES:
        raise InputError(
            f"{name} would add {more} classes to the {own} of the annotation; {MAX_CLASSES} are allowed: rename classes"
            " that mean the same to the same name first."
        )


def _recoding(
    store: AnnotationStore,
    names: Sequence[ClassInfo] | None,
    seen: Sequence[int],
    name: str,
    note: Callable[[str], None] | None,
) -> Labels:
    """Annotation values of the store by those of a file; of ``names``, the ``seen`` ones that it lacks are added."""
    table = np.arange(256, dtype=np.uint8)
    if names is None:
        return table
    called = store.naming().imported((names[k].name for k in seen), note)
    names = renamed(names, called)
    store.drop_placeholders([names[k].name for k in seen])
    own = [c.name for c in store.classes]
    known = {k: index_of(names[k].name, own) for k in seen}
    missing = [k for k, index in known.items() if index is None]
    check_room(len(own), len(missing), name)
    known |= {k: store.add_class(names[k].name, names[k].color) for k in missing}
    for k, index in known.items():
        assert index is not None
        table[k + 1] = index + 1
    return table


def export_labels(
    store: AnnotationStore,
    path: str | os.PathLike[str],
    *,
    format: str = "ome-tiff",
    values: str = "mask",
    image: ImageSource | None = None,
    overwrite: bool = False,
) -> Generator[Progress, None, Path]:
    """Write the annotation as a label file; returns its path. Written to a temporary name, then renamed.

    What is written is the annotation at the first step, also while it is painted on.

    ``values='mask'`` (class indices, 255 = ignored): OME-Zarr, OME-TIFF, GeoTIFF or PNG, with the position of
    ``image`` where given. ``values='annotation'`` (0 = unlabelled): a tiled TIFF (``format='ome-tiff'`` or
    ``'geotiff'`` without georeference); an OME-Zarr of these values is ``annotations.zarr`` in the project itself.
    """
    check_values(values)
    moment = store.frozen()
    if not moment.classes:
        raise InputError("Nothing is painted yet, and there are no classes; paint something before it is exported.")
    if values == "mask":
        from napari_isdnet.io.sink import export

        view = IndexView(moment, image)
        return (yield from export(view, path, format, moment.classes, overwrite=overwrite))
    if format not in ("ome-tiff", "geotiff"):
        raise InputError(
            f"Annotation values are written as TIFF, got '{format}'; use values='mask', or take annotations.zarr."
        )
    return (yield from _export_tiff(moment, Path(path), overwrite))


def _export_tiff(store: Frozen, path: Path, overwrite: bool) -> Generator[Progress, None, Path]:
    import tifffile

    from napari_isdnet.io.disk import replacing
    from napari_isdnet.io.tiff_pyramid import stepped

    big = store.shape[0] * store.shape[1] > 1 << 31
    about = json.dumps({ANNOTATION: annotation_mark(store.classes)})  # ASCII, as TIFF demands
    with replacing(path, overwrite) as temporary:

        def work(tick: Tick) -> None:
            with tifffile.TiffWriter(temporary, bigtiff=big) as tiff:
                for level, shape in enumerate(store.levels):
                    tiff.write(
                        _tiles(store, level, tick),
                        shape=shape,
                        dtype=np.uint8,
                        tile=(_TILE, _TILE),
                        compression="deflate",
                        photometric="minisblack",
                        subifds=len(store.levels) - 1 if level == 0 else 0,
                        subfiletype=1 if level else 0,
                        metadata=None,
                        description=None if level else about,
                    )

        yield from stepped(work, sum(rows * columns for rows, columns in store.levels), "write")
    return path


def _tiles(store: Frozen, level: int, tick: Tick) -> Iterator[Labels]:
    for window in Grid(store.levels[level], (_TILE, _TILE)):
        tick(window, level)
        tile = np.zeros((_TILE, _TILE), dtype=np.uint8)
        tile[: window.height, : window.width] = store.read_labels(window, level)
        yield tile
