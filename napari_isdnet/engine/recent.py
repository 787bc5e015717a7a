"""What was used last, up to so many bytes: :class:`Recent`."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


def _nbytes(value: Any) -> int:
    return int(value.nbytes)


class Recent(Generic[Key, Value]):
    """Values by key, of at most ``limit`` bytes in all; the least recently used go first, the last one never.

    ``nbytes(value)`` says how large a value is, by default its own ``nbytes``. Thread-safe.
    """

    def __init__(self, limit: int, nbytes: Callable[[Value], int] = _nbytes) -> None:
        self.limit = limit
        self.nbytes = 0
        self._size_of = nbytes
        self._values: OrderedDict[Key, Value] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key) -> Value | None:
        """The value, which is now the one used last; or None."""
        with self._lock:
            value = self._values.get(key)
            if value is not None:
                self._values.move_to_end(key)
            return value

    def put(self, key: Key, value: Value) -> list[Key]:
        """Keep ``value``; returns the keys of what had to go."""
        with self._lock:
            self._remove(key)
            self._values[key] = value
            self.nbytes += self._size_of(value)
            gone = []
            while self.nbytes > self.limit and len(self._values) > 1:
                gone.append(next(iter(self._values)))
                self._remove(gone[-1])
            return gone

    def drop(self, key: Key) -> None:
        """Forget the value of ``key``, if there is one."""
        with self._lock:
            self._remove(key)

    def _remove(self, key: Key) -> None:
        value = self._values.pop(key, None)
        if value is not None:
            self.nbytes -= self._size_of(value)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._values.clear()
            self.nbytes = 0
