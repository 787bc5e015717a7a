"""TIFF, BigTIFF, OME-TIFF, GeoTIFF and the whole-slide formats that are TIFFs (SVS, NDPI, ...)."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_isdnet.exceptions import InputError
from napari_isdnet.io.base import SourceInfo, TiledSource, file_identity, one_line
from napari_isdnet.io.files import PositionalFile
from napari_isdnet.io.source import otherwise_now
from napari_isdnet.io.tiff_check import check_tiff
from napari_isdnet.io.tiff_color import JPEG, inverted_value, inverts
from napari_isdnet.io.tiff_layout import Layout, Part, layout_of, quiet_tifffile
from napari_isdnet.io.tiff_meta import color_names, georeference_of, nodata_of, pixel_size_of, rgb_of
from napari_isdnet.window import Window

if TYPE_CHECKING:
    import numpy.typing as npt

_log = logging.getLogger(__name__)


class UnsupportedTiff(InputError):
    """A sound TIFF whose compression or sample layout tifffile cannot decode; another reader may."""

    def __init__(self, message: str, slide: bool = False) -> None:
        super().__init__(message)
        self.slide = slide


class TiffSource(TiledSource):
    """A TIFF read tile by tile: own positional reads, tifffile's decoders, a shared cache of decoded tiles."""

    def __init__(self, path: Path, layout: Layout, info: SourceInfo, file: PositionalFile, threads: int | None) -> None:
        super().__init__(info, [[part.tiling for part in level] for level in layout.parts], threads)
        self.path = path
        self._parts = layout.parts
        self._file = file
        self._identity = file_identity(path)

    def indices(self) -> TiffSource:
        """The same file read as it is stored, for label maps: no palette, no inversion, bits as 0 and 1.

        Itself where it has none of these.

        The file handle is shared: closing either closes both.
        """
        first = self._parts[0][0]
        key = first.page.keyframe
        turned = inverts(key, first.color)
        bits = key.dtype == bool
        if first.palette is None and not turned and not bits:
            return self
        parts = tuple(
            tuple(
                replace(part, color=None, one=1)
                if part.palette is None
                else replace(part, palette=None, color=None, tiling=replace(part.tiling, count=1))
                for part in level
            )
            for level in self._parts
        )
        if first.palette is not None:
            value = _usable_nodata(nodata_of(key), np.dtype(key.dtype))
            info = replace(self.info, channels=1, alpha=None, dtype=np.dtype(key.dtype), nodata=value, notes=())
        else:
            nodata = self.nodata
            if nodata is not None and turned:
                nodata = inverted_value(nodata, key)
            if bits:
                nodata = _usable_nodata(nodata_of(key), np.dtype(np.uint8))
            info = replace(self.info, nodata=nodata, notes=())
        layout = Layout(self.levels, parts, info.dtype, info.channels, info.alpha, first.page, ())
        return TiffSource(self.path, layout, info, self._file, self.threads)

    def _load(self, level: int, part: int, index: int, window: Window) -> npt.NDArray[Any]:
        stored: Part = self._parts[level][part]
        offset, count = stored.locate(index, window.height)
        if count == 0 or offset == 0:
            return self._sparse(stored, window)
        data = self._file.read(offset, count)
        tile = stored.decode(data, index, window.height)
        if tile.ndim != 3 or tile.shape[2] != stored.tiling.count:
            raise ValueError(f"decoded to {tile.shape}, {stored.tiling.count} channels were expected")
        return tile

    def _sparse(self, stored: Part, window: Window) -> npt.NDArray[Any]:
        """Tiles that a sparse file does not store: nodata where that is declared, else 0 (GDAL's rule)."""
        if stored.palette is not None:
            hidden = np.flatnonzero(stored.palette[:, 3] == 0) if stored.palette.shape[1] == 4 else [0]
            return np.broadcast_to(stored.palette[hidden[0]], (*window.shape, stored.tiling.count)).copy()
        if stored.color is not None and self.nodata is None:
            return stored.color(np.zeros((*window.shape, stored.samples), self.dtype))
        value = self.nodata if self.nodata is not None else 0
        if self.alpha is not None and stored.tiling.first == self.alpha:
            value = 0
        return np.full((*window.shape, stored.tiling.count), value, self.dtype)

    def identity(self) -> dict[str, Any]:
        """Path, size and modification time when it was opened."""
        return {"format": self.format, **self._identity}

    def written_meanwhile(self) -> bool:
        """Whether the file is no longer the one that was opened."""
        return otherwise_now(self._identity, lambda: file_identity(self.path))

    def _release(self) -> None:
        self._file.close()


