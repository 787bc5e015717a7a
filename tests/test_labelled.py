"""A project as training data while another process, which is what has it open, goes on painting."""

from __future__ import annotations

import json

import numpy as np
import pytest
from napari_isdnet_training import labelled

from napari_isdnet.annotation import moment
from napari_isdnet.annotation import store as store_module
from napari_isdnet.annotation.chunks import ChunkCache
from napari_isdnet.annotation.exchange import export_labels
from napari_isdnet.annotation.outlines import export_outlines, import_outlines
from napari_isdnet.annotation.store import AnnotationStore
from napari_isdnet.annotation.strokes import Rectangle
from napari_isdnet.classes import classes_from
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.open import open_source
from napari_isdnet.progress import result_of
from napari_isdnet.window import Window

SHAPE = (600, 1100)
FIRST, SECOND = Rectangle(Window(0, 0, 50, 50)), Rectangle(Window(0, 600, 20, 20))
MOMENTS = [(ChunkCache, "rescan", False), (store_module, "read_state", True), (labelled, "take_snapshot", True)]


def gathered(folder):
    image = open_source(np.zeros(SHAPE, np.uint8), name="image")
    return result_of(labelled.gather(folder, image, "annotation", []))


def of_file(path, classes=(), values="auto", **meant):
    image = open_source(np.zeros((64, 64), np.uint8), name="image")
    return result_of(labelled.gather(path, image, values, classes_from(classes) if classes else (), **meant))


def test_an_exported_mask_is_read_with_its_classes_where_they_are(tmp_path):
    with AnnotationStore.create(tmp_path / "a.isdnet", (64, 64), ["a", "b"]) as store:
        store.paint(Rectangle(Window(0, 0, 32, 64)), 0)
        store.paint(Rectangle(Window(40, 0, 10, 10)), 1)
        expected = store.chunk_counts()
        for _ in export_labels(store, tmp_path / "mask.tif", format="geotiff"):
            pass
    snapshot = of_file(tmp_path / "mask.tif")
    assert [c.name for c in snapshot.classes] == ["a", "b"]
    assert snapshot.chunk_counts() == expected
    of_the_model = of_file(tmp_path / "mask.tif", ["c", "B"])  # the file's b is the model's B, not a class more
    assert [c.name for c in of_the_model.classes] == ["a", "B"]
    assert of_the_model.chunk_counts() == expected


def test_outlines_that_are_no_geojson_are_told_from_label_images(tmp_path):
    (tmp_path / "fields.shp").write_bytes(bytes(100))
    with pytest.raises(InputError, match=r"fields\.shp cannot be read \(.*\); save it anew, or as GeoJSON\.$"):
        of_file(tmp_path / "fields.shp")


def test_outlines_with_their_class_in_an_attribute_of_any_name(tmp_path):
    path = tmp_path / "plots.geojson"
    ring = [[4, 4], [20, 4], [20, 20], [4, 20], [4, 4]]
    shape = {"type": "Polygon", "coordinates": [ring]}
    path.write_text(json.dumps({"type": "Feature", "geometry": shape, "properties": {"crop": "Wheat", "nr": 7}}))
    with pytest.raises(InputError, match=r"shape 0 has no class; name the attribute that holds it \('crop', 'nr'\)"):
        of_file(path)
    snapshot = of_file(path, ["wheat", "maize"], attribute="crop")
    assert [c.name for c in snapshot.classes][:2] == ["wheat", "maize"]
    assert snapshot.chunk_counts() == {(0, 0): {1: 256}}


def test_class_indices_of_shapes_count_the_classes_that_are_given(tmp_path):
    path = tmp_path / "shapes.geojson"
    features = [
        {"type": "Feature", "geometry": {"type": "Point", "coordinates": [10 + 20 * n, 10]}, "properties": about}
        for n, about in enumerate(({"class_index": 1}, {"class_index": 0}))
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    assert [c.name for c in of_file(path).classes] == ["1", "0"]
    assert [c.name for c in of_file(path, ["red", "green"]).classes] == ["red", "green"]


def test_classes_of_an_exported_geojson_keep_their_order(tmp_path):
    with AnnotationStore.create(tmp_path / "a.isdnet", (64, 64), ["a", "b", "c"]) as store:
        for index, row in ((2, 0), (0, 20), (2, 40)):  # the file names c first, and b nowhere
            store.paint(Rectangle(Window(row, 0, 10, 64)), index)
        path = result_of(export_outlines(store, tmp_path / "shapes.geojson"))
        counts = [n for n in store.class_counts() if n]
    assert [c.name for c in of_file(path).classes] == ["a", "c"]
    for name, known, names in (("new", [], ["a", "c"]), ("old", ["c"], ["c", "a"])):
        with AnnotationStore.create(tmp_path / f"{name}.isdnet", (64, 64), known) as store:
            result_of(import_outlines(store, path))
            assert dict(zip((c.name for c in store.classes), store.class_counts(), strict=True)) == dict(
                zip(("a", "c"), counts, strict=True)
            )
            assert [c.name for c in store.classes] == names
            store.undo()
            assert not any(store.class_counts())
    text = json.loads(path.read_text())
    text["features"][0]["properties"]["class_index"] = 7  # another number than that of its other shape
    path.write_text(json.dumps(text))
    assert [c.name for c in of_file(path).classes] == ["c", "a"]


@pytest.fixture
def writer(tmp_path, monkeypatch):
    monkeypatch.setattr(moment, "_PAUSE", 0)
    with AnnotationStore.create(tmp_path / "a.isdnet", SHAPE, ["a", "b"]) as store:
        store.paint(FIRST, 0)
        store.paint(SECOND, 1)
        store.flush()
        yield store


@pytest.mark.parametrize("change", ["add", "erase"])
@pytest.mark.parametrize(("owner", "name", "before"), MOMENTS)
def test_a_snapshot_beside_a_writer_is_of_one_moment(writer, monkeypatch, owner, name, before, change):
    left = [change]

    def meddle():
        if left:
            left.pop()
            writer.paint(Rectangle(Window(0, 600, 30, 30)), 0 if change == "add" else None)
            writer.flush()

    def wrapped(*arguments):
        if before:
            meddle()
        result = real(*arguments)
        if not before:
            meddle()
        return result

    real = getattr(owner, name)
    monkeypatch.setattr(owner, name, wrapped)
    snapshot = gathered(writer.folder)
    assert not left
    assert (snapshot.position, snapshot.id) == (writer.position, writer.journal.last_id)
    assert snapshot.chunk_counts() == writer.chunk_counts()


def test_a_project_that_is_saved_all_the_time_is_named(writer, monkeypatch):
    def meddle(*arguments):
        writer.paint(SECOND, writer.position % 2)
        writer.flush()
        return real(*arguments)

    real = labelled.take_snapshot
    monkeypatch.setattr(labelled, "take_snapshot", meddle)
    with pytest.raises(InputError, match="stop painting for a moment"):
        gathered(writer.folder)


def test_an_error_of_a_project_at_rest_is_told_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(moment.time, "sleep", lambda _seconds: pytest.fail("tried again"))
    with (
        AnnotationStore.create(tmp_path / "a.isdnet", SHAPE, ["a", "b"]),
        pytest.raises(InputError, match="no painted"),
    ):
        gathered(tmp_path / "a.isdnet")
