"""The ledger of a job: what was asked, which units of it are done, and what they returned.

A job folder ``<stem>.job/`` holds ``ledger.json`` (the header: image identity, model, parameters, versions),
``ledger.log`` (one line per finished unit), ``lock``, and whatever else belongs to the job (result store, spilled
feature maps).

Durability: the header is written to a temporary name, forced to the disk and renamed. A record is one ``write`` to a
file opened for appending, so ``kill -9`` loses only units whose record was not made; the log is forced to the disk at
most once a second and on :meth:`Ledger.close`, so a power cut loses about the last second, and those units are simply
computed again. Every line carries its CRC-32: a torn or damaged line counts as not there.
"""

from __future__ import annotations

import base64
import json
import os
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_isdnet.engine.lock import JobLock
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.disk import disk_errors, remove, write_atomic

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

HEADER = "ledger.json"
LOG = "ledger.log"
LOCK = "lock"
FORMAT = 1
FORGET = "*"
"""As a unit: all units of its stage that came before are not done any more."""
SYNC_SECONDS = 1.0
Unit = int | str


class JobDiffersError(InputError):
    """A folder holds a job of other settings: ``stored`` and ``wanted`` headers, ``about`` what was noted with it."""

    def __init__(
        self, message: str, stored: Mapping[str, Any], wanted: Mapping[str, Any], about: Mapping[str, Any]
    ) -> None:
        super().__init__(message)
        self.stored, self.wanted, self.about = stored, wanted, about


class Ledger:
    """Records of one job. Open with :meth:`open`; a context manager that gives the lock back.

    Not thread-safe: one thread (the one that drives the job) records; workers hand their results to it.
    """

    def __init__(self, directory: Path, header: Mapping[str, Any], lock: JobLock) -> None:
        self.directory = directory
        self.header = header
        self._lock = lock
        self._where: dict[tuple[str, Unit], tuple[int, int]] = {}
        self._last_sync = time.monotonic()
        with disk_errors(directory):
            self._file = open(directory / LOG, "a+b", buffering=0)  # noqa: SIM115 (closed in close())
            self._load()

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        header: Mapping[str, Any],
        resume: bool = True,
        overwrite: bool = False,
        about: Mapping[str, Any] | None = None,
    ) -> Ledger:
        """A new job in folder ``path``, or the one there is, where its header equals ``header`` (JSON-ready).

        ``resume=False`` starts from zero; ``overwrite=True`` starts from zero where the header differs. ``about`` is
        noted with a new job for people to read (:func:`read_about`) and never compared. Raises
        :class:`JobDiffersError` where the header differs (naming the first difference), :class:`InputError` where
        another process works on the job, and where ``path`` is a folder of something else.
        """
        directory = Path(path)
        wanted = _canonical(header)
        _check_is_job(directory)
        with disk_errors(directory):
            directory.mkdir(parents=True, exist_ok=True)
            lock = JobLock(directory / LOCK)
            lock.acquire()
        try:
            try:
                stored = read_header(directory)
            except InputError:  # damaged, or of another version
                if resume and not overwrite:
                    raise
                stored = None
            if stored is not None and stored != wanted and resume and not overwrite:
                sentence = _difference_sentence(directory, stored, wanted)
                raise JobDiffersError(sentence, stored, wanted, read_about(directory))
            if stored is None or stored != wanted or not resume:
                _start_again(directory, wanted, about or {})
            return cls(directory, wanted, lock)
        except BaseException:
            lock.release()
            raise

    def done(self, stage: str, unit: Unit) -> bool:
        """True when that unit of ``stage`` was recorded."""
        return (stage, unit) in self._where

    def units(self, stage: str) -> list[Unit]:
        """Units of ``stage`` that are done, ascending (numbers before names)."""
        found = [unit for name, unit in self._where if name == stage]
        return sorted(found, key=lambda u: (isinstance(u, str), u))

    def record(
        self, stage: str, unit: Unit, payload: Mapping[str, Any] | npt.NDArray[np.float64] | None = None
    ) -> None:
        """Say that ``unit`` of ``stage`` is done, after its data are on the disk.

        ``payload`` is small and comes back bit for bit: a mapping of JSON values and float64 vectors, or one vector.
        Recording a unit again replaces its payload.
        """
        body = json.dumps([stage, unit, _encode(payload)], separators=(",", ":"), ensure_ascii=True).encode()
        line = b"%08x %s\n" % (zlib.crc32(body), body)
        with disk_errors(self.directory):
            start = self._file.seek(0, os.SEEK_END)
            written = self._file.write(line)
            if written != len(line):  # the disk filled up within the line: take the torn part back
                self._file.truncate(start)
                raise OSError(28, "No space left on device")
            if time.monotonic() - self._last_sync > SYNC_SECONDS:
                self.sync()
        self._where[stage, unit] = (start, len(line))

    def forget(self, stage: str) -> None:
        """No unit of ``stage`` is done any more: what they said is stored is gone."""
        self.record(stage, FORGET)
        self.sync()
        for name, unit in [key for key in self._where if key[0] == stage]:
            del self._where[name, unit]

    def payload(self, stage: str, unit: Unit) -> Any:
        """What was recorded with that unit; ``KeyError`` where it is not done."""
        start, length = self._where[stage, unit]
        self._file.seek(start)
        record = _parse(self._file.read(length))
        assert record is not None, "the log was changed behind the lock"
        return _decode(record[2])

    def sync(self) -> None:
        """Force all records to the disk."""
        os.fsync(self._file.fileno())
        self._last_sync = time.monotonic()

    def close(self) -> None:
        """Force all records to the disk and give the lock back; may be called twice."""
        if not self._file.closed:
            try:
                self.sync()
            finally:
                self._file.close()
                self._lock.release()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _load(self) -> None:
        self._file.seek(0)
        start = 0
        for line in _lines(self._file):
            if not line.endswith(b"\n"):  # torn by a kill: cut off, or the next record would be glued to it
                self._file.truncate(start)
                break
            record = _parse(line)
            if record is not None and record[1] == FORGET:
                self._where = {key: place for key, place in self._where.items() if key[0] != record[0]}
            elif record is not None:
                self._where[record[0], record[1]] = (start, len(line))
            start += len(line)


