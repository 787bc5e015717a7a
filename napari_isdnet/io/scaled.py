"""An image at another resolution, resampled as it is read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_isdnet.exceptions import InputError
from napari_isdnet.io.base import SourceBase, SourceInfo, as_samples
from napari_isdnet.io.source import (
    GeoReference,
    ImageSource,
    PixelSize,
    quick_identity,
    resident_bytes,
    without_overviews,
)
from napari_isdnet.window import Grid, Window

if TYPE_CHECKING:
    import numpy.typing as npt

READ_BYTES = 64 * 2**20
"""What one read of the source and its sums may take; larger windows are made strip by strip."""
Taps = tuple["npt.NDArray[np.int64]", "npt.NDArray[np.float64]"]
Found = tuple["npt.NDArray[np.int64]", "npt.NDArray[np.float64]", "npt.NDArray[np.int64]", "npt.NDArray[np.float64]"]
"""Taps and weights of rows, then of columns."""


def resampled(source: ImageSource, factor: float) -> ImageSource:
    """``source`` with ``factor`` times as many rows and columns (0.5: half); the source itself for a factor of 1.

    Smaller: mean over the area that each new pixel covers; larger: bilinear. A pixel depends on its place in the image
    alone, never on the window it is read with. Missing pixels (nodata, not finite) take no part in a mean, and hidden
    ones (alpha 0) none in that of colours: what lies there would be a fringe around what is seen. Alpha is averaged as
    it is.
    """
    if not (math.isfinite(factor) and 1 / 256 <= factor <= 256):
        raise InputError(f"--scale must be between 1/256 and 256, got {factor}.")
    return source if factor == 1 else ScaledSource(source, factor)


def taps(start: int, count: int, length: int, total: int) -> Taps:
    """Which of ``length`` inputs make the outputs ``start .. start + count - 1`` of ``total``, with what weights.

    Both arrays are ``(count, taps)``; weights of a row sum to 1. The number of taps and the order they are added in are
    the same for every window, so sums round the same way.
    """
    ratio = length / total
    position = np.arange(start, start + count, dtype=np.float64)
    if ratio > 1:
        low, high = position * ratio, (position + 1) * ratio
        first = np.floor(low).astype(np.int64)
        index = first[:, None] + np.arange(math.ceil(ratio) + 1)
        weight = np.clip(np.minimum(high[:, None], index + 1) - np.maximum(low[:, None], index), 0, None)
        weight[index >= length] = 0
    else:
        center = (position + 0.5) * ratio - 0.5
        first = np.floor(center).astype(np.int64)
        index = first[:, None] + np.arange(2)
        weight = np.stack([1 - (center - first), center - first], axis=1)
    return np.clip(index, 0, length - 1), weight / weight.sum(axis=1, keepdims=True)


def _scaled_size(size: PixelSize, row: float, column: float) -> PixelSize:
    # The corner of the first pixel stays where it is, so that its centre moves.
    start = size.start[0] + (row - 1) / 2 * size.row, size.start[1] + (column - 1) / 2 * size.column
    return PixelSize(size.row * row, size.column * column, size.unit, start)


class ScaledSource(SourceBase):
    """See :func:`resampled`. Its levels are the source's, as far as they go, each resampled from the next finer one.

    ``pixels``: how many rows and columns of the source one of its own stands for.
    """

    def __init__(self, source: ImageSource, factor: float) -> None:
        self.source = source
        self.factor = factor
        shape = tuple(max(1, round(n * factor)) for n in source.shape)
        levels = [(shape[0], shape[1])]
        while max(levels[-1]) > max(256, *(2 * n for n in source.levels[-1])) and min(levels[-1]) > 1:
            levels.append((-(-levels[-1][0] // 2), -(-levels[-1][1] // 2)))
        row, column = self.pixels = source.shape[0] / shape[0], source.shape[1] / shape[1]
        size, place = source.pixel_size, source.georeference
        super().__init__(
            SourceInfo.of(
                source,
                levels=tuple(levels),
                format="resampled",
                pixel_size=size and _scaled_size(size, row, column),
                georeference=place and GeoReference(place.crs, _scaled_transform(place.transform, row, column)),
                notes=(f"resampled by {factor:g}",),
            )
        )

    def _from_level(self, level: int) -> int:
        """The coarsest level of the source that is at least as fine as ours."""
        rows, columns = self.levels[level]
        fine = [i for i, (r, c) in enumerate(self.source.levels) if r >= rows and c >= columns]
        return max(fine, default=0)

    def _read(self, window: Window, level: int) -> npt.NDArray[Any]:
        return self._read_channels(window, level, range(self.channels))

    def _read_channels(self, window: Window, level: int, channels: Sequence[int]) -> npt.NDArray[Any]:
        if window.empty:
            return np.empty((*window.shape, len(channels)), self.dtype)
        # Every channel of a strip is made, since all of them say which pixels are missing; a strip takes few bytes.
        parts = [self._resample(part, level, channels) for part in self._strips(window, level)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _strips(self, window: Window, level: int) -> list[Window]:
        origin = self._from_level(level)
        (rows, columns), (length, width) = self.levels[level], self.source.levels[origin]
        # A row's samples, and the sums over them in float64; rows depend on none but their own, so strips are the same.
        row_bytes = window.width * max(1.0, width / columns) * max(1.0, length / rows) * self.channels
        strip = max(1, int(READ_BYTES / (row_bytes * (self.dtype.itemsize + 8))))
        return [part.shifted(window.row, window.column) for part in Grid(window.shape, (strip, window.width))]

    def _resample(self, window: Window, level: int, channels: Sequence[int]) -> npt.NDArray[Any]:
        origin = self._from_level(level)
        (rows, columns), (length, width) = self.levels[level], self.source.levels[origin]
        down, down_weight = taps(window.row, window.height, length, rows)
        across, across_weight = taps(window.column, window.width, width, columns)
        top, left = int(down.min()), int(across.min())
        area = Window(top, left, int(down.max()) + 1 - top, int(across.max()) + 1 - left)
        raw = self.source.read(area, origin)
        found = down - top, down_weight, across - left, across_weight
        valid = _valid(raw, self.nodata, self.alpha)
        mean, missing = _mean(raw, valid, found)
        if self.alpha is not None:
            self._show_colors(mean, raw, valid, found)
        result = as_samples(mean, self.dtype)
        if missing is not None:
            result[missing] = self.nodata if self.nodata is not None else np.nan
        return result if list(channels) == list(range(self.channels)) else np.take(result, channels, axis=2)

    def _show_colors(
        self, mean: npt.NDArray[np.float64], raw: npt.NDArray[Any], valid: npt.NDArray[np.bool_] | None, found: Found
    ) -> None:
        """Put the mean of what is seen in the place of ``mean``, where something is seen and something hidden."""
        hidden = raw[..., self.alpha] == 0
        if not hidden.any():
            return
        seen = ~hidden if valid is None else valid & ~hidden
        # The weights of what is hidden sum to 0 exactly where nothing is, and there the mean stays what it was: else
        # rounding would differ between a window that holds a hidden pixel somewhere and one that holds none.
        some = (_apply(hidden[..., None], *found) > 0) & (_apply(seen[..., None], *found) > 0)
        shown, _ = _mean(raw, seen, found)
        colors = [c for c in range(self.channels) if c != self.alpha]
        mean[..., colors] = np.where(some, shown[..., colors], mean[..., colors])

    def identity(self) -> Mapping[str, Any]:
        """The source's identity and the factor."""
        # The pixels of images with alpha were others once: what is kept of those must not be taken for these.
        how = {} if self.alpha is None else {"hidden": "left out"}
        return {**self.source.identity(), "scale": self.factor, **how}

    @property
    def resident_bytes(self) -> int:
        """Those of the source."""
        return resident_bytes(self.source)

    def without_overviews(self) -> ImageSource:
        """The same of the source without the levels that were built for looking at it; itself where there are none."""
        own = without_overviews(self.source)
        return self if own is self.source else ScaledSource(own, self.factor)

    def quick_identity(self) -> Mapping[str, Any]:
        """As :func:`~napari_isdnet.io.source.quick_identity`, with the factor."""
        return {**quick_identity(self.source), "scale": self.factor}

    def _release(self) -> None:
        self.source.close()


