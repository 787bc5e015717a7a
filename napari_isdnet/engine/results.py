"""The stores that a job fills: labels, and on request probabilities and uncertainty, shard by shard."""

from __future__ import annotations

import os
from collections import OrderedDict, deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_isdnet.classes import IGNORE_INDEX, ClassInfo
from napari_isdnet.io.sink import shifted_georeference
from napari_isdnet.io.source import ImageSource
from napari_isdnet.io.store import LabelStore
from napari_isdnet.progress import Progress
from napari_isdnet.window import Grid, Window

if TYPE_CHECKING:
    from napari_isdnet.engine.job import Predictor
    from napari_isdnet.engine.ledger import Ledger

KEPT_BYTES = 64 * 2**20
"""Of predicted units that neighbouring shards of a region may ask for again."""
UNIT = 2048
"""Side of the windows that are predicted; anchored at the image's origin, so that a region is an exact crop."""

WRITING_BYTES = 32 * 2**20
"""Of shards that are written at once, if these are several."""
FEW_CLASSES = 16
"""Up to so many, comparing with every class is faster than ``bincount``, which widens pixels to 64 bits and keeps other
threads waiting."""


@dataclass(frozen=True)
class Wanted:
    """Which stores a job fills besides the labels."""

    probabilities: bool = False
    uncertainty: bool = False


class ResultStores:
    """Stores in a job's folder; ``region`` of the image is their whole extent."""

    def __init__(self, region: Window, image: tuple[int, int], stores: dict[str, LabelStore]) -> None:
        self.region, self.stores = region, stores
        self.grid = Grid(image, (UNIT, UNIT))
        self._units: OrderedDict[int, dict[str, npt.NDArray[np.uint8]]] = OrderedDict()
        self._counted: dict[int, npt.NDArray[np.int64]] = {}  # by shard written here, what _counts says

    @classmethod
    @contextmanager
    def open(
        cls, folder: Path, source: ImageSource, region: Window, classes: Sequence[ClassInfo], wanted: Wanted
    ) -> Iterator[ResultStores]:
        """Open the stores of a job, or create them."""
        kinds = ["labels"] + [kind for kind in ("probabilities", "uncertainty") if getattr(wanted, kind)]
        stores: dict[str, LabelStore] = {}
        for kind in kinds:
            suffix = "" if kind == "labels" else f"_{kind}"
            path = folder / f"{source.name}{suffix}.ome.zarr"
            if path.exists():
                stores[kind] = LabelStore.open(path)
            else:
                stores[kind] = LabelStore.create(
                    path,
                    region.shape,
                    classes,
                    kind=kind,
                    pixel_size=source.pixel_size,
                    georeference=shifted_georeference(source.georeference, region.row, region.column),
                    origin=(region.row, region.column),
                )
        yield cls(region, source.shape, stores)

    @property
    def labels(self) -> LabelStore:
        """The class map."""
        return self.stores["labels"]

    def of(self, kind: str) -> LabelStore:
        """The store of a kind."""
        return self.stores[kind]

    def missing(self) -> list[int]:
        """Shards that are not done in every store, ascending."""
        return sorted(set().union(*(store.missing(0) for store in self.stores.values())))

    def fill(self, index: int, predictor: Predictor) -> Window:
        """Predict and write one shard of every store; returns its window in the store."""
        return self.write(index, self.predict(index, predictor))

    def predict(self, index: int, predictor: Predictor) -> dict[str, npt.NDArray[np.uint8]]:
        """The values of one shard, by kind of store."""
        window = self.labels.shards[index]
        wanted = window.shifted(self.region.row, self.region.column)
        parts = {kind: np.empty((*window.shape, *self._extra(kind)), np.uint8) for kind in self.stores}
        for unit in self.grid.touching(wanted):
            whole = self.grid[unit]
            shared = whole.intersect(wanted)
            for kind, values in self._unit(unit, predictor).items():
                parts[kind][shared.relative_to(wanted).slices] = values[shared.relative_to(whole).slices]
        return parts

    def write(self, index: int, parts: dict[str, npt.NDArray[np.uint8]]) -> Window:
        """Write one shard of every store; may run beside others and :meth:`predict` of more. Returns its window."""
        for kind, values in parts.items():
            self.stores[kind].write_shard(index, values)
        self._counted[index] = _counts(parts["labels"], len(self.labels.classes))
        return self.labels.shards[index]

    def _extra(self, kind: str) -> tuple[int, ...]:
        return () if kind == "labels" else (self.stores[kind].channels,)

    def _unit(self, unit: int, predictor: Predictor) -> dict[str, npt.NDArray[np.uint8]]:
        found = self._units.get(unit)
        if found is None:
            found = self._predict(self.grid[unit], predictor)
            if self.region == Window.whole(self.grid.shape):  # shards are the units: nobody asks again
                return found
            self._units[unit] = found
            # Neighbouring shards of a region share units of the image's grid; two rows' worth would be unbounded.
            while len(self._units) > 1 and (len(self._units) > 4 or self._kept_bytes() > KEPT_BYTES):
                self._units.popitem(last=False)
        return found

    def _kept_bytes(self) -> int:
        return sum(values.nbytes for unit in self._units.values() for values in unit.values())

    def _predict(self, window: Window, predictor: Predictor) -> dict[str, npt.NDArray[np.uint8]]:
        if len(self.stores) == 1:
            return {"labels": predictor.labels(window)}
        labels = np.empty(window.shape, np.uint8)
        result: dict[str, Any] = {"labels": labels}
        for kind in self.stores:
            if kind != "labels":
                result[kind] = np.empty((*window.shape, self.stores[kind].channels), np.uint8)
        for strip in Grid(window.shape, (256, window.width)):  # bounds the full-resolution logits
            part = strip.shifted(window.row, window.column)
            labels[strip.slices] = predictor.labels(part)
            self._derive(predictor, part, strip, result)
        return result

    def _derive(self, predictor: Predictor, part: Window, strip: Window, result: dict[str, Any]) -> None:
        from napari_isdnet.engine.uncertainty import uncertainty_map
        from napari_isdnet.io.pyramid import quantise

        logits = predictor.logits(part)[0].float().cpu()
        invalid = result["labels"][strip.slices] == IGNORE_INDEX
        if "probabilities" in result:
            shares = quantise(logits.softmax(0).numpy()).transpose(1, 2, 0).copy()
            shares[invalid] = IGNORE_INDEX
            result["probabilities"][strip.slices] = shares
        if "uncertainty" in result:
            result["uncertainty"][strip.slices] = uncertainty_map(logits, valid=~invalid)[..., None]

    def finish(self) -> Generator[Progress, None, None]:
        """Build the coarser levels of every store."""
        for number, store in enumerate(self.stores.values()):
            for step in store.finish_pyramid():
                yield Progress(number + step.fraction, len(self.stores), step.stage, step.window)

    def class_pixels(self) -> dict[str, int]:
        """Pixels of every class in the result, by name (and ``nodata``)."""
        counts = np.zeros(256, np.int64)
        for index, window in enumerate(self.labels.shards):
            known = self._counted.get(index)
            counts += _counts(self.labels.read(window), len(self.labels.classes)) if known is None else known
        named = {info.name: int(counts[i]) for i, info in enumerate(self.labels.classes)}
        return {**named, "nodata": int(counts[IGNORE_INDEX])}


