"""What a person wants to know of an image before it is loaded, in words (no Qt)."""

from __future__ import annotations

import math
from typing import Any

from napari_isdnet.io.intensity import IntensityPolicy
from napari_isdnet.io.source import ImageSource
from napari_isdnet.io.units import length_text, metres_of

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def facts(source: ImageSource, policy: IntensityPolicy) -> list[tuple[str, str]]:
    """(name, value) rows: size, pyramid, pixel size, position, channels, contrast, memory if it were held whole."""
    rows, columns = source.shape
    decoded = rows * columns * source.channels * source.dtype.itemsize
    result = [
        ("Name", source.name),
        ("Format", str(getattr(source, "format", "image"))),
        ("Size", f"{rows:,} rows × {columns:,} columns ({pixels(rows * columns)})"),
        ("Pyramid", pyramid(source)),
        ("Channels", channels(source, policy)),
        ("Pixel size", pixel_size(source)),
        ("Position", position(source)),
        ("Contrast", contrast(policy)),
        ("Decoded size", f"{in_bytes(decoded)} if it were held whole; only what you look at is read"),
    ]
    if source.nodata is not None:
        result.append(("No data", f"value {source.nodata:g}"))
    result += [("Note", note) for note in getattr(source, "notes", ())]
    return result


def pixels(count: int) -> str:
    """A number of pixels in a unit people use."""
    if count >= 1e9:
        return f"{count / 1e9:.2f} gigapixels"
    return f"{count / 1e6:.1f} megapixels" if count >= 1e5 else f"{count:,} pixels"


def in_bytes(count: float) -> str:
    """Bytes in binary units."""
    index = 0
    while count >= 1024 and index < len(_UNITS) - 1:
        count /= 1024
        index += 1
    return f"{count:.0f} {_UNITS[index]}" if index == 0 else f"{count:.1f} {_UNITS[index]}"


def pyramid(source: ImageSource) -> str:
    """How many levels there are, and whether some will be built."""
    levels = source.levels
    if getattr(source, "to_come", False):
        return "none in the file; one is built into the cache, once, while you look at the image"
    if len(levels) == 1:
        return "one level (small enough without a pyramid)"
    return f"{len(levels)} levels, down to {levels[-1][0]:,} × {levels[-1][1]:,}"


def channels(source: ImageSource, policy: IntensityPolicy) -> str:
    """Number, alpha, sample type, and which of them the network sees where that is a choice."""
    count, chosen = source.channels, policy.channels
    alpha = "" if policy.alpha is None else f", channel {policy.alpha} is alpha"
    text = f"{count} × {source.dtype}{alpha}"
    if count == len(chosen) and chosen == tuple(range(count)):
        return text
    numbers = ", ".join(map(str, chosen))
    seen = f"red, green, blue = channels {numbers}" if len(chosen) == 3 else f"grey = channel {numbers}"
    return f"{text}; {seen} (of 0 to {count - 1})"


def pixel_size(source: ImageSource) -> str:
    """Side lengths, or that they are not known."""
    size = source.pixel_size
    if size is None:
        return "not known"
    if abs(size.row - size.column) <= 1e-6 * size.row:
        return f"{size.row:.6g} {size.unit}"
    return f"{size.row:.6g} × {size.column:.6g} {size.unit} (down × across)"


def position(source: ImageSource) -> str:
    """Name of the coordinate reference system and where the top left corner lies; or how far from others it begins."""
    place, size = source.georeference, source.pixel_size
    if place is None and size is not None and any(size.start):
        metres = metres_of(size.unit)
        down, across = (
            length_text(value * metres, 6) if metres and value else f"{value:.6g} {size.unit}" for value in size.start
        )
        return f"begins {down} down and {across} across, as the file says"
    if place is None:
        return "not georeferenced"
    crs = place.crs or "unnamed reference system"
    if len(crs) > 40:  # WKT: its first quoted text is the name
        crs = crs.split('"')[1] if crs.count('"') > 1 else crs[:40] + "…"
    a, b, x, d, e, y = place.transform
    pixel = min(math.hypot(a, d), math.hypot(b, e))
    return f"{crs}, top left at x {coordinate(x, pixel)}, y {coordinate(y, pixel)}"


def coordinate(value: float, pixel: float) -> str:
    """A coordinate in plain decimals, to a tenth of a pixel or finer."""
    digits = min(12, max(0, 1 - math.floor(math.log10(pixel)))) if pixel > 0 else 6
    text = f"{value:.{digits}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


def contrast(policy: IntensityPolicy) -> str:
    """What becomes black and white."""
    ranges = [f"{low:g}–{high:g}" for low, high in zip(policy.low, policy.high, strict=True)]
    text = ranges[0] if len(set(ranges)) == 1 else ", ".join(ranges)
    if (set(policy.low), set(policy.high)) == ({0.0}, {255.0}):
        return "as it is (0–255)"
    return f"{text} shown as black to white ({policy.contrast})"


def report(source: ImageSource, policy: IntensityPolicy) -> dict[str, Any]:
    """The rows and what they were made from, as one result of a job."""
    return {"source": source, "policy": policy, "rows": facts(source, policy)}
