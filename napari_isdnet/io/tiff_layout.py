"""Which pages of a TIFF make which pyramid level and channel, and how their tiles or strips are decoded."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_isdnet.exceptions import InputError
from napari_isdnet.io.base import Tiling
from napari_isdnet.io.tiff_color import JPEG, Color, alpha_samples, color_of, samples_out, with_alpha
from napari_isdnet.io.tiff_lerc import LERC, lerc_tile
from napari_isdnet.io.tiff_meta import nodata_of

if TYPE_CHECKING:
    import numpy.typing as npt
    import tifffile

_PALETTE = 3
_MASK = 4
_BLOCK_BYTES = 1 << 20
_CHANNEL_AXES = "CS"
_UNNAMED_AXES = "QI"
_MOST_UNNAMED_CHANNELS = 8


@dataclass(frozen=True)
class Part:
    """A group of channels of one level: one page, or one sample plane of a planar page."""

    page: Any
    tiling: Tiling
    first_segment: int
    raw_rows: int = 0
    """Rows per block where the samples lie in the file as they are (uncompressed strips); 0 for decoded segments."""
    samples: int = 1
    palette: Any = None
    scale: int = 1
    one: int = 255
    """What a set bit of a 1-bit image is given out as."""
    color: Color | None = None
    """How stored samples become grey or RGB, where that takes more than decoding them."""

    @cached_property
    def _decoder(self) -> Callable[[bytes, int], Any]:
        key = self.page.keyframe
        if key.compression not in JPEG:
            return partial(key.decode, _fullsize=False)
        return partial(key.decode, jpegtables=self.page.jpegtables, jpegheader=key.jpegheader, _fullsize=False)

    def locate(self, index: int, rows: int) -> tuple[int, int]:
        """(offset, bytes) of segment ``index``; ``rows`` is how many rows it has (uncompressed strips only)."""
        if self.raw_rows:
            row_bytes = self.tiling.tile[1] * self.samples * self.page.keyframe.dtype.itemsize
            start = self.first_segment + index * self.raw_rows * row_bytes
            return int(self.page.dataoffsets[0]) + start, rows * row_bytes
        segment = self.first_segment + index
        return int(self.page.dataoffsets[segment]), int(self.page.databytecounts[segment])

    def decode(self, data: bytes, index: int, rows: int) -> npt.NDArray[Any]:
        """The pixels of a segment as (rows, columns, channels)."""
        if self.raw_rows:
            key = self.page.keyframe
            stored = np.dtype(key.parent.byteorder + key.dtype.char)
            tile = np.frombuffer(data, stored).reshape(rows, self.tiling.tile[1], self.samples)
            tile = tile.astype(key.dtype, copy=False)
        elif self.page.keyframe.compression == LERC:
            tile = lerc_tile(data, self.samples)
        else:
            tile = self._decoder(data, self.first_segment + index)[0][0]
        if self.palette is not None:
            return self.palette[tile[..., 0]]
        if tile.dtype.kind == "b" or self.page.keyframe.dtype == bool:  # fax codecs give bits as bytes of 0 and 1
            tile = (tile != 0).astype(np.uint8) * np.uint8(self.one)
        return tile if self.color is None else self.color(tile)


@dataclass(frozen=True)
class Layout:
    """The parts of every level, and what was chosen on the way."""

    levels: tuple[tuple[int, int], ...]
    parts: tuple[tuple[Part, ...], ...]
    dtype: np.dtype[Any]
    channels: int
    alpha: int | None
    page: Any
    """The first page of level 0, whose tags describe the image."""
    notes: tuple[str, ...]


def layout_of(tif: tifffile.TiffFile, name: str, pages: int) -> Layout:
    """Find the image of a file: its largest series, that series' pyramid, and a validity mask where there is one."""
    candidates = [s for s in tif.series if {"Y", "X"} <= set(_axes_and_shape(s)[0]) and s.keyframe.dtype is not None]
    if not candidates:
        raise InputError(f"{name} holds no two-dimensional image; a TIFF must have a page with rows and columns.")
    # Thumbnails may come first, and so may the label or the view of the whole glass (Leica, OME-TIFF).
    series = max(
        candidates, key=lambda s: s.keyframe.imagewidth * s.keyframe.imagelength * (s.keyframe.subfiletype != 4)
    )
    notes: list[str] = []
    if len(candidates) > 1 and series.kind in ("ome", "scn"):
        called = f" ('{series.name}')" if series.name else ""
        notes.append(f"the largest of the {len(candidates)} images in the file{called} is read")
    levels: list[tuple[int, int]] = []
    parts: list[tuple[Part, ...]] = []
    nodata = nodata_of(series.keyframe)
    for level, item in enumerate(series.levels):
        found = _series_parts(item, name, notes if level == 0 else [], nodata)
        if level and (_count(found) != _count(parts[0]) or item.keyframe.dtype != series.keyframe.dtype):
            break
        levels.append((int(item.keyframe.imagelength), int(item.keyframe.imagewidth)))
        parts.append(found)
    channels, page = _count(parts[0]), parts[0][0].page
    alpha = _alpha(parts[0][0], channels)
    if alpha is None and 1 < pages <= 1000 and not tif.is_ome:
        parts, masked = _with_masks(tif, levels, parts, channels)
        levels, parts = levels[: len(parts)], parts
        alpha = channels if masked else None
        channels += masked
    dtype = (
        np.dtype(np.uint8) if page.keyframe.dtype == bool or parts[0][0].palette is not None else page.keyframe.dtype
    )
    return Layout(tuple(levels), tuple(parts), np.dtype(dtype).newbyteorder("="), channels, alpha, page, tuple(notes))


