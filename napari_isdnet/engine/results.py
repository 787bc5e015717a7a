"""The stores that a job fills: labels, and on request probabilities and uncertainty, shard by shard."""

from __future__ import annotations

import os
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from napari_isdnet.classes import IGNORE_INDEX, ClassInfo
from napari_isdnet.io.sink import shifted_georeference
from napari_isdnet.io.source import ImageSource
from napari_isdnet.io.store import LabelStore, shard_side
from napari_isdnet.progress import Progress
from napari_isdnet.window import Grid, Window

if TYPE_CHECKING:
    from torch import Tensor

    from napari_isdnet.engine.job import Predictor
    from napari_isdnet.engine.ledger import Ledger

KEPT_BYTES = 64 * 2**20
"""Of predicted units that neighbouring shards of a region may ask for again."""
UNIT = 2048
"""Side of the windows that are predicted; anchored at the image's origin, so that a region is an exact crop."""

WRITING_BYTES = 32 * 2**20
"""Of shards that are written at once, if these are several."""
LOGITS_BYTES = 32 * 2**20
"""Of full-resolution logits that maps are made of at once."""
FEW_CLASSES = 16
"""Up to so many, comparing with every class is faster than ``bincount``, which widens pixels to 64 bits and keeps other
threads waiting."""


@dataclass(frozen=True)
class Wanted:
    """Which stores a job fills besides the labels."""

    probabilities: bool = False
    uncertainty: bool = False


@dataclass(frozen=True)
class Block:
    """The values of one shard of one store; ``last`` of a unit of work, which is a shard of labels.

    ``index`` counts that store's own shards. ``values`` are (h, w) of labels, else (h, w, channels).
    """

    kind: str
    index: int
    values: npt.NDArray[np.uint8]
    last: bool = False


@dataclass(frozen=True)
class _Answer:
    """What is predicted of a unit: labels, and where maps are wanted the logits of its parts."""

    labels: npt.NDArray[np.uint8]
    fine: Callable[[Window], Tensor] | None = None


