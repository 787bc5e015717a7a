"""Label maps as sources: opening them, reading class indices, and putting truth on the prediction's grid."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from napari_isdnet.classes import ANNOTATIONS_ZARR, IGNORE_INDEX, ClassInfo, classes_from
from napari_isdnet.engine.annotated import AnnotationIndices, annotation_classes
from napari_isdnet.engine.classlist import classes_in_tiff, origin_in_tiff, read_classes
from napari_isdnet.engine.metrics import Labels
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.base import SourceBase
from napari_isdnet.io.lonlat import same_system
from napari_isdnet.io.source import ImageSource, short_name
from napari_isdnet.window import Window

# Truth may lie this share of a pixel beside the prediction's grid and still be the same grid (rounded transforms).
_GRID_SLACK = 0.01


def read_labels(source: ImageSource, window: Window, level: int = 0) -> Labels:
    """Class indices of ``window`` as ``(height, width)`` uint8; the source's nodata value becomes 255.

    Raises :class:`InputError` for a source of several channels, of floats, or with values outside 0..255.
    """
    if source.channels != 1 or source.dtype.kind not in "bui":
        raise InputError(
            f"{source.name} has {source.channels} channel(s) of {source.dtype}; a label map has one channel of whole"
            f" numbers (class indices): give the map of indices, not a coloured picture of it."
        )
    values = source.read(window, level)[..., 0]
    if values.dtype != np.uint8:
        values = _to_uint8(source, values, window, level)
    if source.nodata is not None and source.nodata != IGNORE_INDEX and 0 <= source.nodata < IGNORE_INDEX:
        values = np.where(values == source.nodata, np.uint8(IGNORE_INDEX), values)
    return values


def _to_uint8(source: ImageSource, values: Any, window: Window, level: int) -> Labels:
    values = values.astype(np.int64)
    if source.nodata is not None:
        values[values == source.nodata] = IGNORE_INDEX
    outside = (values < 0) | (values > IGNORE_INDEX)
    if outside.any():
        row, column = np.argwhere(outside)[0]
        raise InputError(
            f"{source.name} holds {values[row, column]} at row {window.row + row}, column {window.column + column}"
            f" (level {level}); class indices are 0 to 254, and 255 is nodata."
        )
    return values.astype(np.uint8)


@dataclass(frozen=True)
class LabelPair:
    """A prediction and its truth on one grid: the prediction's.

    ``window`` is the part of the prediction (level 0) that truth covers; a prediction pixel ``(r, c)`` is the truth
    pixel ``(r + offset[0], c + offset[1])``. ``ignore`` lists classes whose truth is read as 255.
    """

    prediction: ImageSource
    truth: ImageSource
    window: Window
    offset: tuple[int, int] = (0, 0)
    ignore: tuple[int, ...] = ()

    def read(self, window: Window) -> tuple[Labels, Labels]:
        """Both maps over ``window`` (level 0 of the prediction, inside :attr:`window`)."""
        prediction = read_labels(self.prediction, window)
        truth = read_labels(self.truth, window.shifted(*self.offset))
        return prediction, leave_out(truth, self.ignore)


def leave_out(truth: Labels, ignore: Sequence[int]) -> Labels:
    """Truth with the classes in ``ignore`` replaced by 255."""
    if not ignore:
        return truth
    table = np.arange(256, dtype=np.uint8)
    table[list(ignore)] = IGNORE_INDEX
    return table[truth]


def pair_labels(prediction: ImageSource, truth: ImageSource, ignore: Iterable[int] = ()) -> LabelPair:
    """Put truth on the prediction's grid.

    Without positions on the earth both must have the same size, unless the prediction, or both, are of a region and say
    where that lay in the image (``origin``). With positions, the grids may be shifted by whole pixels. The part covered
    by both is taken. Raises :class:`InputError` for anything else.
    """
    whole, offset = Window.whole(prediction.shape), _offset(prediction, truth)
    if offset is None:
        own, other = getattr(prediction, "origin", None), getattr(truth, "origin", None)
        if own is not None and other is not None and own != other:  # both know their places in the image
            offset = (own[0] - other[0], own[1] - other[1])
        elif own not in (None, (0, 0)) and other is None:
            offset = _within(own, prediction, truth)
        elif prediction.shape != truth.shape:
            raise InputError(
                f"{prediction.name} is {_size(prediction)} and truth {truth.name} {_size(truth)} pixels; both must"
                f" have the same size: give the truth of this very image."
            )
    offset = offset or (0, 0)
    shared = whole.intersect(Window.whole(truth.shape).shifted(-offset[0], -offset[1]))
    if shared.empty:
        raise InputError(
            f"{prediction.name} and truth {truth.name} are of places that do not overlap; give the truth of this image."
        )
    return LabelPair(prediction, truth, shared, offset, tuple(ignore))


def _within(origin: tuple[int, int], prediction: ImageSource, truth: ImageSource) -> tuple[int, int] | None:
    """Offset of a region's result in the truth of its image; None where truth is of the region only."""
    if prediction.shape == truth.shape:
        return None
    region = Window(*origin, *prediction.shape)
    if not Window.whole(truth.shape).contains(region):
        raise InputError(
            f"{prediction.name} is {_size(prediction)} pixels from row {origin[0]}, column {origin[1]} of its image,"
            f" and truth {truth.name} is only {_size(truth)}; give the truth of the whole image or of that region."
        )
    return origin


