"""What the Batch dock does in worker threads, without Qt: thumbnails, results, the run with one core left."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_isdnet.engine.batch import BatchProgress, BatchQueue
from napari_isdnet.engine.pictures import overview
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.intensity import IntensityPolicy
from napari_isdnet.io.open import open_source
from napari_isdnet.io.source import ImageSource
from napari_isdnet.io.store import LabelStore
from napari_isdnet.widgets._engine import keep_triton_out
from napari_isdnet.window import Window

SIDE = 96
MOST_READ = 64 * 2**20
"""An image whose coarsest level has more pixels gets no thumbnail: it would be read whole."""


@dataclass(frozen=True)
class Thumbnail:
    """A small picture (h, w, 3) of an image."""

    path: str
    pixels: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Opened:
    """An image and its result, ready to be layers; ``labels`` None where the result is not an OME-Zarr store."""

    source: ImageSource
    policy: IntensityPolicy
    path: str
    labels: LabelStore | None


def thumbnails(paths: Sequence[str]) -> Generator[Thumbnail, None, None]:
    """Pictures from the coarsest level of each image; one that cannot be read has none (the run will say why)."""
    for path in paths:
        try:
            with closing(open_source(path, threads=1)) as source:
                rows, columns = source.levels[-1]
                if rows * columns > MOST_READ:
                    continue
                policy = IntensityPolicy.from_source(source)
                raw = overview(source, Window.whole(source.shape), SIDE, labels=False)
                rgb = policy.apply(np.ascontiguousarray(raw).astype(source.dtype, copy=False))[0]
        except (InputError, OSError):
            continue
        yield Thumbnail(path, np.rint(rgb).astype(np.uint8))


def run(queue: BatchQueue) -> Generator[BatchProgress, None, dict[str, int]]:
    """The queue, with the model read once and one core left to the window."""
    keep_triton_out()
    from napari_isdnet.engine.device import set_threads
    from napari_isdnet.engine.viewqueue import spare_core_threads
    from napari_isdnet.model.checkpoint import load_model

    set_threads(spare_core_threads(most=1024))
    network = load_model(queue.model)
    return (yield from queue.run(network))


def open_results(queue: BatchQueue, rows: Sequence[int]) -> Generator[Opened, None, None]:
    """Images and results of rows that are done."""
    for row in rows:
        item = queue.items[row]
        source = open_source(item.path)
        path = next((Path(p) for p in item.outputs.values() if p.endswith(f"{item.stem}.ome.zarr")), None)
        job = queue.output / f"{item.stem}.job" / f"{item.stem}.ome.zarr"
        found = next((p for p in (path, job) if p is not None and p.exists()), None)
        labels = LabelStore.open(found) if found is not None else None
        yield Opened(source, IntensityPolicy.from_source(source), item.path, labels)


def settings(**chosen: Any) -> dict[str, Any]:
    """Settings as the queue keeps them; what is not set is left out, so that the command stays short."""
    return {key: value for key, value in chosen.items() if value not in (None, "", False)}
