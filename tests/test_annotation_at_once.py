"""Many strokes at once: the coarse levels follow in the end, and are never saved or left behind."""

from __future__ import annotations

import json

import numpy as np
import pytest

from napari_isdnet.annotation import outlines
from napari_isdnet.annotation.outlines import import_outlines
from napari_isdnet.annotation.store import AnnotationStore
from napari_isdnet.annotation.strokes import Brush, Polygon
from napari_isdnet.exceptions import InputError
from napari_isdnet.progress import result_of
from napari_isdnet.window import Window

SHAPE = (2300, 3100)
NAMES = ("tumour", "stroma", "immune cells")


def cells(count=300):
    rng, angles = np.random.default_rng(8), np.linspace(0, 2 * np.pi, 15)
    middles = rng.uniform((0, 0), (SHAPE[1], SHAPE[0]), (count, 2))
    rings = [
        np.round(m + r * np.stack([np.cos(angles), np.sin(angles)], 1), 2)
        for m, r in zip(middles, rng.uniform(3, 90, count))
    ]
    return [np.concatenate([ring[:-1], ring[:1]]) for ring in rings]


def feature(ring, name):
    about = {"objectType": "cell", "classification": {"name": name}}
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring.tolist()]}, "properties": about}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "cells.geojson"
    path.write_text(json.dumps([feature(ring, NAMES[n % 3]) for n, ring in enumerate(cells())]))
    return path


def pyramid(store):
    return [store.read_labels(Window.whole(shape), level) for level, shape in enumerate(store.levels)]


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture
def one_by_one(tmp_path):
    """The levels after each stroke on its own."""
    with AnnotationStore.create(tmp_path / "one.isdnet", SHAPE, NAMES) as store:
        for n, ring in enumerate(cells()):
            store.paint(Polygon([ring[:, ::-1] - 0.5]), n % 3)
        return pyramid(store)


def test_an_import_its_undo_and_its_redo_leave_the_levels_that_single_strokes_leave(tmp_path, file, one_by_one):
    with AnnotationStore.create(tmp_path / "a.isdnet", SHAPE, NAMES) as store:
        store.paint(Brush([(100, 100), (2000, 3000)], 40), 1)
        before = pyramid(store)
        store.undo()
        result_of(import_outlines(store, file))
        assert same(pyramid(store), one_by_one)
        assert store.can_undo
        store.undo()
        assert not any(level.any() for level in pyramid(store))
        store.redo()
        assert same(pyramid(store), one_by_one)
        store.undo()
        store.paint(Brush([(100, 100), (2000, 3000)], 40), 1)
        assert same(pyramid(store), before)
        store.undo()
        result_of(import_outlines(store, file))
    for rebuild in (False, True):
        with AnnotationStore.open(tmp_path / "a.isdnet", rebuild=rebuild) as store:
            assert same(pyramid(store), one_by_one)


def test_an_import_tells_how_far_it_is_and_what_a_cancelled_one_painted_is_one_step(tmp_path, file, monkeypatch):
    monkeypatch.setattr(outlines, "_READ_AT_ONCE", 100)
    monkeypatch.setattr(outlines, "_SECONDS_AT_ONCE", 0.0)  # a shape a step
    with AnnotationStore.create(tmp_path / "a.isdnet", SHAPE, NAMES) as store:
        steps = import_outlines(store, file)
        assert [next(steps).stage for _ in range(4)] == ["read", "read", "read", "paint"]
        shares = [next(steps).fraction for _ in range(9)]
        assert shares == pytest.approx(np.arange(2, 11) / 300)
        store.paint(Brush([(1000, 1000)], 5), 0)  # by its user, meanwhile
        steps.close()
        assert store.position == 11
        levels = pyramid(store)
        store.undo()  # the stroke
        store.undo()  # the ten shapes
        assert not store.can_undo
        store.redo()
        store.redo()
        assert same(pyramid(store), levels)


def test_what_is_saved_between_strokes_has_its_coarse_levels(tmp_path, one_by_one, monkeypatch):
    folder = tmp_path / "a.isdnet"
    with AnnotationStore.create(folder, SHAPE, NAMES) as store:
        monkeypatch.setattr(store._saver, "wake", lambda: None)  # a save of its own would wait for this thread
        with store.at_once():
            for n, ring in enumerate(cells()):
                store.paint(Polygon([ring[:, ::-1] - 0.5]), n % 3)
            store._saver.flush()
            with AnnotationStore.open(folder, read_only=True) as reader:  # as after the process died here
                assert same(pyramid(reader), one_by_one)
            store.paint(Brush([(1000, 1000)], 50), 0)
        assert store.read_labels(Window.whole(store.levels[-1]), len(store.levels) - 1).any()


def test_coarse_levels_that_cannot_be_made_are_made_by_the_next_opening(tmp_path, monkeypatch):
    folder = tmp_path / "a.isdnet"
    with AnnotationStore.create(folder, SHAPE, NAMES) as store:
        with monkeypatch.context() as patched:
            patched.setattr(store._painter, "_raise", None)
            with pytest.raises(TypeError), store.at_once():
                store.paint(Brush([(1000, 1000)], 50), 0)
        with pytest.raises(InputError, match=r"could not be finished .* open it again"):
            store.paint(Brush([(1000, 1000)], 50), 1)
    with AnnotationStore.open(folder) as store:
        levels = pyramid(store)
        assert all(level.any() for level in levels)
        assert set(np.unique(levels[-1])) == {0, 1}
