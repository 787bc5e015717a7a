"""Least recently used values within so many bytes."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from napari_isdnet.engine.recent import Recent


def test_the_least_recently_used_goes_first_and_is_told() -> None:
    kept: Recent[str, np.ndarray] = Recent(1000)
    for name in "abc":
        assert kept.put(name, np.zeros(300, np.uint8)) == []
    assert kept.get("a") is not None  # used: b is the oldest now
    assert kept.put("d", np.zeros(300, np.uint8)) == ["b"]
    assert kept.get("b") is None
    kept.drop("c")
    kept.drop("b")
    assert kept.nbytes == 600
    kept.clear()
    assert kept.nbytes == 0
    assert kept.get("a") is None


def test_what_is_larger_than_all_that_may_be_kept_is_kept_alone() -> None:
    kept: Recent[str, list[bytes]] = Recent(10, lambda parts: sum(map(len, parts)))
    kept.put("small", [b"123"])
    assert kept.put("large", [b"x" * 8, b"y" * 8]) == ["small"]
    assert kept.get("large") == [b"x" * 8, b"y" * 8]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 40)), max_size=40))
def test_bytes_are_those_of_what_is_there(puts: list[tuple[int, int]]) -> None:
    kept: Recent[int, bytes] = Recent(100, len)
    there: dict[int, int] = {}  # in the order of use, as dict keeps it
    for key, size in puts:
        gone = kept.put(key, b"x" * size)
        there.pop(key, None)
        there[key] = size
        for old in gone:
            assert old == next(iter(there))
            del there[old]
        assert kept.nbytes == sum(there.values()) <= 100
