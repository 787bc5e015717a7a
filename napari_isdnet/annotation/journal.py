"""The append-only record of everything that was done to an annotation: one JSON object a line.

The journal is the truth; chunks on disk only save replaying it. Each entry has ``n`` (1, 2, ...; line 0 is the header),
``id``, ``kind``, ``time`` (seconds since 1970, UTC) and ``session``; strokes also ``class`` (index at that time, null =
erase), ``about`` (geometry), and pixels as ``data`` (base64) or ``file``. ``undo`` and ``redo`` name their ``target``.
A line is handed to the operating system before the stroke is applied, so a killed process loses none; it is forced to
the disk at most half a second later, so a power cut loses no more than that.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from napari_isdnet.annotation.container import write_atomic
from napari_isdnet.annotation.strokes import from_text, to_text
from napari_isdnet.exceptions import InputError

FORMAT = 1
INLINE_BYTES = 4096
ID_CHARS = 8
"""So many characters of an identifier tell the entries of one place in two journals apart."""
_OFF_STACK = frozenset({"header", "undo", "redo", "pin"})

Entry = Mapping[str, Any]


class Journal:
    """Entries of one annotation, and the undo and redo stacks that follow from them."""

    def __init__(self, path: Path, read_only: bool = False) -> None:
        self.path = path
        self.read_only = read_only
        self.session = uuid.uuid4().hex[:12]
        self.done: list[int] = []
        self.undone: list[int] = []
        self.edits: list[int] = []
        """Numbers of the entries that changed the class list, also by undo and redo."""
        self._groups: dict[int, str] = {}
        self._listing: set[int] = set()
        self._offsets = array("q")
        self._ids = bytearray()
        self._unsynced = False
        self._end = 0
        self._last_id = ""
        self._load()
        self._file = None if read_only else open(path, "r+b", buffering=0)  # noqa: SIM115 - held until close()
        if self._file is not None:
            self._file.truncate(self._end)  # a line that a power cut tore apart
            self._file.seek(self._end)

    @classmethod
    def create(cls, path: Path, header: Mapping[str, Any]) -> Journal:
        """A new journal whose first line is ``header``."""
        first = {"n": 0, "id": uuid.uuid4().hex, "kind": "header", "format": FORMAT, "time": time.time(), **header}
        write_atomic(path, _line(first))
        return cls(path)

    def _load(self) -> None:
        with open(self.path, "rb") as lines:
            for raw in lines:
                try:
                    if not raw.endswith(b"\n"):
                        raise ValueError("torn line")
                    entry = json.loads(raw)
                    if entry["n"] != len(self._offsets):
                        raise ValueError(f"entry {entry['n']} where {len(self._offsets)} was expected")
                except (ValueError, KeyError, TypeError) as error:
                    if lines.read(1):
                        raise InputError(
                            f"{self.path} is damaged after entry {len(self._offsets) - 1} ({error}); restore it from a"
                            " copy, or delete the lines from there on and open the project again."
                        ) from None
                    break
                self._note(entry, len(raw))
        if not self._offsets:
            raise InputError(f"{self.path} has no header and so is no annotation journal; move it away to start anew.")
        if self.header.get("format") != FORMAT:
            raise InputError(
                f"{self.path} has format {self.header.get('format')}, this version reads {FORMAT}; update it."
            )

    def _note(self, entry: Entry, size: int) -> None:
        n = len(self._offsets)
        self._offsets.append(self._end)
        self._end += size
        self._last_id = str(entry["id"])
        self._ids += self._last_id.encode()[:ID_CHARS].ljust(ID_CHARS)
        kind = entry["kind"]
        if kind == "undo":
            self.undone.append(self.done.pop())
        elif kind == "redo":
            self.done.append(self.undone.pop())
        elif kind not in _OFF_STACK:
            self.done.append(n)
            self.undone.clear()
            if "group" in entry:
                self._groups[n] = entry["group"]
        if kind == "classes" or (kind in ("undo", "redo") and int(entry["target"]) in self._listing):
            self.edits.append(n)
            self._listing.add(n)

    @property
    def position(self) -> int:
        """Number of the last entry; 0 for a journal that holds only its header."""
        return len(self._offsets) - 1

    @property
    def writable(self) -> bool:
        """True until a journal that was opened for writing is closed."""
        return self._file is not None

    @property
    def last_id(self) -> str:
        """Identifier of the last entry."""
        return self._last_id

    def ids(self, position: int) -> str:
        """The first :data:`ID_CHARS` characters of every entry's identifier, up to that of entry ``position``."""
        return self._ids[: (position + 1) * ID_CHARS].decode(errors="replace")

    @property
    def header(self) -> dict[str, Any]:
        """The first line."""
        return self.entry(0)

    def entry(self, n: int) -> dict[str, Any]:
        """Entry number ``n``."""
        with open(self.path, "rb") as lines:
            lines.seek(self._offsets[n])
            result: dict[str, Any] = json.loads(lines.readline())
            return result

    def entries(self, after: int = 0) -> Iterator[dict[str, Any]]:
        """All entries with a number above ``after``, in order."""
        if after >= self.position:
            return
        with open(self.path, "rb") as lines:
            lines.seek(self._offsets[after + 1])
            for _ in range(self.position - after):
                yield json.loads(lines.readline())

    def group(self, n: int) -> str | None:
        """Name shared by entries that are undone together."""
        return self._groups.get(n)

    def append(self, kind: str, fields: Mapping[str, Any], data: bytes | None = None) -> dict[str, Any]:
        """Write one entry (and its pixels) and return it; raises :class:`InputError` when the disk refuses."""
        if self._file is None:
            raise InputError(f"{self.path.parent} was opened read-only (or closed); open it for writing.")
        entry = {"n": self.position + 1, "id": uuid.uuid4().hex, "kind": kind, **fields}
        entry |= {"time": round(time.time(), 3), "session": self.session}
        try:
            if data is not None and len(data) > INLINE_BYTES:
                entry["file"] = f"pixels/{entry['id']}.zst"
                write_atomic(self.path.parent / entry["file"], data)
            elif data is not None:
                entry["data"] = to_text(data)
            raw = _line(entry)
            if self._file.write(raw) != len(raw):
                raise OSError("the disk is full")
        except OSError as error:
            self._file.truncate(self._end)
            self._file.seek(self._end)
            raise InputError(f"{self.path} cannot be written ({error}); free some space and paint again.") from None
        self._unsynced = True
        self._note(entry, len(raw))
        return entry

    def data(self, entry: Entry) -> bytes | None:
        """The pixels that belong to an entry."""
        if "file" in entry:
            try:
                return (self.path.parent / entry["file"]).read_bytes()
            except OSError as error:
                raise InputError(f"The pixels of entry {entry['n']} of {self.path} are gone ({error}).") from None
        return from_text(entry["data"]) if "data" in entry else None

    def sync(self) -> None:
        """Force to the disk what was appended."""
        if self._file is not None and self._unsynced:
            self._unsynced = False
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Sync and release the file."""
        if self._file is not None:
            self.sync()
            self._file.close()
            self._file = None


def _line(entry: Entry) -> bytes:
    return json.dumps(entry, separators=(",", ":")).encode() + b"\n"
