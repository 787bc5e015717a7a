"""Reading one moment of an annotation while it is painted on, and imports while its classes are edited."""

from __future__ import annotations

import gc
import json
from threading import Thread

import numpy as np
import pytest

from napari_isdnet.annotation import outlines
from napari_isdnet.annotation.exchange import IndexView, export_labels, import_labels
from napari_isdnet.annotation.outlines import export_outlines, import_outlines
from napari_isdnet.annotation.store import AnnotationStore
from napari_isdnet.annotation.strokes import Brush, Rectangle
from napari_isdnet.classes import ClassInfo, from_annotation
from napari_isdnet.engine.labels import open_labels
from napari_isdnet.exceptions import InputError
from napari_isdnet.io import polygons
from napari_isdnet.progress import result_of
from napari_isdnet.window import Window

SHAPE = (1200, 5000)
WHOLE = Window.whole(SHAPE)


@pytest.fixture
def store(tmp_path):
    names = [("water", "#0000ff"), ("roof", "#ff0000"), ("road", "#00ff00")]
    with AnnotationStore.create(tmp_path / "scene.isdnet", SHAPE, names) as store:
        store.paint(Rectangle(Window(10, 20, 700, 900)), 0)
        store.paint(Brush([(100, 100), (1100, 4800)], 40), 1)
        store.paint(Rectangle(Window(600, 4000, 512, 512)), 2)
        yield store


def meddle(store: AnnotationStore) -> None:
    """What a user may do while a file is written."""
    store.remove_class(0)
    store.paint(Rectangle(Window(0, 3000, 1200, 1000)), 0)
    store.paint(Rectangle(Window(0, 0, 512, 512)), None)


@pytest.mark.parametrize("flushed", [False, True])
def test_a_frozen_annotation_stays_as_it_was_in_every_part(store, flushed: bool) -> None:
    if flushed:
        store.flush()
    expected = [store.read_labels(Window.whole(shape), level) for level, shape in enumerate(store.levels)]
    facts = (store.classes, store.class_counts(), store.position, store.chunk_counts(), store.identity())
    frozen = store.frozen()
    meddle(store)
    store.flush()
    store.undo()
    assert (frozen.classes, frozen.class_counts(), frozen.position, frozen.chunk_counts(), frozen.identity()) == facts
    for level, values in enumerate(expected):
        assert np.array_equal(frozen.read_labels(Window.whole(store.levels[level]), level), values)
    assert store.classes != frozen.classes
    del frozen
    gc.collect()
    assert not list(store._cache._frozen), "nothing is kept once nobody looks"


@pytest.mark.parametrize(("format", "values"), [("ome-tiff", "annotation"), ("ome-tiff", "mask"), ("ome-zarr", "mask")])
def test_a_label_file_is_of_the_moment_at_which_its_export_began(store, tmp_path, format: str, values: str) -> None:
    expected = store.read_labels(WHOLE)
    path = tmp_path / ("out.ome.tif" if format == "ome-tiff" else "out.ome.zarr")
    steps = export_labels(store, path, format=format, values=values)
    next(steps)
    meddle(store)
    result_of(steps)
    source, _ = open_labels(path)
    found = source.read(WHOLE)[..., 0]
    source.close()
    assert np.array_equal(found, from_annotation(expected))


def test_outlines_are_of_the_moment_at_which_their_export_began(store, tmp_path, monkeypatch) -> None:
    expected, real = store.read_labels(WHOLE), polygons.polygonise

    def slow(*args, **options):
        meddle(store)
        return real(*args, **options)

    monkeypatch.setattr(polygons, "polygonise", slow)
    result_of(export_outlines(store, tmp_path / "out.geojson"))
    with AnnotationStore.create(tmp_path / "again.isdnet", SHAPE, store.frozen().classes[:0]) as again:
        result_of(import_outlines(again, tmp_path / "out.geojson"))
        names = {0: "", **{k: c.name for k, c in enumerate(again.classes, 1)}}
        found = again.read_labels(WHOLE)
    for value, name in enumerate(["", "water", "roof", "road"]):
        assert np.array_equal(expected == value, np.isin(found, [k for k, n in names.items() if n == name]))


def test_a_view_of_class_indices_is_of_one_moment(store) -> None:
    view, expected = IndexView(store), from_annotation(store.read_labels(WHOLE))
    meddle(store)
    assert [c.name for c in view.classes] == ["water", "roof", "road"]
    assert np.array_equal(view.read(WHOLE)[..., 0], expected)


def labels_of(tmp_path):
    import tifffile

    values = np.zeros(SHAPE, np.uint8)
    values[:, ::2] = 2
    tifffile.imwrite(tmp_path / "labels.tif", values)
    return tmp_path / "labels.tif"


NAMES = [ClassInfo("forest", (0, 90, 0)), ClassInfo("roof", (255, 0, 0))]


# The classes that a file names are looked up after its check, in the list of then.
@pytest.mark.parametrize(("names", "stage"), [(None, "check"), (None, "paint"), (NAMES, "paint")])
def test_an_import_stops_where_its_classes_become_others(store, tmp_path, names, stage: str) -> None:
    steps = import_labels(store, labels_of(tmp_path), "annotation", names)
    while next(steps).stage != stage:
        pass
    store.remove_class(0)
    before = store.read_labels(WHOLE)
    with pytest.raises(InputError, match=r"classes were changed while labels.* import it again"):
        result_of(steps)
    assert np.array_equal(store.read_labels(WHOLE), before)


def test_an_import_goes_on_where_its_classes_stay_what_they_are(store, tmp_path) -> None:
    steps = import_labels(store, labels_of(tmp_path), "annotation", NAMES)
    while next(steps).stage != "paint":
        pass
    store.recolor_class(1, "#123456")
    store.remove_class(2)
    store.add_class("tree")
    result_of(steps)
    assert (store.read_labels(WHOLE)[:, ::2] == 2).all()


def test_a_shape_is_painted_as_the_class_that_has_its_name_then(store, tmp_path, monkeypatch) -> None:
    result_of(export_outlines(store, tmp_path / "out.geojson"))
    expected = {c.name: n for c, n in zip(store.classes, store.class_counts(), strict=True)}
    store.paint(Rectangle(WHOLE), None)
    real, held = outlines.index_of, []

    def looked_up(name, names):
        # Another thread that wants to edit classes waits here until the shape is painted.
        thread = Thread(target=lambda: held.append(not taken(store)))
        thread.start()
        thread.join()
        return real(name, names)

    monkeypatch.setattr(outlines, "index_of", looked_up)
    result_of(import_outlines(store, tmp_path / "out.geojson"))
    assert held.count(True) == len(json.loads((tmp_path / "out.geojson").read_text())["features"])
    assert {c.name: n for c, n in zip(store.classes, store.class_counts(), strict=True)} == expected


def taken(store: AnnotationStore) -> bool:
    """True where nobody else holds the store."""
    free = store._lock.acquire(blocking=False)
    if free:
        store._lock.release()
    return free
