"""How many pixels of which class each chunk holds, kept on disk in blocks so that a stroke rewrites little."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from napari_isdnet.annotation.chunks import CHUNK, Chunk
from napari_isdnet.annotation.container import pending

Counts = dict[int, int]
"""Annotation value (never 0) to number of pixels."""
Place = tuple[int, int]
"""Row and column of a chunk at level 0."""

BLOCK = 32
FOLDER = "index"


def count(chunk: Chunk) -> Counts:
    """Labelled pixels of one chunk by annotation value."""
    if isinstance(chunk, int):
        return {chunk: CHUNK * CHUNK} if chunk else {}
    found = np.bincount(chunk.ravel(), minlength=256)
    return {int(value): int(found[value]) for value in np.flatnonzero(found) if value}


def by_class(counted: Iterable[Counts], classes: int) -> tuple[int, ...]:
    """Labelled pixels of every class over many chunks or regions."""
    totals = [0] * classes
    for counts in counted:
        for value, number in counts.items():
            totals[value - 1] += number
    return tuple(totals)


class CountIndex:
    """Counts of all chunks that hold a label, as of the last commit; ``damaged`` when its files cannot be read."""

    def __init__(self, folder: Path) -> None:
        self._counts: dict[Place, Counts] = {}
        self.damaged = False
        try:
            self._read(folder)
        except (OSError, ValueError, TypeError):  # a power cut may leave a file empty
            self._counts.clear()
            self.damaged = True

    def _read(self, folder: Path) -> None:
        waiting = pending(folder)  # before the folder: a commit that ends in between is in there
        stored = {f"{FOLDER}/{path.name}" for path in (folder / FOLDER).glob("*.json")}
        for name in sorted(stored | {name for name in waiting if name.startswith(FOLDER + "/")}):
            data = waiting[name] if name in waiting else (folder / name).read_bytes()
            for row, column, *pairs in json.loads(data) if data is not None else ():
                self._counts[(row, column)] = {int(v): int(c) for v, c in pairs}

    def copy(self) -> dict[Place, Counts]:
        """All counts."""
        return dict(self._counts)

    def update(self, changed: dict[Place, Counts]) -> dict[str, bytes | None]:
        """Take in new counts (empty: no label left); returns the files to write."""
        for place, counts in changed.items():
            if counts:
                self._counts[place] = counts
            else:
                self._counts.pop(place, None)
        blocks = {(row // BLOCK, column // BLOCK) for row, column in changed}
        return {f"{FOLDER}/{r}_{c}.json": self._block(r, c) for r, c in sorted(blocks)}

    def _block(self, r: int, c: int) -> bytes | None:
        places = _block_places(r, c) if len(self._counts) > BLOCK * BLOCK else sorted(self._counts)
        rows = [
            [*place, *([v, n] for v, n in self._counts[place].items())]
            for place in places
            if place in self._counts and place[0] // BLOCK == r and place[1] // BLOCK == c
        ]
        return json.dumps(rows, separators=(",", ":")).encode() if rows else None


def _block_places(r: int, c: int) -> Iterable[Place]:
    for row in range(r * BLOCK, (r + 1) * BLOCK):
        for column in range(c * BLOCK, (c + 1) * BLOCK):
            yield row, column
