"""One writer per folder: a lock that the operating system drops when its process dies."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from napari_isdnet.annotation.layout import LOCK
from napari_isdnet.exceptions import InputError


class FolderLock:
    """Held from construction to :meth:`release`; raises :class:`InputError` when another process holds it."""

    def __init__(self, folder: Path) -> None:
        from filelock import FileLock, Timeout

        self._owner = folder / f"{LOCK}.owner"
        # Not of the thread that takes it: a project that is written for long is closed by another one.
        self._lock = FileLock(folder / LOCK, timeout=0, is_singleton=False, thread_local=False)
        try:
            self._lock.acquire()
        except Timeout:
            raise InputError(
                f"{folder} is open in another window or process ({self._reader()}); close it there first, or open it"
                " read-only."
            ) from None
        except OSError as error:
            raise InputError(f"{folder} cannot be opened for writing ({error}); open it read-only.") from None
        self._owner.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")

    def _reader(self) -> str:
        try:
            return self._owner.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return "unknown process"

    def release(self) -> None:
        """Let others open the folder."""
        if self._lock.is_locked:
            self._owner.unlink(missing_ok=True)
            self._lock.release()
