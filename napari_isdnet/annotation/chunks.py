"""Chunks of the annotation pyramid: a bounded write-through cache in memory over plain zarr v3 chunk files.

A chunk is a ``uint8`` array of 512 x 512 that nobody changes once it is handed out (painting replaces it), or a plain
``int`` when all its pixels have one value. Chunks that are 0 throughout exist nowhere.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from weakref import WeakSet

import numpy as np
import numpy.typing as npt

from napari_isdnet.annotation.container import chunk_files, pending
from napari_isdnet.classes import ANNOTATIONS_ZARR
from napari_isdnet.exceptions import InputError
from napari_isdnet.system import opened

CHUNK = 512
Labels = npt.NDArray[np.uint8]
Chunk = Labels | int
Key = tuple[int, int, int]
"""(level, chunk row, chunk column)"""

_PIXELS = CHUNK * CHUNK
_INT_BYTES = 128  # about what a constant chunk costs in a dict


REPAIR = "'napari-isdnet annotation repair IMAGE' makes it anew from the journal of strokes."
"""What mends all that is not the journal itself."""


class DamagedChunk(InputError):
    """The file of a chunk is not whole, or gone."""


def chunk_path(key: Key) -> str:
    """Where a chunk lies, relative to the project folder (zarr v3, default chunk key encoding)."""
    return f"{ANNOTATIONS_ZARR}/{key[0]}/c/{key[1]}/{key[2]}"


@lru_cache(maxsize=256)
def _encode_constant(value: int) -> bytes:
    return _encode_array(np.full((CHUNK, CHUNK), value, dtype=np.uint8))


def _encode_array(values: Labels) -> bytes:
    import imagecodecs

    return bytes(imagecodecs.zstd_encode(values.tobytes(), level=1))


def encode(chunk: Chunk) -> bytes | None:
    """Content of the chunk's file; ``None`` for a chunk without labels, which has none."""
    if isinstance(chunk, int):
        return _encode_constant(chunk) if chunk else None
    return _encode_array(chunk)


def decode(data: bytes | None, name: str = "a chunk") -> Chunk:
    """Inverse of :func:`encode`; raises :class:`DamagedChunk` for a file that is not whole."""
    import imagecodecs

    if data is None:
        return 0
    try:
        values = np.frombuffer(imagecodecs.zstd_decode(data, out=_PIXELS), dtype=np.uint8)
    except Exception as error:
        raise DamagedChunk(f"{name} is damaged ({error}); {REPAIR}") from None
    if values.size != _PIXELS:
        raise DamagedChunk(f"{name} holds {values.size} pixels instead of {_PIXELS}; {REPAIR}")
    return simplified(values.reshape(CHUNK, CHUNK))


def simplified(values: Labels) -> Chunk:
    """The array, or its value when it has only one."""
    few = values[::73, ::73]
    if (few != few[0, 0]).any():  # nearly every mixed chunk is known as such by these
        return values
    words = np.ascontiguousarray(values).view(np.uint64)
    if (words == words[0, 0]).all() and (values[0, :8] == values[0, 0]).all():
        return int(values[0, 0])
    return values


def as_array(chunk: Chunk) -> Labels:
    """The chunk as an array of its own that may be changed."""
    return np.full((CHUNK, CHUNK), chunk, dtype=np.uint8) if isinstance(chunk, int) else chunk.copy()


