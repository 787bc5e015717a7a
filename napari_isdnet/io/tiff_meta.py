"""Pixel size, position and nodata from the tags of a TIFF page."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_isdnet.io.source import GeoReference, PixelSize

if TYPE_CHECKING:
    import tifffile

_PIXEL_SCALE, _TIEPOINT, _TRANSFORMATION, _GEO_KEYS = 33550, 33922, 34264, 34735
_GDAL_METADATA, _GDAL_NODATA = 42112, 42113
_COLOR_ITEM = re.compile(r'<Item name="COLORINTERP" sample="(\d+)" role="colorinterp">(\w+)</Item>', re.IGNORECASE)
_RASTER_TYPE, _GEOGRAPHIC, _PROJECTED, _LINEAR_UNITS = 1025, 2048, 3072, 3076
_MODEL_TYPE = 1024
_RATIONAL = 50844
_PIXEL_IS_POINT = 2
_NOWHERE = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
"""The transform that GDAL gives an image without a place, and that programs write back with it."""
_USER_DEFINED = 32767
"""Means 'defined by other keys'; lower codes are EPSG's, those beyond are of vendors (OGC GeoTIFF 1.1, 25.1)."""
_GEOCENTRIC = 3
_UNITS = {9001: 1.0, 9002: 0.3048, 9003: 1200 / 3937}
"""Metres per unit of the linear unit codes that are in use (EPSG 9001 metre, 9002 foot, 9003 US survey foot)."""


@dataclass(frozen=True)
class TiffTexts:
    """What the first page of a TIFF says in words: description, OME-XML and GDAL's metadata, '' where it has none."""

    description: str
    ome: str
    gdal: str


def tiff_texts(path: Path) -> TiffTexts | None:
    """The texts of a file, None for what is no TIFF."""
    import tifffile

    try:
        with tifffile.TiffFile(path, _multifile=False) as tif:
            page = tif.pages.first
            return TiffTexts(page.description, tif.ome_metadata or "", str(page.tags.valueof(_GDAL_METADATA) or ""))
    except (tifffile.TiffFileError, OSError, ValueError, AttributeError):
        return None


def nodata_of(page: tifffile.TiffPage) -> float | None:
    """Value of the GDAL_NODATA tag, where there is one that is a number."""
    value = page.tags.valueof(_GDAL_NODATA)
    try:
        return float(str(value).strip().strip("\0").replace(",", ".")) if value is not None else None
    except ValueError:
        return None


def color_names(page: tifffile.TiffPage) -> list[str]:
    """What GDAL's metadata say of the bands of a page, in order: 'Red', 'NIR', ...; '' where they say nothing."""
    value = page.tags.valueof(_GDAL_METADATA)
    said = {int(sample): name for sample, name in _COLOR_ITEM.findall(value if isinstance(value, str) else "")}
    bands = int(page.samplesperpixel or 1)
    usual = ("red", "green", "blue") if page.photometric == 2 else ()
    return [said.get(band, usual[band] if band < len(usual) else "") for band in range(bands)]


def rgb_of(names: Sequence[str]) -> tuple[int, int, int] | None:
    """Where red, green and blue are among named bands; None where one is missing, or they are just the first three."""
    kinds = [name.lower() for name in names]
    if not {"red", "green", "blue"} <= set(kinds):
        return None
    found = (kinds.index("red"), kinds.index("green"), kinds.index("blue"))
    return None if found == (0, 1, 2) else found


def geo_keys(page: tifffile.TiffPage) -> dict[int, int]:
    """The GeoKeys that are short integers (OGC GeoTIFF 1.1, section 7.1.2)."""
    raw = page.tags.valueof(_GEO_KEYS)
    try:
        values = [int(v) for v in raw or ()]
    except (TypeError, ValueError):
        return {}
    entries = [values[i : i + 4] for i in range(4, len(values) - 3, 4)]
    return {key: value for key, location, _, value in entries if location == 0}


def transform_of(page: tifffile.TiffPage, point: bool) -> tuple[float, float, float, float, float, float] | None:
    """Affine transform for pixel corners; ``point`` says that the file's refers to pixel centres."""
    matrix, scale = _floats(page, _TRANSFORMATION), _floats(page, _PIXEL_SCALE)
    tie = _floats(page, _TIEPOINT)
    if len(matrix) == 16:
        a, b, c, d, e, f = matrix[0], matrix[1], matrix[3], matrix[4], matrix[5], matrix[7]
    elif len(scale) >= 2 and len(tie) >= 6:
        a, b, d, e = scale[0], 0.0, 0.0, -abs(scale[1])  # some writers store it negative, and mean the same
        c, f = tie[3] - tie[0] * a, tie[4] - tie[1] * e
    else:
        return None
    if point:
        c, f = c - (a + b) / 2, f - (d + e) / 2
    values = (a, b, c, d, e, f)
    return values if all(math.isfinite(v) for v in values) and a * e != b * d else None


