"""Annotations as they were when a fine-tuning began: small, in memory, and the same again after a resume.

People go on painting while a model trains. A snapshot keeps every annotated chunk compressed (a stroke takes about a
kilobyte), so that one run sees one state, and its hash tells two states apart.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from napari_isdnet_training.presets import HELD_OUT

from napari_isdnet.annotation.chunks import CHUNK, decode, encode
from napari_isdnet.annotation.container import pack, unpack
from napari_isdnet.annotation.counts import Counts, Place, by_class, count
from napari_isdnet.annotation.journal import Journal
from napari_isdnet.annotation.naming import Naming
from napari_isdnet.annotation.reading import Frozen
from napari_isdnet.annotation.regions import Split, split_store
from napari_isdnet.annotation.store import AnnotationStore
from napari_isdnet.annotation.strokes import Cover, stroke_from_json
from napari_isdnet.classes import ClassInfo, classes_from
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.disk import write_atomic
from napari_isdnet.window import Grid, Window

Labels = npt.NDArray[np.uint8]
CHUNKS_PER_STROKE = 16
POINTS_PER_CHUNK = 8
_OPEN_CHUNKS = 64
_HELD_BYTES = 1 << 27
"""Strokes are held together up to so many bytes while their chunks are looked at."""


@dataclass
class Snapshot:
    """Annotation values (0 = unlabelled, k + 1 = class k) of one moment.

    Attributes:
        shape: of the image, (rows, columns).
        classes: of the annotation.
        chunks: (row, column) of a 512-chunk to its compressed pixels.
        split: which regions teach and which judge.
        position, id: the journal entry that this state stands for.
        points: ``(N, 3)`` int64: rank of a stroke by age (0 is the oldest), row and column of a pixel that it touched.
        naming: what the classes were called before, as a model of the same annotation may know them.
    """

    shape: tuple[int, int]
    classes: tuple[ClassInfo, ...]
    chunks: dict[Place, bytes]
    split: Split
    position: int
    id: str
    points: npt.NDArray[np.int64]
    naming: Naming = field(default_factory=Naming)
    _open: OrderedDict[Place, Labels] = field(default_factory=OrderedDict, repr=False)
    _counts: dict[Place, Counts] | None = field(default=None, repr=False)

    def chunk_counts(self) -> dict[Place, Counts]:
        """Labelled pixels by annotation value of every chunk."""
        if self._counts is None:
            self._counts = {place: count(decode(data)) for place, data in self.chunks.items()}
        return self._counts

    def class_counts(self, side: str | None = None) -> tuple[int, ...]:
        """Labelled pixels of every class, of one side of the split or of both."""
        found = self.chunk_counts().items()
        wanted = (c for place, c in found if side is None or self.split.side(self.region(place)) == side)
        return by_class(wanted, len(self.classes))

    def region(self, place: Place) -> Place:
        """The region of the split that a chunk lies in."""
        return place[0] * CHUNK // self.split.size, place[1] * CHUNK // self.split.size

    def read_labels(self, window: Window, chunk: Callable[[Place], Labels] | None = None) -> Labels:
        """Annotation values of ``window`` (level 0) as (height, width); ``chunk`` gives those of a whole chunk."""
        chunk = chunk or self.chunk
        result = np.zeros(window.shape, np.uint8)
        grid = Grid(self.shape, (CHUNK, CHUNK))
        for index in grid.touching(window):
            row, column = divmod(index, grid.counts[1])
            if (row, column) in self.chunks:
                inside = window.intersect(grid[index])
                part = chunk((row, column))[inside.shifted(-row * CHUNK, -column * CHUNK).slices]
                result[inside.relative_to(window).slices] = part
        return result

    def chunk(self, place: Place) -> Labels:
        """(512, 512) values of one annotated chunk, not to be written to."""
        if place not in self._open:
            chunk = decode(self.chunks[place])
            self._open[place] = np.full((CHUNK, CHUNK), chunk, np.uint8) if isinstance(chunk, int) else chunk
            if len(self._open) > _OPEN_CHUNKS:
                self._open.popitem(last=False)
        self._open.move_to_end(place)
        return self._open[place]

    @property
    def digest(self) -> str:
        """Hash of pixels, classes and split: equal for equal annotation, wherever it lies."""
        digest = blake2b(digest_size=16)
        names = [c.name for c in self.classes]
        digest.update(json.dumps([self.shape, names, self.split.size, self.split.fraction]).encode())
        digest.update(json.dumps(sorted(self.split.pins.items())).encode())
        for place, data in sorted(self.chunks.items()):
            chunk = decode(data)
            digest.update(f"{place}{chunk if isinstance(chunk, int) else ''}".encode())
            digest.update(b"" if isinstance(chunk, int) else chunk.tobytes())
        digest.update(self.points.tobytes())
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write to a file, whole or not at all; :class:`InputError` where the disk is full."""
        facts: dict[str, Any] = {
            "shape": self.shape,
            "classes": [{"name": c.name, "color": list(c.color)} for c in self.classes],
            "split": [self.split.size, self.split.fraction, dict(self.split.pins)],
            "position": self.position,
            "id": self.id,
            "naming": self.naming.to_json(),
        }
        files = {f"{row} {column}": data for (row, column), data in self.chunks.items()}
        files |= {"facts": json.dumps(facts).encode(), "points": self.points.tobytes()}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, pack(files))

    @classmethod
    def load(cls, path: Path) -> Snapshot:
        """Read what :meth:`save` wrote; :class:`InputError` for a damaged file."""
        try:
            files = {name: data or b"" for name, data in unpack(path.read_bytes()).items()}
            facts, points = json.loads(files.pop("facts")), np.frombuffer(files.pop("points"), np.int64)
            places = [tuple(int(v) for v in name.split()) for name in files]
            chunks = {(r, c): data for (r, c), data in zip(places, files.values(), strict=True)}
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{path} cannot be read ({error}); start over with --no-resume.") from None
        split = _split(chunks, *facts["split"])
        shape = (int(facts["shape"][0]), int(facts["shape"][1]))
        classes = classes_from(facts["classes"])
        naming = Naming.from_json(facts["naming"]) if "naming" in facts else Naming()  # runs begun by older versions
        return cls(shape, classes, chunks, split, facts["position"], facts["id"], points.reshape(-1, 3), naming)


