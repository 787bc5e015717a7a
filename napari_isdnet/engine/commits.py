"""Units of spilled maps on their way to the disk: written down once they are there, while the next is computed.

A ledger must not say that a unit is stored before its bytes are, and forcing them to the disk is waiting: a gigapixel
waited 18 seconds for it in all.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from napari_isdnet.engine.maps import Storage, UnitLog

Vector = npt.NDArray[np.float64]


class Commits:
    """Forces units to the disk on a thread of its own and records them in order, on the thread that adds them.

    At most ``most`` are under way: what a kill leaves unrecorded, and has to be computed again, stays little.
    """

    def __init__(self, log: UnitLog, most: int = 4) -> None:
        self._log, self._most = log, most
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="isdnet-commit")
        self._waiting: deque[tuple[Future[None], str, int, Vector]] = deque()

    def add(self, storage: Storage, name: str, unit: int, sums: Vector) -> None:
        """A unit that was written to ``storage``; raises what forcing an earlier one to the disk raised."""
        self._waiting.append((self._pool.submit(storage.sync), name, unit, sums))
        while self._waiting and (len(self._waiting) > self._most or self._waiting[0][0].done()):
            self._record()

    def _record(self) -> None:
        future, name, unit, sums = self._waiting.popleft()
        try:
            future.result()
        except BaseException:
            # A system may report once that pages were lost, and say of the same file ever after that all is well.
            self._waiting.clear()
            raise
        self._log.record(name, unit, sums)

    def flush(self) -> None:
        """Wait until everything that was added is on the disk and recorded."""
        while self._waiting:
            self._record()

    def close(self) -> None:
        """:meth:`flush`, and end the thread."""
        try:
            self.flush()
        finally:
            self._waiting.clear()
            self._pool.shutdown()
