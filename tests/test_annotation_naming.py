"""What classes were called, what they are called now, and whose names are followed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from napari_isdnet.annotation.naming import Naming
from napari_isdnet.annotation.store import AnnotationStore
from napari_isdnet.annotation.strokes import Rectangle
from napari_isdnet.window import Window


@pytest.fixture
def store(tmp_path: Path) -> Iterator[AnnotationStore]:
    with AnnotationStore.create(tmp_path / "a.isdnet", (300, 300), ["object", "ground", "road", "way"]) as store:
        store.paint(Rectangle(Window(0, 0, 9, 9)), 0)
        yield store


def lineage(store: AnnotationStore) -> dict[str, object]:
    """As the header of a model holds it that is trained now."""
    return {"annotations": {"position": store.position, "id": store.last_id}}


def test_every_class_is_followed_through_all_edits(store: AnnotationStore) -> None:
    start = store.position
    assert store.naming().ids == ""
    store.rename_class(0, "cells")
    store.recolor_class(0, "#112233")
    store.rename_class(0, "nuclei")
    between = store.position
    store.merge_classes(3, 2)  # way into road
    store.remove_class(1)  # ground
    store.add_class("ground")  # another one
    naming = store.naming()
    assert naming.at(start) == {"object": "nuclei", "ground": None, "road": "road", "way": "road"}
    assert naming.at(between) == {"nuclei": "nuclei", "ground": None, "road": "road", "way": "road"}
    assert naming.at(store.position) == {name: name for name in ("nuclei", "road", "ground")}
    frozen = store.frozen()
    for _ in range(3):
        store.undo()
    assert store.naming().at(start) == {"object": "nuclei", "ground": "ground", "road": "road", "way": "way"}
    assert frozen.naming() == naming
    for _ in range(3):
        store.redo()
    assert store.naming().at(start) == naming.at(start)
    with AnnotationStore.open(store.folder, read_only=True) as again:
        assert again.naming() == store.naming()
    assert Naming.from_json(naming.to_json()) == naming


def test_a_rename_that_was_taken_back_is_followed_back(store: AnnotationStore) -> None:
    store.rename_class(0, "nuclei")
    made, at = lineage(store), store.position
    store.undo()
    naming = store.naming()
    assert naming.at(at)["nuclei"] == "object"
    assert naming.of_model(["nuclei", "road"], made) == {"nuclei": "object"}


def test_names_are_followed_where_no_class_has_them_and_of_models_of_this_annotation(store: AnnotationStore) -> None:
    made = lineage(store)
    names = ["object", "road", "way", "", "cat"]
    store.rename_class(0, "nuclei")
    store.merge_classes(3, 2)
    later = lineage(store)
    naming = store.naming()
    assert naming.of_model(names, made) == {"object": "nuclei"}, "'road' stands already for what 'way' is now"
    assert naming.of_model(["Object", "way"], made) == {"Object": "nuclei", "way": "road"}
    assert naming.of_model(names, later) == {}, "the model was made after it"
    assert naming.of_model(names, {"annotations": {"position": 1, "id": "0" * 32}}) == {}, "of another annotation"
    for other in ({}, {"annotations": None}, {"annotations": {"position": 99, "id": store.last_id}}):
        assert naming.of_model(names, other) == {}
    assert naming.followed(names) == {"object": "nuclei"}  # a map, which does not say when it was made
    assert naming.followed(names, merged=True) == {"object": "nuclei", "way": "road"}
    assert naming.followed(["object", "nuclei"], merged=True) == {}, "two names of one class were never two classes"
    store.add_class("object")
    assert store.naming().of_model(names, made) == store.naming().followed(names) == {}, "in use again"
    store.rename_class(3, "things")
    assert store.naming().followed(names) == {"object": "things"}  # the last class of that name
    assert store.naming().of_model(names, made) == {"object": "nuclei"}
