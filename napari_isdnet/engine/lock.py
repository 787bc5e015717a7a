"""One process per job: a lock that the operating system gives back when its holder dies."""

from __future__ import annotations

import errno
import os
import socket
import threading
from contextlib import suppress
from pathlib import Path

from napari_isdnet.exceptions import InputError
from napari_isdnet.io.locking import lock_descriptor, unlock_descriptor

_HELD: set[str] = set()  # POSIX record locks do not exclude within one process, so that is done here
_GUARD = threading.Lock()
_BUSY = {errno.EACCES, errno.EAGAIN, errno.EDEADLK}


class JobLock:
    """An exclusive lock on a file that names its holder (``pid host``).

    On a file system without locks, the process id in the file is looked at instead. A lock whose holder is dead is
    taken over.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._key = os.path.realpath(path)
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock, or raise :class:`InputError` that names the process which holds it."""
        with _GUARD:
            if self._key in _HELD:
                raise self._busy(f"{os.getpid()} {socket.gethostname()}")
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                self._lock(descriptor)
            except BaseException:
                os.close(descriptor)
                raise
            text = f"{os.getpid()} {socket.gethostname()}".ljust(80).encode()
            os.lseek(descriptor, 0, os.SEEK_SET)
            os.write(descriptor, text)
            self._descriptor = descriptor
            _HELD.add(self._key)

    def _lock(self, descriptor: int) -> None:
        try:
            lock_descriptor(descriptor)
        except OSError as error:
            holder = os.read(descriptor, 80).decode(errors="replace").strip()
            if error.errno in _BUSY:
                raise self._busy(holder) from None
            # No locks on this file system: believe the process id, if it is alive.
            if holder and _alive(holder):
                raise self._busy(holder) from None

    def _busy(self, holder: str) -> InputError:
        pid, _, host = holder.partition(" ")
        who = f"process {pid or 'unknown'}" + (f" on {host}" if host else "")
        return InputError(
            f"The job {self.path.parent} is being worked on by {who}; wait for it, end it,"
            " or choose another --output folder."
        )

    def release(self) -> None:
        """Give the lock back; the file stays (removing it could pull it away under the next holder)."""
        with _GUARD:
            if self._descriptor is None:
                return
            with suppress(OSError):
                os.ftruncate(self._descriptor, 0)
                unlock_descriptor(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None
            _HELD.discard(self._key)


def _alive(holder: str) -> bool:
    import psutil

    pid, _, host = holder.partition(" ")
    if host != socket.gethostname():
        return True  # cannot be known from here: the careful answer
    return pid.isdigit() and int(pid) != os.getpid() and psutil.pid_exists(int(pid))
