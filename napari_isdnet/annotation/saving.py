"""Writing behind: what changed in memory goes to disk in the background, one whole step at a time."""

from __future__ import annotations

import json
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from napari_isdnet.annotation.chunks import ChunkCache, chunk_path, decode, encode
from napari_isdnet.annotation.classlist import Classes, class_list
from napari_isdnet.annotation.container import commit, pending, recover
from napari_isdnet.annotation.counts import FOLDER as INDEX_FOLDER
from napari_isdnet.annotation.counts import CountIndex, Counts, Place, count
from napari_isdnet.annotation.journal import Journal
from napari_isdnet.annotation.layout import GROUP, STATE, group_json
from napari_isdnet.annotation.undo import FOLDER as UNDO_FOLDER
from napari_isdnet.annotation.undo import UndoArea
from napari_isdnet.exceptions import InputError

INTERVAL = 0.5  # seconds between a stroke and its being on disk
CROWDED = 512  # changed chunks or undo records that make it happen at once


@dataclass(frozen=True)
class State:
    """What the chunks on disk stand for: a journal position (-1: a replay is under way), classes, pinned regions."""

    position: int
    id: str
    classes: Classes
    pins: Mapping[str, str]

    def changed(self, **changes: Any) -> State:
        """With other values."""
        return replace(self, **changes)

    def to_bytes(self) -> bytes:
        """As JSON."""
        classes = [c.to_json() for c in self.classes]
        return json.dumps(
            {"format": 1, "position": self.position, "id": self.id, "classes": classes, "pins": dict(self.pins)}
        ).encode()


