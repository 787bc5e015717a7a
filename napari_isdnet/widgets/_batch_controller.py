"""What the Batch dock does in worker threads, without Qt: thumbnails, results, the run with one core left."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_isdnet.engine.batch import DONE, BatchProgress, BatchQueue, Item
from napari_isdnet.engine.differences import job_differences
from napari_isdnet.engine.ledger import read_header
from napari_isdnet.engine.pictures import overview
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.intensity import IntensityPolicy
from napari_isdnet.io.open import open_source
from napari_isdnet.io.overviews import with_overviews
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
    """An image and its result, ready to be layers; ``labels`` None where the result is not an OME-Zarr store.

    ``warning`` says where the result is not of the image as it is now.
    """

    source: ImageSource
    policy: IntensityPolicy
    path: str
    labels: LabelStore | None
    item: Item
    warning: str = ""


def thumbnails(paths: Sequence[str], colors: Mapping[str, Any]) -> Generator[Thumbnail, None, None]:
    """Pictures from the coarsest level of each image, in the ``contrast`` and ``channels`` of a queue's settings.

    One that cannot be read, or has no such channels, has none (the run will say why).
    """
    for path in paths:
        try:
            with closing(open_source(path, threads=1)) as source:
                rows, columns = source.levels[-1]
                if rows * columns > MOST_READ:
                    continue
                policy = policy_of(source, colors)
                raw = overview(source, Window.whole(source.shape), SIDE, labels=False)
                rgb = policy.apply(np.ascontiguousarray(raw).astype(source.dtype, copy=False))[0]
        except (InputError, OSError):
            continue
        yield Thumbnail(path, np.rint(rgb).astype(np.uint8))


def policy_of(source: ImageSource, settings: Mapping[str, Any]) -> IntensityPolicy:
    """How an image is seen with the settings of a queue."""
    return IntensityPolicy.from_source(source, settings.get("contrast", "auto"), settings.get("channels"))


def run(queue: BatchQueue) -> Generator[BatchProgress, None, dict[str, int]]:
    """The queue, with the model read once and one core left to the window.

    It is written at once: reading the model takes seconds, and whoever cancels by then goes on from it later.
    """
    queue.save()
    return _run(queue)


def _run(queue: BatchQueue) -> Generator[BatchProgress, None, dict[str, int]]:
    keep_triton_out()
    from napari_isdnet.engine.device import set_threads
    from napari_isdnet.engine.viewqueue import spare_core_threads
    from napari_isdnet.model.checkpoint import load_model

    set_threads(spare_core_threads(most=1024))
    network = load_model(queue.model)
    return (yield from queue.run(network))


def open_results(queue: BatchQueue, rows: Sequence[int], folder: Path) -> Generator[Opened, None, None]:
    """Images, with their pyramids of the cache ``folder``, and results of rows that are done."""
    for row in rows:
        item = queue.items[row]
        source = with_overviews(open_source(item.path), folder)
        path = next((Path(p) for p in item.outputs.values() if p.endswith(f"{item.stem}.ome.zarr")), None)
        job = queue.output / f"{item.stem}.job" / f"{item.stem}.ome.zarr"
        found = next((p for p in (path, job) if p is not None and p.exists()), None)
        labels = LabelStore.open(found) if found is not None else None
        warning = _of_another(queue.output / f"{item.stem}.job", source, item)
        yield Opened(source, policy_of(source, item.settings), item.path, labels, item, warning)


def _of_another(job: Path, source: ImageSource, item: Item) -> str:
    """A sentence where the job of an image was begun with another one than is there now; else empty."""
    try:
        header = read_header(job)
    except InputError:
        return ""
    now = json.loads(json.dumps(dict(source.identity())))  # as it comes back from a file
    words = [] if header is None else job_differences({"image": header.get("image")}, {"image": now}, {})
    if not words:
        return ""
    return (
        f"The result of '{item.stem}' was made of {words[0]}: choose Queue again, with 'Replace' ticked, for the image"
        " there is now."
    )


_FORMATS = {"ome-zarr": "OME-Zarr", "ome-tiff": "OME-TIFF", "geotiff": "GeoTIFF", "png": "PNG"}


def done_with(item: Item, model: str, chosen: Mapping[str, Any]) -> str:
    """What an image was done with, where that is another model or are other options than those chosen now; or empty."""
    if item.state != DONE or not item.model:  # a queue of an earlier version does not say
        return ""
    words, then = [] if item.model == model else [f"with {Path(item.model).stem}"], item.settings
    if then.get("context", "whole") != chosen.get("context", "whole"):
        words.append("window by window" if then.get("context") == "window" else "whole image")
    if (count := then.get("orientations", 1)) != chosen.get("orientations", 1):
        words.append(f"{count} orientation{'s' if count != 1 else ''}")
    if list(then.get("formats", ())) != list(chosen.get("formats", ())):
        words.append(f"as {', '.join(_FORMATS.get(name, name) for name in then.get('formats', ()))}")
    for name, usual in (("channels", "by the file"), ("contrast", "auto")):
        if then.get(name) != chosen.get(name):
            words.append(f"{name} {in_text(then.get(name), usual)}")
    if any(then.get(name) and chosen.get(name) for name in ("polygons", "geopackage")):
        if then.get("simplify") != chosen.get("simplify"):
            how = f"within {then['simplify']:g} pixels" if "simplify" in then else "of every pixel"
            words.append(f"outlines {how}")
        if then.get("min_area") != chosen.get("min_area"):
            words.append(f"areas from {then['min_area']} pixels" if "min_area" in then else "areas of every size")
    for name, word in (("polygons", "polygons"), ("geopackage", "GeoPackage"), ("uncertainty", "uncertainty")):
        if bool(then.get(name)) != bool(chosen.get(name)):
            words.append(f"{'with' if then.get(name) else 'without'} {word}")
    return ", ".join(words)


def in_text(value: Any, usual: str) -> str:
    """A setting as it is typed; ``usual`` where it is not set."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value or usual)


def settings(**chosen: Any) -> dict[str, Any]:
    """Settings as the queue keeps them; what is not set is left out, so that the command stays short."""
    return {key: value for key, value in chosen.items() if value not in (None, "", False)}
