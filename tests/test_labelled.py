"""A project as training data while another process, which is what has it open, goes on painting."""

from __future__ import annotations

import numpy as np
import pytest
from napari_isdnet_training import labelled

from napari_isdnet.annotation import store as store_module
from napari_isdnet.annotation.chunks import ChunkCache
from napari_isdnet.annotation.store import AnnotationStore
from napari_isdnet.annotation.strokes import Rectangle
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.open import open_source
from napari_isdnet.window import Window

SHAPE = (600, 1100)
FIRST, SECOND = Rectangle(Window(0, 0, 50, 50)), Rectangle(Window(0, 600, 20, 20))
MOMENTS = [(ChunkCache, "rescan", False), (store_module, "read_state", True), (labelled, "take_snapshot", True)]


def gathered(folder):
    steps = labelled.gather(folder, open_source(np.zeros(SHAPE, np.uint8), name="image"), "annotation", [])
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


@pytest.fixture
def writer(tmp_path, monkeypatch):
    monkeypatch.setattr(labelled, "_PAUSE", 0)
    with AnnotationStore.create(tmp_path / "a.isdnet", SHAPE, ["a", "b"]) as store:
        store.paint(FIRST, 0)
        store.paint(SECOND, 1)
        store.flush()
        yield store


@pytest.mark.parametrize("change", ["add", "erase"])
@pytest.mark.parametrize(("owner", "name", "before"), MOMENTS)
def test_a_snapshot_beside_a_writer_is_of_one_moment(writer, monkeypatch, owner, name, before, change):
    left = [change]

    def meddle():
        if left:
            left.pop()
            writer.paint(Rectangle(Window(0, 600, 30, 30)), 0 if change == "add" else None)
            writer.flush()

    def wrapped(*arguments):
        if before:
            meddle()
        result = real(*arguments)
        if not before:
            meddle()
        return result

    real = getattr(owner, name)
    monkeypatch.setattr(owner, name, wrapped)
    snapshot = gathered(writer.folder)
    assert not left
    assert (snapshot.position, snapshot.id) == (writer.position, writer.journal.last_id)
    assert snapshot.chunk_counts() == writer.chunk_counts()


def test_a_project_that_is_saved_all_the_time_is_named(writer, monkeypatch):
    def meddle(*arguments):
        writer.paint(SECOND, writer.position % 2)
        writer.flush()
        return real(*arguments)

    real = labelled.take_snapshot
    monkeypatch.setattr(labelled, "take_snapshot", meddle)
    monkeypatch.setattr(labelled, "_TRIES", 3)
    with pytest.raises(InputError, match="stop painting for a moment"):
        gathered(writer.folder)


def test_an_error_of_a_project_at_rest_is_told_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(labelled.time, "sleep", lambda _seconds: pytest.fail("tried again"))
    with (
        AnnotationStore.create(tmp_path / "a.isdnet", SHAPE, ["a", "b"]),
        pytest.raises(InputError, match="no painted"),
    ):
        gathered(tmp_path / "a.isdnet")