def read_state(folder: Path) -> State | None:
    """The state on disk; ``None`` when there is none yet, or none that can be read."""
    try:
        data = pending(folder).get(STATE) or (folder / STATE).read_bytes()
        found = json.loads(data)
        return State(int(found["position"]), found["id"], class_list(found["classes"]), dict(found["pins"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def pull_back(folder: Path) -> None:
    """Finish the writing of a process that died."""
    try:
        recover(folder)
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error}); open it read-only.") from None


class Saver:
    """Writes the changed chunks, undo records, counts and state of a store, by request and by itself."""

    def __init__(
        self,
        folder: Path,
        lock: threading.RLock,  # type: ignore[valid-type]
        cache: ChunkCache,
        undo: UndoArea,
        journal: Journal,
        snapshot: Callable[[], State],
    ) -> None:
        self.folder = folder
        self.checkpoint: Callable[[str], None] = lambda _stage: None
        self._lock = lock
        self._cache = cache
        self._undo = undo
        self._journal = journal
        # Weak, so that a store that is forgotten is collected and its thread ends.
        self._snapshot = weakref.WeakMethod(snapshot)  # type: ignore[type-var]
        self._index = CountIndex(folder)
        self._commit_lock = threading.Lock()
        self._touched = False
        self._classes: Classes | None = None
        self._failure: BaseException | None = None
        self._unfinished: str | None = None
        self._wake = threading.Event()
        self._now = threading.Event()
        self._stopped = False
        self._thread: threading.Thread | None = None

    def touch(self) -> None:
        """Something changed that is to be saved."""
        self._touched = True

    def reset(self) -> None:
        """The chunks on disk are gone."""
        for path in (self.folder / INDEX_FOLDER).glob("*.json"):
            path.unlink()
        self._index = CountIndex(self.folder)

    @property
    def damaged(self) -> bool:
        """True when the counts on disk cannot be read."""
        return self._index.damaged

    def counts(self) -> dict[Place, Counts]:
        """Counts as of the last commit."""
        return self._index.copy()

    def give_up(self, error: BaseException) -> None:
        """An edit stopped halfway: nothing is written from now on, so that the next opening repeats it."""
        self._unfinished = str(error) or type(error).__name__

    def check(self) -> None:
        """Raise :class:`InputError` after :meth:`give_up`, or when writing failed in the background and fails again."""
        if self._unfinished is not None:
            raise InputError(
                f"An edit of {self.folder} could not be finished ({self._unfinished}); close the annotation and open it"
                " again, which repeats the edit from the journal."
            )
        # Who edits holds the store's lock, and a save under way may want it: waiting for that save could last forever.
        if self._failure is None or not self._commit_lock.acquire(blocking=False):
            return
        try:
            self._flush()
        except OSError as error:
            raise InputError(
                f"{self.folder} cannot be written ({error}); free some space, what was painted is kept until then."
            ) from None
        finally:
            self._commit_lock.release()
        self._failure = None

    def flush(self, force: bool = False, extra: Mapping[str, bytes | None] | None = None) -> None:
        """Write everything that changed, as one step; not to be called with the store's lock held."""
        with self._commit_lock:
            self._flush(force, extra)

    def _flush(self, force: bool = False, extra: Mapping[str, bytes | None] | None = None) -> None:
        with self._lock:
            state = self._snapshot()
            if state is None or self._unfinished is not None or not (self._touched or force):
                self._journal.sync()
                return
            now = state()
            chunks = self._cache.take()
            records, gone = self._undo.take()
            self._touched = False
        try:
            self._journal.sync()
            self._write(now, chunks, records, gone, extra or {})
        except Exception:
            with self._lock:
                self._cache.put_back()
                self._undo.put_back(gone)
                self._touched = True
            raise

    def _write(self, now: State, chunks: Any, records: Any, gone: set[int], extra: Mapping[str, bytes | None]) -> None:
        files: dict[str, bytes | None] = dict(extra)
        counts: dict[Place, Counts] = {}
        for key, chunk in chunks.items():
            files[chunk_path(key)] = chunk if isinstance(chunk, bytes) else encode(chunk)
            if key[0] == 0:
                counts[key[1:]] = count(decode(chunk) if isinstance(chunk, bytes) else chunk)
        packed = {n: before.packed() for n, before in records.items()}
        sizes = {n: len(data) for n, data in packed.items()}
        gone = gone | self._undo.trimmed(sizes)
        files |= {f"{UNDO_FOLDER}/{n}.bin": data for n, data in packed.items() if n not in gone}
        files |= {f"{UNDO_FOLDER}/{n}.bin": None for n in gone}
        with self._lock:
            files |= self._index.update(counts)
        if now.classes != self._classes:
            files[GROUP] = group_json(self._cache.shapes, now.classes)
        files[STATE] = now.to_bytes()
        commit(self.folder, files, self.checkpoint)
        with self._lock:
            self._cache.written()
            self._undo.written(sizes, gone)
            self._classes = now.classes

    def relieve(self, read_only: bool) -> None:
        """Write now when too much waits (a long replay)."""
        if not read_only and self._crowded():
            self.flush()

    def _crowded(self) -> bool:
        return self._cache.changed > CROWDED or self._undo.waiting > CROWDED

    def wake(self) -> None:
        """Save soon, in the background."""
        if self._thread is None:
            self._thread = threading.Thread(target=_run, args=(weakref.ref(self), self._wake, self._now), daemon=True)
            self._thread.name = "isdnet-annotation-saver"
            self._thread.start()
        if self._crowded():
            self._now.set()
        self._wake.set()

    def save_quietly(self) -> bool:
        """Save; a failure is kept for :meth:`check`. False when the thread should end."""
        if self._stopped or self._snapshot() is None:
            return False
        try:
            self.flush()
        except Exception as error:
            self._failure = error
        return True

    def stop(self) -> None:
        """End the background thread."""
        self._stopped = True
        self._now.set()
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._thread = None


def _run(saver: weakref.ref[Saver], wake: threading.Event, now: threading.Event) -> None:
    while True:
        if not wake.wait(timeout=5.0):
            if saver() is None:
                return
            continue
        now.wait(timeout=INTERVAL)
        wake.clear()
        now.clear()
        alive = saver()
        if alive is None or not alive.save_quietly():
            return
        del alive
