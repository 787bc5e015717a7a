"""The undo area: what chunks held before each of the latest strokes, compressed and bounded, on disk."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from napari_isdnet.annotation.chunks import Chunk, decode, encode
from napari_isdnet.annotation.container import pack, pending, unpack
from napari_isdnet.annotation.counts import Place

FOLDER = "undo"
_CLASSES = "classes.json"


@dataclass(frozen=True)
class Before:
    """Level-0 chunks as they were (an array, a constant, or compressed), and the class list if that changed."""

    chunks: Mapping[Place, Chunk | bytes]
    classes: Sequence[Mapping[str, Any]] | None = None

    def restored(self, place: Place) -> Chunk:
        """One chunk as it was."""
        chunk = self.chunks[place]
        return decode(chunk) if isinstance(chunk, bytes) else chunk

    def packed(self) -> bytes:
        """As one file."""
        files: dict[str, bytes | None] = {}
        for (row, column), chunk in self.chunks.items():
            files[f"{row}/{column}"] = chunk if isinstance(chunk, bytes) else encode(chunk)
        if self.classes is not None:
            files[_CLASSES] = json.dumps(self.classes).encode()
        return pack(files)

    @classmethod
    def unpacked(cls, data: bytes) -> Before:
        """Inverse of :meth:`packed`; raises ``ValueError`` when the bytes are not whole."""
        files = unpack(data)
        classes = files.pop(_CLASSES, None)
        chunks: dict[Place, Chunk | bytes] = {}
        for name, content in files.items():
            row, column = name.split("/")
            chunks[(int(row), int(column))] = 0 if content is None else content
        return cls(chunks, None if classes is None else json.loads(classes))


@dataclass
class UndoArea:
    """At most ``records`` steps and ``size`` bytes can be taken back; the oldest are given up first.

    ``step`` says which entries are one step (an import, however many shapes it has).
    """

    folder: Path
    records: int = 2000
    size: int = 256 << 20
    step: Callable[[int], object] = int
    _new: dict[int, Before] = field(default_factory=dict)
    _writing: dict[int, Before] = field(default_factory=dict)
    _gone: set[int] = field(default_factory=set)
    _stored: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rescan()

    def rescan(self) -> None:
        """Know just what lies on the disk, or waits for it."""
        for known in (self._new, self._writing, self._gone, self._stored):
            known.clear()
        for path in (self.folder / FOLDER).glob("*.bin"):
            with suppress(FileNotFoundError):  # read only: the program that paints dropped it
                self._stored[int(path.stem)] = path.stat().st_size
        for name, data in pending(self.folder).items():
            if name.startswith(FOLDER + "/") and data is not None:
                self._stored[int(Path(name).stem)] = len(data)

    def __contains__(self, n: int) -> bool:
        return n in self._new or (n not in self._gone and (n in self._writing or n in self._stored))

    def add(self, n: int, before: Before) -> None:
        """What entry ``n`` replaced."""
        self._new[n] = before
        self._gone.discard(n)

    def get(self, n: int) -> Before:
        """What entry ``n`` replaced; ``KeyError`` when it is not kept (any more)."""
        if n not in self:
            raise KeyError(n)
        if n in self._new:
            return self._new[n]
        if n in self._writing:
            return self._writing[n]
        name = f"{FOLDER}/{n}.bin"
        waiting = pending(self.folder).get(name)
        try:
            return Before.unpacked(waiting or (self.folder / name).read_bytes())
        except (OSError, ValueError):
            raise KeyError(n) from None

    def drop(self, n: int) -> None:
        """Entry ``n`` was taken back."""
        self._new.pop(n, None)
        if n in self._stored or n in self._writing:
            self._gone.add(n)

    @property
    def waiting(self) -> int:
        """Number of records that are not on disk yet."""
        return len(self._new)

    def take(self) -> tuple[dict[int, Before], set[int]]:
        """Records to write and records to delete; call :meth:`written` or :meth:`put_back` afterwards."""
        self._writing, self._new = self._new, {}
        gone, self._gone = self._gone, set()
        return self._writing, gone

    def trimmed(self, new: Mapping[int, int]) -> set[int]:
        """The oldest records that must go when records of the given sizes (bytes) are added."""
        sizes = dict(sorted({**self._stored, **new}.items()))
        total = sum(sizes.values())
        left = Counter(self.step(n) for n in sizes)
        gone: set[int] = set()
        for n, size in sizes.items():
            if len(left) <= self.records and total <= self.size:
                break
            gone.add(n)
            total -= size
            step = self.step(n)
            left[step] -= 1
            if not left[step]:
                del left[step]
        return gone

    def written(self, sizes: Mapping[int, int], gone: set[int]) -> None:
        """The disk now holds records of these ``sizes`` more, and no longer those in ``gone``."""
        self._stored.update(sizes)
        for n in gone:
            self._stored.pop(n, None)
        self._writing = {}

    def put_back(self, gone: set[int]) -> None:
        """The records could not be written."""
        self._new = {**self._writing, **self._new}
        self._gone |= gone
        self._writing = {}
