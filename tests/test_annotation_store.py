"""The annotation store against numpy: any history, crashes at any stage, damage, undo, locks, full disks."""

from __future__ import annotations

import shutil
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_isdnet.annotation.journal import Journal
from napari_isdnet.annotation.store import AnnotationStore
from napari_isdnet.annotation.strokes import Brush, Patch, Polygon, Rectangle
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.source import ImageSource
from napari_isdnet.window import Window
from tests.annotation_oracle import NAMES, SHAPE, Crash, Oracle, commands, die, run


@given(st.lists(commands, min_size=1, max_size=12))
@settings(max_examples=25, deadline=None)
def test_any_history_equals_numpy_also_after_crashes_and_replay(history):
    folder = Path(tempfile.mkdtemp())
    try:
        run(history, folder / "image.isdnet")
    finally:
        shutil.rmtree(folder)


@pytest.mark.slow
@given(st.lists(commands, min_size=1, max_size=25))
@settings(max_examples=300, deadline=None)
def test_any_history_equals_numpy_at_length(history):
    folder = Path(tempfile.mkdtemp())
    try:
        run(history, folder / "image.isdnet")
    finally:
        shutil.rmtree(folder)


def test_a_crash_between_journal_and_chunks_loses_nothing(tmp_path):
    store = AnnotationStore.create(tmp_path / "a.isdnet", SHAPE, NAMES)
    oracle = Oracle()
    for number, at in enumerate([(100, 100), (600, 600), (610, 620)]):
        stroke = Brush([at], 40)
        store.paint(stroke, number)
        oracle.paint(stroke, number)
    die(store, -2)  # no chunk was written
    assert not list((tmp_path / "a.isdnet").glob("annotations.zarr/0/c/*/*"))
    with AnnotationStore.open(tmp_path / "a.isdnet") as again:
        oracle.check(again)
        again.undo()
        oracle.undo()
        oracle.check(again)


def test_chunks_that_the_journal_does_not_know_are_made_anew_from_it(tmp_path):
    folder = tmp_path / "a.isdnet"
    oracle = Oracle()
    with AnnotationStore.create(folder, SHAPE, NAMES) as store:
        store.paint(Brush([(100, 100)], 40), 0)
        oracle.paint(Brush([(100, 100)], 40), 0)
        store.flush()
        kept = (folder / "journal.jsonl").read_bytes()
        store.paint(Brush([(130, 130)], 40), 1)
    (folder / "journal.jsonl").write_bytes(kept)  # a power cut after the chunks, before the journal's last line
    with AnnotationStore.open(folder) as again:
        oracle.check(again)
        # Another stroke in the lost one's place must not be taken for it.
        again.paint(Brush([(700, 700)], 10), 2)
        oracle.paint(Brush([(700, 700)], 10), 2)
    with AnnotationStore.open(folder) as again:
        oracle.check(again)


@pytest.mark.parametrize("dies_at", range(4))
def test_a_crash_while_the_chunks_are_made_anew_starts_that_over(tmp_path, monkeypatch, dies_at):
    from napari_isdnet.annotation import saving

    folder, oracle = tmp_path / "a.isdnet", Oracle()
    with AnnotationStore.create(folder, SHAPE, NAMES) as store:
        for number in range(6):
            stroke = Brush([(200 * number, 210 * number)], 60)
            store.paint(stroke, number % 3)
            oracle.paint(stroke, number % 3)
        store.undo()
        oracle.undo()
    monkeypatch.setattr(saving, "CROWDED", 0)  # write after every stroke
    calls = iter(range(100))

    def commit(folder, files, checkpoint):
        if next(calls) == dies_at:
            raise Crash
        real(folder, files, checkpoint)

    real = saving.commit
    monkeypatch.setattr(saving, "commit", commit)
    with pytest.raises(Crash):
        AnnotationStore.open(folder, rebuild=True)
    monkeypatch.setattr(saving, "commit", real)
    with AnnotationStore.open(folder) as store:
        oracle.check(store)
        store.redo()
        oracle.redo()
        oracle.check(store)


def test_a_torn_last_line_is_cut_off_and_damage_inside_is_named(tmp_path):
    folder = tmp_path / "a.isdnet"
    with AnnotationStore.create(folder, SHAPE, NAMES) as store:
        store.paint(Brush([(100, 100)], 40), 0)
    path = folder / "journal.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"n":2,"id":"x","ki')
    with AnnotationStore.open(folder) as store:
        assert store.position == 1
        store.paint(Brush([(200, 100)], 40), 1)
    assert [e["n"] for e in Journal(path, read_only=True).entries()] == [1, 2]
    path.write_bytes(path.read_bytes().replace(b'{"n":1', b'{"n":7'))
    with pytest.raises(InputError, match="damaged after entry 0"):
        AnnotationStore.open(folder)