def _split(chunks: dict[Place, bytes], size: int, fraction: float, pins: dict[str, str]) -> Split:
    from napari_isdnet.annotation.regions import split_regions

    step = size // CHUNK
    return split_regions({(r // step, c // step): {1: 1} for r, c in chunks}, size, fraction, pins)


def take_snapshot(store: AnnotationStore, fraction: float = HELD_OUT) -> Snapshot:
    """The state of a store now; the split is fixed in its journal unless the store is read-only.

    Pixels, classes, split, strokes and position are of one moment, also while somebody paints. Raises
    :class:`InputError` when nothing is annotated.
    """
    with store.still():
        split = split_store(store, CHUNK, fraction)
        moment = store.frozen()
    packed = ((place, encode(moment.chunk(place))) for place in sorted(moment.chunk_counts()))
    chunks = {place: data for place, data in packed if data is not None}
    if not chunks:
        raise InputError(f"{store.folder} holds no painted pixel; annotate at least two classes before fine-tuning.")
    points = np.array(list(_stroke_points(moment, chunks)), np.int64).reshape(-1, 3)
    facts = (moment.position, moment.last_id, points, moment.naming())
    return Snapshot(moment.shape, moment.classes, chunks, split, *facts)


@dataclass
class _Touching:
    """A stroke, the chunks of it that are looked at, and its own chance, which goes through them in their order."""

    rank: int
    cover: Cover
    rng: np.random.Generator
    places: list[Place]
    size: int
    """Bytes that its cover holds or makes, about: a mask, or the runs of its rows."""


def _stroke_points(moment: Frozen, chunks: dict[Place, bytes]) -> Iterator[tuple[int, int, int]]:
    """A few labelled pixels of every stroke that stands, oldest stroke first."""
    waiting: list[_Touching] = []
    held = 0
    for stroke in _strokes(moment, chunks):
        waiting.append(stroke)
        held += stroke.size
        if held > _HELD_BYTES:
            yield from _points_in(moment, chunks, waiting)
            waiting, held = [], 0
    yield from _points_in(moment, chunks, waiting)


def _strokes(moment: Frozen, chunks: dict[Place, bytes]) -> Iterator[_Touching]:
    journal: Journal = moment.journal
    grid = Grid(moment.shape, (CHUNK, CHUNK))
    standing = {number: rank for rank, number in enumerate(moment.strokes)}
    for entry in journal.entries():
        if entry["n"] not in standing or entry["kind"] == "classes" or entry.get("class", 0) is None:
            continue
        cover = stroke_from_json(entry["kind"], entry["about"], journal.data(entry)).cover(moment.shape)
        if cover.bounds.empty:
            continue
        rng = np.random.default_rng([entry["n"], 3])
        places = [p for i in grid.touching(cover.bounds) if (p := divmod(i, grid.counts[1])) in chunks]
        if len(places) > CHUNKS_PER_STROKE:
            places = [places[i] for i in np.sort(rng.choice(len(places), CHUNKS_PER_STROKE, replace=False))]
        size = cover.bounds.area if "data" in entry or "file" in entry else 32 * cover.bounds.height
        yield _Touching(standing[entry["n"]], cover, rng, places, size)


def _points_in(moment: Frozen, chunks: dict[Place, bytes], strokes: list[_Touching]) -> Iterator[tuple[int, int, int]]:
    """Points of several strokes, each chunk that they touch unpacked once: people paint one place over and over."""
    grid = Grid(moment.shape, (CHUNK, CHUNK))
    touching: dict[Place, list[_Touching]] = {}
    for stroke in strokes:
        for place in stroke.places:
            touching.setdefault(place, []).append(stroke)
    found: dict[int, list[tuple[int, int, int]]] = {stroke.rank: [] for stroke in strokes}
    for row, column in sorted(touching):
        painted = np.broadcast_to(np.greater(decode(chunks[(row, column)]), 0), (CHUNK, CHUNK))
        whole = grid[row * grid.counts[1] + column]
        for stroke in touching[(row, column)]:
            window = whole.intersect(stroke.cover.bounds)
            hit = np.flatnonzero(painted[window.relative_to(whole).slices] & stroke.cover.mask(window))
            for pixel in stroke.rng.choice(hit, min(len(hit), POINTS_PER_CHUNK), replace=False) if len(hit) else ():
                r, c = divmod(int(pixel), window.width)
                found[stroke.rank].append((stroke.rank, window.row + r, window.column + c))
    for rank in sorted(found):
        yield from found[rank]
