"""Writing files so that nothing half-written is ever taken for whole."""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from napari_isdnet.exceptions import AlreadyThere, InputError
from napari_isdnet.io.locking import lock_descriptor
from napari_isdnet.system import move, remove_folder, unlink

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG} if hasattr(errno, "EDQUOT") else {errno.ENOSPC, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR}
PARTIAL = ".partial"
_LOCK, _OLD = "lock", "old."
_DEVICE = re.compile(r" *(con|prn|aux|nul|com\d|lpt\d) *(\.|$)", re.IGNORECASE)
"""Names that Windows has for devices, whatever follows a dot."""
_HELD: set[str] = set()
"""Names of locks that this process holds: opening them again would give them back."""


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn 'disk full' and 'not allowed to write' into one sentence that names ``path``."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise InputError(
                f"The disk is full (writing {path}); free some space and run the same command again,"
                " what is finished is kept."
            ) from error
        if error.errno in _DENIED:
            raise InputError(f"{path} cannot be written ({error.strerror}); choose another --output folder.") from error
        raise


def check_folder(folder: Path) -> None:
    """Raise :class:`InputError` where ``folder`` cannot be one, since a file lies there or on the way to it."""
    for place in (folder, *folder.parents):
        if place.is_dir():
            return
        if place.exists():
            raise InputError(f"{place} is a file, not a folder for results; choose another --output folder.")


def make_folder(folder: Path) -> None:
    """Make ``folder`` for results and write a small file there: to say before the work what would fail after it.

    Raises :class:`InputError` where it cannot be made or written, or the disk is full.
    """
    check_folder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"The folder {folder} for the results cannot be made ({error.strerror}); choose another --output folder."
        ) from error
    with disk_errors(folder):
        try_writing(folder)


def try_writing(folder: Path) -> None:
    """Write a small file in ``folder``, which is there, and take it away again; ``OSError`` where that fails.

    Not by ``tempfile``: on Windows it tries two thousand million names where none is allowed. Each try has a name of
    its own, since a file that another thread has open cannot be taken away there.
    """
    file = folder / f".{os.getpid()}-{uuid.uuid4().hex[:8]}{PARTIAL}"
    try:
        file.write_bytes(bytes(4096))
    finally:
        with suppress(OSError):
            unlink(file)


@contextmanager
def replacing(path: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary name beside ``path``; renamed to ``path`` when the block ends well, removed when it does not.

    Raises :class:`InputError` where ``path`` exists and ``overwrite`` is false. The temporary name keeps the suffix
    (writers choose a format by it); names that are made from it by adding to its end are found again after a kill, see
    :func:`scratch`, but are removed by whoever makes them.
    """
    if path.exists() and not overwrite:
        raise AlreadyThere.at(path)
    with disk_errors(path), scratch(path.parent) as prefix:
        temporary = path.with_name(prefix + path.name)
        try:
            yield temporary
            sync(temporary)
            _swap(temporary, path, path.with_name(f"{prefix}{_OLD}{path.name}"))
        finally:
            remove(temporary)


def _swap(temporary: Path, path: Path, aside: Path) -> None:
    if path.exists() and (path.is_dir() or temporary.is_dir()):
        # A folder cannot be replaced in one step: move the old one aside first.
        move(path, aside)
        move(temporary, path)
        remove(aside)
    else:
        move(temporary, path)


@contextmanager
def scratch(folder: Path) -> Iterator[str]:
    """What names of temporary files in ``folder``, which is made, must start with; nobody else's start so.

    The block removes them itself. After a kill the next one in that folder does, on the same machine: a lock says that
    their writer lives, and is given back when it dies. Of another machine (a shared folder) nothing is removed, nor
    where the file system knows no locks.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, "a file lies there", str(folder)) from error
    _sweep(folder)
    prefix = f".{os.getpid()}-{uuid.uuid4().hex[:8]}{PARTIAL}."
    lock = folder / (prefix + _LOCK)
    _HELD.add(lock.name)
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            with suppress(OSError):  # without a lock, and so without a name in it
                lock_descriptor(descriptor)
                os.write(descriptor, _host())
            yield prefix
        finally:
            os.close(descriptor)  # first: Windows removes no file that is open
            with suppress(OSError):
                lock.unlink()
    finally:
        _HELD.discard(lock.name)


@contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """A new folder in ``folder`` for the block alone; after a kill the next one there removes it, as by scratch."""
    with scratch(folder) as prefix:
        made = folder / f"{prefix}files"
        made.mkdir()
        try:
            yield made
        finally:
            remove(made)


def _sweep(folder: Path) -> None:
    """Remove what writers of this machine left in ``folder`` when they were killed."""
    for lock in folder.glob(f".*{PARTIAL}.{_LOCK}"):
        if lock.name not in _HELD:
            with suppress(OSError):  # its writer lives, or it is not ours to remove
                _remove_stale(lock)


def _remove_stale(lock: Path) -> None:
    descriptor = os.open(lock, os.O_RDWR)
    try:
        lock_descriptor(descriptor)
        if os.read(descriptor, 1024) != _host():
            return
        prefix = lock.name.removesuffix(_LOCK)
        for path in lock.parent.glob(f"{prefix}*"):
            kept = path.with_name(path.name.removeprefix(prefix + _OLD))
            if kept != path and not kept.exists():  # killed between two renames: what was there comes back
                move(path, kept)
            elif path != lock:
                remove(path)
    finally:
        os.close(descriptor)
    lock.unlink()


def _host() -> bytes:
    return socket.gethostname().encode()


def write_atomic(path: Path, data: bytes) -> None:
    """Write a small file whole: temporary name, fsync, rename."""
    temporary = path.with_name(f".{os.getpid()}-{uuid.uuid4().hex[:8]}{PARTIAL}.{path.name}")
    with disk_errors(path):
        try:
            temporary.write_bytes(data)
            sync(temporary)
            move(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise


def file_stem(name: str) -> str:
    """``name``, which may be anything, as the name of a file inside a folder: never a path, never hidden."""
    kept = "".join(sign if sign.isalnum() or sign in " -_." else "_" for sign in name)
    if _DEVICE.match(kept):
        kept = f"_{kept}"
    # Windows takes spaces and dots off the end of a name; file systems end names at 255 bytes.
    return kept.encode()[:180].decode(errors="ignore").strip(" .") or "image"


def sync(path: Path) -> None:
    """Force a file's data to the disk; folders and files that are not there are left alone."""
    if not path.is_file():
        return
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file or a whole folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        remove_folder(path)
    else:
        with suppress(FileNotFoundError):
            path.unlink()


def link_or_copy(source: Path, target: Path) -> None:
    """``target`` becomes a hard link to ``source`` where the file system can, else a copy.

    Safe for zarr stores, whose chunks are replaced (a new file under the old name), never changed in place.
    """
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def used_now(path: Path) -> None:
    """Note that an entry of a cache was used: :func:`least_used` and :func:`unused_for` go by it."""
    with suppress(OSError):  # of another user, or gone
        os.utime(path)


def least_used(paths: Iterable[Path], keep: int) -> list[Path]:
    """All files of ``paths`` but the ``keep`` that were written or used last."""
    times = {path: used for path in paths if (used := _used(path)) is not None}
    return sorted(times, key=times.__getitem__)[: max(0, len(times) - keep)]


def unused_for(days: float, paths: Iterable[Path]) -> list[Path]:
    """Files of ``paths`` that nobody has written or used for so many days."""
    since = time.time() - days * 86_400
    return [path for path in paths if (used := _used(path)) is not None and used < since]


def _used(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:  # another process was quicker
        return None
