"""The position of a picture on the earth in a small file beside it: world files, and what GDAL writes (PAM)."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from napari_isdnet.io.source import GeoReference, PixelSize

Transform = tuple[float, float, float, float, float, float]
_LETTERS = {".tif": "tfw", ".tiff": "tfw", ".jpg": "jgw", ".jpeg": "jgw", ".png": "pgw", ".jp2": "j2w"}
_MOST_BYTES = 4096
_MOST_XML = 2**24
"""Of GDAL's file, which may hold histograms too."""


def place_beside(image: Path) -> tuple[GeoReference | None, PixelSize | None, str | None]:
    """Position and pixel size of an image by a file beside it, and a note; (None, None, None) without one.

    What GDAL wrote goes before a world file, as in GDAL and QGIS, which write both. The six lines of a world file are
    the transform of pixel *centres* (a, d, b, e, c, f). The system is that of :func:`system_beside`.
    """
    gdal = _pam(image)
    found = re.search(r"<GeoTransform>([^<]*)</GeoTransform>", gdal)
    if found is not None:
        return _placed(image, found[1].split(","), f"{image.name}.aux.xml", _of_corners)
    file = _world_file(image)
    if file is not None:
        try:
            words = file.read_text(encoding="ascii", errors="replace").split()[:6]
        except OSError:
            words = []
        return _placed(image, words, file.name, _of_centres)
    note = f"the ground control points in {image.name}.aux.xml are not used: warp it to a grid first (gdalwarp)"
    return None, None, note if "<GCPList" in gdal else None


def system_beside(image: Path, transform: Transform) -> tuple[str | None, PixelSize | None]:
    """The reference system that GDAL's file or a ``.prj`` beside an image names, and the pixel size in it.

    None of it where there is no such file, or no rasterio to understand it.
    """
    named = re.search(r"<SRS\b[^>]*>([^<]*)</SRS>", _pam(image))
    if named is not None:
        return _system(html.unescape(named[1]), transform)
    file = next((p for p in (image.with_suffix(".prj"), image.with_suffix(".PRJ")) if p.is_file()), None)
    if file is None or file.stat().st_size > 16 * _MOST_BYTES:
        return None, None
    return _system(file.read_text(encoding="utf-8", errors="replace"), transform)


def _placed(
    image: Path, words: Sequence[str], name: str, order: Callable[..., Transform]
) -> tuple[GeoReference | None, PixelSize | None, str]:
    try:
        transform = order(*(float(word) for word in words))
    except (TypeError, ValueError):  # other than six, or no numbers
        transform = (math.nan,) * 6
    a, b, _, d, e, _ = transform
    if not all(math.isfinite(v) for v in transform) or a * e == b * d:
        return None, None, f"the position in {name} is damaged and ignored"
    crs, size = system_beside(image, transform)
    return GeoReference(crs, transform), size, f"its position comes from {name}"


def _of_centres(a: float, d: float, b: float, e: float, c: float, f: float) -> Transform:
    return a, b, c - (a + b) / 2, d, e, f - (d + e) / 2


def _of_corners(c: float, a: float, b: float, f: float, d: float, e: float) -> Transform:
    return a, b, c, d, e, f


def _pam(image: Path) -> str:
    """What GDAL wrote beside an image for which its format has no place (PAM); '' without."""
    file = image.with_name(f"{image.name}.aux.xml")
    if not file.is_file() or file.stat().st_size > _MOST_XML:
        return ""
    return file.read_text(encoding="utf-8", errors="replace")


def _world_file(image: Path) -> Path | None:
    suffix = image.suffix.lower()
    endings = [_LETTERS.get(suffix, ""), f"{suffix[1:]}w", "wld"]
    names = [image.with_suffix(f".{ending}") for ending in endings if ending]
    names += [image.with_suffix(f".{ending.upper()}") for ending in endings if ending]
    return next((name for name in names if name.is_file() and name.stat().st_size <= _MOST_BYTES), None)


def _system(text: str, transform: Transform) -> tuple[str | None, PixelSize | None]:
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
