"""Shards that are written beside each other: in order, few at once, and all of them when a job is stopped."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from napari_isdnet.engine import results
from napari_isdnet.engine.results import UNIT, WRITING_BYTES, Block, writers_at_once, written

LABELS = UNIT * UNIT


@pytest.mark.parametrize(
    ("cores", "size", "writers"),
    [(1, LABELS, 1), (2, LABELS, 1), (6, LABELS, 2), (64, LABELS, 4), (64, 5 * LABELS, 1), (64, 200 * LABELS, 1)],
)
def test_writers_are_as_many_as_cores_and_memory_allow(
    cores: int, size: int, writers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results.os, "cpu_count", lambda: cores)
    assert writers_at_once(size) == writers
    assert writers == 1 or writers * size <= WRITING_BYTES


class Stores:
    """Counts what is held at once: predicted and not written yet. Every shard comes in several blocks."""

    labels = SimpleNamespace(shards=range(30))
    block_bytes = LABELS

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.held = self.most = 0
        self.done: list[int] = []
        self.lock = threading.Lock()

    def predict(self, index: int, predictor: Any) -> Iterator[Block]:
        del predictor
        for number in range(self.blocks):
            with self.lock:
                self.held += 1
                self.most = max(self.most, self.held)
            yield Block("labels", index, np.zeros((1, 1), np.uint8), last=number == self.blocks - 1)

    def write(self, block: Block) -> None:
        with self.lock:
            self.held -= 1
            self.done.append(block.index)


@pytest.mark.parametrize("cores", [1, 12])
@pytest.mark.parametrize("blocks", [1, 3])
def test_shards_come_in_order_and_few_are_held(cores: int, blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results.os, "cpu_count", lambda: cores)
    stores, found = Stores(blocks), []
    for index, window in written(range(30), stores, SimpleNamespace(), None):  # type: ignore[arg-type]
        assert stores.done.count(index) == blocks, "it was said to be done before its last block was"
        found.append((index, window))
    assert found == [(n, n) for n in range(30)]
    assert sorted(stores.done) == sorted(list(range(30)) * blocks)
    assert stores.most <= writers_at_once(LABELS) + 1


def test_what_is_under_way_is_written_when_a_job_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results.os, "cpu_count", lambda: 12)
    stores = Stores(1)
    steps: Any = written(range(30), stores, SimpleNamespace(), None)  # type: ignore[arg-type]
    assert next(steps) == (0, 0)
    steps.close()
    assert stores.held <= 1, "what was predicted was handed on"
    assert sorted(stores.done) == list(range(len(stores.done)))
