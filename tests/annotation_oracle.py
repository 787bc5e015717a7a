"""Annotation as plain numpy arrays, and histories of strokes, undo, crashes and replay to compare the store with."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from napari_isdnet.annotation.downsample import downsample
from napari_isdnet.annotation.store import AnnotationStore
from napari_isdnet.annotation.strokes import Brush, Lasso, Patch, Polygon, Rectangle, Region
from napari_isdnet.window import Window

SHAPE = (1100, 1300)
NAMES = ["water", "forest", "road"]


class Crash(BaseException):
    """Stands for the process dying at this very place."""


def whole_mask(stroke, shape=SHAPE) -> np.ndarray:
    mask = stroke.cover(shape).mask(Window.whole(shape))
    return np.full(shape, mask) if isinstance(mask, bool) else mask


class Oracle:
    """The same annotation as full numpy arrays, with undo by copying everything."""

    def __init__(self, classes: int = 3) -> None:
        self.states = [(np.zeros(SHAPE, np.uint8), list(range(classes)))]
        self.undone: list = []

    @property
    def values(self) -> np.ndarray:
        return self.states[-1][0]

    @property
    def classes(self) -> list:
        return self.states[-1][1]

    def push(self, values: np.ndarray, classes: list) -> None:
        self.states.append((values, classes))
        self.undone.clear()

    def paint(self, stroke, index) -> None:
        new = self.values.copy()
        if isinstance(stroke, Patch):
            at = stroke.window.clipped(SHAPE)
            inner = at.relative_to(stroke.window).slices
            where = np.ones(at.shape, bool) if stroke.mask is None else stroke.mask[inner]
            new[at.slices][where] = stroke.values[inner][where]
        else:
            new[whole_mask(stroke)] = 0 if index is None else index + 1
        self.push(new, self.classes)

    def drop(self, index: int, target: int | None) -> None:
        table = list(range(256))
        table[index + 1] = 0 if target is None else target + 1
        recoded = np.array(table, np.uint8)[self.values]
        recoded[recoded > index + 1] -= 1
        self.push(recoded, self.classes[:index] + self.classes[index + 1 :])

    def undo(self) -> None:
        if len(self.states) > 1:
            self.undone.append(self.states.pop())

    def redo(self) -> None:
        if self.undone:
            self.states.append(self.undone.pop())

    def check(self, store: AnnotationStore) -> None:
        expected = self.values
        assert len(store.classes) == len(self.classes)
        found = {v: int((expected == v).sum()) for v in range(1, len(self.classes) + 1)}
        assert store.class_counts() == tuple(found.values())
        for level, shape in enumerate(store.levels):
            assert np.array_equal(store.read_labels(Window.whole(shape), level), expected), f"level {level}"
            rows, columns = expected.shape
            expected = downsample(np.pad(expected, ((0, rows % 2), (0, columns % 2))))


spot = st.tuples(st.floats(-40, 1200).map(lambda v: round(v, 1)), st.floats(-40, 1400).map(lambda v: round(v, 1)))
window = st.builds(Window, st.integers(-20, 1090), st.integers(-20, 1290), st.integers(1, 700), st.integers(1, 700))


@st.composite
def regions(draw):
    where = draw(window)
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    mask = rng.random(where.shape) < 0.3
    if draw(st.booleans()):
        return Region(where, mask)
    return Patch(where, rng.integers(0, 2, where.shape), mask if draw(st.booleans()) else None)


strokes = st.one_of(
    st.builds(Brush, st.lists(spot, min_size=1, max_size=4), st.floats(0.5, 300)),
    st.builds(lambda ring: Polygon([ring]), st.lists(spot, min_size=3, max_size=5)),
    st.builds(Lasso, st.lists(spot, min_size=3, max_size=6)),
    st.builds(Rectangle, window),
    regions(),
)
commands = st.one_of(
    st.tuples(st.just("paint"), strokes, st.sampled_from([None, 0, 0, 1, 2])),
    st.tuples(st.just("paint"), strokes, st.sampled_from([0, 1])),
    st.tuples(st.just("undo")),
    st.tuples(st.just("redo")),
    st.tuples(st.just("flush")),
    st.tuples(st.just("reopen")),
    st.tuples(st.just("remove"), st.integers(0, 2)),
    st.tuples(st.just("merge"), st.integers(0, 2), st.integers(0, 2)),
    # The number of files of the commit that are in place when the process dies; -2 and -1: before and after deciding.
    st.tuples(st.just("crash"), st.integers(-2, 12)),
    st.tuples(st.just("rebuild")),
)


def die(store: AnnotationStore, after: int) -> None:
    """Let a flush of ``store`` stop at a stage of its commit, then forget everything that was in memory."""
    count = 0

    def checkpoint(stage: str) -> None:
        nonlocal count
        if (stage == "begin" and after == -2) or (stage == "written" and after == -1):
            raise Crash
        if stage in ("file", "copied"):
            if count == after or stage == "copied":
                raise Crash
            count += 1

    store._saver.checkpoint = checkpoint
    with contextlib.suppress(Crash):
        store.flush()
    abandon(store)


def abandon(store: AnnotationStore) -> None:
    store._saver.stop()
    store.journal.close()
    store._held.release()


def run(commands_, folder: Path) -> None:
    oracle = Oracle()
    store = AnnotationStore.create(folder, SHAPE, NAMES, cache_bytes=3 << 18)
    for command, *arguments in commands_:
        if command == "paint":
            stroke, index = arguments
            if isinstance(stroke, Patch):
                if not len(store.classes):
                    continue
            elif index is not None and index >= len(store.classes):
                continue
            if stroke.cover(SHAPE).bounds.empty:
                assert store.paint(stroke, index) == []
                continue
            oracle.paint(stroke, index)
            before = oracle.states[-2][0]
            dirty = store.paint(stroke, index)
            changed = np.zeros(SHAPE, bool)
            for place in dirty:
                changed[place.slices] = True
            assert changed[before != oracle.values].all(), "a changed pixel outside the windows that were reported"
        elif command in ("undo", "redo"):
            getattr(store, command)()
            getattr(oracle, command)()
        elif command in ("remove", "merge"):
            if max(arguments) >= len(store.classes) or (command == "merge" and arguments[0] == arguments[1]):
                continue
            getattr(store, f"{command}_class{'es' if command == 'merge' else ''}")(*arguments)
            oracle.drop(arguments[0], arguments[1] if command == "merge" else None)
        elif command == "flush":
            store.flush()
        else:
            if command == "crash":
                die(store, arguments[0])
            else:
                store.close()
            store = AnnotationStore.open(folder, rebuild=command == "rebuild", cache_bytes=3 << 18)
            oracle.check(store)
    oracle.check(store)
    store.close()
    with AnnotationStore.open(folder, read_only=True) as again:
        oracle.check(again)
    with AnnotationStore.open(folder, rebuild=True) as replayed:
        oracle.check(replayed)