def open_tiff(path: Path, name: str, threads: int | None = None) -> TiffSource:
    """Open a file of the TIFF family; :class:`InputError` in one sentence for anything that is not sound."""
    file = PositionalFile(path)
    try:
        pages = check_tiff(file, path.name)
        with quiet_tifffile():
            layout, info = _parse(path, name, pages)
        return TiffSource(path, layout, info, file, threads)
    except InputError:
        file.close()
        raise
    except Exception as error:  # a parser fed with damaged tags raises whatever it likes
        file.close()
        _log.debug("cannot parse %s", path, exc_info=True)
        raise InputError(
            f"{path.name} is a damaged or unusual TIFF that cannot be read ({one_line(error)}); export it again."
        ) from error


def _parse(path: Path, name: str, pages: int) -> tuple[Layout, SourceInfo]:
    import tifffile

    # Parts of a multi-file set lie in other files, whose names come from inside this one: do not follow them.
    with tifffile.TiffFile(path, _multifile=False) as tif:
        layout = layout_of(tif, path.name, pages)
        _check_decoders(layout, path.name)
        page = layout.page.keyframe
        georeference, size, note = georeference_of(page, str(path))
        ome = tif.ome_metadata if tif.is_ome else None
        nodata, said = _nodata(layout)
        kind = "OME-TIFF" if tif.is_ome else "SVS" if tif.is_svs else "NDPI" if tif.is_ndpi else "TIFF"
        info = SourceInfo(
            name=name,
            levels=layout.levels,
            channels=layout.channels,
            dtype=layout.dtype,
            format="GeoTIFF" if georeference is not None and kind == "TIFF" else kind,
            pixel_size=size or pixel_size_of(page, ome),
            georeference=georeference,
            nodata=nodata,
            alpha=layout.alpha,
            rgb=rgb_of(color_names(page)) if layout.channels >= 3 else None,
            notes=tuple(dict.fromkeys(text for text in (*layout.notes, note, said, _orientation(page)) if text)),
        )
    return layout, info


def _check_decoders(layout: Layout, name: str) -> None:
    """Make every decoder now: it is a lazily made closure, which threads must not race for, and it may not exist."""
    import tifffile

    for part in (part for level in layout.parts for part in level):
        page = part.page.keyframe
        page.init_decode() if hasattr(page, "init_decode") else page.decode
        codec = page.compression
        if codec != 1:
            try:
                tifffile.TIFF.DECOMPRESSORS[codec]
            except (KeyError, ValueError) as error:
                raise UnsupportedTiff(f"{name} is compressed with {codec!s}, which cannot be decoded here.") from error
        if page.is_subsampled and codec not in JPEG:
            raise UnsupportedTiff(f"{name} has subsampled colours without JPEG; export it as RGB.")
        if codec in JPEG and page.samplesperpixel >= 3 and (page.planarconfig == 2 or page.photometric == 1):
            # The codec would take its bands for colours; GDAL knows better.
            raise UnsupportedTiff(f"{name} stores bands that are no colours as JPEG, which cannot be decoded here.")
        if codec in (33003, 33005):
            raise UnsupportedTiff(f"{name} is an Aperio JPEG 2000 slide.", slide=True)
        _ = part.page.jpegtables


def _nodata(layout: Layout) -> tuple[float | None, str | None]:
    """Nodata as the samples that are given out know it, and a note where a conversion leaves no such value."""
    first = layout.parts[0][0]
    key = layout.page.keyframe
    value = _usable_nodata(nodata_of(key), layout.dtype)
    if value is None or first.palette is not None:  # an index of the colour map is alpha of the colours
        return None, None
    if key.dtype == bool and value <= 1 and (first.color is None or inverts(key, first.color)):
        value *= 255  # single bits are read as 0 and 255, and so is their nodata
    if first.color is None:
        return value, None
    if inverts(key, first.color):
        return inverted_value(value, key), None
    return None, f"its nodata value {value:g} is ignored, because it means nothing after the conversion"


def _orientation(page: Any) -> str | None:
    """Rows and columns stay as stored, as geographic and slide software takes them; what viewers turn is said."""
    value = page.tags.valueof(274)
    return (
        f"its orientation tag {value} is ignored: rows and columns are used as stored" if value in range(2, 9) else None
    )


def _usable_nodata(value: float | None, dtype: np.dtype[Any]) -> float | None:
    """Nodata that a sample can hold; 1e20 in a byte image, say, is no value of any pixel."""
    if value is None:
        return None
    if dtype.kind == "f":  # the lowest and highest number, written with too few digits, are meant exactly
        ends = (float(np.finfo(dtype).min), float(np.finfo(dtype).max))
        return next((end for end in ends if math.isclose(value, end, rel_tol=1e-5)), value)
    limits = np.iinfo(dtype)
    return value if value == int(value if np.isfinite(value) else 0) and limits.min <= value <= limits.max else None
