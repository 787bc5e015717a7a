"""Exclusive locks on open files that the operating system gives back when their holder dies.

fcntl record locks (POSIX; not inherited by forked workers, which could outlive a killed parent) or msvcrt (Windows).
Record locks do not exclude within one process, and closing any descriptor of the file gives them back: never open a
file again that this process has locked.
"""

from __future__ import annotations

import os
import sys

if sys.platform == "win32":
    import msvcrt

    _OFFSET = 1000  # outside the text, so that others can still read who holds it

    def lock_descriptor(descriptor: int) -> None:
        """Lock an open file at once; raises ``OSError`` where another process has it or the disk knows no locks."""
        os.lseek(descriptor, _OFFSET, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        finally:
            os.lseek(descriptor, 0, os.SEEK_SET)

    def unlock_descriptor(descriptor: int) -> None:
        """Give the lock back."""
        os.lseek(descriptor, _OFFSET, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)
else:
    import fcntl

    def lock_descriptor(descriptor: int) -> None:
        """Lock an open file at once; raises ``OSError`` where another process has it or the disk knows no locks."""
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def unlock_descriptor(descriptor: int) -> None:
        """Give the lock back."""
        fcntl.lockf(descriptor, fcntl.LOCK_UN)
