"""OME-Zarr 0.4 and 0.5, and plain Zarr arrays, read by ``zarr>=3``."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_isdnet.exceptions import InputError
from napari_isdnet.io.array import Axes, find_axes
from napari_isdnet.io.base import SourceInfo, TiledSource, Tiling, file_identity, one_line
from napari_isdnet.io.source import PixelSize
from napari_isdnet.window import Window

if TYPE_CHECKING:
    import numpy.typing as npt

_log = logging.getLogger(__name__)
_METADATA = ("zarr.json", ".zattrs", ".zgroup", ".zarray")
_SMALLEST_TILE, _FEWEST_CHANNELS = 256, 4
_METADATA_LIMIT = 64 << 20
_MOST_ENTRIES, _MOST_STATED = 200_000, 1024
"""How many entries of the folders of level 0 are counted, and of how many files and folders the time is asked."""


def is_zarr(path: Path) -> bool:
    """True for a folder that holds Zarr metadata."""
    return path.is_dir() and any((path / name).is_file() for name in _METADATA)


class ZarrSource(TiledSource):
    """Levels of an OME-Zarr image; each chunk is decoded once and kept in the shared tile cache."""

    def __init__(
        self, path: Path, arrays: Sequence[Any], axes: Axes, info: SourceInfo, threads: int | None = None
    ) -> None:
        super().__init__(info, [_tilings(a, axes, info.channels) for a in arrays], threads)
        self._arrays = arrays
        self._axes = axes
        self._identity = _identity(path, arrays[0])

    def _load(self, level: int, part: int, index: int, window: Window) -> npt.NDArray[Any]:  # noqa: ARG002
        tiling = self.tilings[level][part]
        channels = slice(tiling.first, tiling.first + tiling.count)
        return self._axes.crop(self._arrays[level], window, channels).astype(self.dtype, copy=False)

    def identity(self) -> dict[str, Any]:
        """When it was opened: path, size of the metadata, number of chunks, and time of the latest change found.

        See :func:`_chunk_facts` for which changes of chunks are found.
        """
        return {"format": self.format, **self._identity}


def _identity(path: Path, array: Any) -> dict[str, Any]:
    # The folder's own time changes with every entry made beside the data; the metadata's is the image's.
    found = next(path / name for name in _METADATA if (path / name).is_file())
    facts = file_identity(found)
    folder = path / array.path
    chunks, newest = _chunk_facts(folder / "c" if (folder / "c").is_dir() else folder)
    return {**facts, "path": str(path.resolve()), "chunks": chunks, "mtime_ns": max(facts["mtime_ns"], newest)}


def _chunk_facts(folder: Path) -> tuple[int, int]:
    """How many files lie in and below ``folder``, and the latest time of change of what was asked for it.

    Of folders first, since the time of one tells of every file in it that was added, removed or replaced under its
    name, which is how zarr and tensorstore write chunks. What is written into a chunk that is there changes the time
    of that file alone, so that of files is asked as well: of all where there are few, else of some spread over them. A
    store of several 100,000 chunks is counted in a second, where to ask for the time of each would take minutes on a
    network drive.
    """
    folders, files, newest, count = [str(folder)], [], 0, 0
    for number, place in enumerate(folders):  # which grows meanwhile
        if number < _MOST_STATED:
            newest = max(newest, _changed(place))
        try:
            with os.scandir(place) as found:
                entries = sorted((entry.name, entry.is_dir()) for entry in found)
        except OSError:  # not there: no chunk was ever written
            continue
        folders += [os.path.join(place, name) for name, is_folder in entries if is_folder]
        files += [os.path.join(place, name) for name, is_folder in entries if not is_folder]
        count += len(entries)
        if count > _MOST_ENTRIES:
            break
    step = max(1, -(-len(files) // _MOST_STATED))
    return len(files), max([newest, *map(_changed, files[::step])])


def _changed(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:  # removed meanwhile
        return 0


def _tilings(array: Any, axes: Axes, channels: int) -> list[Tiling]:
    rows, columns = int(array.chunks[axes.row]), int(array.chunks[axes.column])
    if min(rows, columns) < 1:
        raise InputError("a Zarr array states empty chunks; write it again.")
    # Small chunks are read several at a time: each read has a fixed cost.
    tile = _at_least(rows), _at_least(columns)
    # Of many channels few are wanted, so that chunks of others are not decoded; those of few are read at once, too.
    together = 1 if axes.channel is None else max(1, int(array.chunks[axes.channel]))
    together *= -(-_FEWEST_CHANNELS // together)
    return [Tiling(tile, first, min(together, channels - first)) for first in range(0, channels, together)]


def _at_least(chunk: int) -> int:
    return chunk * max(1, -(-_SMALLEST_TILE // chunk)) if chunk < _SMALLEST_TILE else chunk


def open_zarr(path: Path, name: str, threads: int | None = None) -> ZarrSource:
    """Open an OME-Zarr image or a Zarr array; :class:`InputError` in one sentence for anything else."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _open(path, name, threads)
    except InputError:
        raise
    except Exception as error:  # damaged metadata makes the library raise whatever it likes
        _log.debug("cannot open %s", path, exc_info=True)
        raise InputError(
            f"{path.name} is no Zarr image that can be read ({one_line(error)}); OME-Zarr 0.4 and 0.5 and plain "
            "Zarr arrays are allowed: export it again."
        ) from error


