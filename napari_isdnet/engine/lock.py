"""One process per job."""

from __future__ import annotations

from pathlib import Path

from napari_isdnet.io.lock import ProcessLock


class JobLock(ProcessLock):
    """The lock of the job in whose folder ``path`` lies."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, lambda who: (
            f"The job {path.parent} is being worked on by {who}; wait for it, end it, or choose another --output"
            " folder."
        ))  # fmt: skip
