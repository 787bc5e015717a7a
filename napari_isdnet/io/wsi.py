"""Whole slides that are no TIFFs (or that tifffile cannot decode), through OpenSlide (the ``wsi`` extra)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_isdnet.exceptions import InputError, MissingExtra
from napari_isdnet.io.base import SourceInfo, TiledSource, Tiling, file_identity, one_line
from napari_isdnet.io.source import PixelSize
from napari_isdnet.window import Window

if TYPE_CHECKING:
    import numpy.typing as npt

_TILE = 512


class SlideSource(TiledSource):
    """RGBA pixels of a slide; alpha is 0 where the scanner has none.

    OpenSlide places every read by level-0 coordinates and resamples where a level's downsampling is no whole number,
    so all reads are of one fixed grid of tiles: a pixel is then the same whatever window it is read with.
    """

    def __init__(self, path: Path, slide: Any, info: SourceInfo, threads: int | None) -> None:
        super().__init__(info, [[Tiling((_TILE, _TILE), 0, 4)] for _ in info.levels], threads)
        self._slide = slide
        self._identity = file_identity(path)

    def _load(self, level: int, part: int, index: int, window: Window) -> npt.NDArray[Any]:  # noqa: ARG002
        factor = self._slide.level_downsamples[level]
        corner = round(window.column * factor), round(window.row * factor)
        return np.asarray(self._slide.read_region(corner, level, (window.width, window.height))).copy()

    def identity(self) -> dict[str, Any]:
        """Path, size and modification time when it was opened."""
        return {"format": self.format, **self._identity}

    def _release(self) -> None:
        self._slide.close()


def open_slide(path: Path, name: str, threads: int | None = None) -> SlideSource:
    """Open a slide; :class:`MissingExtra` without OpenSlide, :class:`InputError` for what it refuses."""
    try:
        import openslide
    except ImportError as error:
        raise MissingExtra(f"Reading {path.name}", "openslide", "wsi") from error
    try:
        slide = openslide.OpenSlide(path)
    except openslide.OpenSlideError as error:
        raise InputError(
            f"{path.name} cannot be read by OpenSlide ({one_line(error)}); convert it to OME-TIFF."
        ) from error
    properties = slide.properties
    row, column = (_number(properties.get(f"openslide.mpp-{axis}")) for axis in "yx")
    info = SourceInfo(
        name=name,
        levels=tuple((height, width) for width, height in slide.level_dimensions),
        channels=4,
        dtype=np.dtype(np.uint8),
        format=f"OpenSlide {properties.get('openslide.vendor', 'slide')}",
        pixel_size=PixelSize(row, column, "µm") if row > 0 and column > 0 else None,
        alpha=3,
    )
    return SlideSource(path, slide, info, threads)


def _number(text: str | None) -> float:
    try:
        return float(text or 0)
    except ValueError:
        return 0.0
