"""Shards that are written beside each other: in order, few at once, and all of them when a job is stopped."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from napari_isdnet.engine import results
from napari_isdnet.engine.results import UNIT, WRITING_BYTES, writers_at_once, written


@pytest.mark.parametrize(("cores", "channels", "writers"), [(1, 1, 1), (2, 1, 1), (6, 1, 2), (64, 1, 4), (64, 5, 1)])
def test_writers_are_as_many_as_cores_and_memory_allow(
    cores: int, channels: int, writers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results.os, "cpu_count", lambda: cores)
    assert writers_at_once(channels) == writers
    assert writers == 1 or writers * UNIT * UNIT * channels <= WRITING_BYTES


class Stores:
    """Counts what is held at once: predicted and not written yet."""

    def __init__(self) -> None:
        self.stores = {"labels": SimpleNamespace(channels=1)}
        self.held = self.most = 0
        self.done: list[int] = []
        self.lock = threading.Lock()

    def predict(self, index: int, predictor: Any) -> int:
        del predictor
        with self.lock:
            self.held += 1
            self.most = max(self.most, self.held)
        return index

    def write(self, index: int, parts: int) -> int:
        assert parts == index
        with self.lock:
            self.held -= 1
            self.done.append(index)
        return index


@pytest.mark.parametrize("cores", [1, 12])
def test_shards_come_in_order_and_few_are_held(cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results.os, "cpu_count", lambda: cores)
    stores = Stores()
    found = list(written(range(30), stores, SimpleNamespace(), None))  # type: ignore[arg-type]
    assert found == [(n, n) for n in range(30)]
    assert sorted(stores.done) == list(range(30))
    assert stores.most <= writers_at_once(1) + 1


def test_what_is_under_way_is_written_when_a_job_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results.os, "cpu_count", lambda: 12)
    stores = Stores()
    steps: Any = written(range(30), stores, SimpleNamespace(), None)  # type: ignore[arg-type]
    assert next(steps) == (0, 0)
    steps.close()
    assert stores.held <= 1, "what was predicted was handed on"
    assert sorted(stores.done) == list(range(len(stores.done)))
