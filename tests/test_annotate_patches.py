"""What an edit window hands over while the class list is edited."""

from __future__ import annotations

from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest

from napari_isdnet.io.array import ArraySource
from napari_isdnet.widgets._annotate_controller import AnnotateController, renumbered
from napari_isdnet.window import Window

SHAPE = (300, 400)
PLACE = Window(100, 50, 20, 30)
NAMES = ["a", "b", "c"]


@pytest.fixture
def errors() -> list[Exception]:
    return []


@pytest.fixture
def controller(errors: list[Exception], tmp_path: Path) -> Any:
    found = AnnotateController(lambda _dirty, _idle: None, errors.append)
    found.open(ArraySource([np.zeros((*SHAPE, 3), np.uint8)], "image", rgb=True), NAMES, tmp_path / "image.isdnet")
    yield found
    found.close_project()


@pytest.mark.parametrize(
    ("then", "now", "expected"),
    [
        ("abc", "abc", [1, 2, 3]),
        ("abc", "bc", [0, 1, 2]),
        ("abc", "abcd", [1, 2, 3]),
        ("abc", "axc", [1, 2, 3]),
        ("abc", "bcx", [0, 1, 2]),
        ("bc", "abc", [2, 3]),
        ("ab", "", [0, 0]),
    ],
)
def test_values_of_another_class_list(then: str, now: str, expected: list[int]) -> None:
    table = renumbered(list(then), list(now))
    assert table[: len(then) + 1].tolist() == [0, *expected]
    assert not table[len(then) + 1 :].any()


def test_a_patch_is_painted_as_the_classes_that_it_was_made_with(controller, errors) -> None:
    values = np.full(PLACE.shape, 2, np.uint8)
    values[:, :10], values[:, 20:] = 1, 3
    mask = np.ones(PLACE.shape, bool)
    mask[0] = False
    go = Event()
    controller.edit(lambda _store: go.wait(10) and None)
    controller.edit(lambda store: store.remove_class(0))
    controller.patch(PLACE, values, mask, NAMES)  # made before the edit is done, painted after it
    go.set()
    assert controller.wait(10)
    found = controller.store.read_labels(PLACE)
    assert (found[1:, 10:20] == 1).all()
    assert (found[1:, 20:] == 2).all()
    assert not found[0].any()
    assert not found[:, :10].any()
    assert [str(error) for error in errors] == ["What was painted last as 'a' is left out: that class is gone."]