def written(
    todo: Sequence[int], stores: ResultStores, predictor: Predictor, ledger: Ledger
) -> Iterator[tuple[int, Window]]:
    """(shard, its window) of shards that are on the disk; while some are written, the next is computed.

    What could not be read is noted here and not in the passes before, whose windows overlap.
    """
    bad: list[Window] = getattr(getattr(predictor, "reader", None), "bad", [])
    bad.clear()
    writers = writers_at_once(sum(store.channels for store in stores.stores.values()))
    waiting: deque[tuple[int, Future[Window]]] = deque()
    with ThreadPoolExecutor(writers, thread_name_prefix="isdnet-write") as pool:
        for index in todo:
            parts = stores.predict(index, predictor)
            if bad:
                ledger.record("bad", index, {"windows": [list(astuple(w)) for w in bad]})
                bad.clear()
            if len(waiting) == writers:
                first, future = waiting.popleft()
                yield first, future.result()
            waiting.append((index, pool.submit(stores.write, index, parts)))
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()


def writers_at_once(channels: int) -> int:
    """Shards that are written at once: a graphics card makes one in a few milliseconds, writing it takes ten.

    As many as the cores are for, and as ``WRITING_BYTES`` hold of ``channels`` channels.
    """
    return max(1, min(4, (os.cpu_count() or 1) // 3, WRITING_BYTES // (UNIT * UNIT * channels)))


def _counts(labels: npt.NDArray[np.uint8], classes: int) -> npt.NDArray[np.int64]:
    """How many of ``labels`` are which value, (256,)."""
    if classes > FEW_CLASSES:
        return np.bincount(labels.ravel(), minlength=256)
    counts = np.zeros(256, np.int64)
    for value in (*range(classes), IGNORE_INDEX):
        counts[value] = np.count_nonzero(labels == value)
    return counts
