"""Decoded tiles, kept up to a number of bytes, decoded once even when several threads ask at the same time."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy.typing as npt

Key = tuple[Hashable, ...]
DEFAULT_BYTES = 256 << 20


class _Pending:
    """A tile that some thread is decoding now; the event exists only if another thread waits."""

    __slots__ = ("error", "event", "tile")

    def __init__(self) -> None:
        self.event: threading.Event | None = None
        self.tile: npt.NDArray[Any] | None = None
        self.error: BaseException | None = None


class TileCache:
    """Least-recently-used cache of arrays. Arrays handed out are shared: they are set read-only."""

    def __init__(self, max_bytes: int = DEFAULT_BYTES) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[Key, npt.NDArray[Any]] = OrderedDict()
        self._running: dict[Key, _Pending] = {}
        self._bytes = 0
        self._max_bytes = max_bytes
        self._limits: list[int] = []
        self.hits = 0
        self.misses = 0

    @property
    def max_bytes(self) -> int:
        """Upper bound of what is kept; the least recently used tiles go first."""
        return min([self._max_bytes, *self._limits])

    @max_bytes.setter
    def max_bytes(self, value: int) -> None:
        with self._lock:
            self._max_bytes = max(0, int(value))
            self._shrink()

    @contextmanager
    def within(self, limit: int) -> Iterator[None]:
        """Meanwhile at most ``limit`` bytes are kept.

        Blocks of several threads may overlap in any order: the smallest limit that holds counts.
        """
        with self._lock:
            self._limits.append(limit)
            self._shrink()
        try:
            yield
        finally:
            with self._lock:
                self._limits.remove(limit)

    @property
    def nbytes(self) -> int:
        """Bytes kept now."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Key, load: Callable[[], npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """The tile of ``key``; ``load`` makes it if it is not kept. What ``load`` raises reaches everyone who waits."""
        with self._lock:
            tile = self._kept.get(key)
            if tile is not None:
                self._kept.move_to_end(key)
                self.hits += 1
                return tile
            running = self._running.get(key)
            if running is None:
                mine = self._running[key] = _Pending()
                self.misses += 1
            elif running.event is None:
                running.event = threading.Event()
        if running is not None:
            return _wait(running)
        try:
            mine.tile = load()
            mine.tile.flags.writeable = False
        except BaseException as error:
            mine.error = error
            raise
        finally:
            self._finish(key, mine)
        return mine.tile

    def _finish(self, key: Key, mine: _Pending) -> None:
        with self._lock:
            # A key that drop() took out while it was being decoded belongs to a closed source: do not keep it.
            current = self._running.get(key) is mine
            if current:
                del self._running[key]
            if current and mine.tile is not None:
                self._kept[key] = mine.tile
                self._bytes += _size(mine.tile)
                self._shrink()
            if mine.event is not None:
                mine.event.set()

    def drop(self, first: Hashable) -> None:
        """Forget every tile whose key starts with ``first`` (a source that is closed)."""
        with self._lock:
            for key in [k for k in self._kept if k[0] == first]:
                self._bytes -= _size(self._kept.pop(key))
            for key in [k for k in self._running if k[0] == first]:
                del self._running[key]

    def forked(self) -> None:
        """In a forked process: what other threads of its parent were at here, nobody ends."""
        self._lock = threading.Lock()
        self._running.clear()

    def _shrink(self) -> None:
        while self._bytes > self.max_bytes and self._kept:
            self._bytes -= _size(self._kept.popitem(last=False)[1])


def _wait(running: _Pending) -> npt.NDArray[Any]:
    # Whoever registered it is decoding right now in a thread of its own, so this cannot deadlock.
    assert running.event is not None
    running.event.wait()
    if running.error is not None:
        raise running.error
    assert running.tile is not None
    return running.tile


def _size(tile: npt.NDArray[Any]) -> int:
    # A view keeps all of its base alive (a decoder's buffer, cut to the image), so count that.
    base = tile.base
    return max(tile.nbytes, int(getattr(base, "nbytes", 0) or 0))


def _default_bytes() -> int:
    text = os.environ.get("NAPARI_ISDNET_TILE_CACHE_MIB", "")
    return int(text) << 20 if text.isdigit() else DEFAULT_BYTES


_shared = TileCache(_default_bytes())
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_shared.forked)


@contextmanager
def cache_within(budget: int) -> Iterator[None]:
    """Meanwhile the shared cache keeps at most a sixteenth of a memory budget in bytes (but 32 MiB).

    Of several jobs at once, the smallest budget counts.
    """
    with _shared.within(max(32 << 20, budget // 16)):
        yield


def shared_cache() -> TileCache:
    """The cache that all readers of this process share (256 MiB, or ``NAPARI_ISDNET_TILE_CACHE_MIB``)."""
    return _shared
