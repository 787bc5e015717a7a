"""Closing what other threads may be reading from: nothing is let go of under a reader."""

from __future__ import annotations

import threading


class Readers:
    """Counts who reads. Once closed nobody enters; one alone is told ``True``, who releases what was read from.

    The releasing is left to the caller, so that no reference back to it keeps it alive.
    """

    def __init__(self, closed: bool = False) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._closed = closed

    @property
    def closed(self) -> bool:
        """True once :meth:`close` was called, though readers may still be inside."""
        return self._closed

    def enter(self) -> bool:
        """One reader more; False, and none more, where it is closed."""
        with self._lock:
            if self._closed:
                return False
            self._inside += 1
            return True

    def leave(self) -> bool:
        """One reader less; True where it was the last one of something closed: release it now."""
        with self._lock:
            self._inside -= 1
            return self._closed and self._inside == 0

    def close(self) -> bool:
        """Let nobody in any more; True where nobody is inside: release it now."""
        with self._lock:
            first, self._closed = not self._closed, True
            return first and self._inside == 0

    def __reduce__(self) -> tuple[type[Readers], tuple[bool]]:
        return Readers, (self._closed,)  # a copy in another process has its own readers
