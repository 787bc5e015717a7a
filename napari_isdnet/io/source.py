"""What every reader offers: :class:`ImageSource`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from napari_isdnet.exceptions import InputError
from napari_isdnet.io.units import metres_of, symbol_of
from napari_isdnet.window import Window

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


SKIPPING = ", or use --skip-bad-tiles to get nodata there."
"""The end of what a :class:`TileError` says, for whom it is no advice."""


@dataclass(frozen=True)
class PixelSize:
    """Length of one level-0 pixel down and across, in ``unit`` ('m', 'µm', 'degree', ...).

    A unit of length may be given in any spelling ('micrometer', 'um'); what is kept is its symbol. ``start``: where the
    centre of the first pixel lies, down and across, in the same unit; an OME-Zarr may say that its image begins beside
    the origin of a space that it shares with others.
    """

    row: float
    column: float
    unit: str = "m"
    start: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "unit", symbol_of(self.unit))

    @property
    def metres(self) -> float | None:
        """Geometric mean of both sides in metres, or None for an angular or unknown unit."""
        scale = metres_of(self.unit)
        return None if scale is None else (self.row * self.column) ** 0.5 * scale


_WEB_MERCATOR = ("EPSG:3857", "EPSG:3785", "EPSG:900913")
_EARTH = 6_378_137.0
"""Radius of the sphere of Web Mercator (m)."""


def short_name(crs: str) -> str:
    """A reference system as a sentence can hold it: WKT by the name in it."""
    return crs.split('"')[1] if '"' in crs else crs


@dataclass(frozen=True)
class GeoReference:
    """Where an image lies: a coordinate reference system (WKT or 'EPSG:n') and an affine transform.

    ``transform`` is ``(a, b, c, d, e, f)``: ``x = a * column + b * row + c``, ``y = d * column + e * row + f`` for
    pixel
    *corners* (the convention of GDAL and rasterio).
    """

    crs: str | None
    transform: tuple[float, float, float, float, float, float]

    @property
    def sides(self) -> tuple[float, float]:
        """Height and width of a pixel in units of the system; the height is that over the width, also where sheared."""
        a, b, _, d, e, _ = self.transform
        width = math.hypot(a, d)
        return (abs(a * e - b * d) / width if width else 0.0), width

    def pixels(self, points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """(n, 2) of x and y on the map as columns and rows, in pixel corners."""
        import numpy as np

        a, b, c, d, e, f = self.transform
        return np.asarray((points - (c, f)) @ np.linalg.inv(np.array([[a, b], [d, e]])).T)

    def shrinkage(self, shape: tuple[int, int]) -> float:
        """How many metres on the ground one of the map is, in the middle of an image of ``shape``.

        1 but for Web Mercator, whose metre is one at the equator only: half of one at 60 degrees.
        """
        if self.crs not in _WEB_MERCATOR:
            return 1.0
        _, _, _, d, e, f = self.transform
        northing = f + d * shape[1] / 2 + e * shape[0] / 2
        return 1 / math.cosh(northing / _EARTH)


@runtime_checkable
class ImageSource(Protocol):
    """An image of any size that is read window by window. Thread-safe: many threads may ``read`` at once."""

    @property
    def name(self) -> str:
        """File stem, or the name of a layer or array; used for naming results."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns at level 0."""

    @property
    def channels(self) -> int:
        """Number of channels, at least 1 (alpha included)."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Sample type."""

    @property
    def levels(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of every pyramid level, level 0 first."""

    @property
    def pixel_size(self) -> PixelSize | None:
        """Size of a level-0 pixel, where known, and where the first one lies beside others."""

    @property
    def georeference(self) -> GeoReference | None:
        """Position on the earth, where known."""

    @property
    def nodata(self) -> float | None:
        """Sample value that means 'no data' in every channel, where the file declares one."""

    @property
    def alpha(self) -> int | None:
        """Index of the alpha channel, where there is one."""

    def read(self, window: Window, level: int = 0) -> npt.NDArray[Any]:
        """Pixels of ``window`` at ``level`` as ``(height, width, channels)``.

        The window must lie inside the level; raises :class:`~napari_isdnet.exceptions.InputError` otherwise, and
        :class:`TileError` where the file cannot be decoded there.
        """

    def identity(self) -> Mapping[str, Any]:
        """JSON-ready facts that tell this image from another (path, size, mtime or content hash); for the ledger."""

    def close(self) -> None:
        """Release file handles; reading afterwards is an error."""


def quick_identity(source: ImageSource) -> Mapping[str, Any]:
    """The identity of ``source``, without the hash of all pixels where one belongs to it (of arrays in memory).

    For naming what belongs to an image, on a thread that must not wait; a job, or a cache of what was computed from the
    pixels, needs ``source.identity()``.
    """
    quick = getattr(source, "quick_identity", None)
    found: Mapping[str, Any] = source.identity() if quick is None else quick()
    return found


def written_meanwhile(source: ImageSource) -> bool:
    """Whether the file of ``source``, or one that it refers to, was written, replaced or removed since it was opened.

    Known of TIFF and of what GDAL reads; False of anything else.
    """
    inner = getattr(source, "source", None)  # of one that shows another in another way
    own = getattr(source if inner is None else inner, "written_meanwhile", None)
    return own is not None and bool(own())


def otherwise_now(facts: Mapping[str, Any], look: Callable[[], Mapping[str, Any]]) -> bool:
    """Whether a ``look`` at files finds other ``facts`` than there were, or none because one is gone."""
    try:
        return look() != facts
    except OSError:
        return True


def without_overviews(source: ImageSource) -> ImageSource:
    """``source`` as its file is, without the levels that were built for looking at it, if it has any."""
    own = getattr(source, "without_overviews", None)
    found: ImageSource = source if own is None else own()
    return found


def read_channels(source: ImageSource, window: Window, channels: Sequence[int], level: int = 0) -> npt.NDArray[Any]:
    """``source.read(window, level)[..., channels]``, a new array (height, width, channels asked for).

    What is not asked for is not held, nor decoded where the source can do without: an image may have 200 bands.
    """
    channels = tuple(channels)
    if channels == tuple(range(source.channels)):
        return source.read(window, level)
    picked = getattr(source, "read_channels", None)
    found: npt.NDArray[Any] = (
        source.read(window, level)[..., list(channels)] if picked is None else picked(window, channels, level)
    )
    return found


def resident_bytes(source: ImageSource) -> int:
    """Bytes that a source decoded as it was opened, and holds until it is closed (PNG and JPEG); 0 for most."""
    return int(getattr(source, "resident_bytes", 0))


class TileError(InputError):
    """Part of a file cannot be read; carries where."""

    def __init__(
        self, name: str, window: Window, level: int, reason: str, remedy: str = f"repair the file{SKIPPING}"
    ) -> None:
        super().__init__(
            f"{name}: cannot read rows {window.row}-{window.bottom - 1}, columns {window.column}-{window.right - 1}"
            f" at level {level} ({reason}); {remedy}"
        )
        self.window = window
        self.level = level


def check_window(source: ImageSource, window: Window, level: int) -> None:
    """Raise :class:`InputError` unless ``window`` lies inside ``level`` of ``source``."""
    if not 0 <= level < len(source.levels):
        raise InputError(f"{source.name} has levels 0 to {len(source.levels) - 1}, level {level} was asked for.")
    if not Window.whole(source.levels[level]).contains(window):
        rows, columns = source.levels[level]
        raise InputError(f"{source.name} is {rows} x {columns} at level {level}; {window} lies outside.")
