"""One process at a time: a lock that the operating system gives back when its holder dies."""

from __future__ import annotations

import errno
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from napari_isdnet.exceptions import InputError
from napari_isdnet.io.disk import disk_errors
from napari_isdnet.io.locking import lock_descriptor, unlock_descriptor

_HELD: set[str] = set()  # POSIX record locks do not exclude within one process, so that is done here
_GUARD = threading.Lock()
_BUSY = {errno.EACCES, errno.EAGAIN, errno.EDEADLK}


class ProcessLock:
    """An exclusive lock on a file that names its holder (``pid host``).

    On a file system without locks, the process id in the file is looked at instead. A lock whose holder is dead is
    taken over. ``busy`` makes the sentence for whoever comes second of ``process 12 on HOST``. The file stays; one
    that is ``passing`` is removed when the lock is given back.
    """

    def __init__(self, path: Path, busy: Callable[[str], str], passing: bool = False) -> None:
        self.path = path
        self._busy, self._passing = busy, passing
        self._key = os.path.realpath(path)
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock, or raise :class:`InputError` that names the process which holds it."""
        with _GUARD:
            if self._key in _HELD:
                raise self._refusal(f"{os.getpid()} {socket.gethostname()}")
            descriptor = self._opened()
            text = f"{os.getpid()} {socket.gethostname()}".ljust(80).encode()
            os.lseek(descriptor, 0, os.SEEK_SET)
            os.write(descriptor, text)
            self._descriptor = descriptor
            _HELD.add(self._key)

    def _opened(self) -> int:
        """The file, open and locked."""
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                self._lock(descriptor)
                if not self._passing or self._still_there(descriptor):
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)  # its holder gave it back, and took the file away, since it was opened here

    def _still_there(self, descriptor: int) -> bool:
        if sys.platform == "win32":  # which removes no file that is open
            return True
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self.path))
        except FileNotFoundError:
            return False

    def _lock(self, descriptor: int) -> None:
        try:
            lock_descriptor(descriptor)
        except OSError as error:
            holder = os.read(descriptor, 80).decode(errors="replace").strip()
            if error.errno in _BUSY:
                raise self._refusal(holder) from None
            # No locks on this file system: believe the process id, if it is alive.
            if holder and _alive(holder):
                text = str(self._refusal(holder)).removesuffix(".")
                raise InputError(
                    f"{text}; this disk has no locks, so if that process has ended, delete {self.path}."
                ) from None

    def _refusal(self, holder: str) -> InputError:
        pid, _, host = holder.partition(" ")
        return InputError(self._busy(f"process {pid or 'unknown'}" + (f" on {host}" if host else "")))

    def release(self) -> None:
        """Give the lock back; may be called twice."""
        with _GUARD:
            if self._descriptor is None:
                return
            with suppress(OSError):
                os.ftruncate(self._descriptor, 0)
                if self._passing and sys.platform != "win32":  # who opened it meanwhile sees that, and makes another
                    self.path.unlink(missing_ok=True)
                unlock_descriptor(self._descriptor)
            os.close(self._descriptor)
            if self._passing and sys.platform == "win32":
                with suppress(OSError):
                    self.path.unlink()
            self._descriptor = None
            _HELD.discard(self._key)


@contextmanager
def alone(path: Path, *, folder: bool = False) -> Iterator[None]:
    """Meanwhile nobody else who asks so writes the file ``path``; or the ``folder``, beside which one may not write.

    The folder that the lock lies in is made. Raises :class:`InputError` where another process writes there.
    """

    def busy(who: str) -> str:
        return f"{path} is being written by {who}; wait for it, end it, or give another --output."

    place = path.resolve()
    file = place / ".lock" if folder else place.with_name(f".{place.name}.lock")
    lock = ProcessLock(file, busy, passing=True)
    with disk_errors(path):
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _alive(holder: str) -> bool:
    import psutil

    pid, _, host = holder.partition(" ")
    if host != socket.gethostname():
        return True  # cannot be known from here: the careful answer
    return pid.isdigit() and int(pid) != os.getpid() and psutil.pid_exists(int(pid))