def georeference_of(page: tifffile.TiffPage, path: str) -> tuple[GeoReference | None, PixelSize | None, str | None]:
    """Position, pixel size and, where the coordinate system is not understood, a note."""
    keys = geo_keys(page)
    transform = transform_of(page, keys.get(_RASTER_TYPE) == _PIXEL_IS_POINT)
    if transform is None or (transform == _NOWHERE and not keys):
        points = len(_floats(page, _TIEPOINT)) // 6
        warp = f"its {points} ground control points are not used: warp it to a grid first (gdalwarp)"
        rpc = "its rational polynomials (RPC) are not used: orthorectify it first (gdalwarp -rpc)"
        return None, None, warp if points > 1 else rpc if _RATIONAL in page.tags else None
    projected = _PROJECTED in keys or keys.get(_MODEL_TYPE) == 1
    code = keys.get(_PROJECTED) if projected else keys.get(_GEOGRAPHIC)
    crs, note = (None if code is None else f"EPSG:{code}"), None
    own = keys.get(_MODEL_TYPE) == _USER_DEFINED  # in words, as GDAL writes Mollweide; the keys are of its base
    if keys and (own or not code or code >= _USER_DEFINED):
        crs, note = _crs_by_rasterio(path)
    row, column = GeoReference(crs, transform).sides
    size: PixelSize | None = None
    if own:
        size = _size_by_rasterio(crs, transform, False)
    elif projected:
        metres = _UNITS.get(keys.get(_LINEAR_UNITS, 0))
        if metres is not None:
            size = PixelSize(row * metres, column * metres, "m")
        else:
            size = _size_by_rasterio(crs, transform, _LINEAR_UNITS not in keys)
            note = note or (None if size else "its pixel size is not known: the unit of its coordinate system is not")
    elif _GEOGRAPHIC in keys and keys.get(_MODEL_TYPE) != _GEOCENTRIC:
        size = PixelSize(row, column, "degree")
    return GeoReference(crs, transform), size, note


def _size_by_rasterio(crs: str | None, transform: tuple[float, ...], usual: bool) -> PixelSize | None:
    """Pixel size in a projected system whose unit only PROJ knows; without it metres, if the ``usual`` is likely."""
    try:
        from rasterio.crs import CRS
        from rasterio.errors import CRSError

        from napari_isdnet.io.geo import pixel_size_in
    except ImportError:
        row, column = GeoReference(crs, transform).sides  # type: ignore[arg-type]
        return PixelSize(row, column, "m") if usual and crs is not None else None
    try:
        return pixel_size_in(CRS.from_user_input(crs), transform) if crs is not None else None
    except CRSError:
        return None


def _crs_by_rasterio(path: str) -> tuple[str | None, str | None]:
    """Coordinate systems without a code of their own need PROJ's full text, which only rasterio makes."""
    try:
        import rasterio
    except ImportError:
        return None, 'its coordinate system has no EPSG code; pip install "napari-isdnet[geo]" to carry it over'
    from napari_isdnet.io.geo import crs_text

    try:
        with rasterio.open(path) as dataset:
            return crs_text(dataset.crs), None
    except rasterio.errors.RasterioError:
        return None, "its coordinate system is not understood"


def pixel_size_of(page: tifffile.TiffPage, ome: str | None) -> PixelSize | None:
    """Pixel size from OME-XML, Aperio's MPP, ImageJ's unit, or a resolution per centimetre."""
    if ome:
        return _ome_pixel_size(ome, (int(page.imagewidth), int(page.imagelength)))
    text = page.description or ""
    if page.is_svs or text.startswith("Aperio"):
        found = re.search(r"\bMPP\s*=\s*([0-9.]+)", text)
        return _square(_number(found[1]) if found else 0.0)
    per_column, per_row = _ratio(page.tags.valueof(282)), _ratio(page.tags.valueof(283))
    if per_column <= 0 or per_row <= 0:
        return None
    if text.startswith("ImageJ="):
        unit = re.search(r"^unit=(\S+)", text, re.MULTILINE)
        size = PixelSize(1 / per_row, 1 / per_column, unit[1].replace("\\u00B5", "µ")) if unit else None
        return size if size is not None and size.metres and size.unit != "in" else None
    # Per inch is what cameras and paint programs write by habit (72 dpi): it says nothing about the thing seen.
    return PixelSize(1e4 / per_row, 1e4 / per_column, "µm") if page.tags.valueof(296) == 3 else None


def _ome_pixel_size(ome: str, sides: tuple[int, int]) -> PixelSize | None:
    """The pixel size of the first image of ``sides`` (columns, rows): those of a label or an overview are others."""
    found = re.findall(r"<(?:\w+:)?Pixels\b([^>]*)>", ome)
    images = [dict(re.findall(r"(\w+)\s*=\s*[\"']([^\"']*)[\"']", text)) for text in found]
    attributes = next((a for a in images if (_number(a.get("SizeX")), _number(a.get("SizeY"))) == sides), None)
    if attributes is None:
        return None
    row, column = _number(attributes.get("PhysicalSizeY")), _number(attributes.get("PhysicalSizeX"))
    unit = attributes.get("PhysicalSizeXUnit", "µm")
    if row <= 0 or column <= 0 or attributes.get("PhysicalSizeYUnit", "µm") != unit:
        return None
    return PixelSize(row, column, html.unescape(unit))


def _square(microns: float) -> PixelSize | None:
    return PixelSize(microns, microns, "µm") if microns > 0 else None


def _number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return 0.0
    return number if math.isfinite(number) else 0.0


def _ratio(value: Any) -> float:
    if isinstance(value, tuple) and len(value) == 2:
        return _number(value[0]) / value[1] if _number(value[1]) else 0.0
    return _number(value)


def _floats(page: tifffile.TiffPage, code: int) -> list[float]:
    try:
        return [float(v) for v in page.tags.valueof(code) or ()]
    except (TypeError, ValueError):
        return []