def _axes_and_shape(series: Any) -> tuple[str, tuple[int, ...]]:
    """Of a series, with rows and columns even where there is but one: tifffile before 2026.5.2 leaves those out."""
    if hasattr(series, "get_axes"):
        return series.get_axes(False), series.get_shape(False)
    return series.axes, series.shape


def _count(parts: tuple[Part, ...]) -> int:
    return sum(part.tiling.count for part in parts)


def _series_parts(series: Any, name: str, notes: list[str], nodata: float | None) -> tuple[Part, ...]:
    """The channel groups of one level: its pages along the channel axis, the first index of every other axis."""
    axes, shape = _axes_and_shape(series)
    inner = series.keyframe.axes
    outer = [(axis, size) for axis, size in zip(axes, shape) if not (axis in inner or axis == "S")]
    pages, step = [0], 1
    for axis, size in reversed(outer):
        channel = axis in _CHANNEL_AXES or (axis in _UNNAMED_AXES and 1 < size <= _MOST_UNNAMED_CHANNELS)
        if channel:
            pages = [p + i * step for i in range(size) for p in pages] if len(pages) == 1 else pages
        elif size > 1:
            notes.append(f"axis {axis} has {size} planes, the first is used")
        if channel and axis in _UNNAMED_AXES:
            notes.append(f"the {size} pages of one size are taken as channels")
        step *= size
    result: list[Part] = []
    for index in pages:
        page, planes_before = series[index] if index < len(series) else None, 0
        if page is None and getattr(series, "is_truncated", False):
            page, planes_before = series[0], index  # ImageJ names the first of many planes that follow each other
        if page is None:
            raise InputError(
                f"{name} lacks page {index} (a set of several files?); give one file that holds all channels."
            )
        result.extend(_page_parts(page, _count(tuple(result)), name, notes, nodata, planes_before))
    return tuple(result)


