"""Maps in RAM and in files against numpy, and units that are computed once and never half taken for whole."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from napari_isdnet.engine import maps
from napari_isdnet.engine.maps import LazyMap, MapStorage, map_is_stored
from napari_isdnet.exceptions import InputError
from napari_isdnet.window import Window

SHAPE, CHANNELS = (11, 7), 3


@st.composite
def parts(draw: st.DrawFn) -> Window:
    top, left = draw(st.integers(0, SHAPE[0] - 1)), draw(st.integers(0, SHAPE[1] - 1))
    return Window(top, left, draw(st.integers(1, SHAPE[0] - top)), draw(st.integers(1, SHAPE[1] - left)))


@pytest.mark.parametrize("positioned", [True, False], ids=["pread", "seek"])
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(steps=st.lists(st.tuples(parts(), parts(), st.integers(0, 99)), max_size=6))
def test_ram_and_file_hold_what_numpy_holds(
    tmp_path: Path, positioned: bool, steps: list[tuple[Window, Window, int]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if not positioned:  # Windows has neither
            for name in ("pwrite", "preadv"):
                patch.delattr(maps.os, name, raising=False)
        path = tmp_path / "a.map"
        path.unlink(missing_ok=True)
        stores = [MapStorage(SHAPE, CHANNELS, np.dtype(np.float16), p) for p in (None, path)]
        truth = np.zeros((*SHAPE, CHANNELS), np.float16)
        for write, read, seed in steps:
            values = np.random.default_rng(seed).normal(size=(*write.shape, CHANNELS)).astype(np.float16)
            truth[write.slices] = values
            for store in stores:
                store.write(write, values)
                np.testing.assert_array_equal(store.read(read), truth[read.slices])
        for store in stores:
            store.sync()
            store.close()
        assert map_is_stored(SHAPE, CHANNELS, np.dtype(np.float16), path)
        again = MapStorage(SHAPE, CHANNELS, np.dtype(np.float16), path)
        np.testing.assert_array_equal(again.read(Window.whole(SHAPE)), truth)
        again.close()


def test_a_file_of_another_size_counts_as_empty(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.map"
    MapStorage(SHAPE, CHANNELS, np.dtype(np.float32), path).close()
    assert not map_is_stored(SHAPE, CHANNELS + 1, np.dtype(np.float32), path)
    MapStorage(SHAPE, CHANNELS + 1, np.dtype(np.float32), path).close()
    assert path.stat().st_size == 11 * 7 * 4 * 4


def test_a_file_that_is_cut_while_in_use_is_said(tmp_path: Path) -> None:
    store = MapStorage(SHAPE, CHANNELS, np.dtype(np.float32), tmp_path / "a.map")
    os.truncate(tmp_path / "a.map", 40)
    with pytest.raises((InputError, OSError), match="ended early"):
        store.read(Window.whole(SHAPE))
    store.close()


class Counted:
    """Computes every unit as its number, and counts."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, unit: int, window: Window) -> np.ndarray:
        self.calls.append(unit)
        return np.full((*window.shape, CHANNELS), unit, np.float32)


def lazy(compute: Counted, done: tuple[int, ...] = (), record=None) -> LazyMap:  # type: ignore[no-untyped-def]
    return LazyMap("a", MapStorage(SHAPE, CHANNELS, np.dtype(np.float32), None), 4, compute, done, record)


@given(st.lists(parts(), min_size=1, max_size=5))
def test_units_are_computed_when_first_read_and_once(reads: list[Window]) -> None:
    compute = Counted()
    item = lazy(compute)
    expected = np.zeros(SHAPE)
    for unit, window in enumerate(item.grid):
        expected[window.slices] = unit
    needed: set[int] = set()
    for window in reads:
        np.testing.assert_array_equal(item.read(window)[..., 0], expected[window.slices])
        needed |= set(item.grid.touching(window))
    assert sorted(compute.calls) == sorted(needed)
    assert item.missing() == [u for u in range(len(item.grid)) if u not in needed]


def test_what_a_ledger_or_another_process_has_done_is_not_done_again() -> None:
    compute, recorded = Counted(), []
    item = lazy(compute, (0, 1), lambda unit, values: recorded.append((unit, float(values.sum()))))
    item.mark_done([2])
    for unit in range(len(item.grid)):
        item.ensure(unit)
    assert compute.calls == recorded_units(recorded) == [3, 4, 5]
    assert recorded[0] == (3, 3.0 * item.grid[3].area * CHANNELS)  # 4 rows of the 3 last columns


def recorded_units(recorded: list[tuple[int, float]]) -> list[int]:
    return [unit for unit, _ in recorded]


def test_a_unit_whose_writing_fails_stays_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    item, recorded = lazy(Counted()), []
    item._record = lambda unit, values: recorded.append(unit)

    def full(*_: object) -> None:
        raise InputError("The disk is full.")

    monkeypatch.setattr(item.storage, "write", full)
    with pytest.raises(InputError, match="disk is full"):
        item.read(Window(0, 0, 2, 2))
    assert 0 in item.missing()
    assert recorded == []


def test_one_pass_may_fill_several_maps() -> None:
    other = lazy(Counted())
    compute = Counted()

    def both(unit: int, window: Window) -> np.ndarray:
        values = compute(unit, window)
        item.put(unit, values)
        other.put(unit, values + 1)
        return values

    item = LazyMap("b", MapStorage(SHAPE, CHANNELS, np.dtype(np.float32), None), 4, both)
    item.ensure(2)
    assert compute.calls == [2]
    assert other.is_done(2)
    assert (other.read(other.grid[2]) == 3).all()