class ChunkCache:
    """Newest state of every chunk: in memory, waiting to be written, or on disk.

    Of the methods that others call each is whole to other threads: whoever shows an annotation reads while a stroke of
    seconds, which holds the store's lock, is being painted. ``lock`` is held for one chunk at a time.

    ``budget`` bounds the bytes of decoded arrays; a changed chunk that must make room waits compressed.
    """

    def __init__(self, folder: Path, shapes: Sequence[tuple[int, int]], budget: int) -> None:
        self.folder = folder
        self.shapes = tuple(shapes)
        self.budget = budget
        self.lock = threading.RLock()
        self._recent: OrderedDict[Key, Chunk] = OrderedDict()
        self._bytes = 0
        self._changed: dict[Key, Chunk | bytes] = {}
        self._writing: dict[Key, Chunk | bytes] = {}
        self._overlay: dict[Key, bytes | None] = {}
        self._stored: set[Key] = set()
        self._frozen: WeakSet[FrozenChunks] = WeakSet()
        self.rescan()

    def rescan(self) -> None:
        """Forget what is in memory and look at the disk."""
        self._recent.clear()
        self._bytes = 0
        self._changed.clear()
        self._writing.clear()
        # A read-only opening must not finish another process's commit: it looks through it instead. It does so before
        # it lists the folder, for a commit that ends in between is in there.
        waiting = pending(self.folder)
        self._stored = {
            (level, row, column)
            for level in range(len(self.shapes))
            for row, column in chunk_files(self.folder / ANNOTATIONS_ZARR / str(level))
        }
        self._overlay = {}
        for name, data in waiting.items():
            parts = name.split("/")
            if parts[0] == ANNOTATIONS_ZARR and len(parts) == 5:
                self._overlay[(int(parts[1]), int(parts[3]), int(parts[4]))] = data

    @property
    def memory(self) -> int:
        """Bytes of decoded chunks held now."""
        return self._bytes

    @property
    def changed(self) -> int:
        """Number of chunks that wait to be written."""
        return len(self._changed)

    def keys(self, level: int) -> set[Key]:
        """Chunks of ``level`` that may hold a label."""
        with self.lock:
            known = set(self._stored) | self._changed.keys() | self._writing.keys() | self._overlay.keys()
        return {key for key in known if key[0] == level}

    def get(self, key: Key) -> Chunk:
        """Newest state of a chunk; do not change the array."""
        with self.lock:
            chunk = self._recent.get(key)
            if chunk is not None:
                self._recent.move_to_end(key)
                return chunk
            chunk = self._load(key)
            self._remember(key, chunk)
            return chunk

    def _waiting(self, key: Key) -> Chunk | bytes | None:
        waiting = self._changed.get(key)
        return self._writing.get(key) if waiting is None else waiting

    def _load(self, key: Key) -> Chunk:
        waiting = self._waiting(key)
        if waiting is not None:
            return decode(waiting) if isinstance(waiting, bytes) else waiting
        return decode(self._stored_bytes(key), chunk_path(key))

    def _stored_bytes(self, key: Key) -> bytes | None:
        if key in self._overlay:
            return self._overlay[key]
        if key not in self._stored:
            return None
        try:
            with opened(self.folder / chunk_path(key)) as file:
                return file.read()
        except FileNotFoundError:  # read only: perhaps its last label was erased by the program that paints
            raise DamagedChunk(f"{chunk_path(key)} of {self.folder} is missing; {REPAIR}") from None

    def waiting(self, level: int) -> set[Key]:
        """Chunks of ``level`` that changed since the last finished commit."""
        with self.lock:
            return {key for key in (*self._changed, *self._writing) if key[0] == level}

    def freeze(self) -> FrozenChunks:
        """All chunks as they are now. Costs nothing but what is changed while somebody holds the result."""
        frozen = FrozenChunks(self)
        with self.lock:
            self._frozen.add(frozen)
        return frozen

    def packed(self, key: Key) -> bytes | int:
        """Newest state of a chunk in few bytes: a constant, or the content of its file."""
        waiting = self._waiting(key)
        if isinstance(waiting, bytes):
            return waiting
        chunk = self._recent.get(key) if waiting is None else waiting
        if chunk is None:
            return self._stored_bytes(key) or 0
        return chunk if isinstance(chunk, int) else _encode_array(chunk)

    def put(self, key: Key, chunk: Chunk) -> None:
        """New state of a chunk; an array must not be changed afterwards."""
        with self.lock:
            for frozen in self._frozen:
                frozen.keep(key)
            self._changed[key] = chunk
            self._remember(key, chunk)

    def _remember(self, key: Key, chunk: Chunk) -> None:
        old = self._recent.pop(key, None)
        if old is not None:
            self._bytes -= _cost(old)
        self._recent[key] = chunk
        self._bytes += _cost(chunk)
        while self._bytes > self.budget and len(self._recent) > 1:
            gone, oldest = self._recent.popitem(last=False)
            self._bytes -= _cost(oldest)
            if isinstance(oldest, np.ndarray) and self._changed.get(gone) is oldest:
                self._changed[gone] = _encode_array(oldest)

    def take(self) -> dict[Key, Chunk | bytes]:
        """Everything that changed; it counts as being written until :meth:`written` or :meth:`put_back`."""
        with self.lock:
            self._writing, self._changed = self._changed, {}
            return self._writing

    def written(self) -> None:
        """What was taken is on disk now."""
        with self.lock:
            for key, chunk in self._writing.items():
                (self._stored.discard if isinstance(chunk, int) and chunk == 0 else self._stored.add)(key)
            self._writing = {}

    def put_back(self) -> None:
        """What was taken could not be written; it counts as changed again, where it did not change since."""
        with self.lock:
            self._changed = {**self._writing, **self._changed}
            self._writing = {}


class FrozenChunks:
    """The chunks of a cache at one moment: those that were replaced since are kept here, compressed."""

    def __init__(self, cache: ChunkCache) -> None:
        self._cache = cache
        self._kept: dict[Key, bytes | int] = {}

    def keep(self, key: Key) -> None:
        """A chunk is about to be replaced for the first time, or once more; the cache's lock is held."""
        if key not in self._kept:
            self._kept[key] = self._cache.packed(key)

    def get(self, key: Key) -> Chunk:
        """State of a chunk at that moment; do not change the array."""
        with self._cache.lock:
            kept = self._kept.get(key)
            if kept is None:
                return self._cache.get(key)
        return decode(kept) if isinstance(kept, bytes) else kept

    @property
    def memory(self) -> int:
        """Bytes that are held here."""
        with self._cache.lock:
            return sum(len(kept) if isinstance(kept, bytes) else _INT_BYTES for kept in self._kept.values())


def _cost(chunk: Chunk) -> int:
    return _INT_BYTES if isinstance(chunk, int) else chunk.nbytes