class ResultStores:
    """Stores in a job's folder; ``region`` of the image is their whole extent."""

    def __init__(self, region: Window, image: tuple[int, int], stores: dict[str, LabelStore]) -> None:
        self.region, self.stores = region, stores
        self.grid = Grid(image, (UNIT, UNIT))
        self._units: OrderedDict[int, _Answer] = OrderedDict()
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
            place = shifted_georeference(source.georeference, region.row, region.column)
            if path.exists():
                stores[kind] = LabelStore.open(path)
                stores[kind].move(source.pixel_size, place)
            else:
                stores[kind] = LabelStore.create(
                    path,
                    region.shape,
                    classes,
                    kind=kind,
                    pixel_size=source.pixel_size,
                    georeference=place,
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
        """Shards of the labels that are not done in every store, ascending: the units of work."""
        found: set[int] = set()
        for store in self.stores.values():
            for own in store.missing(0):
                found.update(self.labels.shards.touching(store.shards[own]))
        return sorted(found)

    def fill(self, index: int, predictor: Predictor) -> None:
        """Predict and write one shard of the labels, and the part of every other store that lies there."""
        for block in self.predict(index, predictor):
            self.write(block)

    def predict(self, index: int, predictor: Predictor) -> Iterator[Block]:
        """The values of one shard of the labels, then those of the maps over it, as much at once as a shard holds."""
        window = self.labels.shards[index]
        wanted = window.shifted(self.region.row, self.region.column)
        answers = {unit: self._unit(unit, predictor) for unit in self.grid.touching(wanted)}
        labels = np.empty(window.shape, np.uint8)
        for unit, answer in answers.items():
            shared = self.grid[unit].intersect(wanted)
            labels[shared.relative_to(wanted).slices] = answer.labels[shared.relative_to(self.grid[unit]).slices]
        yield Block("labels", index, labels, last=len(self.stores) == 1)
        yield from self._maps(window, labels, answers)

    def write(self, block: Block) -> None:
        """Write one shard of one store; may run beside others and :meth:`predict` of more."""
        self.stores[block.kind].write_shard(block.index, block.values)
        if block.kind == "labels":
            self._counted[block.index] = _counts(block.values, len(self.labels.classes))

    @property
    def block_bytes(self) -> int:
        """Of the largest block."""
        return max(store.shard_bytes for store in self.stores.values())

    def _unit(self, unit: int, predictor: Predictor) -> _Answer:
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
        logits = 0 if len(self.stores) == 1 else len(self.labels.classes) * 4 / 64  # a pixel; they are at stride 8
        return round(sum(answer.labels.size * (1 + logits) for answer in self._units.values()))

    def _predict(self, window: Window, predictor: Predictor) -> _Answer:
        if len(self.stores) == 1:  # without enlarging what need not be
            return _Answer(predictor.labels(window))
        return _Answer(*predictor.labels_and_fine(window))

    def _maps(self, window: Window, labels: npt.NDArray[np.uint8], answers: Mapping[int, _Answer]) -> Iterator[Block]:
        """The maps over ``window``, a shard of the labels, which holds whole shards of every map."""
        maps = {kind: store for kind, store in self.stores.items() if kind != "labels"}
        if not maps:
            return
        cells = max((store.shards for store in maps.values()), key=len)
        making: dict[str, npt.NDArray[np.uint8]] = {}
        for cell in (cells[number] for number in cells.touching(window)):
            at = {kind: store.shards.touching(cell)[0] for kind, store in maps.items()}
            shards = {kind: store.shards[at[kind]] for kind, store in maps.items()}
            for kind, store in maps.items():
                if kind not in making:
                    making[kind] = np.empty((store.channels, *shards[kind].shape), np.uint8)
            into = {kind: making[kind][(slice(None), *cell.relative_to(shards[kind]).slices)] for kind in maps}
            self._derive(cell, labels[cell.relative_to(window).slices], answers, into)
            ended = [kind for kind in maps if (shards[kind].bottom, shards[kind].right) == (cell.bottom, cell.right)]
            for kind in ended:
                last = (cell.bottom, cell.right) == (window.bottom, window.right) and kind == ended[-1]
                yield Block(kind, at[kind], np.moveaxis(making.pop(kind), 0, -1), last)

    def _derive(
        self,
        cell: Window,
        labels: npt.NDArray[np.uint8],
        answers: Mapping[int, _Answer],
        into: Mapping[str, npt.NDArray[np.uint8]],
    ) -> None:
        """Fill (channels, h, w) of every map for ``cell`` of the stores, whose ``labels`` say what is not valid."""
        place = cell.shifted(self.region.row, self.region.column)
        for unit, answer in answers.items():
            whole = self.grid[unit]
            shared = whole.intersect(place)
            # Parts of the unit, not of the region, so that a region has the very bits of the whole image.
            parts = Grid(whole.shape, self._part)
            for number in parts.touching(shared.relative_to(whole)):
                part = parts[number].shifted(whole.row, whole.column)
                kept = part.intersect(shared)
                for kind, values in self._values(answer, part).items():
                    into[kind][(slice(None), *kept.relative_to(place).slices)] = values[
                        (slice(None), *kept.relative_to(part).slices)
                    ]
        for values in into.values():
            values[:, labels == IGNORE_INDEX] = IGNORE_INDEX

    @property
    def _part(self) -> tuple[int, int]:
        """Rows and columns of a unit whose logits are enlarged at once: as wide as a shard of probabilities may be."""
        classes = len(self.labels.classes)
        columns = shard_side(UNIT, classes)
        return max(8, min(256, LOGITS_BYTES // (4 * classes * columns))), columns

    def _values(self, answer: _Answer, part: Window) -> dict[str, npt.NDArray[np.uint8]]:
        """(channels, h, w) of every map for a part of a unit."""
        import torch

        from napari_isdnet.engine.uncertainty import uncertainty_map
        from napari_isdnet.io.pyramid import quantise

        assert answer.fine is not None
        result = {}
        with torch.inference_mode():
            logits = answer.fine(part)[0].float().cpu()
            if "probabilities" in self.stores:
                result["probabilities"] = quantise(logits.softmax(0).numpy())
            if "uncertainty" in self.stores:
                result["uncertainty"] = uncertainty_map(logits)[None]
        return result

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
    """(shard of the labels, its window) of what is on the disk; while some is written, the next is computed."""
    bad: list[Window] = getattr(getattr(predictor, "reader", None), "bad", [])
    writers = writers_at_once(stores.block_bytes)
    waiting: deque[tuple[int | None, Future[None]]] = deque()  # the shard that is done with it, if one is
    with ThreadPoolExecutor(writers, thread_name_prefix="isdnet-write") as pool:
        for index in todo:
            unread: list[list[int]] = []
            for block in stores.predict(index, predictor):
                if bad:
                    unread += [list(astuple(w)) for w in bad]
                    ledger.record("bad", index, {"windows": unread})
                    bad.clear()
                if len(waiting) == writers:
                    yield from _done(waiting, stores)
                waiting.append((index if block.last else None, pool.submit(stores.write, block)))
        while waiting:
            yield from _done(waiting, stores)


def _done(waiting: deque[tuple[int | None, Future[None]]], stores: ResultStores) -> Iterator[tuple[int, Window]]:
    """Wait for the first of what is written; the shard that is done with it, if one is."""
    index, future = waiting.popleft()
    future.result()
    if index is not None:
        yield index, stores.labels.shards[index]


def writers_at_once(size: int) -> int:
    """Blocks of ``size`` bytes that are written at once: a graphics card makes one in less time than it takes to write.

    As many as the cores are for, and as ``WRITING_BYTES`` hold.
    """
    return max(1, min(4, (os.cpu_count() or 1) // 3, WRITING_BYTES // size))


def _counts(labels: npt.NDArray[np.uint8], classes: int) -> npt.NDArray[np.int64]:
    """How many of ``labels`` are which value, (256,)."""
    if classes > FEW_CLASSES:
        return np.bincount(labels.ravel(), minlength=256)
    counts = np.zeros(256, np.int64)
    for value in (*range(classes), IGNORE_INDEX):
        counts[value] = np.count_nonzero(labels == value)
    return counts
