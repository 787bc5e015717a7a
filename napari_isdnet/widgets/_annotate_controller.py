"""What the Annotate dock knows and does, without Qt: the project, the tool at hand, drags in pieces, undo, counts."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_isdnet.annotation.project import Project
from napari_isdnet.annotation.store import AnnotationStore
from napari_isdnet.annotation.strokes import Brush, Lasso, Patch, Polygon, Radius, Stroke
from napari_isdnet.classes import index_of
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.intensity import IntensityPolicy
from napari_isdnet.progress import Progress
from napari_isdnet.widgets._annotate_regions import Placing, predicted_region, superpixel
from napari_isdnet.widgets._paint_queue import PaintQueue
from napari_isdnet.widgets._projects import close_project, open_project
from napari_isdnet.window import Window

PATIENCE_SECONDS = 0.3
PIECE_SECONDS = 0.3
PIECE_POINTS = 256
PIECE_AREA = 1 << 26
"""A drag goes to the store in pieces of at most so long, so many points and such a box (level-0 pixels)."""

Point = tuple[float, float]
Changed = Callable[[list[Window], bool], None]


class AnnotateController:
    """State behind the Annotate dock. ``on_change(dirty, idle)`` and ``on_error`` are called on the painting thread.

    All changes of the store go through one queue a project, in order; nothing here waits for them for long.
    ``on_closed(error)`` is called on a thread once all of a project that was closed is on the disk. After :meth:`mute`
    none of them is called.
    """

    def __init__(
        self,
        on_change: Changed,
        on_error: Callable[[Exception], None],
        on_closed: Callable[[Exception | None], None] = lambda _: None,
    ) -> None:
        self.project: Project | None = None
        self.tool = "pan"
        self.class_index = 0
        self.size = 20
        self.superpixel_method = "slic"
        self.counts: tuple[int, ...] = ()
        self.can_undo = self.can_redo = False
        self._on_change, self._on_error, self._on_closed = on_change, on_error, on_closed
        self._telling = threading.Lock()
        self._queue = PaintQueue(self._done, self._fail)
        self._group = contextlib.ExitStack()
        self._edits: list[AnnotationStore] = []  # of every change that waits
        self._drag: tuple[list[Point], Radius, int | None] | None = None
        self._since = 0.0
        self._policy: tuple[Any, IntensityPolicy] | None = None

    # -- the project ----------------------------------------------------------------------------------------------

    def open(
        self,
        source: Any,
        classes: Sequence[Any] = (),
        folder: Path | None = None,
        policy: IntensityPolicy | None = None,
    ) -> AnnotationStore:
        """Open (or begin) the project of an image, shown by ``policy``; the one before is closed first."""
        self.close_project()
        self._policy = None if policy is None else (source, policy)
        self.project = open_project(source, classes, folder)
        earlier, self._queue = self._queue, PaintQueue(self._done, self._fail)

        def first() -> list[Window]:  # it may be the project that was closed just now, and still be painted
            earlier.wait()
            return []  # told all the same: what is there is counted

        self._queue.submit(first)
        return self.project.store

    @property
    def store(self) -> AnnotationStore:
        """The annotation; raises :class:`InputError` when none is open."""
        if self.project is None:
            raise InputError("No annotation is open; choose an image and press Start.")
        return self.project.store

    def other_image(self, source: Any) -> str:
        """What is to be said where ``source`` is not what the annotation was begun on, else ''."""
        return "" if self.project is None else self.project.other_image(source)

    def close_project(self) -> bool:
        """Close the project; True where that is done. What was painted is finished and written in any case."""
        if self.project is None:
            return True
        self.release()
        project, self.project = self.project, None
        self.counts, self.can_undo, self.can_redo, self._policy = (), False, False, None
        return close_project(project, self._queue, self._tell_closed)

    def mute(self) -> None:
        """Say nothing more, for who listens is about to go; what a thread is saying now is waited for."""
        with self._telling:
            self._on_change = lambda _dirty, _idle: None
            self._on_error = self._on_closed = lambda _: None

    @property
    def busy(self) -> bool:
        """True while classes are being edited or a change is taken back: class indices may move, so painting waits."""
        return any(self._paints(store) for store in list(self._edits))

    def _paints(self, store: AnnotationStore) -> bool:
        """Whether ``store`` is the one that is painted: of one that was closed just now, changes may wait yet."""
        return self.project is not None and self.project.store is store

    @property
    def pending(self) -> int:
        """Changes that are not in the store yet."""
        return self._queue.pending

    def wait(self, timeout: float | None = None) -> bool:
        """Until everything is in the store."""
        return self._queue.wait(timeout)

    def _done(self, dirty: list[Window], idle: bool) -> None:
        project = self.project
        if idle and project is not None:
            store = project.store  # asked here: the answers wait for whoever paints
            self.counts, self.can_undo, self.can_redo = store.class_counts(), store.can_undo, store.can_redo
        with self._telling:
            self._on_change(dirty, idle)

    def _fail(self, error: Exception) -> None:
        with self._telling:
            self._on_error(error)

    def _tell_closed(self, error: Exception | None) -> None:
        with self._telling:
            self._on_closed(error)

    # -- strokes --------------------------------------------------------------------------------------------------

    @property
    def value(self) -> int:
        """Annotation value that the tool at hand paints."""
        return 0 if self.tool == "eraser" else self.class_index + 1

    def _await_classes(self) -> None:
        """After a change of the class list or an undo: wait a moment; where it takes long, say so."""
        if self.busy:
            self._queue.wait(PATIENCE_SECONDS)
        if self.busy:
            raise InputError("The classes are being changed; paint again in a moment.")

    def _target(self, erase: bool) -> int | None:
        if erase or self.tool == "eraser":
            return None
        if not self.store.classes:
            raise InputError("There is no class to paint yet; add one first.")
        return self.class_index

    # All that paints raises InputError while a long change of the class list is under way.
    def press(self, point: Point, radius: Radius, erase: bool = False) -> None:
        """Begin a drag of the brush; ``radius`` in level-0 pixels (down and across, where they are not square).

        A drag before it that was never let go, because its release went to another window, ends here.
        """
        self.release()
        self._await_classes()
        Brush([point], radius)  # refused here, or every piece and the end of the drag would be
        self._drag = ([point], radius, self._target(erase))
        self._since = time.monotonic()
        store = self.store
        self._queue.submit(lambda: self._open_group(store))

    def move(self, point: Point) -> None:
        """Go on with the drag; a piece that is long enough goes to the store."""
        if self._drag is None:
            return
        points = self._drag[0]
        points.append(point)
        rows, columns = zip(*points, strict=True)
        area = (max(rows) - min(rows)) * (max(columns) - min(columns))
        if len(points) >= PIECE_POINTS or area > PIECE_AREA or time.monotonic() - self._since > PIECE_SECONDS:
            self._piece()

    def tick(self) -> None:
        """Call a few times a second: a drag that rests is saved too."""
        if self._drag is not None and len(self._drag[0]) > 1 and time.monotonic() - self._since > PIECE_SECONDS:
            self._piece()

    def release(self) -> None:
        """End the drag: the rest is painted, and all pieces are one step to undo."""
        if self._drag is None:
            return
        self._piece()
        self._drag = None
        self._queue.submit(self._close_group)

    @property
    def dragging(self) -> bool:
        """True between :meth:`press` and :meth:`release`."""
        return self._drag is not None

    def _piece(self) -> None:
        assert self._drag is not None
        points, radius, target = self._drag
        store, stroke = self.store, Brush(points, radius)
        self._queue.submit(lambda: store.paint(stroke, target))
        self._drag = ([points[-1]], radius, target)
        self._since = time.monotonic()

    def _open_group(self, store: AnnotationStore) -> list[Window]:
        self._group.enter_context(store.group())
        return []

    def _close_group(self) -> list[Window]:
        self._group.close()
        return []

    def paint(self, stroke: Stroke, erase: bool = False) -> None:
        """Paint a whole stroke with the class at hand."""
        self._await_classes()
        store, target = self.store, self._target(erase)
        self._queue.submit(lambda: store.paint(stroke, target))

    def outline(self, points: Sequence[Point], erase: bool = False) -> None:
        """Fill a polygon (its corners) or a lasso (its path); fewer than three points are nothing."""
        if len(points) >= 3:
            self.paint(Lasso(points) if self.tool == "lasso" else Polygon([points]), erase)

    def fill_superpixel(self, source: Any, point: Point, zoom_out: float, erase: bool = False) -> None:
        """Paint the superpixel under ``point``; it is found on the painting thread."""
        self._await_classes()
        store, target, size, method = self.store, self._target(erase), self.size, self.superpixel_method

        def task() -> list[Window]:
            return store.paint(superpixel(source, point, size, zoom_out, method, self._policy_of(source)), target)

        self._queue.submit(task)

    def _policy_of(self, source: Any) -> IntensityPolicy:
        """How ``source`` is shown; found once, since it reads a sample of the whole image."""
        if self._policy is None or self._policy[0] is not source:
            self._policy = source, IntensityPolicy.from_source(source)
        return self._policy[1]

    def accept(
        self,
        levels: Sequence[Any],
        classes: Sequence[Any] | None,
        point: Point,
        zoom_out: float,
        erase: bool = False,
        placing: Placing | None = None,
    ) -> None:
        """Paint the predicted region under ``point``, of a prediction that lies on the image as ``placing`` says.

        ``classes`` are the prediction's (names and colours; a missing one is added); ``None`` for labels that do not
        say: the class at hand is painted then.
        """
        self._await_classes()
        store, target = self.store, self._target(erase)

        def task() -> list[Window]:
            value, stroke = predicted_region(levels, point, zoom_out, placing)
            if erase or classes is None:
                return store.paint(stroke, target)
            if value >= len(classes):
                raise InputError(f"The prediction holds class {value}, but names only {len(classes)} classes.")
            with store.group():
                return store.paint(stroke, class_named(store, classes[value].name, classes[value].color))

        self._queue.submit(task)

    def patch(self, window: Window, values: Any, mask: Any, names: Sequence[str]) -> None:
        """Replace pixels by what was edited elsewhere (an edit window), where ``mask`` is true.

        ``values`` (0 = unlabelled) count ``names``, the classes as they were there: a change of the class list may be
        under way, and by the time this is painted the same values may mean others.
        """
        store = self.store

        def task() -> list[Window]:
            with store.still():
                table = renumbered(names, [c.name for c in store.classes])
                lost = sorted({names[v - 1] for v in np.unique(values[mask]).tolist() if v and not table[v]})
                left = mask & ((values == 0) | (table[values] > 0))
                dirty = store.paint(Patch(window, table[values], left)) if left.any() else []
            if lost:
                said = ", ".join(f"'{name}'" for name in lost)
                self._fail(InputError(f"What was painted last as {said} is left out: that class is gone."))
                dirty = [*dirty, window]  # what is shown there is not what is there
            return dirty

        self._queue.submit(task)

    # -- steps ----------------------------------------------------------------------------------------------------

    def edit(self, change: Callable[[AnnotationStore], Any]) -> None:
        """Change the class list (``lambda store: store.rename_class(0, "road")``), after what is being painted.

        The class at hand stays at hand, wherever it is in the list then; a change that returns an index chooses that.
        """
        self.release()
        store = self.store
        self._edits.append(store)

        def task() -> list[Window]:
            try:
                names = [c.name for c in store.classes]
                result = change(store)
                if self._paints(store):
                    kept = result if isinstance(result, int) else index_now(names, self.class_index, store)
                    next_one = max(0, min(self.class_index, len(store.classes) - 1))
                    self.class_index = next_one if kept is None else kept
            finally:
                self._edits.remove(store)
            return result if isinstance(result, list) else []

        self._queue.submit(task)

    def edit_class(self, names: Sequence[str], index: int, change: Callable[..., Any], *values: Any) -> None:
        """``change(store, index, *values)`` of the class at ``index`` of ``names``, the list as its user sees it.

        Another change of the list may be waiting, after which the class has another index, or is gone; that is told.
        """

        def task(store: AnnotationStore) -> Any:
            now = index_now(names, index, store)
            if now is None:
                raise InputError(f"Class '{names[index]}' is gone by now, so nothing of it was changed.")
            return change(store, now, *values)

        self.edit(task)

    def undo(self) -> None:
        """Take back the last step, also one of an earlier session."""
        self.edit(lambda store: store.undo())

    def redo(self) -> None:
        """Do again what was taken back."""
        self.edit(lambda store: store.redo())

    def run(self, work: Callable[[AnnotationStore], Generator[Progress, None, Any]]) -> Generator[Progress, None, Any]:
        """An import or export as a job, after what is being painted."""
        self._queue.wait()
        return (yield from work(self.store))


def class_named(store: AnnotationStore, name: str, color: Any = None) -> int:
    """Index of the class called ``name`` (:func:`~napari_isdnet.classes.index_of`), added when it is missing.

    A map that was made before a class was renamed means that class.
    """
    name = store.naming().followed([name]).get(name, name)
    known = index_of(name, [c.name for c in store.classes])
    return store.add_class(name, color) if known is None else known


def renumbered(then: Sequence[str], now: Sequence[str]) -> npt.NDArray[np.uint8]:
    """Annotation values of a class list by those of an earlier one (256, uint8); 0 where the class is gone.

    A class is known by its name, or by its place where it has got a name there that was none before.
    """
    table = np.zeros(256, np.uint8)
    for index, name in enumerate(then):
        renamed = len(now) == len(then) and now[index] not in then
        found = now.index(name) if name in now else index if renamed else -1
        table[index + 1] = found + 1
    return table


def index_now(names: Sequence[str], index: int, store: AnnotationStore) -> int | None:
    """Where a class of the list ``names`` is in that of ``store`` (see :func:`renumbered`); None where it is gone."""
    value = renumbered(names, [c.name for c in store.classes])[index + 1] if 0 <= index < len(names) else 0
    return int(value) - 1 if value else None