def test_a_damaged_chunk_is_named_and_rebuilt(tmp_path):
    folder = tmp_path / "a.isdnet"
    with AnnotationStore.create(folder, SHAPE, NAMES) as store:
        store.paint(Brush([(100, 100)], 40), 0)
        expected = store.read_labels(Window(0, 0, 200, 200))
    (folder / "annotations.zarr/0/c/0/0").write_bytes(b"\x28\xb5\x2f\xfdbroken")
    with AnnotationStore.open(folder) as store, pytest.raises(InputError, match="annotation repair"):
        store.read_labels(Window(0, 0, 200, 200))
    with AnnotationStore.open(folder, rebuild=True) as store:
        assert np.array_equal(store.read_labels(Window(0, 0, 200, 200)), expected)


def test_other_programs_read_the_pyramid(tmp_path):
    zarr = pytest.importorskip("zarr")
    with AnnotationStore.create(tmp_path / "a.isdnet", SHAPE, NAMES) as store:
        store.paint(Brush([(500, 500), (900, 1290)], 30), 2)
        levels = [store.read_labels(Window.whole(s), i) for i, s in enumerate(store.levels)]
    group = zarr.open_group(tmp_path / "a.isdnet" / "annotations.zarr", mode="r")
    assert group.attrs["ome"]["image-label"]["properties"][2] == {"label-value": 3, "name": "road"}
    for data, expected in zip(group.attrs["ome"]["multiscales"][0]["datasets"], levels, strict=True):
        array = group[data["path"]]
        assert array.chunks == (512, 512)
        assert array.shards is None
        assert np.array_equal(array[:], expected)


def test_satisfies_the_source_protocol_and_slices_like_numpy(tmp_path):
    with AnnotationStore.create(tmp_path / "a.isdnet", SHAPE, NAMES) as store:
        store.paint(Brush([(500, 500), (900, 1290)], 30), 2)
        assert isinstance(store, ImageSource)
        assert store.read(Window(480, 490, 30, 40)).shape == (30, 40, 1)
        with pytest.raises(InputError, match="lies outside"):
            store.read(Window(1000, 0, 200, 10))
        level = store.arrays[1]
        whole = store.read_labels(Window.whole(store.levels[1]), 1)
        assert (level.shape, level.ndim, level.dtype, len(level)) == (whole.shape, 2, np.uint8, whole.shape[0])
        for key in [
            np.s_[10:300, 100:640], np.s_[::7, 600:20:-3], np.s_[250], np.s_[..., -3], np.s_[250, 250],
            np.s_[5:5, :], np.s_[:], np.s_[np.int64(250), ::2],
        ]:  # fmt: skip
            assert np.array_equal(level[key], whole[key]), key
        with pytest.raises(IndexError):
            level[9999]
        assert np.array_equal(np.asarray(level), whole)


def test_memory_and_disk_follow_what_is_painted_not_the_size(tmp_path):
    tracemalloc.start()
    try:
        with AnnotationStore.create(tmp_path / "a.isdnet", (1_000_000, 1_000_000), NAMES, cache_bytes=8 << 20) as store:
            store.paint(Brush([(999_000, 10), (999_100, 150)], 20), 1)
            small = tracemalloc.get_traced_memory()[1]
            # 100 million pixels: 400 chunks, of which only the outline is held as pixels.
            store.paint(Polygon([[(1000, 1000), (11000, 1250), (10500, 11000), (1250, 10750)]]), 0)
            assert store.memory <= (8 << 20) + 512 * 512
            store.undo()
            store.redo()
            store.flush()
            large = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert small < 24 << 20
    assert large < 60 << 20
    assert sum(p.stat().st_size for p in (tmp_path / "a.isdnet").rglob("*") if p.is_file()) < 8 << 20


def test_erasing_everything_leaves_no_chunk_on_disk(tmp_path):
    with AnnotationStore.create(tmp_path / "a.isdnet", SHAPE, NAMES) as store:
        store.paint(Brush([(500, 500), (900, 1290)], 30), 2)
        store.flush()
        assert list((tmp_path / "a.isdnet").glob("annotations.zarr/*/c/*/*"))
        store.paint(Rectangle(Window(0, 0, 5000, 5000)), None)
    assert not list((tmp_path / "a.isdnet").glob("annotations.zarr/*/c/*/*"))
    assert not list((tmp_path / "a.isdnet").glob("index/*"))