def _page_parts(
    page: Any, first: int, name: str, notes: list[str], nodata: float | None, planes_before: int = 0
) -> list[Part]:
    key = page.keyframe
    if key.imagedepth != 1 or key.tiledepth not in (0, 1):
        raise InputError(f"{name} stores volumes of {key.imagedepth} planes in one page; export one plane as an image.")
    shape, samples = (int(key.imagelength), int(key.imagewidth)), int(key.samplesperpixel)
    planar = samples > 1 and key.planarconfig == 2
    palette, color = _palette(key, notes, nodata), color_of(key, name, notes)
    contiguous = 1 if planar else samples
    raw_rows = _raw_rows(page, shape, contiguous)
    tile = (raw_rows, shape[1]) if raw_rows else _segment_shape(key, shape)
    if min(tile) < 1 or min(shape) < 1:
        raise InputError(f"{name} is a damaged TIFF: it claims tiles of {tile[0]} x {tile[1]} pixels.")
    count = palette.shape[1] if palette is not None else 1 if planar else samples_out(key, color)
    per_plane = -(-shape[0] // tile[0]) * -(-shape[1] // tile[1])
    before = planes_before * shape[0] * shape[1] * samples * (0 if key.dtype is None else key.dtype.itemsize)
    if planes_before and not raw_rows:
        raise InputError(
            f"{name} is a stack with one directory for all planes that is compressed; save it as OME-TIFF."
        )
    if raw_rows:
        per_plane = shape[0] * shape[1] * key.dtype.itemsize
    elif len(page.dataoffsets) < per_plane * (samples if planar else 1) or len(page.databytecounts) < len(
        page.dataoffsets
    ):
        raise InputError(
            f"{name} is a damaged TIFF: it lists {len(page.dataoffsets)} tiles or strips, {per_plane} are needed."
        )
    plain = alpha_samples(key) if planar else []
    return [
        Part(
            page, Tiling(tile, first + i * count, count), before + i * per_plane, raw_rows, contiguous, palette,
            color=None if i in plain else color,
        )
        for i in range(samples if planar else 1)
    ]  # fmt: skip


def _segment_shape(key: Any, shape: tuple[int, int]) -> tuple[int, int]:
    return (
        (int(key.tilelength), int(key.tilewidth)) if key.is_tiled else (min(int(key.rowsperstrip), shape[0]), shape[1])
    )


def _raw_rows(page: Any, shape: tuple[int, int], samples: int) -> int:
    """Rows per block of about 1 MiB where an uncompressed page lies in one piece: a window reads only its rows."""
    key = page.keyframe
    plain = key.dtype is not None and key.bitspersample == key.dtype.itemsize * 8 and key.dtype != bool
    if not (plain and key.is_contiguous and not key.is_tiled and key.predictor == 1 and key.fillorder == 1):
        return 0
    if key.is_subsampled or key.compression != 1 or not page.dataoffsets[0] or not page.databytecounts[0]:
        return 0
    return max(1, min(shape[0], _BLOCK_BYTES // max(1, shape[1] * samples * key.dtype.itemsize)))


def _palette(key: Any, notes: list[str], nodata: float | None) -> npt.NDArray[np.uint8] | None:
    """The colour map of a palette image, (entries, 3) or with alpha; its indices mean nothing to a network."""
    if key.photometric != _PALETTE or key.dtype not in (np.uint8, np.uint16):
        return None
    table = key.colormap
    if table is None or table.shape[1] < 1 << key.bitspersample:
        return None
    notes.append("the colour map was applied")
    return with_alpha((np.asarray(table).T >> 8).astype(np.uint8), nodata)


def _alpha(part: Part, channels: int) -> int | None:
    if part.palette is not None:
        return 3 if channels == 4 == part.palette.shape[1] else None
    key = part.page.keyframe
    samples = samples_out(key, part.color)
    if channels != samples:
        return None
    found = alpha_samples(key)
    return found[0] - int(key.samplesperpixel) + samples if found else None


def _with_masks(
    tif: tifffile.TiffFile, levels: list[tuple[int, int]], parts: list[tuple[Part, ...]], channels: int
) -> tuple[list[tuple[Part, ...]], bool]:
    """Add GDAL's internal mask (a 1-bit page beside each level) as alpha, as far as the levels have one."""
    masks: dict[tuple[int, int], Any] = {}
    for item in tif.pages:
        page: Any = item
        if page is not None and page.keyframe.photometric == _MASK and page.keyframe.bitspersample == 1:
            masks[int(page.keyframe.imagelength), int(page.keyframe.imagewidth)] = page
    if levels[0] not in masks or parts[0][0].page.keyframe.dtype == np.int8:  # which cannot hold the mask's 255
        return parts, False
    result = []
    for shape, level in zip(levels, parts):
        if shape not in masks:
            break
        page = masks[shape]
        part = Part(page, Tiling(_segment_shape(page.keyframe, shape), channels, 1), 0)
        result.append((*level, part))
    return result, True


class _NotThisThread(logging.Filter):
    def __init__(self, thread: int) -> None:
        super().__init__()
        self.thread = thread

    def filter(self, record: logging.LogRecord) -> bool:
        return record.thread != self.thread


@contextlib.contextmanager
def quiet_tifffile() -> Iterator[None]:
    """Keep what tifffile logs about damaged files, in this thread, off the screen: we say it in one sentence."""
    logger = logging.getLogger("tifffile")
    mute = _NotThisThread(threading.get_ident())
    logger.addFilter(mute)
    try:
        yield
    finally:
        logger.removeFilter(mute)
