"""The annotation of one image of any size: painted, undone and read at every zoom, and safe from crashes.

What is promised: after any crash the store equals a replay of its journal. A stroke goes to the journal first, then
into chunks in memory; a background thread writes those to disk twice a second, all files of a step or none (see
:mod:`~napari_isdnet.annotation.container`), together with the journal position that they stand for. Opening finishes a
half-copied step and applies the strokes after that position. A killed process loses nothing that :meth:`paint`
returned from; a power cut loses at most the last half second, and ``rebuild=True`` makes the chunks anew.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from napari_isdnet.annotation.chunks import REPAIR, ChunkCache, DamagedChunk
from napari_isdnet.annotation.classediting import ClassEditing
from napari_isdnet.annotation.classlist import class_list
from napari_isdnet.annotation.counts import Place
from napari_isdnet.annotation.journal import Entry, Journal
from napari_isdnet.annotation.layout import JOURNAL, level_shapes, store_folder, zarr_files
from napari_isdnet.annotation.level import AnnotationLevel
from napari_isdnet.annotation.lock import FolderLock
from napari_isdnet.annotation.painting import Painter
from napari_isdnet.annotation.reading import Live
from napari_isdnet.annotation.saving import Saver, State, pull_back, read_state
from napari_isdnet.annotation.strokes import Cover, Patch, Stroke, stroke_from_json
from napari_isdnet.annotation.undo import FOLDER as UNDO_FOLDER
from napari_isdnet.annotation.undo import Before, UndoArea
from napari_isdnet.classes import ANNOTATIONS_ZARR
from napari_isdnet.exceptions import InputError
from napari_isdnet.window import Window

Drawn = tuple[Stroke, Cover]


class AnnotationStore(Live, ClassEditing):
    """A sparse label pyramid (uint8; 0 = unlabelled, k + 1 = class k) with a journal, undo and a class list.

    Reads like an :class:`~napari_isdnet.io.source.ImageSource` with one channel; ``arrays`` are its levels for a
    multiscale napari layer. All methods may be called from any thread. Memory follows what is painted, never the size
    of the image; decoded chunks are bounded by ``cache_bytes``.
    """

    def __init__(self, folder: Path, read_only: bool, rebuild: bool, cache_bytes: int, lock: FolderLock | None) -> None:
        self.folder = folder
        self.read_only = read_only
        self._held = lock
        self._lock = threading.RLock()
        self._group = threading.local()  # of a thread: what others paint meanwhile is no part of it
        self._open_steps: set[str] = set()
        if not read_only:
            pull_back(folder)
        self.journal = Journal(folder / JOURNAL, read_only)
        self.levels = level_shapes(tuple(self.journal.header["shape"]))
        self.arrays = [AnnotationLevel(self, level) for level in range(len(self.levels))]
        self._cache = ChunkCache(folder, self.levels, cache_bytes)
        self._painter = Painter(self._cache, self.levels)
        self._undo = UndoArea(folder, step=lambda n: self.journal.group(n) or n)
        self._now = read_state(folder) or State(-1, "", (), {})
        self._saver = Saver(folder, self._lock, self._cache, self._undo, self.journal, self._snapshot)
        try:
            self._catch_up(rebuild)
        except BaseException:
            self.journal.close()
            raise

    @classmethod
    def create(
        cls, path: str | Path, shape: tuple[int, int], classes: Sequence[Any] = (), cache_bytes: int = 256 << 20
    ) -> AnnotationStore:
        """A new, empty annotation in the folder ``path`` for an image of ``shape`` (rows, columns)."""
        folder = store_folder(path)
        levels = level_shapes(shape)
        listed = class_list(classes)
        folder.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(folder)
        try:
            if (folder / JOURNAL).exists():
                raise InputError(f"{folder} holds an annotation already; open it, or choose another folder.")
            header = {"shape": list(levels[0]), "classes": [c.to_json() for c in listed]}
            Journal.create(folder / JOURNAL, header).close()
            return cls(folder, False, False, cache_bytes, lock)
        except BaseException:
            lock.release()
            raise

    @classmethod
    def open(
        cls, path: str | Path, read_only: bool = False, rebuild: bool = False, cache_bytes: int = 256 << 20
    ) -> AnnotationStore:
        """Open the annotation in a folder (or at its ``annotations.zarr``), recovering from a crash if there was one.

        ``read_only`` needs no lock and changes no file; ``rebuild`` throws all chunks away and replays the journal.
        Raises :class:`InputError` when there is none, it is damaged, or another process has it open.
        """
        folder = store_folder(path)
        if not (folder / JOURNAL).is_file():
            raise InputError(f"{folder} holds no annotation (no {JOURNAL}); give the .isdnet folder of an image.")
        lock = None if read_only else FolderLock(folder)
        try:
            return cls(folder, read_only, rebuild, cache_bytes, lock)
        except BaseException:
            if lock:
                lock.release()
            raise

    # -- opening ------------------------------------------------------------------------------------------------------

    def _catch_up(self, rebuild: bool) -> None:
        at, journal = self._now.position, self.journal
        known = 0 <= at <= journal.position and journal.entry(at)["id"] == self._now.id
        if known and not rebuild and self._whole():
            try:
                with self._painter.later():
                    for entry in journal.entries(at):
                        self._apply(entry)
                        self._saver.relieve(self.read_only)
                self._finish_opening()
                return
            except (KeyError, DamagedChunk):
                pass  # an undo whose record is gone, a stroke on a damaged chunk: replay from the start instead
        if self.read_only and journal.position:
            raise InputError(f"What is saved of {self.folder} does not fit its journal of strokes; {REPAIR}")
        self._replay_all()
        self._finish_opening()

    def _whole(self) -> bool:
        """Whether the counts on disk can be read and every chunk that they count is there."""
        return not self._saver.damaged and {(0, *place) for place in self._saver.counts()} <= self._cache.keys(0)

    def _finish_opening(self) -> None:
        if not self.read_only:
            self._saver.flush()

    def _replay_all(self) -> None:
        """Chunks, counts and undo records from nothing but the journal."""
        header = self.journal.header
        self._now = State(-1, "", class_list(header["classes"]), {})
        if not self.read_only:
            self._saver.flush(force=True, extra=zarr_files(self.levels, self._now.classes))
            for level in range(len(self.levels)):
                shutil.rmtree(self.folder / ANNOTATIONS_ZARR / str(level) / "c", ignore_errors=True)
            shutil.rmtree(self.folder / UNDO_FOLDER, ignore_errors=True)
            self._saver.reset()
            self._cache.rescan()
            self._undo.rescan()
        standing = set(self.journal.done)
        with self._painter.later():
            for entry in self.journal.entries():
                if entry["n"] in standing or entry["kind"] == "pin":
                    self._apply(entry, at=-1)  # position -1 on disk: a crash now starts the replay over
                    self._saver.relieve(self.read_only)
        self._now = State(self.journal.position, self.journal.last_id, self._now.classes, self._now.pins)
        self._saver.touch()

    # -- changing -----------------------------------------------------------------------------------------------------

    def paint(self, stroke: Stroke, class_index: int | None = None) -> list[Window]:
        """Paint ``stroke`` with a class, or erase with ``None``; returns the windows (level 0) that changed.

        A :class:`~napari_isdnet.annotation.strokes.Patch` brings its own values. Raises :class:`InputError` for a class
        that does not exist, a read-only store or a full disk; nothing is changed then.
        """
        with self._lock:
            fields = self._stroke_fields(stroke, class_index)
            cover = stroke.cover(self.shape)
            if cover.bounds.empty:
                return []
            about, data = stroke.to_json()
            return self._record(stroke.kind, {**fields, "about": about}, data, (stroke, cover))

    def _stroke_fields(self, stroke: Stroke, class_index: int | None) -> dict[str, Any]:
        known = len(self.classes)
        if isinstance(stroke, Patch):
            highest = int(stroke.values.max(initial=0))
            if highest > known:
                raise InputError(f"The patch holds annotation value {highest}, but there are only {known} classes.")
            return {}
        if class_index is not None and not 0 <= class_index < known:
            raise InputError(f"There are classes 0 to {known - 1}, class {class_index} was asked for; add it first.")
        return {"class": None if class_index is None else int(class_index)}

    def _record(
        self, kind: str, fields: Mapping[str, Any], data: bytes | None = None, ready: Drawn | Before | None = None
    ) -> list[Window]:
        self._saver.check()
        group = self._group_name()
        if group is not None and kind not in ("undo", "redo", "pin"):
            fields = {**fields, "group": group}
        entry = self.journal.append(kind, fields, data)
        try:
            places = self._apply(entry, ready)
        except BaseException as error:
            # The entry stands and its chunks are half done: what is on disk stays at the position before it.
            self._saver.give_up(error)
            raise
        self._saver.wake()
        return [self._painter.window(place) for place in places]

    def _apply(self, entry: Entry, ready: Drawn | Before | None = None, at: int | None = None) -> list[Place]:
        """Bring the chunks from the state before ``entry`` to the state after it.

        ``ready`` is what it needs, where that has been read already: what an undo puts back, or what a stroke covers.
        """
        kind, target = entry["kind"], int(entry.get("target", entry["n"]))
        if kind == "undo":
            places = self._take_back(target, ready if isinstance(ready, Before) else self._undo.get(target))
        elif kind == "pin":
            self._now = self._now.changed(pins={**self._now.pins, **entry["pins"]})
            places = []
        else:
            original = self.journal.entry(target) if kind == "redo" else entry
            before = self._do(original, None if isinstance(ready, Before) else ready)
            self._undo.add(target, before)
            places = list(before.chunks)
        if at is None:
            self._now = self._now.changed(position=entry["n"], id=entry["id"])
        self._saver.touch()
        return places

    def _do(self, entry: Entry, drawn: Drawn | None) -> Before:
        if entry["kind"] == "classes":
            before = self._painter.recode(np.array(entry["table"], dtype=np.uint8)) if "table" in entry else {}
            old = [c.to_json() for c in self._now.classes]
            self._now = self._now.changed(classes=class_list(entry["classes"]))
            return Before(before, old)
        stroke, cover = drawn or self._drawn(entry)
        index = entry.get("class")
        return Before(self._painter.stroke(stroke, 0 if index is None else index + 1, cover))

    def _drawn(self, entry: Entry) -> Drawn:
        stroke = stroke_from_json(entry["kind"], entry["about"], self.journal.data(entry))
        return stroke, stroke.cover(self.shape)

    def _take_back(self, target: int, before: Before) -> list[Place]:
        places = self._painter.restore((place, before.restored(place)) for place in before.chunks)
        if before.classes is not None:
            self._now = self._now.changed(classes=class_list(before.classes))
        self._undo.drop(target)
        return places

    def _snapshot(self) -> State:
        self._painter.settle()  # what is saved has its coarse levels, also between the strokes of :meth:`at_once`
        return self._now

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Many strokes inside bring the coarse levels up to date once, at the end; whoever else paints waits."""
        with self._lock, self._painter.later():
            try:
                yield
            finally:
                try:
                    self._painter.settle()
                except BaseException as error:  # as a stroke that was half done
                    self._saver.give_up(error)
                    raise

    @contextlib.contextmanager
    def step(self) -> Iterator[str]:
        """A name for :meth:`group`; until the block ends nobody takes back the part of it that is painted by then."""
        name = uuid.uuid4().hex[:12]
        self._open_steps.add(name)
        try:
            yield name
        finally:
            self._open_steps.discard(name)

    @contextlib.contextmanager
    def group(self, name: str | None = None) -> Iterator[None]:
        """Strokes that this thread paints inside are undone and redone as one (a drag, an edit window in parts).

        The same ``name``, of a :meth:`step`, goes on with a group. A stroke painted meanwhile by another thread is a
        step of its own, and so is what the group painted after it.
        """
        with contextlib.ExitStack() as stack:
            outer = self._group_name()
            self._group.name = outer or name or stack.enter_context(self.step())
            try:
                yield
            finally:
                self._group.name = outer

    def _group_name(self) -> str | None:
        return getattr(self._group, "name", None)

    # -- undo ---------------------------------------------------------------------------------------------------------

    @property
    def can_undo(self) -> bool:
        """True when there is a stroke (or group) to take back and what it replaced is still kept in full."""
        with self._lock:
            return bool(self.journal.done) and all(n in self._undo for n in self._top())

    def _top(self) -> list[int]:
        """The last stroke, or all strokes of its group, newest first."""
        done, group = self.journal.done, self.journal.group(self.journal.done[-1])
        count = 1
        while group is not None and count < len(done) and self.journal.group(done[-1 - count]) == group:
            count += 1
        return done[: -count - 1 : -1]

    @property
    def can_redo(self) -> bool:
        """True when a stroke was taken back and nothing was painted since."""
        return bool(self.journal.undone)

    def undo(self) -> list[Window]:
        """Take back the last stroke (or group), also one of an earlier session; returns the windows that changed.

        Raises :class:`InputError` for a group that another thread is still painting: half of it would be taken back.
        """
        with self._lock:
            dirty: dict[Window, None] = {}
            under_way = self.journal.group(self.journal.done[-1]) if self.journal.done else None
            if under_way in self._open_steps and under_way != self._group_name():
                raise InputError("The last step is still under way; undo it once it has ended, or cancel it.")
            # All is read before the journal says that it was taken back.
            replaced = {target: self._replaced(target) for target in self._top()} if self.can_undo else {}
            with self.at_once():
                for target, before in replaced.items():
                    dirty.update(dict.fromkeys(self._record("undo", {"target": target}, ready=before)))
            return list(dirty)

    def _replaced(self, target: int) -> Before:
        try:
            return self._undo.get(target)
        except KeyError:
            raise InputError(
                f"What stroke {target} of {self.folder} painted over cannot be read, so it is not undone; {REPAIR}"
            ) from None

    def redo(self) -> list[Window]:
        """Do again what was taken back last; returns the windows that changed."""
        with self.at_once():
            dirty: dict[Window, None] = {}
            while self.can_redo:
                target = self.journal.undone[-1]
                original = self.journal.entry(target)
                drawn = None if original["kind"] == "classes" else self._drawn(original)
                dirty.update(dict.fromkeys(self._record("redo", {"target": target}, ready=drawn)))
                group, following = self.journal.group(target), self.journal.undone
                if group is None or not following or self.journal.group(following[-1]) != group:
                    break
            return list(dirty)

    # -- the split ----------------------------------------------------------------------------------------------------

    def pin(self, pins: Mapping[str, str]) -> None:
        """Fix regions to a side for good; kept in the journal, not undone."""
        with self._lock:
            if pins:
                self._record("pin", {"pins": dict(pins)})

    # -- saving -------------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Write everything to disk now (it happens by itself within half a second); call before others read."""
        if not self.read_only:
            self._saver.flush()

    def close(self) -> None:
        """Flush and release the folder; painting afterwards is an error.

        Raises :class:`InputError` when the disk refuses; the next opening writes from the journal what is missing.
        """
        self._saver.stop()
        try:
            if self.journal.writable:
                self.flush()
        except OSError as error:
            raise InputError(
                f"{self.folder} cannot be written ({error}); free some space and open it again, which brings back"
                " all that was painted."
            ) from None
        finally:
            self.journal.close()
            self.read_only = True
            if self._held:
                self._held.release()

    def __enter__(self) -> AnnotationStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