def test_groups_are_undone_and_redone_as_one_also_after_reopening(tmp_path):
    with AnnotationStore.create(tmp_path / "a.isdnet", SHAPE, NAMES) as store:
        store.paint(Brush([(50, 50)], 10), 0)
        with store.group():
            store.paint(Brush([(500, 500)], 10), 1)
            store.paint(Brush([(900, 900)], 10), 2)
        before = store.class_counts()
    with AnnotationStore.open(tmp_path / "a.isdnet") as store:
        dirty = store.undo()
        assert Window(0, 512, 512, 512) not in dirty
        assert store.class_counts()[1:] == (0, 0)
        assert store.class_counts()[0] == before[0]
        store.redo()
        assert store.class_counts() == before
        assert not store.can_redo
        store.undo()
        store.undo()
        assert store.class_counts() == (0, 0, 0)
        assert not store.can_undo
        assert store.undo() == []


def test_undo_area_is_bounded(tmp_path):
    with AnnotationStore.create(tmp_path / "a.isdnet", SHAPE, NAMES) as store:
        store._undo.records = 3
        for number in range(6):
            store.paint(Brush([(100 + 50 * number, 100)], 10), 0)
            store.flush()
        assert len(list((tmp_path / "a.isdnet" / "undo").glob("*.bin"))) == 3
        for _ in range(3):
            assert store.can_undo
            store.undo()
        assert not store.can_undo
        assert store.class_counts()[0] == 3 * 317  # strokes do not overlap; the three oldest stay


def test_class_list_is_journalled_and_keeps_shortcuts(tmp_path):
    with AnnotationStore.create(tmp_path / "a.isdnet", SHAPE, NAMES) as store:
        store.paint(Rectangle(Window(0, 0, 10, 10)), 2)
        assert store.add_class("roof", "#ff0000") == 3
        store.rename_class(0, "sea")
        store.recolor_class(1, (1, 2, 3))
        store.set_shortcut(2, "q")
        store.paint(Rectangle(Window(600, 600, 10, 10)), 3)
        store.remove_class(0)
        assert [c.name for c in store.classes] == ["forest", "road", "roof"]
        assert store.class_counts() == (0, 100, 100)
    with AnnotationStore.open(tmp_path / "a.isdnet") as store:
        assert [(c.info.name, c.shortcut) for c in store.class_list] == [("forest", "2"), ("road", "q"), ("roof", "4")]
        assert store.classes[0].color == (1, 2, 3)
        store.undo()
        assert [c.name for c in store.classes] == ["sea", "forest", "road", "roof"]
        assert store.class_counts() == (0, 0, 100, 100)
        with pytest.raises(InputError, match="must differ"):
            store.rename_class(0, "road")
        with pytest.raises(InputError, match="into itself"):
            store.merge_classes(1, 1)
        assert [c.name for c in store.classes] == ["sea", "forest", "road", "roof"]


def test_a_second_writer_gets_one_clear_sentence_and_readers_are_welcome(tmp_path):
    folder = tmp_path / "a.isdnet"
    with AnnotationStore.create(folder, SHAPE, NAMES) as store:
        store.paint(Brush([(50, 50)], 10), 0)
        with pytest.raises(InputError, match=r"open in another window or process \(process \d+"):
            AnnotationStore.open(folder)
        with AnnotationStore.open(folder, read_only=True) as reader:
            assert reader.class_counts() == store.class_counts()  # from the journal: nothing was flushed
            with pytest.raises(InputError, match="read-only"):
                reader.paint(Brush([(50, 50)], 10), 0)
    with AnnotationStore.open(folder) as store:
        assert store.position == 1


def test_bad_requests_change_nothing(tmp_path):
    with pytest.raises(InputError, match="holds no annotation"):
        AnnotationStore.open(tmp_path)
    with AnnotationStore.create(tmp_path / "a.isdnet", SHAPE, NAMES) as store:
        with pytest.raises(InputError, match="classes 0 to 2, class 3"):
            store.paint(Brush([(50, 50)], 10), 3)
        with pytest.raises(InputError, match="holds annotation value 9"):
            store.paint(Patch(Window(0, 0, 1, 1), np.array([[9]])))
        assert store.position == 0
        assert store.paint(Brush([(-500, 50)], 10), 0) == []
    with pytest.raises(InputError, match="holds an annotation already"):
        AnnotationStore.create(tmp_path / "a.isdnet", SHAPE, NAMES)


def test_a_full_disk_keeps_the_strokes_in_memory_until_there_is_space(tmp_path):
    with AnnotationStore.create(tmp_path / "a.isdnet", SHAPE, NAMES) as store:

        def full(stage: str) -> None:
            raise OSError(28, "No space left on device")

        store._saver.checkpoint = full
        store.paint(Brush([(50, 50)], 10), 0)
        with pytest.raises(OSError, match="No space"):
            store.flush()
        store._saver.save_quietly()
        with pytest.raises(InputError, match="free some space"):
            store.paint(Brush([(90, 90)], 10), 0)
        store._saver.checkpoint = lambda stage: None
        store.paint(Brush([(90, 90)], 10), 0)
    with AnnotationStore.open(tmp_path / "a.isdnet") as store:
        assert store.class_counts()[0] == 634
