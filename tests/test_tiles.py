"""The tile pyramid: answers at once, reads only what is looked at, nearest first."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from napari_isdnet.engine.tiles import TilePyramid, nearest
from napari_isdnet.engine.viewqueue import ViewQueue
from napari_isdnet.window import Window, pyramid_shapes


def make(shape=(2000, 3000), **kwargs):
    """A pyramid whose level-k pixel (r, c) is made of r, c and k, and the list of what was read."""
    shapes = pyramid_shapes(shape)
    reads: list[tuple[int, Window]] = []

    def read(level: int, window: Window) -> np.ndarray:
        reads.append((level, window))
        rows = np.arange(window.row, window.bottom)[:, None]
        columns = np.arange(window.column, window.right)[None]
        return ((rows * 7 + columns * 3 + level * 50) % 251).astype(np.uint8)

    return TilePyramid(shapes, read, threads=1, fill=9, **kwargs), reads, read


def test_first_answer_is_blank_then_coarse_then_true() -> None:
    pyramid, _, read = make()
    last = len(pyramid.shapes) - 1
    view = Window(700, 900, 600, 800)
    assert (pyramid.answer(0, view) == 9).all()
    assert pyramid.wait(10)
    np.testing.assert_array_equal(pyramid.answer(0, view), read(0, view))
    np.testing.assert_array_equal(pyramid.overview(), read(last, Window.whole(pyramid.shapes[last])))
    far = pyramid.answer(0, Window(1900, 2900, 100, 100))  # not read yet: the overview, enlarged
    rows, columns = nearest(1900, 100, 2000, 125), nearest(2900, 100, 3000, 188)
    np.testing.assert_array_equal(far, pyramid.overview()[rows][:, columns])
    pyramid.close()


def test_only_the_view_and_the_next_level_are_read_middle_first() -> None:
    pyramid, reads, _ = make(shape=(100_000, 100_000))
    last = len(pyramid.shapes) - 1
    view = Window(50_000, 60_000, 1500, 1500)
    pyramid.answer(0, view)
    assert pyramid.wait(10)
    assert reads[0][0] == last
    level_0 = [window for level, window in reads if level == 0]
    assert level_0[0].contains(Window(50_750, 60_750, 1, 1))
    assert all(not window.intersect(view).empty for window in level_0)
    assert {level for level, _ in reads} == {0, 1, last}
    assert len(reads) <= 1 + 16 + 9
    pyramid.close()


def test_what_is_read_ahead_lies_under_the_view_in_a_picture_of_three_rows() -> None:
    pyramid, reads, _ = make(shape=(3, 100_000))
    pyramid.answer(0, Window(0, 90_000, 3, 1000))
    assert pyramid.wait(10)
    ahead = [window for level, window in reads if level == 1]
    assert ahead
    assert all(window.right > 45_000 and window.column < 45_500 for window in ahead), ahead
    pyramid.close()


def test_stale_requests_are_dropped() -> None:
    gate, started = threading.Event(), threading.Event()
    reads: list[tuple[int, Window]] = []

    def read(level: int, window: Window) -> np.ndarray:
        reads.append((level, window))
        started.set()
        gate.wait(10)
        return np.zeros(window.shape, np.uint8)

    pyramid = TilePyramid(pyramid_shapes((20_000, 20_000)), read, threads=1)
    pyramid.answer(0, Window(0, 0, 2000, 2000))
    assert started.wait(10)
    new = Window(10_240, 10_240, 512, 512)
    pyramid.answer(0, new)
    gate.set()
    assert pyramid.wait(10)
    assert [w for level, w in reads if level == 0] == [new]
    pyramid.close()


def test_errors_are_told_once() -> None:
    errors: list[Exception] = []

    def read(level: int, window: Window) -> np.ndarray:
        raise OSError("bad tile")

    pyramid = TilePyramid([(600, 600), (300, 300)], read, threads=1, on_error=errors.append)
    for _ in range(3):
        pyramid.answer(0, Window(0, 0, 500, 500))
        pyramid.wait(10)
    assert len([e for e in errors if "bad tile" in str(e)]) == len(errors) == 2  # the tile and the overview
    pyramid.close()


def test_nearest_halves_exactly() -> None:
    np.testing.assert_array_equal(nearest(3, 6, 100, 50), np.arange(3, 9) // 2)
    assert nearest(99, 2, 101, 51).max() == 50


def test_queue_counts_what_is_not_done_and_ends_idle_threads() -> None:
    done: list[int] = []
    go_on = threading.Event()

    def work(key: int) -> None:
        go_on.wait(10)
        done.append(key)

    queue: ViewQueue[int] = ViewQueue(work, threads=2, name="isdnet-test", idle=0.05)
    queue.replace([3, 1, 2])
    assert queue.pending == 3
    assert not done
    go_on.set()
    assert queue.wait(10)
    assert sorted(done) == [1, 2, 3]
    for thread in [t for t in threading.enumerate() if t.name == "isdnet-test"]:
        thread.join(5)
        assert not thread.is_alive()
    queue.replace([4])
    assert queue.wait(10)
    assert done[-1] == 4
    queue.close()
    with pytest.raises(IndexError):
        done[4]


def test_what_is_renewed_is_shown_until_it_has_been_read_again() -> None:
    value = [1]
    reads: list[tuple[int, Window]] = []

    def read(level: int, window: Window) -> np.ndarray:
        reads.append((level, window))
        return np.full(window.shape, value[0], np.uint8)

    pyramid = TilePyramid(pyramid_shapes((2000, 3000)), read, threads=1, fill=9)
    view = Window(0, 0, 1024, 1024)
    pyramid.answer(0, view)
    assert pyramid.wait(10)
    value[0], told = 2, []
    pyramid.on_change = lambda: told.append(True)
    pyramid.renew(Window(600, 10, 20, 20))
    assert told
    before = len(reads)
    assert (pyramid.answer(0, view) == 1).all()
    assert pyramid.wait(10)
    after = pyramid.answer(0, view)
    assert (after[512:, :512] == 2).all()
    assert (after[:512] == 1).all()
    assert (pyramid.overview() == 2).all()
    fresh = reads[before:]
    assert [w for level, w in fresh if level == 0] == [Window(512, 0, 512, 512)]
    assert len(fresh) <= len(pyramid.shapes)
    pyramid.close()


def test_what_becomes_stale_as_it_is_told_is_read_again() -> None:
    value = [1]
    pyramid = TilePyramid([(512, 512)], lambda _, w: np.full(w.shape, value[0], np.uint8), threads=1)
    view = Window(0, 0, 512, 512)

    def change() -> None:  # on the thread that has just read a tile
        if pyramid.answer(0, view)[0, 0] == 1 and value[0] == 1:
            value[0] = 2
            pyramid.renew(view)
            pyramid.answer(0, view)

    pyramid.on_change = change
    pyramid.answer(0, view)
    assert pyramid.wait(10)
    assert value == [2]
    assert (pyramid.answer(0, view) == 2).all()
    pyramid.close()


def test_a_wish_for_what_is_being_done_is_done_once_more_unless_it_failed_or_others_came() -> None:
    at_it, go_on = threading.Event(), threading.Event()
    begun: list[str] = []

    def work(key: str) -> None:
        begun.append(key)
        at_it.set()
        go_on.wait(10)
        if key == "bad":
            raise ValueError

    queue: ViewQueue[str] = ViewQueue(work, threads=1)
    for wishes, expected in (
        ([["a"]], "a"),
        ([["a"], ["a"]], "aa"),
        ([["a"], ["b", "a"], ["b", "a"]], "aab"),
        ([["a"], ["a"], ["b"]], "ab"),
    ):
        go_on.clear()
        begun.clear()
        for keys in wishes:
            at_it.clear()
            queue.replace(keys)
            assert begun or at_it.wait(10)
        go_on.set()
        assert queue.wait(10)
        assert "".join(begun) == expected
    go_on.clear()
    begun.clear()
    at_it.clear()
    queue.replace(["bad"])
    assert at_it.wait(10)
    queue.replace(["bad"])
    go_on.set()
    assert queue.wait(10)
    assert begun == ["bad"]
    queue.close()
