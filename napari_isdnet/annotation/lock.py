"""One writer per annotation."""

from __future__ import annotations

from pathlib import Path

from napari_isdnet.annotation.layout import LOCK
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.lock import ProcessLock


class FolderLock(ProcessLock):
    """Held from construction to :meth:`release`; raises :class:`InputError` when another process holds it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / LOCK, lambda who: (
            f"{folder} is open in another window or process ({who}); close it there first, or open it read-only."
        ))  # fmt: skip
        try:
            self.acquire()
        except OSError as error:
            raise InputError(f"{folder} cannot be opened for writing ({error}); open it read-only.") from None
