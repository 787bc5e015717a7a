"""The annotation store when a file is damaged, a save fails, or another process looks on while it is written."""

from __future__ import annotations

from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest

from napari_isdnet.annotation import chunks
from napari_isdnet.annotation.container import recover
from napari_isdnet.annotation.store import AnnotationStore
from napari_isdnet.annotation.strokes import Patch, Rectangle
from napari_isdnet.exceptions import InputError
from napari_isdnet.window import Window
from tests.annotation_oracle import NAMES, SHAPE, die

FIRST, SECOND = Rectangle(Window(0, 0, 50, 50)), Rectangle(Window(600, 600, 5, 5))


def painted(folder: Path) -> Path:
    with AnnotationStore.create(folder, SHAPE, NAMES) as store:
        store.paint(FIRST, 0)
    return folder


def counts(folder: Path, rebuild: bool = False) -> tuple[int, ...]:
    with AnnotationStore.open(folder, rebuild=rebuild) as store:
        return store.class_counts()


def test_a_stroke_after_a_failed_save_does_not_wait_for_the_next_save(tmp_path):
    store = AnnotationStore.create(tmp_path / "a.isdnet", SHAPE, NAMES)
    saver, saving, go_on = store._saver, Event(), Event()
    saver.wake = lambda: None  # saved from here only

    def full(stage: str) -> None:
        raise OSError(28, "No space left on device")

    def slow(stage: str) -> None:
        saving.set()
        go_on.wait(5)

    store.paint(FIRST, 0)
    saver.checkpoint = full
    saver.save_quietly()
    saver.checkpoint = slow
    save = Thread(target=saver.save_quietly, daemon=True)
    save.start()
    assert saving.wait(5)
    paint = Thread(target=store.paint, args=(SECOND, 1), daemon=True)
    paint.start()
    paint.join(2)
    assert not paint.is_alive()
    go_on.set()
    save.join(2)
    assert not save.is_alive()
    store.close()
    assert counts(tmp_path / "a.isdnet") == (2500, 25, 0)


@pytest.mark.parametrize("content", [b"", b"[[0]]", b"[3]", b"7"])
@pytest.mark.parametrize("rebuild", [False, True])
def test_damaged_counts_are_made_anew(tmp_path, content, rebuild):
    folder = painted(tmp_path / "a.isdnet")
    (folder / "index/0_0.json").write_bytes(content)
    with pytest.raises(InputError, match="makes it anew from the journal"):
        AnnotationStore.open(folder, read_only=True)
    assert counts(folder, rebuild) == (2500, 0, 0)
    with AnnotationStore.open(folder, read_only=True) as store:
        assert store.class_counts() == (2500, 0, 0)


def test_an_undo_whose_record_is_damaged_is_not_in_the_journal(tmp_path):
    folder = painted(tmp_path / "a.isdnet")
    (folder / "undo/1.bin").write_bytes(b"")
    with AnnotationStore.open(folder) as store:
        assert store.can_undo
        with pytest.raises(InputError, match=r"stroke 1 .* annotation repair"):
            store.undo()
        assert store.position == 1
        store.paint(SECOND, 1)
    assert counts(folder) == counts(folder, rebuild=True) == (2500, 25, 0)


def test_a_redo_whose_pixels_are_gone_is_not_in_the_journal(tmp_path):
    with AnnotationStore.create(tmp_path / "a.isdnet", SHAPE, NAMES) as store:
        store.paint(Patch(Window(0, 0, 200, 200), np.random.default_rng(0).integers(0, 3, (200, 200))))
        store.undo()
        next((store.folder / "pixels").glob("*.zst")).unlink()
        with pytest.raises(InputError, match=r"pixels of entry 1 .* are gone"):
            store.redo()
        assert store.position == 2
        store.paint(SECOND, 1)
    assert counts(tmp_path / "a.isdnet") == (0, 25, 0)


def test_after_a_stroke_that_broke_off_nothing_is_painted_or_saved_until_it_is_repeated(tmp_path):
    folder = painted(tmp_path / "a.isdnet")
    (folder / "annotations.zarr/0/c/0/0").write_bytes(b"")
    with AnnotationStore.open(folder) as store:
        with pytest.raises(InputError, match="c/0/0 holds 0 pixels"):
            store.paint(Rectangle(Window(0, 100, 500, 5)), 1)
        for edit in (lambda: store.paint(SECOND, 2), lambda: store.add_class("roof")):
            with pytest.raises(InputError, match=r"could not be finished .* open it again"):
                edit()
        assert store.position == 2
    assert counts(folder) == counts(folder, rebuild=True) == (2500, 2500, 0)


def test_a_stroke_that_broke_off_half_done_is_undone_in_full_later(tmp_path, monkeypatch):
    folder = painted(tmp_path / "a.isdnet")
    with AnnotationStore.open(folder) as store:
        store.paint(SECOND, 2)  # is still to be saved
        monkeypatch.setattr(store._painter, "raise_levels", None)  # level 0 has changed when this is called
        with pytest.raises(TypeError):
            store.paint(Rectangle(Window(0, 0, 60, 50)), 1)
        store.flush()
    with AnnotationStore.open(folder) as store:
        assert store.class_counts() == (0, 3000, 25)
        store.undo()
        assert store.class_counts() == (2500, 0, 25)


def test_a_reader_sees_the_counts_of_a_commit_that_is_not_copied_out(tmp_path):
    store = AnnotationStore.create(tmp_path / "a.isdnet", SHAPE, NAMES)
    store.paint(FIRST, 0)
    die(store, 0)
    with AnnotationStore.open(tmp_path / "a.isdnet", read_only=True) as reader:
        assert reader.class_counts() == (2500, 0, 0)


def test_a_reader_sees_the_chunks_of_a_commit_that_ends_while_it_opens(tmp_path, monkeypatch):
    store = AnnotationStore.create(tmp_path / "a.isdnet", SHAPE, NAMES)
    store.paint(FIRST, 0)
    die(store, 0)

    def listed(folder):
        found = list(real(folder))
        recover(tmp_path / "a.isdnet")
        return iter(found)

    real = chunks.chunk_files
    monkeypatch.setattr(chunks, "chunk_files", listed)
    with AnnotationStore.open(tmp_path / "a.isdnet", read_only=True) as reader:
        assert reader.read_labels(Window(0, 0, 50, 50)).all()


def test_half_of_an_import_is_not_undone(tmp_path):
    with AnnotationStore.create(tmp_path / "a.isdnet", (300, 300), ["a"]) as store:
        painted, go_on = Event(), Event()

        def bring_in():
            with store.group():
                store.paint(Rectangle(Window(0, 0, 10, 10)), 0)
                painted.set()
                go_on.wait(10)
                store.paint(Rectangle(Window(100, 0, 10, 10)), 0)

        thread = Thread(target=bring_in)
        thread.start()
        assert painted.wait(10)
        with pytest.raises(InputError, match="still under way"):
            store.undo()
        store.paint(Rectangle(Window(200, 0, 10, 20)), 0)  # a stroke meanwhile is a step of its own
        store.undo()
        go_on.set()
        thread.join()
        assert store.class_counts() == (200,)
        store.undo()
        assert store.class_counts() == (0,)
