"""Several small files written as one: all of them or none, whenever the process dies.

A *container* is a header (JSON: names and lengths), the contents, and a CRC-32. :func:`commit` writes the new contents
of all files as one container, renames it into place, then copies them out; :func:`recover` repeats the copying, which
does no harm when it had been done. A reader of the folder therefore sees the state before or after, never between.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from napari_isdnet.system import move, opened, unlink

Files = Mapping[str, bytes | None]
"""Relative path (with ``/``) to content; ``None`` means that there is no such file."""

COMMIT = "commit.bin"
_MAGIC = b"ISDA1\n"
_FEW = 64
"""Up to so many files wait for the disk one by one; with more of them it is told once to write everything."""


def pack(files: Files) -> bytes:
    """One byte string that holds all of ``files``."""
    header = json.dumps([[name, -1 if data is None else len(data)] for name, data in files.items()]).encode()
    body = b"".join([struct.pack("<Q", len(header)), header, *(data for data in files.values() if data)])
    return _MAGIC + body + struct.pack("<I", zlib.crc32(body))


def unpack(data: bytes) -> dict[str, bytes | None]:
    """The files of :func:`pack`; raises ``ValueError`` when the bytes are not whole."""
    body = data[len(_MAGIC) : -4]
    if not data.startswith(_MAGIC) or len(body) < 8 or struct.pack("<I", zlib.crc32(body)) != data[-4:]:
        raise ValueError("not a whole container")
    (length,) = struct.unpack_from("<Q", body)
    files: dict[str, bytes | None] = {}
    at = 8 + length
    for name, size in json.loads(body[8:at]):
        files[name] = None if size < 0 else body[at : at + size]
        at += max(size, 0)
    return files


def write_atomic(path: Path, data: bytes, sync: bool = True) -> None:
    """Write ``data`` to a temporary name beside ``path``, then rename; ``sync`` waits until the disk has it."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        handle = open(temporary, "wb")  # noqa: SIM115 - the folder is made on the first failure, not checked each time
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = open(temporary, "wb")  # noqa: SIM115
    with handle:
        handle.write(data)
        if sync:
            handle.flush()
            os.fsync(handle.fileno())
    move(temporary, path)


def _copy_out(folder: Path, files: Files, checkpoint: Callable[[str], None]) -> None:
    # The commit goes only when its files are safe: after a cut of the power they would be empty, and it gone.
    one_by_one = len(files) <= _FEW or not hasattr(os, "sync")
    for name, data in files.items():
        checkpoint("file")
        if data is None:
            unlink(folder / name)
        else:
            write_atomic(folder / name, data, sync=one_by_one)
    if not one_by_one:
        os.sync()


def _nothing(_stage: str) -> None:
    pass


def commit(folder: Path, files: Files, checkpoint: Callable[[str], None] = _nothing) -> None:
    """Replace all ``files`` under ``folder`` as one step.

    ``checkpoint`` is called with the name of each stage ('begin', 'written', 'file', 'copied') before it starts; tests
    raise from it to play a crash at that very place.
    """
    checkpoint("begin")
    write_atomic(folder / COMMIT, pack(files))
    checkpoint("written")
    _copy_out(folder, files, checkpoint)
    checkpoint("copied")
    unlink(folder / COMMIT)


def pending(folder: Path) -> dict[str, bytes | None]:
    """Files of a commit that was decided but perhaps not copied out; empty when there is none."""
    try:
        with opened(folder / COMMIT) as file:
            return unpack(file.read())
    except (FileNotFoundError, ValueError):
        return {}


def recover(folder: Path) -> bool:
    """Finish a commit that was cut short; True when there was one."""
    files = pending(folder)
    if files:
        _copy_out(folder, files, _nothing)
    unlink(folder / COMMIT)
    return bool(files)


def chunk_files(folder: Path) -> Iterator[tuple[int, int]]:
    """(row, column) of every chunk of the zarr array in ``folder`` that is on disk."""
    try:
        rows = [entry for entry in os.scandir(folder / "c") if entry.name.isdigit()]
    except FileNotFoundError:
        return
    for row in rows:
        for entry in os.scandir(row.path):
            if entry.name.isdigit():
                yield int(row.name), int(entry.name)
