"""One way in: :func:`open_source` finds the reader for a path, an array, a list of levels or a layer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from napari_isdnet.classes import IGNORE_INDEX
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.array import ArraySource
from napari_isdnet.io.picture import kind_of, open_picture
from napari_isdnet.io.sidecar import place_beside, system_beside
from napari_isdnet.io.source import ImageSource, PixelSize
from napari_isdnet.io.zarr import is_zarr, open_zarr

SLIDES = frozenset({".mrxs", ".vms", ".vmu", ".svslide", ".dcm", ".czi", ".zvi"})
RASTERS = frozenset(
    {
        ".vrt",
        ".img",
        ".ecw",
        ".sid",
        ".asc",
        ".dem",
        ".bil",
        ".bsq",
        ".bip",
        ".nc",
        ".hdf",
        ".h5",
        ".kea",
        ".webp",
        ".bmp",
    }
)
ALLOWED = (
    "TIFF (also BigTIFF, OME-TIFF, GeoTIFF, SVS, NDPI), OME-Zarr, PNG, JPEG, JPEG 2000 and NPY, "
    "other rasters with [geo] and slides with [wsi]"
)
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_SUFFIXES = (".ome.zarr", ".ome.tiff", ".ome.tif", ".ome.btf")


def open_source(
    item: Any,
    *,
    name: str | None = None,
    axes: str | None = None,
    threads: int | None = None,
    memory: int | None = None,
) -> ImageSource:
    """The source for ``item``: a path, an array (numpy, dask, zarr), a list of levels, a napari layer, a source.

    ``name`` replaces the file stem; ``axes`` ('yx', 'cyx', 'yxc', ...) says where the channels of an array are;
    ``threads`` decode the tiles of one large window (default: up to 4); a picture that must be decoded whole may take
    ``memory`` bytes (default 4 GiB). Raises :class:`InputError`; :class:`MissingExtra` names the extra to install.
    """
    if isinstance(item, str | os.PathLike):
        source = _open_path(Path(item), name, threads, memory)
        # What an OME-Zarr says of its pixels is of no map, also where it is a result of ours that lies in one.
        return source if os.path.isdir(item) else _on_the_ground(source)
    if isinstance(item, ImageSource):
        return item
    if hasattr(item, "data") and hasattr(item, "scale") and not hasattr(item, "__array_interface__"):
        return _open_layer(item, name, axes)
    if _is_array(item):
        return ArraySource([item], name or "array", axes)
    if isinstance(item, Sequence) and item and all(_is_array(level) for level in item):
        return ArraySource(item, name or "array", axes)
    raise InputError(
        f"Cannot read an image from {type(item).__name__}; give a path, an array, a list of pyramid levels or a layer."
    )


def stem_of(path: Path) -> str:
    """File name without its extension, also without '.ome'."""
    lower = path.name.lower()
    for suffix in _SUFFIXES:
        if lower.endswith(suffix) and len(lower) > len(suffix):
            return path.name[: -len(suffix)]
    return path.stem or path.name


def _is_array(item: Any) -> bool:
    return hasattr(item, "shape") and hasattr(item, "dtype") and hasattr(item, "__getitem__")


def _open_layer(layer: Any, name: str | None, axes: str | None) -> ImageSource:
    data = layer.data
    multiscale = bool(getattr(layer, "multiscale", False))
    levels = list(data) if multiscale else [data]
    if not levels or not all(_is_array(level) for level in levels):
        raise InputError(f"Layer {getattr(layer, 'name', '?')} is no image; choose an image layer.")
    return ArraySource(
        levels,
        name or str(getattr(layer, "name", "layer")),
        axes,
        # A layer that is not RGB may still be channels first: leave that to the shape.
        rgb=True if getattr(layer, "rgb", False) else None,
        pixel_size=layer_pixel_size(layer),
    )


def layer_pixel_size(layer: Any) -> PixelSize | None:
    """Sides and beginning of the pixels of a napari layer in its world, where its units are lengths.

    'pixel' is napari's word for not knowing. Seen in the world, since an affine (of a registration) sizes pixels, too.
    """
    units, ndim = getattr(layer, "units", None), len(layer.scale)
    if not units or ndim < 2:
        return None
    corner, below, beside = (
        np.asarray(layer.data_to_world([0] * (ndim - 2) + step), float) for step in ([0, 0], [1, 0], [0, 1])
    )
    sides = float(np.linalg.norm(below - corner)), float(np.linalg.norm(beside - corner))
    size = PixelSize(*sides, str(units[-1]), (float(corner[-2]), float(corner[-1])))
    return size if size.metres else None


def _open_path(path: Path, name: str | None, threads: int | None, memory: int | None) -> ImageSource:
    if not path.exists():
        raise InputError(f"{path} does not exist; check the path.")
    name = name or stem_of(path)
    if path.is_dir():
        if is_zarr(path):
            return _open_zarr(path, name, threads)
        raise InputError(f"{path} is a folder without Zarr metadata; give an image file or an OME-Zarr folder.")
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise InputError(f"{path} cannot be opened: {error.strerror or error}.") from error
    if not head:
        raise InputError(f"{path.name} cannot be read: the file is empty (0 bytes); copy or export it again.")
    if head[:4] in _TIFF:
        return _placed(_open_tiff(path, name, threads), path)
    suffix = path.suffix.lower()
    if kind_of(head) == "JPEG 2000" and _has("rasterio"):
        # GDAL reads parts of a JPEG 2000 and its coordinates; without it the file is decoded whole.
        from napari_isdnet.io.geo import open_raster

        return open_raster(path, name)
    if kind_of(head) and suffix not in SLIDES:
        return _placed(open_picture(path, name, memory), path)
    if head[:6] == b"\x93NUMPY":
        return _open_npy(path, name)
    if suffix in SLIDES:
        from napari_isdnet.io.wsi import open_slide

        return open_slide(path, name, threads)
    if suffix in RASTERS:
        from napari_isdnet.io.geo import open_raster

        return open_raster(path, name)
    raise InputError(f"{path.name} is no image format that is known; allowed are {ALLOWED}.")


def _placed(source: Any, path: Path) -> ImageSource:
    """``source`` with what files beside it say of its position, as far as it has none of its own."""
    own = source.georeference
    if own is not None and own.crs is None:
        crs, size = system_beside(path, own.transform)
        if crs is not None:
            notes = (*source.info.notes, "its reference system comes from a file beside it")
            place = replace(own, crs=crs)
            source.info = replace(source.info, georeference=place, pixel_size=size, notes=notes)
    elif own is None:
        place, size, note = place_beside(path)
        if note is not None:
            known = source.info.pixel_size or size
            notes = (*source.info.notes, note)
            source.info = replace(source.info, georeference=place, pixel_size=known, notes=notes)
    found: ImageSource = source
    return found


def _on_the_ground(source: Any) -> ImageSource:
    """``source`` with the pixel size that counts metres of the ground, which those of its map may not be."""
    place, size = source.georeference, source.pixel_size
    factor = 1.0 if place is None else place.shrinkage(source.shape)
    if size is not None and factor != 1.0:
        source.info = replace(source.info, pixel_size=PixelSize(size.row * factor, size.column * factor, size.unit))
    found: ImageSource = source
    return found


def _open_zarr(path: Path, name: str, threads: int | None) -> ImageSource:
    from napari_isdnet.io.ome_zarr import own_facts, usable_place

    source = open_zarr(path, name, threads)
    # OME-Zarr itself has no place for coordinates on the earth, nor for missing pixels: results of this package carry
    # them in their own part.
    own = own_facts(path)
    if own is not None:
        source.info = replace(source.info, georeference=usable_place(own), nodata=float(IGNORE_INDEX))
    return source


def _open_tiff(path: Path, name: str, threads: int | None) -> ImageSource:
    from napari_isdnet.io.companions import with_companions
    from napari_isdnet.io.tiff import UnsupportedTiff, open_tiff

    try:
        return with_companions(open_tiff(path, name, threads))
    except UnsupportedTiff as error:
        if error.slide:
            from napari_isdnet.io.wsi import open_slide

            return open_slide(path, name, threads)
        from napari_isdnet.io.geo import open_raster

        return open_raster(path, name)


def _open_npy(path: Path, name: str) -> ImageSource:
    try:
        data = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a damaged header makes Python's own parser raise whatever it likes
        raise InputError(f"{path.name} is no array file that can be read; save it again with numpy.save.") from error
    return ArraySource([data], name)


def _has(module: str) -> bool:
    from importlib.util import find_spec

    return find_spec(module) is not None
