"""The position of a picture on the earth in a small file beside it: world files, and what GDAL writes (PAM)."""

from __future__ import annotations

import html
import math
import re
from pathlib import Path

from napari_isdnet.io.source import GeoReference, PixelSize

_LETTERS = {".tif": "tfw", ".tiff": "tfw", ".jpg": "jgw", ".jpeg": "jgw", ".png": "pgw", ".jp2": "j2w"}
_MOST_BYTES = 4096
_MOST_XML = 2**24
"""Of GDAL's file, which may hold histograms too."""


def place_beside(image: Path) -> tuple[GeoReference | None, PixelSize | None, str | None]:
    """Position and pixel size of an image by a file beside it, and a note; (None, None, None) without one.

    The six lines of a world file are the transform of pixel *centres* (a, d, b, e, c, f). The system comes from a
    ``.prj`` beside it, which needs rasterio; without either the position is known in no system.
    """
    file = _world_file(image)
    if file is None:
        return _place_by_gdal(image)
    try:
        a, d, b, e, c, f = (float(text) for text in file.read_text(encoding="ascii").split()[:6])
    except (OSError, ValueError):
        return None, None, f"its world file {file.name} is damaged and ignored"
    if not all(math.isfinite(v) for v in (a, b, c, d, e, f)) or a * e == b * d:
        return None, None, f"its world file {file.name} is damaged and ignored"
    transform = (a, b, c - (a + b) / 2, d, e, f - (d + e) / 2)
    crs, size = _system_beside(image, transform)
    return GeoReference(crs, transform), size, f"its position comes from {file.name}"


def _place_by_gdal(image: Path) -> tuple[GeoReference | None, PixelSize | None, str | None]:
    """The same from the ``.aux.xml`` that GDAL writes where a format has no place for it: of pixel corners."""
    file = image.with_name(f"{image.name}.aux.xml")
    if not file.is_file() or file.stat().st_size > _MOST_XML:
        return None, None, None
    text = file.read_text(encoding="utf-8", errors="replace")
    found = re.search(r"<GeoTransform>([^<]*)</GeoTransform>", text)
    if found is None:
        points = "<GCPList" in text
        note = f"the ground control points in {file.name} are not used: warp it to a grid first (gdalwarp)"
        return None, None, note if points else None
    try:
        c, a, b, f, d, e = (float(value) for value in found[1].split(","))
    except ValueError:
        return None, None, f"the position in {file.name} is damaged and ignored"
    if not all(math.isfinite(v) for v in (a, b, c, d, e, f)) or a * e == b * d:
        return None, None, f"the position in {file.name} is damaged and ignored"
    system = re.search(r"<SRS\b[^>]*>([^<]*)</SRS>", text)
    crs, size = _system(html.unescape(system[1]), (a, b, c, d, e, f)) if system else (None, None)
    return GeoReference(crs, (a, b, c, d, e, f)), size, f"its position comes from {file.name}"


def _world_file(image: Path) -> Path | None:
    suffix = image.suffix.lower()
    endings = [_LETTERS.get(suffix, ""), f"{suffix[1:]}w", "wld"]
    names = [image.with_suffix(f".{ending}") for ending in endings if ending]
    names += [image.with_suffix(f".{ending.upper()}") for ending in endings if ending]
    return next((name for name in names if name.is_file() and name.stat().st_size <= _MOST_BYTES), None)


def _system_beside(image: Path, transform: tuple[float, ...]) -> tuple[str | None, PixelSize | None]:
    """The reference system of a ``.prj`` file, and the pixel size in it."""
    file = next((p for p in (image.with_suffix(".prj"), image.with_suffix(".PRJ")) if p.is_file()), None)
    if file is None or file.stat().st_size > 16 * _MOST_BYTES:
        return None, None
    return _system(file.read_text(encoding="utf-8", errors="replace"), transform)


def _system(text: str, transform: tuple[float, ...]) -> tuple[str | None, PixelSize | None]:
    """A reference system from its WKT, and the pixel size in it; needs rasterio."""
    try:
        from rasterio.crs import CRS
        from rasterio.errors import CRSError

        from napari_isdnet.io.geo import crs_text, pixel_size_in
    except ImportError:
        return None, None
    try:
        crs = CRS.from_user_input(text)
    except CRSError:
        return None, None
    return crs_text(crs), pixel_size_in(crs, transform)