def _apply(
    raw: npt.NDArray[Any],
    down: npt.NDArray[np.int64],
    down_weight: npt.NDArray[np.float64],
    across: npt.NDArray[np.int64],
    across_weight: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    # Tap by tap, not as a matrix product: a product's order of addition depends on the size of the matrices.
    rows = np.zeros((len(down), *raw.shape[1:]))
    for tap in range(down.shape[1]):
        rows += raw[down[:, tap]] * down_weight[:, tap, None, None]
    result = np.zeros((len(down), len(across), raw.shape[2]))
    for tap in range(across.shape[1]):
        result += rows[:, across[:, tap]] * across_weight[:, tap, None]
    return result


def _mean(
    raw: npt.NDArray[Any], valid: npt.NDArray[np.bool_] | None, found: Found
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_] | None]:
    """Weighted mean of the valid pixels (h, w, C), and where less than half is valid (h, w); None where all are."""
    if valid is None:
        return _apply(raw, *found), None
    weight = _apply(valid[..., None], *found)
    total = _apply(np.where(valid[..., None], raw, 0), *found)
    missing = weight[..., 0] < 0.5
    weight[weight == 0] = 1
    return total / weight, missing


def _valid(raw: npt.NDArray[Any], nodata: float | None, alpha: int | None) -> npt.NDArray[np.bool_] | None:
    valid: npt.NDArray[np.bool_] | None = np.isfinite(raw).all(axis=2) if raw.dtype.kind == "f" else None
    if nodata is not None and not math.isnan(nodata):
        # Of colours, as the intensity policy has it: alpha is full where they are all nodata.
        data = (raw if alpha is None else np.delete(raw, alpha, axis=2)) != nodata
        data = data.any(axis=2)
        valid = data if valid is None else valid & data
    return valid


def _scaled_transform(
    t: tuple[float, float, float, float, float, float], row: float, column: float
) -> tuple[float, float, float, float, float, float]:
    return t[0] * column, t[1] * row, t[2], t[3] * column, t[4] * row, t[5]
