"""Writing files so that nothing half-written is ever taken for whole."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from napari_isdnet.exceptions import AlreadyThere, InputError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG} if hasattr(errno, "EDQUOT") else {errno.ENOSPC, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR}
PARTIAL = ".partial"


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
    with disk_errors(folder), tempfile.TemporaryFile(dir=folder, suffix=PARTIAL) as file:
        file.write(bytes(4096))


@contextmanager
def replacing(path: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary name beside ``path``; renamed to ``path`` when the block ends well, removed when it does not.

    Raises :class:`InputError` where ``path`` exists and ``overwrite`` is false. The temporary name keeps the suffix
    (writers choose a format by it) and carries the process id, so that two processes never share one.
    """
    if path.exists() and not overwrite:
        raise AlreadyThere.at(path)
    temporary = path.with_name(f".{os.getpid()}{PARTIAL}.{path.name}")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(temporary)
        try:
            yield temporary
            sync(temporary)
            _swap(temporary, path)
        finally:
            remove(temporary)


def _swap(temporary: Path, path: Path) -> None:
    if path.exists() and (path.is_dir() or temporary.is_dir()):
        # A folder cannot be replaced in one step: move the old one aside first.
        old = path.with_name(f".{os.getpid()}{PARTIAL}.old.{path.name}")
        remove(old)
        os.replace(path, old)
        os.replace(temporary, path)
        remove(old)
    else:
        os.replace(temporary, path)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a small file whole: temporary name, fsync, rename."""
    temporary = path.with_name(f".{os.getpid()}{PARTIAL}.{path.name}")
    with disk_errors(path):
        temporary.write_bytes(data)
        sync(temporary)
        os.replace(temporary, path)


def file_stem(name: str) -> str:
    """``name``, which may be anything, as the name of a file inside a folder: never a path, never hidden."""
    kept = "".join(sign if sign.isalnum() or sign in " -_." else "_" for sign in name)
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
        shutil.rmtree(path, ignore_errors=True)
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
