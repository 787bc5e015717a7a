"""Exports of results: one entry point, a plain generator, to a temporary name that is renamed when all is well."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from napari_isdnet.classes import IGNORE_INDEX
from napari_isdnet.exceptions import AlreadyThere, InputError
from napari_isdnet.io.disk import disk_errors, file_stem, remove, scratch
from napari_isdnet.io.geotiff import export_geotiff
from napari_isdnet.io.ome_tiff import export_ome_tiff
from napari_isdnet.io.ome_zarr import export_ome_zarr
from napari_isdnet.io.png import check_png, export_png
from napari_isdnet.io.source import GeoReference, ImageSource
from napari_isdnet.io.store import LabelStore
from napari_isdnet.progress import Clock, Progress
from napari_isdnet.window import Window, region_of

SUFFIXES = {"ome-zarr": ".ome.zarr", "ome-tiff": ".ome.tif", "geotiff": ".tif", "png": ".png"}
FORMATS = tuple(SUFFIXES)


def result_path(folder: str | os.PathLike[str], stem: str, format: str = "ome-zarr", kind: str = "labels") -> Path:
    """``folder/<stem>.ome.zarr`` and the like; ``<stem>_probabilities...`` and ``<stem>_uncertainty...``."""
    check_format(format)
    return Path(folder) / f"{stem}{'' if kind == 'labels' else '_' + kind}{SUFFIXES[format]}"


def check_format(format: str, shape: tuple[int, int] | None = None) -> None:
    """Raise :class:`InputError` for a format that does not exist or cannot hold ``shape``: ask before the work."""
    if format not in SUFFIXES:
        raise InputError(f"A result can be written as {', '.join(FORMATS)}, got '{format}'.")
    if format == "png" and shape is not None:
        check_png(shape)


def shifted_georeference(reference: GeoReference | None, row: int, column: int) -> GeoReference | None:
    """The georeference of the part of an image that starts at ``(row, column)``: only c and f of the transform move."""
    if reference is None:
        return None
    a, b, c, d, e, f = reference.transform
    return GeoReference(reference.crs, (a, b, c + a * column + b * row, d, e, f + d * column + e * row))


def export(
    source: ImageSource,
    path: str | os.PathLike[str],
    format: str = "ome-zarr",
    classes: Sequence[Any] | None = None,
    *,
    roi: Window | None = None,
    overwrite: bool = False,
) -> Generator[Progress, None, Path]:
    """Write class indices (or a quantised store) to ``path`` in one of :data:`FORMATS`; returns the path.

    ``source`` is a finished :class:`LabelStore`, or any source whose first channel holds class indices (then
    ``classes`` is needed). ``roi`` (level 0) writes that part only, with the position on the earth moved accordingly.
    A source that is no finished store, or a roi, is first brought into a temporary store beside ``path`` (about 1 % of
    the image's size), so memory stays bounded for any size. Raises :class:`InputError` for what cannot be written.
    """
    path = Path(path)
    window = region_of(roi, source.shape)
    check_format(format, window.shape)
    if path.exists() and not overwrite:  # before the work, not after it
        raise AlreadyThere.at(path)
    direct = isinstance(source, LabelStore) and window == Window.whole(source.shape) and source.finished
    if direct and isinstance(source, LabelStore):
        return (yield from _write(source, path, format, overwrite))
    with disk_errors(path), scratch(path.parent) as prefix:
        folder = path.with_name(f"{prefix}store.{path.name}")
        try:
            # A source may be named like a path, and what lies there is somebody's.
            store = yield from _crop(source, folder / f"{file_stem(source.name)}.ome.zarr", classes, window)
            return (yield from _write(store, path, format, overwrite))
        finally:
            remove(folder)


def _write(store: LabelStore, path: Path, format: str, overwrite: bool) -> Generator[Progress, None, Path]:
    write = {"ome-zarr": export_ome_zarr, "png": export_png, "ome-tiff": export_ome_tiff, "geotiff": export_geotiff}
    return (yield from write[format](store, path, overwrite))


def _crop(
    source: ImageSource, path: Path, classes: Sequence[Any] | None, window: Window
) -> Generator[Progress, None, LabelStore]:
    kind, origin, extra = "labels", (window.row, window.column), {}
    if isinstance(source, LabelStore):
        kind, classes, extra = source.kind, classes or source.classes, dict(source.extra)
        origin = (source.origin[0] + window.row, source.origin[1] + window.column)
    if classes is None:
        raise InputError(f"{source.name} does not say which classes it holds; give --classes FILE.")
    store = LabelStore.create(
        path,
        window.shape,
        classes,
        kind=kind,
        pixel_size=source.pixel_size,
        georeference=shifted_georeference(source.georeference, window.row, window.column),
        origin=origin,
        extra=extra,
    )
    clock = Clock(len(store.shards))
    for index, part in enumerate(store.shards):
        data = source.read(part.shifted(window.row, window.column))
        store.write_shard(index, _as_indices(data, source, len(store.classes)) if kind == "labels" else data)
        yield clock.step(1, "collect", part)
    yield from store.finish_pyramid()
    return store


def _as_indices(data: Any, source: ImageSource, count: int) -> Any:
    """First channel as uint8 class indices; the source's own nodata becomes 255; anything else is refused."""
    import numpy as np

    labels = data[..., 0]
    missing = labels == IGNORE_INDEX
    if source.nodata is not None:
        missing |= labels == source.nodata
    wrong = ~missing & ~np.isin(labels, np.arange(count))
    if wrong.any():
        raise InputError(
            f"{source.name} holds the value {labels[wrong][0]}; class indices 0 to {count - 1} and 255 are allowed."
        )
    return np.where(missing, IGNORE_INDEX, labels).astype(np.uint8)
