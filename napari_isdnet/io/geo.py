"""Rasters that only GDAL reads, through rasterio (the ``geo`` extra)."""

from __future__ import annotations

import hashlib
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_isdnet.exceptions import InputError, MissingExtra
from napari_isdnet.io.base import SourceBase, SourceInfo, file_identity, one_line
from napari_isdnet.io.source import GeoReference, PixelSize, TileError, otherwise_now
from napari_isdnet.io.tiff_color import with_alpha
from napari_isdnet.io.tiff_meta import rgb_of
from napari_isdnet.system import shell_line
from napari_isdnet.window import Window

if TYPE_CHECKING:
    import numpy.typing as npt

_CACHE_BYTES = 128 << 20
"""GDAL's own block cache would otherwise grow to 5 % of the memory of the machine, outside of every budget."""


def crs_text(crs: Any) -> str | None:
    """'EPSG:n' where a coordinate system has such a code, else its WKT."""
    if not crs:
        return None
    code = crs.to_epsg()
    return f"EPSG:{code}" if code else str(crs.to_wkt())


class RasterioSource(SourceBase):
    """A dataset with as many GDAL handles per level as read at once, because a handle must not be shared."""

    def __init__(
        self,
        path: Path,
        info: SourceInfo,
        palette: npt.NDArray[np.uint8] | None = None,
        stored: SourceInfo | None = None,
        files: Sequence[str] = (),
        masked: bool = False,
    ) -> None:
        """``masked``: GDAL's mask is the last channel, alpha, which the file has not got as a band."""
        super().__init__(info)
        self.path, self._masked = path, masked
        self._palette, self._stored, self._files = palette, stored, files
        self._free: list[tuple[int, Any]] = []
        self._lock = threading.Lock()
        self._identity = self._facts()

    def indices(self) -> RasterioSource:
        """The same raster as it is stored, for label maps: indices without their colours. Itself where it has none."""
        if self._stored is None:
            return self
        self.close()
        return RasterioSource(self.path, self._stored, files=self._files)

    @contextmanager
    def _handle(self, level: int) -> Iterator[Any]:
        with self._lock:
            place = next((i for i, (own, _) in enumerate(self._free) if own == level), None)
            handle = None if place is None else self._free.pop(place)[1]
        handle = handle or _open(self.path, level)
        try:
            yield handle
        finally:
            with self._lock:
                self._free.append((level, handle))

    def _read(self, window: Window, level: int) -> npt.NDArray[Any]:
        return self._read_channels(window, level, range(self.channels))

    def _read_channels(self, window: Window, level: int, channels: Sequence[int]) -> npt.NDArray[Any]:
        from rasterio.windows import Window as RasterWindow

        try:
            area = RasterWindow(window.column, window.row, window.width, window.height)
            with self._handle(level) as handle:
                mask = self.alpha if self._masked else None
                bands = None if self._palette is not None else [c + 1 for c in channels if c != mask]
                data = handle.read(bands, window=area)
                if mask is not None and mask in channels:
                    seen = np.where(handle.dataset_mask(window=area) != 0, 255, 0)
                    data = np.insert(data, list(channels).index(mask), seen.astype(data.dtype), axis=0)
        except Exception as error:  # GDAL's own errors, which rasterio lets through, have no class that is public
            raise TileError(self.name, window, level, _reason(error)) from error
        if self._palette is not None:
            return np.take(self._palette[data[0]], channels, axis=2)
        return np.ascontiguousarray(data.transpose(1, 2, 0).astype(self.dtype, copy=False))

    def identity(self) -> dict[str, Any]:
        """Path, size and modification time when it was opened; those of the files that it refers to, too."""
        return {"format": self.format, **self._identity}

    def _facts(self) -> dict[str, Any]:
        return file_identity(self.path) | _others(self.path, self._files)

    def written_meanwhile(self) -> bool:
        """Whether the file, or one that it refers to, is no longer the one that was opened."""
        return otherwise_now(self._identity, self._facts)

    def _release(self) -> None:
        free, self._free = self._free, []
        for _, handle in free:
            handle.close()


def _reason(error: Exception) -> str:
    """What GDAL said, of which rasterio's own error may only say that it comes first."""
    return one_line(error if error.__cause__ is None else error.__cause__)


def _open(path: Path, level: int) -> Any:
    import rasterio

    options = {"OVERVIEW_LEVEL": level - 1} if level else {}
    with rasterio.Env(GDAL_CACHEMAX=_CACHE_BYTES), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return rasterio.open(path, **options)