def read_header(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The header of the job in folder ``path``, without locking; None where there is none (any more)."""
    file = Path(path) / HEADER
    try:
        content = json.loads(file.read_bytes())
        if content["format"] != FORMAT:
            raise InputError(
                f"{file} has format {content['format']}, this version reads {FORMAT}; use --overwrite to start again"
                " or the version of napari-isdnet that began the job."
            )
        header = content["header"]
        return None if header is None else dict(header)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{file} cannot be read ({error}); remove the folder {file.parent} to start the job again."
        ) from error


@contextmanager
def at_rest(path: str | os.PathLike[str]) -> Iterator[None]:
    """Meanwhile nobody works on the job in folder ``path``, if one is there; else :class:`InputError` says who does."""
    lock = JobLock(Path(path) / LOCK)
    if lock.path.exists():
        with disk_errors(lock.path):
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def recorded_units(path: str | os.PathLike[str], stage: str) -> set[Unit]:
    """Units of ``stage`` that the log in folder ``path`` holds, whoever has the job open; empty where there is none."""
    file = Path(path) / LOG
    if not file.is_file():
        return set()
    sign = json.dumps(stage).encode()  # a long job's log is mostly sums, which need not be parsed for this
    with disk_errors(file), open(file, "rb") as log:
        records = [record for line in log if sign in line and (record := _parse(line)) is not None]
    return {record[1] for record in records if record[0] == stage}


def read_about(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What was noted for people with the job in folder ``path``; empty where nothing was."""
    try:
        return dict(json.loads((Path(path) / HEADER).read_bytes()).get("about") or {})
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _check_is_job(directory: Path) -> None:
    if directory.exists() and not directory.is_dir():
        raise InputError(
            f"{directory} is a file; the job's folder must have that name: choose another --output folder."
        )
    others = directory.is_dir() and sorted(
        p.name for p in directory.iterdir() if p.name != LOCK and HEADER not in p.name
    )
    # The header is looked for last: another process may be making the job just now, and begins with it.
    if others and not (directory / HEADER).exists():
        raise InputError(
            f"{directory} is a folder of something else (it holds {others[0]} but no {HEADER});"
            " choose another --output folder or move it away."
        )


def _start_again(directory: Path, header: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Empty the folder and write the header, so that a kill at any moment leaves no old data under a new header."""
    nothing = json.dumps({"format": FORMAT, "header": None}).encode()
    if (directory / HEADER).exists():
        write_atomic(directory / HEADER, nothing)
    for entry in directory.iterdir():
        if entry.name not in (LOCK, HEADER):
            remove(entry)
            if entry.exists():  # its old results would pass for those of the new job
                raise InputError(f"{entry} cannot be removed; remove it, or choose another --output folder.")
    content = {"format": FORMAT, "header": header, "about": dict(about)}
    write_atomic(directory / HEADER, json.dumps(content, indent=1, sort_keys=True).encode())


def _canonical(header: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back (tuples become lists), so that comparing with a stored header is fair."""
    return dict(json.loads(json.dumps(dict(header), sort_keys=True)))


def _differences(stored: Any, wanted: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(stored, dict) and isinstance(wanted, dict):
        for name in [*wanted, *(n for n in stored if n not in wanted)]:
            inner = f"{key}.{name}" if key else str(name)
            yield from _differences(stored.get(name, "nothing"), wanted.get(name, "nothing"), inner)
    elif stored != wanted or type(stored) is not type(wanted):
        yield key, stored, wanted


def _difference_sentence(directory: Path, stored: Any, wanted: Any) -> str:
    found = list(_differences(stored, wanted))
    key, old, new = found[0]
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return (
        f"The job {directory} was begun with {key} = {_short(old)}, now it is {_short(new)}{more};"
        " use --overwrite or --no-resume to throw its work away and start again, or choose another --output folder."
    )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _lines(file: Any) -> Iterator[bytes]:
    with open(file.name, "rb") as buffered:  # the log itself is unbuffered
        yield from buffered


def _parse(line: bytes) -> tuple[str, Unit, Any] | None:
    try:
        if not line.endswith(b"\n") or int(line[:8], 16) != zlib.crc32(line[9:-1]):
            return None
        stage, unit, payload = json.loads(line[9:-1])
    except ValueError:
        return None
    return stage, unit, payload


def _encode(value: Any) -> Any:
    """JSON-ready, float64 vectors as base64 of their little-endian bytes (exact); floats as shortest repr (exact)."""
    import numpy as np

    if isinstance(value, np.ndarray):
        if value.dtype != np.float64:
            raise TypeError(f"a ledger keeps float64 vectors, got {value.dtype}")
        return {"float64": base64.b64encode(value.astype("<f8").tobytes()).decode(), "shape": list(value.shape)}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {"map": {str(k): _encode(v) for k, v in value.items()}}
    if isinstance(value, list | tuple):
        return [_encode(v) for v in value]
    return value


def _decode(value: Any) -> Any:
    import numpy as np

    if isinstance(value, dict):
        if "float64" in value:
            flat = np.frombuffer(base64.b64decode(value["float64"]), "<f8").astype(np.float64)
            return flat.reshape(value["shape"])
        return {k: _decode(v) for k, v in value["map"].items()}
    if isinstance(value, list):
        return [_decode(v) for v in value]
    return value
