"""What an annotator does, as geometry at level 0: small enough for a journal, exact when it is replayed.

Coordinates are (row, column) in pixels with pixel *centres* on whole numbers (napari's data coordinates); files with
pixel corners, such as GeoJSON, are converted by half a pixel in :mod:`napari_isdnet.annotation.drawn`.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from napari_isdnet.annotation.raster import Mask, Runs, brush_runs, polygon_runs
from napari_isdnet.exceptions import InputError
from napari_isdnet.window import Window

Labels = npt.NDArray[np.uint8]
Points = Sequence[tuple[float, float]]
Radius = float | tuple[float, float]

SMALLEST_RADIUS = 0.75
"""A brush is never narrower, so that a click anywhere paints at least one pixel (the farthest centre is 0.71 away)."""


class Cover(Protocol):
    """Which pixels a stroke touches, asked window by window."""

    @property
    def bounds(self) -> Window:
        """A window around everything, inside the image."""

    def mask(self, window: Window) -> Mask | bool:
        """The touched pixels of ``window``; ``True`` for all and ``False`` for none of them."""

    def band(self, top: int, bottom: int) -> Cover:
        """The part in rows ``top .. bottom - 1``."""


class Stroke(Protocol):
    """One thing to paint. ``kind`` names it in the journal."""

    kind: ClassVar[str]

    def cover(self, shape: tuple[int, int]) -> Cover:
        """Its pixels in an image of ``shape`` (rows, columns)."""

    def to_json(self) -> tuple[dict[str, Any], bytes | None]:
        """JSON-ready geometry, and bytes that are kept beside it (compressed pixels) if there are any."""


def _points(points: Any, least: int, what: str) -> tuple[tuple[float, float], ...]:
    array = np.asarray(points, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != 2 or len(array) < least or not np.isfinite(array).all():
        raise InputError(
            f"A {what} needs at least {least} finite (row, column) points, got an array of shape {array.shape}."
        )
    # A thousandth of a pixel is finer than any pointer; rounding once keeps the journal short and replay exact.
    return tuple((float(r), float(c)) for r, c in np.round(array, 3))


def radii_of(radius: Radius) -> tuple[float, float]:
    """Pixels down and across of a radius that may be one number."""
    return radius if isinstance(radius, tuple) else (radius, radius)


@dataclass(frozen=True)
class Brush:
    """A path drawn with a round brush: every pixel whose centre is within ``radius`` of the polyline ``points``.

    Where pixels are not square ``radius`` is a pair, pixels down and across: the brush is round on the earth then.
    """

    kind: ClassVar[str] = "brush"
    points: Points
    radius: Radius

    def __post_init__(self) -> None:
        object.__setattr__(self, "points", _points(self.points, 1, "brush stroke"))
        if not all(0 < radius < 1e7 for radius in self.radii):
            widest = " x ".join(f"{radius:,.0f}" for radius in dict.fromkeys(self.radii))
            raise InputError(
                f"A brush radius must be above 0 pixels and below ten million, got {widest}; zoom in, or take a smaller"
                " brush."
            )
        down, across = (round(float(radius), 3) for radius in self.radii)
        object.__setattr__(self, "radius", down if down == across else (down, across))

    @property
    def radii(self) -> tuple[float, float]:
        """Pixels down and across."""
        return radii_of(self.radius)

    def cover(self, shape: tuple[int, int]) -> Cover:
        """The runs of the path."""
        down, across = self.radii
        wider = max(1.0, SMALLEST_RADIUS * math.sqrt((down**-2 + across**-2) / 2))
        return brush_runs(np.asarray(self.points), (down * wider, across * wider), shape)

    def to_json(self) -> tuple[dict[str, Any], bytes | None]:
        """Points and radius."""
        radius = list(self.radius) if isinstance(self.radius, tuple) else self.radius
        return {"points": [list(p) for p in self.points], "radius": radius}, None


@dataclass(frozen=True)
class Polygon:
    """The pixels whose centre is inside ``rings``; after the first ring, further ones are holes (even-odd rule)."""

    kind: ClassVar[str] = "polygon"
    rings: Sequence[Points]

    def __post_init__(self) -> None:
        rings = tuple(_points(ring, 3, "polygon ring") for ring in self.rings)
        if not rings:
            raise InputError("A polygon needs at least one ring of points, got none.")
        object.__setattr__(self, "rings", rings)

    def cover(self, shape: tuple[int, int]) -> Cover:
        """The runs between its edges."""
        return polygon_runs([np.asarray(ring) for ring in self.rings], shape)

    def to_json(self) -> tuple[dict[str, Any], bytes | None]:
        """The rings."""
        return {"rings": [[list(p) for p in ring] for ring in self.rings]}, None


@dataclass(frozen=True)
class Lasso:
    """A free-hand loop, closed by itself; where it crosses itself the overlap is inside (nonzero winding)."""

    kind: ClassVar[str] = "lasso"
    points: Points

    def __post_init__(self) -> None:
        object.__setattr__(self, "points", _points(self.points, 3, "lasso"))

    def cover(self, shape: tuple[int, int]) -> Cover:
        """The runs inside the loop."""
        return polygon_runs([np.asarray(self.points)], shape, nonzero=True)

    def to_json(self) -> tuple[dict[str, Any], bytes | None]:
        """The loop."""
        return {"points": [list(p) for p in self.points]}, None


@dataclass(frozen=True)
class _Box:
    bounds: Window
    outer: Window
    pixels: Mask | None = None

    def band(self, top: int, bottom: int) -> Cover:
        rows = Window.from_bounds(top, self.bounds.column, bottom, self.bounds.right)
        return _Box(self.bounds.intersect(rows), self.outer, self.pixels)

    def mask(self, window: Window) -> Mask | bool:
        inside = window.intersect(self.bounds)
        if inside.empty:
            return False
        if inside == window and self.pixels is None:
            return True
        mask = np.zeros(window.shape, dtype=np.bool_)
        part: Any = True if self.pixels is None else self.pixels[inside.relative_to(self.outer).slices]
        mask[inside.relative_to(window).slices] = part
        return mask if mask.any() else False


@dataclass(frozen=True)
class Rectangle:
    """All pixels of a window at level 0; what reaches outside the image is cut off."""

    kind: ClassVar[str] = "rectangle"
    window: Window

    def cover(self, shape: tuple[int, int]) -> Cover:
        """The window."""
        return _Box(self.window.clipped(shape), self.window)

    def to_json(self) -> tuple[dict[str, Any], bytes | None]:
        """The window."""
        return {"window": astuple(self.window)}, None


@dataclass(frozen=True, eq=False)
class Region:
    """The pixels of ``mask`` (height, width; bool) in ``window``: a superpixel, or a predicted region accepted.

    ``origin`` says which ('superpixel', 'prediction', ...), for provenance.
    """

    kind: ClassVar[str] = "region"
    window: Window
    mask: Mask
    origin: str = "superpixel"

    def __post_init__(self) -> None:
        mask = np.array(self.mask, dtype=np.bool_)
        if mask.shape != self.window.shape:
            raise InputError(f"The mask of a region must fit its window {self.window.shape}, got {mask.shape}.")
        object.__setattr__(self, "mask", mask)

    def cover(self, shape: tuple[int, int]) -> Cover:
        """The mask in its place."""
        return _Box(self.window.clipped(shape), self.window, self.mask)

    def to_json(self) -> tuple[dict[str, Any], bytes | None]:
        """Window, origin, and one bit per pixel."""
        return {"window": astuple(self.window), "origin": self.origin}, _compress(np.packbits(self.mask))


@dataclass(frozen=True, eq=False)
class Patch:
    """Annotation values (height, width; 0 = unlabelled) that replace what ``window`` holds: an edit window flushed.

    Only where ``mask`` is true, when there is one. Unlike the other strokes it carries its own classes.
    """

    kind: ClassVar[str] = "patch"
    window: Window
    values: Labels
    mask: Mask | None = None
    origin: str = "edit window"

    def __post_init__(self) -> None:
        values = np.array(self.values)
        if values.dtype.kind not in "iub" or values.shape != self.window.shape:
            raise InputError(
                f"A patch needs whole numbers in the shape of its window {self.window.shape}, got {values.dtype} in"
                f" {values.shape}."
            )
        if values.size and not 0 <= int(values.min()) <= int(values.max()) <= 254:
            raise InputError(
                f"Annotation values go from 0 (unlabelled) to 254, got {values.min()} to {values.max()}; 255 marks a"
                " mask of class indices, which must be converted first (values='mask')."
            )
        object.__setattr__(self, "values", values.astype(np.uint8))
        if self.mask is not None:
            mask = np.array(self.mask, dtype=np.bool_)
            if mask.shape != self.window.shape:
                raise InputError(f"The mask of a patch must fit its window {self.window.shape}, got {mask.shape}.")
            object.__setattr__(self, "mask", mask)

    def cover(self, shape: tuple[int, int]) -> Cover:
        """The window, or the mask in it."""
        return _Box(self.window.clipped(shape), self.window, self.mask)

    def to_json(self) -> tuple[dict[str, Any], bytes | None]:
        """Window, origin, and the values followed by the bits of the mask."""
        data = self.values.tobytes() + (b"" if self.mask is None else np.packbits(self.mask).tobytes())
        about = {"window": astuple(self.window), "origin": self.origin, "masked": self.mask is not None}
        return about, _compress(np.frombuffer(data, dtype=np.uint8))


def _compress(data: npt.NDArray[np.uint8]) -> bytes:
    import imagecodecs

    return bytes(imagecodecs.zstd_encode(data.tobytes(), level=3)) if data.size else b""


def _decompress(data: bytes, size: int) -> npt.NDArray[np.uint8]:
    import imagecodecs

    return np.frombuffer(imagecodecs.zstd_decode(data, out=size) if size else b"", dtype=np.uint8)


def _bits(data: npt.NDArray[np.uint8], window: Window) -> Mask:
    return np.unpackbits(data, count=window.area).reshape(window.shape).astype(np.bool_)


def stroke_from_json(kind: str, about: Mapping[str, Any], data: bytes | None) -> Stroke:
    """The stroke that :meth:`Stroke.to_json` wrote; raises :class:`InputError` for a kind that is not known."""
    if kind == Brush.kind:
        radius = about["radius"]
        return Brush(about["points"], tuple(radius) if isinstance(radius, list) else radius)
    if kind == Polygon.kind:
        return Polygon(about["rings"])
    if kind == Lasso.kind:
        return Lasso(about["points"])
    window = Window(*about["window"]) if "window" in about else Window(0, 0, 0, 0)
    if kind == Rectangle.kind:
        return Rectangle(window)
    bits = -(-window.area // 8)
    if kind == Region.kind:
        return Region(window, _bits(_decompress(data or b"", bits), window), about["origin"])
    if kind == Patch.kind:
        raw = _decompress(data or b"", window.area + (bits if about["masked"] else 0))
        mask = _bits(raw[window.area :], window) if about["masked"] else None
        return Patch(window, raw[: window.area].reshape(window.shape), mask, about["origin"])
    raise InputError(f"The journal holds a stroke of kind '{kind}', which this version does not know; update it.")


def to_text(data: bytes) -> str:
    """Bytes for a line of JSON."""
    return base64.b64encode(data).decode("ascii")


def from_text(text: str) -> bytes:
    """Inverse of :func:`to_text`."""
    return base64.b64decode(text)


__all__ = ["Brush", "Cover", "Lasso", "Patch", "Polygon", "Rectangle", "Region", "Runs", "Stroke", "stroke_from_json"]
