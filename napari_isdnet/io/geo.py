"""Rasters that only GDAL reads, through rasterio (the ``geo`` extra)."""

from __future__ import annotations

import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_isdnet.exceptions import InputError, MissingExtra
from napari_isdnet.io.base import SourceBase, SourceInfo, file_identity, one_line
from napari_isdnet.io.source import GeoReference, PixelSize, TileError
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
    """A dataset with one GDAL handle per thread and level, because a handle must not be shared."""

    def __init__(self, path: Path, info: SourceInfo) -> None:
        super().__init__(info)
        self.path = path
        self._mine = threading.local()
        self._all: list[Any] = []
        self._lock = threading.Lock()
        self._identity = file_identity(path)

    def _handle(self, level: int) -> Any:
        handles = self._mine.__dict__.setdefault("handles", {})
        if level not in handles:
            handles[level] = _open(self.path, level)
            with self._lock:
                self._all.append(handles[level])
        return handles[level]

    def _read(self, window: Window, level: int) -> npt.NDArray[Any]:
        from rasterio.errors import RasterioError
        from rasterio.windows import Window as RasterWindow

        try:
            area = RasterWindow(window.column, window.row, window.width, window.height)
            data = self._handle(level).read(window=area)
        except RasterioError as error:
            raise TileError(self.name, window, level, one_line(error)) from error
        return np.ascontiguousarray(data.transpose(1, 2, 0).astype(self.dtype, copy=False))

    def identity(self) -> dict[str, Any]:
        """Path, size and modification time when it was opened."""
        return {"format": self.format, **self._identity}

    def close(self) -> None:
        """Close every thread's handles."""
        super().close()
        with self._lock:
            for handle in self._all:
                handle.close()
            self._all.clear()


def _open(path: Path, level: int) -> Any:
    import rasterio

    options = {"OVERVIEW_LEVEL": level - 1} if level else {}
    with rasterio.Env(GDAL_CACHEMAX=_CACHE_BYTES), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return rasterio.open(path, **options)


def open_raster(path: Path, name: str) -> RasterioSource:
    """Open whatever GDAL reads; :class:`MissingExtra` without rasterio, :class:`InputError` for what GDAL refuses."""
    try:
        import rasterio
    except ImportError as error:
        raise MissingExtra(f"Reading {path.name}", "rasterio", "geo") from error
    try:
        with _open(path, 0) as dataset:
            info = _info(dataset, path, name)
    except rasterio.errors.RasterioError as error:
        raise InputError(f"{path.name} cannot be read by GDAL ({one_line(error)}); convert it to a GeoTIFF.") from error
    return RasterioSource(path, info)


def _info(dataset: Any, path: Path, name: str) -> SourceInfo:
    from rasterio.enums import ColorInterp

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
        pixel_size=_pixel_size(dataset.crs, transform) if placed else None,
        georeference=GeoReference(crs_text(dataset.crs), transform) if placed else None,  # type: ignore[arg-type]
        nodata=None if dataset.nodata is None else float(dataset.nodata),
        alpha=kinds.index(ColorInterp.alpha) if ColorInterp.alpha in kinds else None,
    )


def _pixel_size(crs: Any, transform: tuple[float, ...]) -> PixelSize | None:
    if not crs:
        return None
    row, column = float(np.hypot(transform[1], transform[4])), float(np.hypot(transform[0], transform[3]))
    if crs.is_geographic:
        return PixelSize(row, column, "degree")
    metres = float(crs.linear_units_factor[1])
    return PixelSize(row * metres, column * metres, "m")
