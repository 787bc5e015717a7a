"""Class lists, colours, and the one place where class indices and annotation values meet."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from napari_isdnet.classes import (
    IGNORE_INDEX,
    MAX_CLASSES,
    ClassInfo,
    classes_from,
    distinct_color,
    from_annotation,
    index_of,
    parse_color,
    to_annotation,
)
from napari_isdnet.exceptions import InputError


def test_every_index_has_its_annotation_value_and_back() -> None:
    indices = np.arange(256, dtype=np.uint8)
    values = to_annotation(indices)
    assert values.dtype == np.uint8
    assert values[IGNORE_INDEX] == 0
    assert values[:IGNORE_INDEX].tolist() == list(range(1, 256))
    assert from_annotation(values).tolist() == list(range(256))


def test_names_pairs_and_mappings_make_the_same_list() -> None:
    wanted = (ClassInfo("land", (1, 2, 3)), ClassInfo("water", (0, 0, 255)))
    assert classes_from([("land", [1, 2, 3]), ("water", "#0000ff")]) == wanted
    assert classes_from([{"name": "land", "color": (1, 2, 3)}, {"name": "water", "color": "0000FF"}]) == wanted
    assert classes_from(wanted) == wanted
    assert [c.hex for c in wanted] == ["#010203", "#0000ff"]
    assert classes_from(["a", "b"])[1].color == distinct_color(1)


def test_colours_of_neighbours_and_of_many_classes_differ() -> None:
    colors = [distinct_color(k) for k in range(MAX_CLASSES)]
    assert len(set(colors)) == MAX_CLASSES
    assert all(0 <= v <= 255 for color in colors for v in color)
    for a, b in pairwise(colors):
        assert max(abs(x - y) for x, y in zip(a, b)) > 60


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([], "There must be 1 to 254 classes, got 0"),
        ([f"c{k}" for k in range(255)], "got 255"),
        (["a", "a"], "Class names must differ"),
        ([" "], "not blank"),
        ([("a", "red")], "must look like #rrggbb"),
        ([("a", "#12345")], "must look like #rrggbb"),
        ([("a", [1, 2])], "three numbers 0..255"),
        ([("a", [1, 2, 256])], "three numbers 0..255"),
        ([("a", ["x", "y", "z"])], "three numbers 0..255"),
        ([("a", 7)], "three numbers 0..255"),
        ([("a", [1, 2, float("inf")])], "three numbers 0..255"),
        ([("a", [1, 2, 3], "x")], "a name, or a name and a colour"),
    ],
)
def test_bad_lists_are_one_sentence(items: list[object], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        classes_from(items)
    assert "\n" not in str(caught.value)


def test_colours_read_as_written() -> None:
    assert parse_color("#0a0b0c") == (10, 11, 12)
    assert parse_color([0, 128, 255]) == (0, 128, 255)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("road", 0), ("Road", 1), ("ROAD", None), (" open  LAND ", 2), ("open land", 2), ("STRASSE", 3), ("land", None)],
)
def test_a_class_is_found_by_the_same_text_or_the_only_one_that_differs_in_case_and_spaces(
    name: str, expected: int | None
) -> None:
    assert index_of(name, ["road", "Road", "Open land", "Straße"]) == expected