def _open(path: Path, name: str, threads: int | None) -> ZarrSource:
    import zarr

    for file in (path / n for n in _METADATA):
        if file.is_file() and file.stat().st_size > _METADATA_LIMIT:
            raise InputError(f"{path.name} has over {_METADATA_LIMIT >> 20} MiB of metadata; it is damaged.")
    node: Any = zarr.open(path, mode="r")  # no text, in which '::' would be the address of another store
    if isinstance(node, zarr.Array):
        axes = find_axes(node.shape, names=_dimension_names(node))
        return ZarrSource(path, [node], axes, _info(name, [node], axes, "Zarr", None), threads)
    multiscale, version, prefix = _multiscale(node, path.name)
    names = [str(a["name"] if isinstance(a, Mapping) else a).lower() for a in multiscale.get("axes", ())]
    datasets = multiscale["datasets"]
    arrays = [_child(node, prefix + str(d["path"]), path.name) for d in datasets]
    if not arrays:
        raise InputError(f"{path.name} lists no pyramid level; an OME-Zarr image needs at least one.")
    axes = find_axes(arrays[0].shape, names=names or None)
    if any(a.ndim != arrays[0].ndim or a.dtype != arrays[0].dtype for a in arrays):
        raise InputError(f"{path.name} has pyramid levels of different sample types; write it again.")
    if len({axes.channels(a.shape) for a in arrays}) > 1:
        raise InputError(f"{path.name} has pyramid levels of different numbers of channels; write it again.")
    size = _pixel_size(multiscale, axes)
    return ZarrSource(path, arrays, axes, _info(name, arrays, axes, f"OME-Zarr {version}", size), threads)


def _child(group: Any, path: str, name: str) -> Any:
    import zarr

    if ".." in path.split("/") or path.startswith("/"):
        raise InputError(f"{name} points outside of itself ({path}); only paths inside the folder are allowed.")
    child = group[path]
    if not isinstance(child, zarr.Array):
        raise InputError(f"{name} names {path} as a pyramid level, which is no array.")
    return child


def _multiscale(group: Any, name: str) -> tuple[Mapping[str, Any], str, str]:
    """The first multiscale image: in the group itself, or in its series 0 (bioformats2raw layout)."""
    for prefix in ("", "0/"):
        if prefix and "0" not in group:
            break
        attributes = dict(group[prefix.rstrip("/")].attrs if prefix else group.attrs)
        ome = attributes.get("ome")
        source = ome if isinstance(ome, Mapping) else attributes
        found = source.get("multiscales")
        if found:
            version = source.get("version") or found[0].get("version") or "0.4"
            return found[0], str(version), prefix
    raise InputError(f"{name} is a Zarr group without a multiscale image; an OME-Zarr image (0.4 or 0.5) is needed.")


def _dimension_names(array: Any) -> list[str] | None:
    names = getattr(array.metadata, "dimension_names", None)
    if not names or not all(isinstance(n, str) for n in names) or not {"y", "x"} <= set(names):
        return None
    return [str(n) for n in names]


def _pixel_size(multiscale: Mapping[str, Any], axes: Axes) -> PixelSize | None:
    scale, start, stated = np.ones(axes.ndim), np.zeros(axes.ndim), False
    # In their order; those of the whole image come after those of the level.
    for holder in (multiscale["datasets"][0], multiscale):
        for item in holder.get("coordinateTransformations") or ():
            kind = item.get("type")
            if kind == "scale" and len(item["scale"]) == axes.ndim:
                factor = np.asarray(item["scale"], float)
                scale, start, stated = scale * factor, start * factor, True
            elif kind == "translation" and len(item["translation"]) == axes.ndim:
                start = start + np.asarray(item["translation"], float)
    described = multiscale["axes"][axes.column] if multiscale.get("axes") else {}
    unit = described.get("unit") if isinstance(described, Mapping) else None
    row, column = float(scale[axes.row]), float(scale[axes.column])
    if unit is None or not stated or not (math.isfinite(row) and math.isfinite(column) and row > 0 and column > 0):
        return None
    first = float(start[axes.row]), float(start[axes.column])
    return PixelSize(row, column, str(unit), first if all(map(math.isfinite, first)) else (0.0, 0.0))


def _info(name: str, arrays: Sequence[Any], axes: Axes, kind: str, size: PixelSize | None) -> SourceInfo:
    return SourceInfo(
        name=name,
        levels=tuple((int(a.shape[axes.row]), int(a.shape[axes.column])) for a in arrays),
        channels=axes.channels(arrays[0].shape),
        dtype=np.dtype(arrays[0].dtype).newbyteorder("="),
        format=kind,
        pixel_size=size,
        notes=axes.notes,
    )