def open_raster(path: Path, name: str) -> RasterioSource:
    """Open whatever GDAL reads; :class:`MissingExtra` without rasterio, :class:`InputError` for what GDAL refuses."""
    try:
        import rasterio  # noqa: F401
    except ImportError as error:
        raise MissingExtra(f"Reading {path.name}", "rasterio", "geo") from error
    try:
        with _open(path, 0) as dataset:
            palette, masked = _palette(dataset), _is_masked(dataset)
            info, files = _info(dataset, path, name), tuple(dataset.files)
    except InputError:
        raise
    except Exception as error:  # as above: a mosaic may lack a file that it refers to
        remedy = "look for the files that it refers to" if path.suffix.lower() == ".vrt" else "convert it to a GeoTIFF"
        raise InputError(f"{path.name} cannot be read by GDAL ({_reason(error)}); {remedy}.") from error
    if palette is None and masked:
        info = replace(info, channels=info.channels + 1, alpha=info.channels, nodata=None)
        return RasterioSource(path, info, files=files, masked=True)
    if palette is None:
        return RasterioSource(path, info, files=files)
    channels = palette.shape[1]
    painted = replace(
        info, channels=channels, dtype=np.dtype(np.uint8), nodata=None, alpha=3 if channels == 4 else None, rgb=None,
        notes=(*info.notes, "the colour map was applied"),
    )  # fmt: skip
    return RasterioSource(path, painted, palette, info, files)


def _others(path: Path, files: Sequence[str]) -> dict[str, Any]:
    """A digest of what belongs to a raster beside its own file: the sources of a VRT, the data beside a header.

    Statistics and overviews are left out: GIS programs write them when they only look.
    """
    digest, count = hashlib.sha256(), 0
    for name in sorted(files):
        other = Path(name)
        if name.endswith((".aux.xml", ".ovr")) or other == path or not other.is_file():
            continue
        stat, count = other.stat(), count + 1
        digest.update(f"{other.name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return {"files": count, "files_digest": digest.hexdigest()[:32]} if count else {}


def _is_masked(dataset: Any) -> bool:
    """Where neither an alpha band nor one nodata value says what is missing: a mosaic may have a mask of its own, or a
    value for every band."""
    from rasterio.enums import MaskFlags

    first = dataset.mask_flag_enums[0] if dataset.count else []
    own = MaskFlags.per_dataset in first and MaskFlags.alpha not in first
    values = {str(value) for value in dataset.nodatavals}  # as text, in which NaN is equal to itself
    return (own or len(values) > 1) and "int8" not in dataset.dtypes


def _palette(dataset: Any) -> npt.NDArray[np.uint8] | None:
    """The colours of a single band of indices, (256, 3); (256, 4) where one index is nodata."""
    from rasterio.enums import ColorInterp

    if dataset.count != 1 or dataset.dtypes[0] != "uint8" or dataset.colorinterp[0] != ColorInterp.palette:
        return None
    table = np.zeros((256, 3), np.uint8)
    for index, color in dataset.colormap(1).items():
        if index < 256:
            table[index] = color[:3]
    return with_alpha(table, dataset.nodata)


def _info(dataset: Any, path: Path, name: str) -> SourceInfo:
    from rasterio.enums import ColorInterp

    if dataset.count == 0 and dataset.subdatasets:
        parts = [part.rpartition(":")[2] for part in dataset.subdatasets]
        copy = shell_line(["gdal_translate", dataset.subdatasets[0], f"{parts[0].strip('/')}.tif"])
        raise InputError(
            f"{path.name} holds {len(parts)} images ({', '.join(parts[:6])}{', ...' if parts[6:] else ''}); write one"
            f" to a file of its own: {copy}"
        )
    dtypes = set(dataset.dtypes)
    if len(dtypes) != 1:
        raise InputError(
            f"{path.name} has bands of several sample types ({', '.join(sorted(dtypes))}); one is allowed."
        )
    levels = [(dataset.height, dataset.width)]
    for level in range(1, len(dataset.overviews(1)) + 1):
        with _open(path, level) as overview:
            levels.append((overview.height, overview.width))
    kinds = list(dataset.colorinterp)
    transform = tuple(float(v) for v in dataset.transform)[:6]
    placed = dataset.crs is not None or transform != (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    return SourceInfo(
        name=name,
        levels=tuple(levels),
        channels=dataset.count,
        dtype=np.dtype(dataset.dtypes[0]),
        format=f"GDAL {dataset.driver}",
        pixel_size=pixel_size_in(dataset.crs, transform) if placed else None,
        georeference=GeoReference(crs_text(dataset.crs), transform) if placed else None,  # type: ignore[arg-type]
        nodata=None if dataset.nodata is None else float(dataset.nodata),
        alpha=kinds.index(ColorInterp.alpha) if ColorInterp.alpha in kinds else None,
        rgb=rgb_of([kind.name for kind in kinds]),
    )


def pixel_size_in(crs: Any, transform: tuple[float, ...]) -> PixelSize | None:
    """Size of a pixel in a reference system of rasterio's; None where the system says nothing of lengths."""
    if not crs:
        return None
    row, column = GeoReference(None, transform).sides  # type: ignore[arg-type]
    if crs.is_geographic:
        return PixelSize(row, column, "degree")
    if not crs.is_projected:  # a local system
        return None
    metres = float(crs.linear_units_factor[1])
    return PixelSize(row * metres, column * metres, "m")