def _size(source: ImageSource) -> str:
    return f"{source.shape[0]} x {source.shape[1]}"


def _offset(prediction: ImageSource, truth: ImageSource) -> tuple[int, int] | None:
    """Whole rows and columns from prediction to truth pixels, or None where positions are not known for both."""
    ours, theirs = prediction.georeference, truth.georeference
    if ours is None or theirs is None:
        return None
    if ours.crs is not None and theirs.crs is not None and not same_system(ours.crs, theirs.crs):
        raise InputError(
            f"{prediction.name} is in {short_name(ours.crs)} and truth {truth.name} in {short_name(theirs.crs)}; warp"
            f" one of them to the other's coordinate system and grid first."
        )
    a, b, c, d, e, f = ours.transform
    determinant = a * e - b * d
    if determinant == 0:
        return None
    # Rotation, shear and pixel size: the far corner must not drift by more than the slack.
    reach = max(*prediction.shape, *truth.shape)
    drift = max(abs(x - y) for x, y in zip((a, b, d, e), _linear(theirs.transform))) * reach
    x, y = c - theirs.transform[2], f - theirs.transform[5]
    columns, rows = (e * x - b * y) / determinant, (a * y - d * x) / determinant
    off_grid = max(abs(rows - round(rows)), abs(columns - round(columns)))
    pixel = abs(determinant) ** 0.5
    if drift > 0.5 * pixel or off_grid > _GRID_SLACK + 1e-9 * reach:
        how = f"shifted by {abs(rows):.2f} rows and {abs(columns):.2f} columns"
        if drift > 0.5 * pixel:
            how = f"pixels of {_sides(theirs.transform)} instead of {_sides(ours.transform)}, or turned"
        raise InputError(
            f"Truth {truth.name} lies on another pixel grid than {prediction.name} ({how}); resample truth to the"
            " prediction's grid (nearest neighbour) first."
        )
    return round(rows), round(columns)


def _linear(transform: tuple[float, ...]) -> tuple[float, float, float, float]:
    return transform[0], transform[1], transform[3], transform[4]


def _sides(transform: tuple[float, ...]) -> str:
    """Width and height of a pixel."""
    a, b, d, e = _linear(transform)
    return f"{(a * a + d * d) ** 0.5:g} x {(b * b + e * e) ** 0.5:g}"


def open_labels(
    path: str | Path, classes_file: str | Path | None = None
) -> tuple[ImageSource, tuple[ClassInfo, ...] | None]:
    """Open a label map and find its classes.

    They come from ``classes_file`` if given, else from the map's own metadata, else they are None. A PNG with a
    palette gives its indices, and the annotation of this package, its folder or what was exported of it, its class
    indices (255 where nothing is painted).
    """
    given = None if classes_file is None else read_classes(classes_file)
    source, found = open_indices(Path(path))
    if source.channels != 1 or source.dtype.kind not in "bui":
        source.close()
        raise InputError(
            f"{path} has {source.channels} channel(s) of {source.dtype}; a label map has one channel of class indices."
        )
    return source, found if given is None else given


