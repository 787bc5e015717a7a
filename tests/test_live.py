"""The live prediction pyramid: whatever someone looks at, in whatever order, the labels are those of the grid."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import napari_isdnet.engine.live as live
from napari_isdnet.engine.live import PredictionPyramid
from napari_isdnet.io.pyramid import halve_by_mode
from napari_isdnet.window import Window


def truth_of(shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 5, shape, dtype=np.uint8)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_order_of_views_gives_the_grid_result(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(40, 700), st.integers(40, 700)))
    core = data.draw(st.sampled_from([(64, 64), (96, 160), (50, 50), (33, 64)]))
    dense = data.draw(st.sampled_from([2**13, 2**24]))
    truth = truth_of(shape)
    calls: list[Window] = []

    def compute(window: Window) -> np.ndarray:
        calls.append(window)
        return truth[window.slices]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(live, "DENSE_PIXELS", dense)
        pyramid = PredictionPyramid(shape, core, compute, threads=2)
    for _ in range(data.draw(st.integers(1, 6))):
        level = data.draw(st.integers(0, len(pyramid.shapes) - 1))
        rows, columns = pyramid.shapes[level]
        top, left = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
        view = Window(top, left, *data.draw(st.tuples(st.integers(2, 300), st.integers(2, 300)))).clipped(
            (rows, columns)
        )
        pyramid.answer(level, view)
    pyramid.wait(10)
    pyramid.answer(len(pyramid.shapes) - 1, Window.whole(pyramid.shapes[-1]))
    assert pyramid.wait(10)
    assert len(calls) == len(set(calls)) == len(pyramid.grid)  # every window once, and only windows of the grid
    expected = truth
    for level, size in enumerate(pyramid.shapes):
        np.testing.assert_array_equal(pyramid.answer(level, Window.whole(size)), expected)
        np.testing.assert_array_equal(pyramid.read(level, Window.whole(size)), expected)
        expected = halve_by_mode(expected)
    np.testing.assert_array_equal(
        pyramid.overview(), pyramid.read(len(pyramid.shapes) - 1, Window.whole(pyramid.shapes[-1]))
    )
    pyramid.close()


def test_middle_of_the_latest_view_comes_first_and_stale_wishes_are_dropped() -> None:
    calls: list[Window] = []
    started, gate = threading.Event(), threading.Event()

    def compute(window: Window) -> np.ndarray:
        calls.append(window)
        started.set()
        gate.wait(10)
        return np.zeros(window.shape, np.uint8)

    pyramid = PredictionPyramid((1000, 1000), (100, 100), compute)
    pyramid.answer(0, Window(0, 0, 300, 300))
    assert started.wait(10)
    pyramid.answer(0, Window(600, 600, 300, 300))
    gate.set()
    assert pyramid.wait(10)
    assert calls[0] == Window(100, 100, 100, 100)
    assert calls[1] == Window(700, 700, 100, 100)
    assert len(calls) == 1 + 9
    assert pyramid.progress == (10, 100)
    pyramid.close()


def test_everything_goes_on_after_the_view_within_the_region() -> None:
    calls: list[Window] = []

    def compute(window: Window) -> np.ndarray:
        calls.append(window)
        return np.ones(window.shape, np.uint8)

    pyramid = PredictionPyramid((400, 400), (100, 100), compute, everything=True, within=Window(0, 0, 400, 150))
    pyramid.answer(0, Window(300, 100, 100, 100))
    assert pyramid.wait(10)
    assert calls[0] == Window(300, 100, 100, 100)
    assert {w.column for w in calls} == {0, 100}
    assert pyramid.progress == (8, 8)
    assert pyramid.answer(0, Window(0, 200, 1, 1))[0, 0] == 255
    pyramid.close()


def test_dropped_windows_show_their_coarse_levels_and_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "DENSE_PIXELS", 2**12)
    count = 0
    truth = truth_of((512, 512))

    def compute(window: Window) -> np.ndarray:
        nonlocal count
        count += 1
        return truth[window.slices]

    pyramid = PredictionPyramid((512, 512), (64, 64), compute, memory=6000)
    pyramid.answer(0, Window.whole((512, 512)))
    pyramid.wait(10)
    assert pyramid.progress[0] == len(pyramid.grid)  # each was computed, though not all are kept
    known = pyramid.answer(0, Window.whole((512, 512)))
    assert (known != 255).all()
    assert pyramid.wait(10)
    before = count
    np.testing.assert_array_equal(pyramid.read(0, Window(0, 0, 64, 64)), truth[:64, :64])
    assert before > len(pyramid.grid)  # the second look computed what had been dropped
    pyramid.close()


def test_the_rest_of_the_image_is_computed_once_however_little_is_kept_and_however_often_one_looks(monkeypatch) -> None:
    monkeypatch.setattr(live, "DENSE_PIXELS", 2**12)
    truth = truth_of((512, 512))
    calls: list[Window] = []

    def compute(window: Window) -> np.ndarray:
        calls.append(window)
        return truth[window.slices]

    pyramid = PredictionPyramid((512, 512), (64, 64), compute, everything=True, memory=6000)
    seen, coarse = Window(0, 0, 64, 64), len(pyramid.shapes) - 1
    for _ in range(4):
        pyramid.answer(coarse, Window.whole(pyramid.shapes[coarse]))
        assert pyramid.wait(10)
        assert pyramid.progress == (64, 64)
    assert len(calls) == 64
    for _ in range(3):
        pyramid.answer(0, seen)  # dropped long ago
        assert pyramid.wait(10)
        np.testing.assert_array_equal(pyramid.answer(0, seen), truth[:64, :64])
    assert calls[64:] == [seen]
    pyramid.close()


def test_a_failed_window_is_reported_once_and_stays_nodata() -> None:
    errors: list[tuple[Window, Exception]] = []

    def compute(window: Window) -> np.ndarray:
        if window.row == 0 and window.column == 0:
            raise RuntimeError("no memory")
        return np.zeros(window.shape, np.uint8)

    pyramid = PredictionPyramid((200, 200), (100, 100), compute, on_error=lambda w, e: errors.append((w, e)))
    for _ in range(2):
        pyramid.answer(0, Window(0, 0, 200, 200))
        assert pyramid.wait(10)
    assert [w for w, _ in errors] == [Window(0, 0, 100, 100)]
    assert pyramid.answer(0, Window(0, 0, 100, 100)).min() == 255
    assert not pyramid.answer(0, Window(100, 0, 100, 200)).any()
    pyramid.close()


def test_close_in_the_middle_joins_the_threads() -> None:
    started, others = threading.Event(), set(threading.enumerate())  # tests before may still be closing theirs

    def compute(window: Window) -> np.ndarray:
        started.set()
        return np.zeros(window.shape, np.uint8)

    pyramid = PredictionPyramid((100_000, 100_000), (512, 512), compute, threads=2)
    pyramid.answer(0, Window(50_000, 50_000, 4000, 4000))
    assert started.wait(10)
    pyramid.close()
    assert not [t for t in threading.enumerate() if t.name == "isdnet-view-live" and t not in others]
    pyramid.answer(0, Window(0, 0, 10, 10))  # asking afterwards starts nothing
    assert not [t for t in threading.enumerate() if t.name == "isdnet-view-live" and t not in others]


def test_another_function_replaces_the_answers_in_place_and_a_stale_one_is_never_kept(monkeypatch) -> None:
    monkeypatch.setattr(live, "DENSE_PIXELS", 2**13)
    shape = (300, 200)
    started, gate = threading.Event(), threading.Event()

    def slow(window: Window) -> np.ndarray:
        started.set()
        gate.wait(10)
        return np.full(window.shape, 1, np.uint8)

    pyramid = PredictionPyramid(shape, (64, 64), lambda w: np.zeros(w.shape, np.uint8))
    pyramid.answer(0, Window.whole(shape))
    assert pyramid.wait(10)
    pyramid.answer(0, Window.whole(shape))  # unpacked windows are remembered now
    pyramid.replace(slow)
    assert started.wait(10)
    assert (pyramid.answer(0, Window.whole(shape)) == 0).all()  # the old answer is shown meanwhile
    pyramid.replace(lambda w: np.full(w.shape, 2, np.uint8), everything=True)
    gate.set()
    assert pyramid.wait(10)
    assert pyramid.progress == (len(pyramid.grid),) * 2
    for level, rows_columns in enumerate(pyramid.shapes):
        assert (pyramid.answer(level, Window.whole(rows_columns)) == 2).all()
    pyramid.close()


def test_a_function_that_is_replaced_as_a_window_is_told_answers_that_window_too() -> None:
    pyramid = PredictionPyramid((128, 128), (64, 64), lambda w: np.zeros(w.shape, np.uint8))
    told: list[Window] = []

    def hear(window: Window, _labels: np.ndarray) -> None:
        told.append(window)
        if len(told) == 1:  # it is known, and its thread has not taken leave of it
            pyramid.replace(lambda w: np.ones(w.shape, np.uint8))

    pyramid._on_window = hear
    pyramid.answer(0, Window.whole((128, 128)))
    assert pyramid.wait(10)
    assert pyramid.progress == (4, 4)
    assert (pyramid.answer(0, Window.whole((128, 128))) == 1).all()
    pyramid.close()


def test_errors_follow_what_is_segmented_and_segment_nothing_of_their_own() -> None:
    from napari_isdnet.engine.errors import NOT_EVALUATED, WRONG, ErrorSource
    from napari_isdnet.engine.live_errors import LiveErrors
    from napari_isdnet.io.array import ArraySource

    truth = np.zeros((2048, 2048), np.uint8)
    windows: list[Window] = []

    def compute(window: Window) -> np.ndarray:
        windows.append(window)
        return np.full(window.shape, window.row // 512 % 2, np.uint8)

    live = PredictionPyramid(truth.shape, (512, 512), compute)

    class Known(ArraySource):
        levels = live.shapes

        def read(self, window: Window, level: int = 0) -> np.ndarray:
            return live.known(level, window)[..., None]

    errors = LiveErrors(ErrorSource(Known([truth], "p", "yx"), ArraySource([truth], "t", "yx"), None, None), {live: 0})
    part = Window(0, 0, 1024, 512)
    assert (errors.answer(0, part) == NOT_EVALUATED).all()
    assert live.wait(10)
    errors.answer(0, part)  # as napari paints again
    assert errors.wait(10)
    codes = errors.answer(0, part)
    assert (codes[:512] == 0).all()
    assert (codes[512:] == WRONG).all()
    assert sorted(windows) == [Window(0, 0, 512, 512), Window(512, 0, 512, 512)]
    errors.close()
    live.close()
