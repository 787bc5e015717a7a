"""Snapshots for fine-tuning of an annotation that somebody paints meanwhile."""

from __future__ import annotations

import numpy as np
import pytest
from napari_isdnet_training import snapshot as module
from napari_isdnet_training.snapshot import take_snapshot

from napari_isdnet.annotation.store import AnnotationStore
from napari_isdnet.annotation.strokes import Brush, Rectangle
from napari_isdnet.window import Window

SHAPE = (1500, 2000)
WHOLE = Window.whole(SHAPE)


@pytest.fixture
def store(tmp_path):
    with AnnotationStore.create(tmp_path / "scene.isdnet", SHAPE, ["water", "roof", "road"]) as store:
        store.paint(Rectangle(Window(0, 0, 700, 600)), 0)
        store.paint(Brush([(100, 100), (1400, 1900)], 30), 1)
        store.paint(Rectangle(Window(1100, 200, 300, 300)), 2)
        take_snapshot(store)  # fixes the split, so that what follows is one moment
        yield store


@pytest.mark.parametrize("call", [1, 3])
def test_a_snapshot_is_of_one_moment_whatever_is_painted_while_it_is_taken(store, monkeypatch, call: int) -> None:
    expected = take_snapshot(store)
    real, calls = module.encode, []

    def meddle(chunk):
        calls.append(chunk)
        if len(calls) == call:
            store.remove_class(0)
            store.paint(Rectangle(Window(0, 1000, 900, 900)), 1)
            store.paint(Rectangle(Window(1024, 0, 400, 512)), None)
            store.flush()
        return real(chunk)

    monkeypatch.setattr(module, "encode", meddle)
    found = take_snapshot(store)
    assert (found.digest, found.position, found.id) == (expected.digest, expected.position, expected.id)
    assert [c.name for c in found.classes] == ["water", "roof", "road"]
    assert found.split == expected.split
    assert found.position < store.position
    rows, columns = found.points[:, 1], found.points[:, 2]
    assert found.read_labels(WHOLE)[rows, columns].all(), "every point of a stroke is on a pixel that is painted"


def test_however_many_strokes_lie_in_a_chunk_it_is_unpacked_once(store, monkeypatch) -> None:
    for n in range(20):
        store.paint(Brush([(50 + 10 * n, 50), (60 + 10 * n, 900)], 4), n % 3)
    real, unpacked = module.decode, []
    monkeypatch.setattr(module, "decode", lambda data: unpacked.append(data) or real(data))
    found = take_snapshot(store)
    assert len(unpacked) == len(found.chunks)
    assert np.unique(found.points[:, 0]).size == 23


def test_strokes_in_parts_give_the_same_points(store, monkeypatch) -> None:
    together = take_snapshot(store).points
    monkeypatch.setattr(module, "_HELD_BYTES", 0)
    assert np.array_equal(take_snapshot(store).points, together)