@contextmanager
def unchanged(path: str | Path, source: ImageSource) -> Iterator[None]:
    """Raise :class:`InputError` at the end where ``path``, opened as ``source``, was written or replaced meanwhile.

    What was read of it is of two moments then, or nodata where a store lacked its files for one.
    """
    before = dict(source.identity())
    yield
    try:
        again, _ = open_indices(Path(path))
        with closing(again):
            now = dict(again.identity())
    except (InputError, OSError):
        now = {}
    if now != before:
        raise InputError(
            f"{path} was changed by another program while it was read, so the result may mix two states of it; start"
            " again when nothing writes it."
        )


def open_indices(path: Path, threads: int | None = None) -> tuple[ImageSource, tuple[ClassInfo, ...] | None]:
    """Open a file as it is stored: no palette, which would turn indices into colours, and bits as 0 and 1.

    Only a file that says that it holds annotation values (0 = unlabelled) is read as class indices, like all others.
    """
    from napari_isdnet.io.array import ArraySource
    from napari_isdnet.io.open import open_source, stem_of
    from napari_isdnet.io.picture import PictureSource
    from napari_isdnet.io.store import LabelStore

    if (path / ANNOTATIONS_ZARR).is_dir():
        path /= ANNOTATIONS_ZARR
    painted = annotation_classes(path)
    if painted is not None:
        return AnnotationIndices(open_source(path, threads=threads)), painted or None
    if path.is_dir():
        try:
            store = LabelStore.open(path)
        except InputError:
            return open_source(path, threads=threads), None
        return store, store.classes
    source = open_source(path, threads=threads)
    if isinstance(source, PictureSource):
        source = source.bare()
    if hasattr(source, "indices"):
        stored: SourceBase = source.indices()
        # Where it lies may have been told by a file beside it.
        stored.info = replace(stored.info, pixel_size=source.pixel_size, georeference=source.georeference)
        stored.origin = origin_in_tiff(path)
        return stored, classes_in_tiff(path)
    if path.suffix.lower() == ".png":
        palette = _png_indices(path)
        if palette is not None:
            source.close()
            size, place = source.pixel_size, source.georeference
            values = ArraySource([palette[0]], stem_of(path), "yx", pixel_size=size, georeference=place)
            return values, palette[1]
    return source, None


def _png_bits(path: Path) -> int:
    """Bits a sample of a PNG: the first byte after the size in its header; more than 8 for one of several samples."""
    with path.open("rb") as file:
        head = file.read(26)
    return head[24] if head[25] == 0 else 16


def _png_indices(path: Path) -> tuple[Labels, tuple[ClassInfo, ...] | None] | None:
    """Indices of a PNG that viewers show as something else, and the classes it names (as this package's exports do).

    Those of a palette, or of fewer than 8 bits a pixel, which are shown stretched, and grey ones of which one is
    transparent, as GDAL writes nodata (255 here); None for another PNG.
    """
    from PIL.PngImagePlugin import PngImageFile

    # Not Image.open, which refuses large pictures: the reader that came first has bounded the size already.
    with PngImageFile(path) as image:
        depth = _png_bits(path)
        hole = image.info.get("transparency") if image.mode == "L" and depth == 8 else None
        if image.mode != "P" and depth >= 8 and hole is None:
            return None
        image.load()
        values = np.asarray(image).astype(np.uint8)
        if hole is not None:
            values[values == hole] = IGNORE_INDEX
        elif image.mode == "L":
            values //= 255 // (2**depth - 1)
        text = getattr(image, "text", {}).get("classes")
    try:
        return values, classes_from(json.loads(text)) if text else None
    except (json.JSONDecodeError, TypeError, InputError):
        return values, None
