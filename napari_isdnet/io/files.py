"""Reading bytes at a position of a file, from many threads at once."""

from __future__ import annotations

import os
import threading
import weakref
from pathlib import Path

from napari_isdnet.exceptions import InputError
from napari_isdnet.io.readers import Readers


class PositionalFile:
    """A file that is read at offsets: ``os.pread`` where there is one, else seek and read under a lock."""

    def __init__(self, path: Path) -> None:
        try:
            self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise InputError(f"{path} cannot be opened: {error.strerror or error}.") from error
        self._name = path.name
        self._readers = Readers()
        # Closes the file when it is dropped without close(), too: viewers let go of layers without a word.
        self._close = weakref.finalize(self, os.close, self._descriptor)
        self._lock = threading.Lock()
        self._pread = getattr(os, "pread", None)
        self.size = os.fstat(self._descriptor).st_size

    def read(self, offset: int, count: int) -> bytes:
        """Exactly ``count`` bytes from ``offset``.

        ``EOFError`` where the file is shorter (nothing allocated), :class:`InputError` where it was closed.
        """
        if not self._readers.enter():
            raise InputError(f"{self._name} was closed; open it again to read from it.")
        try:
            return self._read_all(offset, count)
        finally:
            if self._readers.leave():
                self._close()

    def _read_all(self, offset: int, count: int) -> bytes:
        if offset < 0 or count < 0 or offset + count > self.size:
            raise EOFError(f"the file ends at byte {self.size}, bytes {offset} to {offset + count} were asked for")
        data = self._read_some(offset, count)
        while len(data) < count:
            more = self._read_some(offset + len(data), count - len(data))
            if not more:
                raise EOFError(f"the file was cut at byte {offset + len(data)} while it was open")
            data += more
        return data

    def _read_some(self, offset: int, count: int) -> bytes:
        if self._pread is not None:
            return self._pread(self._descriptor, count, offset)
        with self._lock:
            os.lseek(self._descriptor, offset, os.SEEK_SET)
            return os.read(self._descriptor, count)

    def close(self) -> None:
        """Close the file, or leave that to the last who reads: a number that is given back may be another file's."""
        if self._readers.close():
            self._close()
