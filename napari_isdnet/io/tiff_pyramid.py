"""A store as a tiled TIFF with its pyramid: shared by the OME-TIFF and the GeoTIFF export."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from napari_isdnet.classes import IGNORE_INDEX, ClassInfo
from napari_isdnet.progress import Clock, Progress
from napari_isdnet.window import Window

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from napari_isdnet.io.store import LabelStore

TILE = 512
Tick = Callable[[Window, int], None]


class _Cancelled(Exception):
    """Raised inside the writing thread once nobody asks for progress any more."""


def stepped(work: Callable[[Tick], None], total: float, stage: str) -> Generator[Progress, None, None]:
    """Run ``work(tick)`` in a thread and yield a :class:`Progress` for each ``tick(window, level)``.

    For libraries that write a whole file in one call. Closing the generator raises inside the next ``tick`` and waits
    for the thread, so that nothing writes any more afterwards.
    """
    queue: SimpleQueue[tuple[Window, int] | BaseException | None] = SimpleQueue()
    stop = Event()

    def tick(window: Window, level: int) -> None:
        if stop.is_set():
            raise _Cancelled
        queue.put((window, level))

    def run() -> None:
        try:
            work(tick)
            queue.put(None)
        except BaseException as error:  # handed to the consumer, which raises it
            queue.put(error)

    thread = Thread(target=run, name=stage, daemon=True)
    thread.start()
    clock = Clock(total)
    try:
        while (item := queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            window, level = item
            yield clock.step(window.area, stage, window if level == 0 else None)
    finally:
        stop.set()
        thread.join()


def write_pyramid(
    store: LabelStore,
    path: Path,
    tick: Tick,
    *,
    subifds: bool,
    first: dict[str, Any],
    ome: bool = False,
    compression: str = "zlib",
) -> None:
    """Write all levels of ``store`` to a BigTIFF in 512 tiles, same bytes each time, a strip of one channel in memory.

    ``subifds``: lower levels as SubIFDs of the first page (OME-TIFF), else as reduced pages behind it (GeoTIFF).
    ``first``: more arguments of tifffile's ``write`` for level 0. Labels carry the classes' colours as colour map.
    """
    import tifffile

    common: dict[str, Any] = {
        "tile": (TILE, TILE),
        "dtype": "uint8",
        "compression": compression,
        "maxworkers": min(4, os.cpu_count() or 1),
        "software": False,
    }
    if store.kind == "labels":
        common |= {"photometric": "palette", "colormap": colormap(store.classes)}
    else:
        common |= {"photometric": "minisblack"}
    lower = len(store.levels) - 1
    lead = (store.channels,) if store.channels > 1 else ()
    if lead and not ome:
        common["planarconfig"] = "separate"  # bands of one page; OME-TIFF has a page a channel
    with tifffile.TiffWriter(path, bigtiff=True, ome=ome) as writer:
        for level, shape in enumerate(store.levels):
            more: dict[str, Any] = (
                first | ({"subifds": lower} if subifds and lower else {}) if level == 0 else {"subfiletype": 1}
            )
            if level and "metadata" not in more:
                more["metadata"] = None
            writer.write(_tiles(store, level, tick), shape=(*lead, *shape), **common, **more)


def _tiles(store: LabelStore, level: int, tick: Tick) -> Iterator[npt.NDArray[np.uint8]]:
    """Tiles in the order of the file: channels, then rows of tiles; short ones at the border filled with 255."""
    import numpy as np

    rows, columns = store.levels[level]
    for channel in range(store.channels):
        for top in range(0, rows, TILE):
            strip = Window(top, 0, min(TILE, rows - top), columns)
            tick(strip, level)
            (data,) = store.planes(strip, level, slice(channel, channel + 1))
            pad = ((0, TILE - strip.height), (0, -columns % TILE))
            data = np.pad(data, pad, constant_values=IGNORE_INDEX)
            for left in range(0, columns, TILE):
                yield np.ascontiguousarray(data[:, left : left + TILE])


def total_work(store: LabelStore) -> float:
    """Pixels over all levels and channels: the unit in which :func:`write_pyramid` ticks."""
    return float(sum(rows * columns for rows, columns in store.levels) * store.channels)


def colormap(classes: Sequence[ClassInfo]) -> npt.NDArray[np.uint16]:
    """TIFF colour map ``(3, 256)``, 16 bit, black where there is no class."""
    import numpy as np

    table = np.zeros((3, 256), np.uint16)
    for index, info in enumerate(classes):
        table[:, index] = [257 * int(v) for v in info.color]
    return table
