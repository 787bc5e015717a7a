"""Reading windows of an image, against decoding the same tiles with nothing around it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from napari_isdnet.exceptions import InputError
from napari_isdnet.io.base import TiledSource
from napari_isdnet.io.files import PositionalFile
from napari_isdnet.io.open import open_source
from napari_isdnet.io.source import ImageSource
from napari_isdnet.progress import Clock, Progress
from napari_isdnet.window import Grid, Window

READ_COLUMNS = ("threads", "window", "tiles", "read_mb_per_second", "bare_mb_per_second", "ratio", "note")
WARM = 2
"""Rounds that fill the tile cache and the allocator and are not counted."""
NOTE = "megabytes of decoded tiles that the windows touch; bare: tifffile's decoder on these tiles, results dropped"


class BareTiles:
    """tifffile's decoder on the tiles of level 0, as fast as Python allows: what a reader is measured against."""

    def __init__(self, image: Path) -> None:
        import tifffile

        try:
            self._tif, self._file = tifffile.TiffFile(image), PositionalFile(image)
        except (tifffile.TiffFileError, OSError) as error:
            raise InputError(f"{image.name} is no TIFF; this benchmark decodes the tiles of one.") from error
        self._page = page = self._tif.pages.first
        apart = page.planarconfig == 2 and page.samplesperpixel > 1  # a tile of a grid of its own for every channel
        if not page.is_tiled or page.dtype is None or apart:
            self.close()
            raise InputError(f"{image.name} is not stored in tiles of all channels; give a tiled TIFF that is.")
        self.tile = (page.tilelength, page.tilewidth)
        self.tile_bytes = page.tilelength * page.tilewidth * page.samplesperpixel * page.dtype.itemsize
        _ = page.decode, page.jpegtables  # made lazily, which threads must not race for

    def decode(self, indices: Sequence[int]) -> None:
        """Read and decode tiles; the decoded ones are dropped."""
        page = self._page
        for index in indices:
            data = self._file.read(page.dataoffsets[index], page.databytecounts[index])
            page.decode(data, index, jpegtables=page.jpegtables)

    def close(self) -> None:
        """Close the file."""
        self._tif.close()
        self._file.close()


def measure_reads(
    image: Path, *, window: int = 1024, windows: int = 60, threads: Sequence[int] = (1, 2), rounds: int = 5
) -> Generator[Progress, None, list[dict[str, Any]]]:
    """Time ``windows`` random windows a thread beside their bare tiles; yields after each round.

    Both see the same tiles in alternating order; windows never repeat, so that the tile cache saves little.
    Returns :data:`READ_COLUMNS` rows; ``ratio`` is the median over the rounds of bare time over reading time.
    """
    with closing(open_source(image)) as source, closing(BareTiles(image)) as bare:
        if min(source.shape) < window:
            raise InputError(f"{image.name} is {source.shape[0]} x {source.shape[1]}; give a --window that fits.")
        if isinstance(source, TiledSource):
            source.threads = 1  # each reader decodes on its own, as the bare decoder does
        grid, clock, rows = Grid(source.shape, bare.tile), Clock(len(threads) * (rounds + WARM)), []
        for count in threads:
            times: list[tuple[float, float, int]] = []
            with ThreadPoolExecutor(count) as pool:
                for number in range(rounds + WARM):
                    asked = [_random_windows(source, window, windows, 1000 * number + k) for k in range(count)]
                    tiles = [[index for w in mine for index in grid.touching(w)] for mine in asked]
                    read = partial(_all, pool, partial(_read, source), asked)
                    plain = partial(_all, pool, bare.decode, tiles)
                    seconds = _timed(read, plain) if number % 2 else _timed(plain, read)[::-1]
                    times.append((*seconds, sum(map(len, tiles))))
                    yield clock.step(1, f"{count} thread{'s' * (count > 1)}")
            rows.append(_row(count, window, times[WARM:], bare.tile_bytes))
    return rows


def _read(source: ImageSource, windows: Sequence[Window]) -> None:
    for window in windows:
        source.read(window)


def _all(pool: ThreadPoolExecutor, function: Callable[[Any], None], jobs: Sequence[Any]) -> None:
    for _ in pool.map(function, jobs):
        pass


def _timed(first: Callable[[], None], second: Callable[[], None]) -> tuple[float, float]:
    began = time.perf_counter()
    first()
    middle = time.perf_counter()
    second()
    return middle - began, time.perf_counter() - middle


def _random_windows(source: ImageSource, side: int, count: int, seed: int) -> list[Window]:
    choose = random.Random(seed)
    height, width = source.shape
    return [Window(choose.randint(0, height - side), choose.randint(0, width - side), side, side) for _ in range(count)]


def _row(threads: int, window: int, times: Sequence[tuple[float, float, int]], tile_bytes: int) -> dict[str, Any]:
    speeds = [(tiles * tile_bytes / read / 1e6, tiles * tile_bytes / plain / 1e6) for read, plain, tiles in times]
    return {
        "threads": threads, "window": window, "tiles": sum(tiles for *_, tiles in times),
        "read_mb_per_second": round(float(np.median([s[0] for s in speeds]))),
        "bare_mb_per_second": round(float(np.median([s[1] for s in speeds]))),
        "ratio": round(float(np.median([read / plain for read, plain in speeds])), 3), "note": NOTE,
    }  # fmt: skip
