"""Objects as QuPath exports them (its GsonTools and PathIO, 0.2 to 0.7), compared with what rasterio burns."""

from __future__ import annotations

import gzip
import json
import zipfile

import numpy as np
import pytest

from napari_isdnet.annotation.classlist import PLACEHOLDERS
from napari_isdnet.annotation.drawn import read_drawn
from napari_isdnet.annotation.exchange import import_labels
from napari_isdnet.annotation.files import bring_in
from napari_isdnet.annotation.outlines import import_outlines
from napari_isdnet.annotation.store import AnnotationStore
from napari_isdnet.annotation.strokes import Brush
from napari_isdnet.classes import classes_from
from napari_isdnet.exceptions import InputError
from napari_isdnet.io import geojson
from napari_isdnet.io.array import ArraySource
from napari_isdnet.progress import result_of
from napari_isdnet.window import Window

SHAPE = (400, 500)
TUMOR = {"name": "Tumor", "color": [200, 0, 0]}
POSITIVE = {"names": ["Tumor", "Positive"], "color": [250, 62, 62]}
RING = [[10, 20], [10, 70], [60.37, 70], [60.37, 20], [10, 20]]
HOLE = [[20, 30], [40, 30], [40, 50.5], [20, 50.5], [20, 30]]


def thing(geometry, kind="annotation", **properties):
    """A feature as QuPath writes it, its keys in their order."""
    about = {"objectType": kind, **properties}
    return {"type": "Feature", "id": "6e2a4f0c-0f0b-4b0e-9f43-0a4d8c8a9a01", "geometry": geometry, "properties": about}


def area(*rings):
    return {"type": "Polygon", "coordinates": list(rings)}


def objects():
    angles = np.linspace(0, 2 * np.pi, 101)
    ellipse = np.round(np.stack([300 + 60 * np.cos(angles), 100 + 25 * np.sin(angles)], axis=1), 2).tolist()
    parts = {"type": "MultiPolygon", "coordinates": [[ring_at(200, 200)], [ring_at(260, 200), hole_at(260, 200)]]}
    cell = thing(area(ring_at(100, 300)), "cell", classification=POSITIVE, measurements={"Mean": "NaN", "Area": 100.0})
    cell["nucleusGeometry"] = area(hole_at(100, 300))
    return [
        thing(area(RING, HOLE), classification=TUMOR, isLocked=True, name="Biopsy 3"),
        thing({**area(ellipse), "isEllipse": True}, classification={"name": "Stroma", "color": [150, 200, 150]}),
        thing(parts, classification={"name": "Immune cells", "color": [160, 90, 160, 128]}),
        cell,
    ]


def ring_at(x, y):
    return [[a - 10 + x, b - 20 + y] for a, b in RING]


def hole_at(x, y):
    return [[a - 10 + x, b - 20 + y] for a, b in HOLE]


@pytest.fixture
def store(tmp_path):
    with AnnotationStore.create(tmp_path / "slide.isdnet", SHAPE, [("Other", "#00ff00")]) as store:
        yield store


def packed(path, items):
    text = json.dumps(items).encode()
    if path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(text))
    elif path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"{path.stem}.geojson", text)
            archive.writestr(f"__MACOSX/._{path.stem}.geojson", b"\0")
    else:
        path.write_bytes(text)
    return path


@pytest.mark.parametrize("name", ["a.geojson", "a.geojson.gz", "a.zip"])
@pytest.mark.parametrize("listed", [False, True], ids=["collection", "list"])
def test_classes_colours_and_pixels_are_those_of_qupath(store, tmp_path, name, listed):
    features = pytest.importorskip("rasterio.features")
    items = objects()
    path = packed(tmp_path / name, items if listed else {"type": "FeatureCollection", "features": items})
    assert list(bring_in(store, path, "auto", "Other"))
    assert [(c.name, c.color) for c in store.classes[1:]] == [
        ("Tumor", (200, 0, 0)),
        ("Stroma", (150, 200, 150)),
        ("Immune cells", (160, 90, 160)),
        ("Tumor: Positive", (250, 62, 62)),
    ]
    burnt = features.rasterize([(item["geometry"], 2 + n) for n, item in enumerate(items)], SHAPE, dtype="uint8")
    assert np.array_equal(store.read_labels(Window.whole(SHAPE)), burnt)


