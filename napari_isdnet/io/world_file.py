"""Writes a procedural world, or its truth, as a tiled pyramidal BigTIFF, with progress and in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_isdnet.exceptions import InputError
from napari_isdnet.io.disk import replacing
from napari_isdnet.io.source import ImageSource
from napari_isdnet.io.tiff_pyramid import Tick, stepped
from napari_isdnet.prefetch import ahead
from napari_isdnet.progress import Progress
from napari_isdnet.window import Grid, Window


def write_world_tiff(
    source: ImageSource,
    path: str | os.PathLike[str],
    *,
    tile: int = 512,
    quality: int = 90,
    overwrite: bool = False,
    threads: int | None = None,
) -> Iterator[Progress]:
    """Write ``source`` with all its levels to ``path`` (a ``.tif``); yields progress in pixels.

    Three channels become JPEG of ``quality`` (YCbCr), one channel (a mask) is compressed without loss. The file appears
    under its name only when it is whole; closing the generator stops the work and leaves nothing. Memory: about
    ``threads + 2`` bands of ``tile`` rows by at most 4096 columns and the encoder's buffer, whatever the size.

    Raises :class:`InputError` for a tile size that TIFF does not allow, or where ``path`` exists without ``overwrite``.
    """
    if tile < 16 or tile % 16:
        raise InputError(f"TIFF tiles have sides that are multiples of 16, got {tile}; use 256 or 512.")
    if not 1 <= quality <= 100:
        raise InputError(f"The JPEG quality is 1 to 100, got {quality}.")
    return _write(source, Path(path), tile, quality, overwrite, threads or os.cpu_count() or 1)


def _write(
    source: ImageSource, path: Path, tile: int, quality: int, overwrite: bool, threads: int
) -> Iterator[Progress]:
    total = float(sum(rows * columns for rows, columns in source.levels))
    with replacing(path, overwrite) as temporary:
        yield from stepped(lambda tick: _encode(source, temporary, tile, quality, threads, tick), total, "writing")


def _encode(source: ImageSource, path: Path, tile: int, quality: int, threads: int, tick: Tick) -> None:
    import tifffile

    color = source.channels == 3
    size = source.pixel_size.metres if source.pixel_size else None
    options: dict[str, Any] = {
        "tile": (tile, tile),
        "photometric": "rgb" if color else "minisblack",  # tifffile turns RGB into YCbCr for subsampled JPEG
        "compression": "jpeg" if color else "deflate",
        "compressionargs": {"level": quality} if color else {"level": 6},
        "metadata": None,
    }
    if color:
        options["subsampling"] = (2, 2)
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for level, shape in enumerate(source.levels):
            if size:
                options["resolution"] = (1 / (size * 100 * 2**level),) * 2
                options["resolutionunit"] = "CENTIMETER"
            file.write(
                _tiles(source, level, tile, threads, tick),
                shape=(*shape, 3) if color else shape,
                dtype=np.uint8,
                subifds=len(source.levels) - 1 if level == 0 else None,
                subfiletype=0 if level == 0 else 1,
                **options,
            )


def _tiles(source: ImageSource, level: int, tile: int, threads: int, tick: Tick) -> Iterator[npt.NDArray[np.uint8]]:
    """Tiles of a level in row-major order, made ahead of the encoder by ``threads``."""
    shape = source.levels[level]
    columns = -(-shape[1] // tile)
    at_once = max(1, 4096 // tile)
    bands = [
        Window(row, column * tile, tile, min(at_once, columns - column) * tile).clipped(shape)
        for row in range(0, shape[0], tile)
        for column in range(0, columns, at_once)
    ]
    for window, pixels in ahead(bands, lambda band: source.read(band, level), threads):
        tick(window, level)  # before its tiles are yielded: the encoder does not come back after the last one
        for core in Grid(window.shape, (tile, tile)):
            part = pixels[core.slices]
            pad = ((0, tile - core.height), (0, tile - core.width), (0, 0))
            full = np.pad(part, pad, mode="edge")
            yield full if source.channels == 3 else full[..., 0]