def test_a_derived_class_of_qupath_before_0_4_keeps_what_it_derives_from(tmp_path):
    old = {"parentClass": {"name": "Tumor", "colorRGB": -3670016}, "name": "Positive", "colorRGB": -377282}
    path = tmp_path / "old.json"
    path.write_text(json.dumps([{**thing(area(RING), classification=old), "id": "PathAnnotationObject"}]))
    (drawn,) = read_drawn(path)
    assert (drawn.name, drawn.color) == ("Tumor: Positive", (250, 62, 62))


@pytest.mark.parametrize("kind", ["outlines", "labels"])
def test_classes_that_nobody_named_or_painted_go_where_a_file_brings_its_own(tmp_path, kind):
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps([thing(area(RING), classification=TUMOR)]))

    def work(store, **more):
        if kind == "outlines":
            return import_outlines(store, path, **more)
        values = np.full(SHAPE, 255, np.uint8)
        values[20:70, 10:60] = 0
        return import_labels(store, ArraySource([values], "m", "yx"), "mask", classes_from(["Tumor"]))

    def classes(store):
        return [c.name for c in store.classes]

    with AnnotationStore.create(tmp_path / "new.isdnet", SHAPE, PLACEHOLDERS) as store:
        result_of(work(store))
        assert classes(store) == ["Tumor"]
        assert store.read_labels(Window(40, 40, 1, 1)) == 1
        store.undo()  # one step
        assert classes(store) == list(PLACEHOLDERS)
        assert not store.can_undo
        store.redo()
        assert classes(store) == ["Tumor"]
    with AnnotationStore.create(tmp_path / "painted.isdnet", SHAPE, PLACEHOLDERS) as store:
        store.paint(Brush([(300.0, 300.0)], 5.0), 1)
        result_of(work(store))
        assert classes(store) == [*PLACEHOLDERS, "Tumor"]
    with AnnotationStore.create(tmp_path / "renamed.isdnet", SHAPE, ["object", "ground"]) as store:
        result_of(work(store))
        assert classes(store) == ["object", "ground", "Tumor"]


def test_a_placeholder_stays_where_a_shape_is_painted_as_it(tmp_path):
    path = tmp_path / "a.geojson"
    shapes = [thing(area(RING)), thing(area(ring_at(200, 200)), classification=TUMOR)]
    path.write_text(json.dumps(shapes))
    with AnnotationStore.create(tmp_path / "a.isdnet", SHAPE, PLACEHOLDERS) as store:
        result_of(import_outlines(store, path, default_class="object"))
        assert [c.name for c in store.classes] == ["object", "Tumor"]
        assert store.read_labels(Window(40, 40, 1, 1)) == 1
        assert store.read_labels(Window(220, 220, 1, 1)) == 2


def test_what_a_user_calls_an_object_is_no_class_and_what_has_none_is_said(store, tmp_path):
    path, said = tmp_path / "a.geojson", []
    path.write_text(json.dumps([thing(area(RING), name="Biopsy 3"), thing(area(ring_at(200, 200)), name="Biopsy 4")]))
    result_of(import_outlines(store, path, default_class="Other", note=said.append))
    assert [c.name for c in store.classes] == ["Other"]
    assert said == ["2 of 2 shapes have no class and are painted as 'Other'."]
    with pytest.raises(InputError, match="shape 0 has no class"):
        result_of(import_outlines(store, path))
    other = {"type": "Feature", "geometry": area(RING), "properties": {"name": "Lake"}}  # of no QuPath: a class
    path.write_text(json.dumps(other))
    assert [item.name for item in read_drawn(path)] == ["Lake"]


def test_a_packed_file_that_is_damaged_ambiguous_or_huge_is_refused(tmp_path, monkeypatch):
    path = packed(tmp_path / "a.geojson.gz", objects())
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match="cannot be read"):
        list(read_drawn(path))
    two = tmp_path / "two.zip"
    with zipfile.ZipFile(two, "w") as archive:
        archive.writestr("a.geojson", "[]")
        archive.writestr("b.geojson", "[]")
    with pytest.raises(InputError, match="holds 2 GeoJSON files, one is allowed"):
        list(read_drawn(two))
    two.write_bytes(b"PK\3\4 and nothing")
    with pytest.raises(InputError, match="cannot be read"):
        list(read_drawn(two))
    monkeypatch.setattr(geojson, "MAX_BYTES", 1000)
    for name in ("b.geojson.gz", "b.zip", "b.geojson"):
        with pytest.raises(InputError, match="is larger than"):
            list(read_drawn(packed(tmp_path / name, objects())))
