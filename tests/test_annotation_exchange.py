from __future__ import annotations

import json
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_isdnet.annotation import outlines
from napari_isdnet.annotation.drawn import read_drawn
from napari_isdnet.annotation.outlines import connected, export_outlines, import_outlines
from napari_isdnet.annotation.store import AnnotationStore
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.source import GeoReference
from napari_isdnet.progress import result_of
from napari_isdnet.window import Window
from tests.exchange_tools import SHAPE, paint_both, values, water_and_roof


@pytest.fixture
def store(tmp_path):
    with water_and_roof(tmp_path) as store:
        yield store


@pytest.fixture
def painted(store):
    paint_both(store)
    return store


def collection(*features) -> str:
    return json.dumps({"type": "FeatureCollection", "features": list(features)})


def feature(kind, coordinates, **properties):
    return {"type": "Feature", "geometry": {"type": kind, "coordinates": coordinates}, "properties": properties}


def qupath(name, color=None):
    return {"name": name, **({"color": color} if color else {})}


def test_polygons_with_holes_lines_and_points_are_painted_in_pixel_corners(store, tmp_path):
    square = [[10, 20], [30, 20], [30, 60], [10, 60], [10, 20]]  # x 10..30, y 20..60
    hole = [[15, 30], [20, 30], [20, 40], [15, 40], [15, 30]]
    path = tmp_path / "in.geojson"
    path.write_text(
        collection(
            feature("Polygon", [square, hole], classification=qupath("water", [1, 2, 3])),
            feature("LineString", [[100, 100.5], [200, 100.5]], classification=qupath("road", [9, 8, 7]), width=1.5),
            feature("Point", [500.5, 600.5], classification=qupath("tree"), width=10),
            feature("MultiPolygon", [[[[300, 0], [301, 0], [301, 1], [300, 1]]]], classification=qupath("roof")),
        )
    )
    result_of(import_outlines(store, path))
    found = values(store)
    expected = np.zeros(SHAPE, np.uint8)
    expected[20:60, 10:30] = 1
    expected[30:40, 15:20] = 0
    expected[0, 300] = 2
    expected[100, 99:201] = 3  # one row of pixels under the line, and one more under each round end
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    expected[np.hypot(rows - 600, columns - 500) <= 5] = 4
    assert np.array_equal(found, expected)
    assert [(c.name, c.color) for c in store.classes[:3]] == [
        ("water", (0, 0, 255)), ("roof", (255, 0, 0)), ("road", (9, 8, 7)),
    ]  # fmt: skip
    store.undo()
    assert not values(store).any()
    assert len(store.classes) == 2


def test_an_import_of_outlines_says_how_far_it_is_and_one_undo_takes_back_what_was_painted_until_it_was_cancelled(
    store, tmp_path, monkeypatch
):
    monkeypatch.setattr(outlines, "_SECONDS_AT_ONCE", 0.0)  # a shape a step
    path = tmp_path / "shapes.geojson"
    rings = [[[[x, 0], [x + 40, 0], [x + 40, 40], [x, 40], [x, 0]]] for x in range(0, 500, 50)]
    path.write_text(collection(*(feature("Polygon", ring, classification=qupath("water")) for ring in rings)))
    importing = import_outlines(store, path)
    assert [next(importing).fraction for _ in range(3)] == pytest.approx([0.1, 0.2, 0.3])
    with pytest.raises(InputError, match="still under way"):
        store.undo()
    importing.close()
    assert np.count_nonzero(values(store)) == 3 * 40 * 40
    store.undo()
    assert not values(store).any()


def test_an_export_of_outlines_says_how_far_it_is_and_leaves_no_file_when_it_is_cancelled(painted, tmp_path):
    fractions = [found.fraction for found in export_outlines(painted, tmp_path / "all.geojson")]
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(1)
    exporting = export_outlines(painted, tmp_path / "part.geojson")
    next(exporting)
    exporting.close()
    assert [path.name for path in tmp_path.glob("*geojson*")] == ["all.geojson"]


def test_geojson_comes_back_pixel_for_pixel(painted, tmp_path):
    pytest.importorskip("rasterio")
    path = result_of(export_outlines(painted, tmp_path / "out.geojson"))
    content = json.loads(path.read_text())
    assert {f["properties"]["classification"]["name"] for f in content["features"]} == {"water", "roof"}
    with AnnotationStore.create(tmp_path / "back.isdnet", SHAPE) as back:
        result_of(import_outlines(back, path))
        names = [c.name for c in back.classes]
        table = np.array([0, *(1 + [c.name for c in painted.classes].index(n) for n in names)], np.uint8)
        assert np.array_equal(table[values(back)], values(painted))
        assert {c.name: c.color for c in back.classes} == {c.name: c.color for c in painted.classes}


def test_map_coordinates_there_and_back(painted, tmp_path):
    pytest.importorskip("rasterio")
    reference = GeoReference("EPSG:32640", (0.5, 0.0, 400_000.0, 0.0, -0.5, 2_800_000.0))
    path = result_of(export_outlines(painted, tmp_path / "map.geojson", georeference=reference))
    x, y = json.loads(path.read_text())["features"][0]["geometry"]["coordinates"][0][0]
    assert 400_000 <= x <= 400_750
    assert 2_799_400 <= y <= 2_800_000
    with AnnotationStore.create(tmp_path / "back.isdnet", SHAPE, painted.classes) as back:
        result_of(import_outlines(back, path, georeference=reference))
        assert np.array_equal(values(back), values(painted))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON"),
        (collection(feature("Polygon", [[[0, 0], [1, 1]]], classification=qupath("a"))), "feature 0 .*at least 3"),
        (collection(feature("Circle", [], classification=qupath("a"))), "feature 0 .*is a Circle"),
        (collection(feature("Point", [1, 1])), "shape 0 has no class"),
        (collection(feature("Point", ["x", 1], classification=qupath("a"))), "feature 0 cannot be used"),
        (collection(feature("Point", [1, 1], classification=qupath("a"), width=-3)), "radius must be above 0"),
        (collection({"type": "Feature"}), "feature 0 cannot be used: it has no member 'geometry'"),
        (collection({"type": "Feature", "geometry": 5}), "feature 0 cannot be used: its geometry is '5'; give an obj"),
        (collection(7), "feature 0 cannot be used: it is no feature or geometry but '7'"),
        (collection(feature("Polygon", None)), "feature 0 .*Polygon has coordinates 'None'; give a list"),
        (collection(feature("Polygon", [5])), r"feature 0 .*coordinates hold '5'; give lists of points"),
        (collection(feature("MultiPolygon", [5])), "feature 0 .*'5' for a ring; give a list of points"),
        (collection(feature("LineString", [[1, 1], [2]])), "feature 0 .*give lists of points of two numbers"),
        (collection(feature("Point", [1, 1], width="wide")), "feature 0 .*its width is 'wide'; give a number"),
        (collection({**feature("Point", [1, 1]), "properties": [1]}), r"feature 0 .*its properties are '\[1\]'; give"),
        (json.dumps({"features": 3}), "must be a list"),
    ],
)
def test_bad_geojson_is_named_and_paints_nothing(store, tmp_path, text, message):
    path = tmp_path / "bad.geojson"
    good = feature("Point", [5, 5], classification=qupath("water"))
    path.write_text(text.replace('"features": [', f'"features": [{json.dumps(good)}, ', 1) if "[{" in text else text)
    message = message.replace("0", "1", 1) if "[{" in text and "radius" not in message else message
    with pytest.raises(InputError, match=message):
        result_of(import_outlines(store, path))
    assert store.position == 0


def test_old_qupath_colour_numbers_and_nameless_shapes(store, tmp_path):
    path = tmp_path / "old.geojson"
    old = {"name": "tumour", "colorRGB": -3670016}
    path.write_text(json.dumps([feature("Point", [5, 5], classification=old), feature("Point", [50, 50])]))
    result_of(import_outlines(store, path, default_class="roof"))
    assert store.classes[2].color == (200, 0, 0)
    assert store.class_counts()[1] > 0


def square_at(x, y, name):
    ring = [[x, y], [x + 20, y], [x + 20, y + 20], [x, y + 20], [x, y]]
    return feature("Polygon", [ring], classification=qupath(name))


def test_shapes_beside_the_image_are_counted_and_add_no_class(store, tmp_path):
    path, said = tmp_path / "some.geojson", []
    far = feature("Point", [-9, 50], classification=qupath("far"), width=10)
    edge = feature("Point", [-4, 50], classification=qupath("edge"), width=10)
    path.write_text(collection(square_at(9000, 5, "far"), square_at(1495, 1195, "roof"), far, edge))
    result_of(import_outlines(store, path, note=said.append))
    assert said == ["2 of 4 shapes lie on the image; the others are left out."]
    assert [c.name for c in store.classes] == ["water", "roof", "edge"]
    assert store.class_counts()[:2] == (0, 25)
    assert store.class_counts()[2] > 0
    result_of(import_outlines(store, path))  # nobody has to listen
    path.write_text(collection(square_at(5, 5, "roof")))
    result_of(import_outlines(store, path, note=said.append))
    assert len(said) == 1
    path.write_text(collection())
    result_of(import_outlines(store, path, note=said.append))
    assert said[1:] == ["some.geojson holds no shape."]


def test_a_file_with_no_shape_on_the_image_is_refused(store, tmp_path):
    path = tmp_path / "map.geojson"
    path.write_text(collection(square_at(330_000, 2_770_000, "q"), square_at(331_000, 2_770_000, "q")))
    with pytest.raises(InputError, match=r"^0 of 2 shapes lie on the image; map.geojson must count .*image.$"):
        result_of(import_outlines(store, path))
    reference = GeoReference("EPSG:32640", (0.5, 0.0, 400_000.0, 0.0, -0.5, 2_800_000.0))
    with pytest.raises(InputError, match=r"or name the system of its map coordinates"):
        result_of(import_outlines(store, path, georeference=reference))
    assert store.position == 0
    assert len(store.classes) == 2


def test_features_without_a_geometry_are_left_out_and_counted(store, tmp_path):
    path, said = tmp_path / "nulls.geojson", []
    nulls = [{"type": "Feature", "geometry": None, "properties": None}, feature("MultiPolygon", [[]])]
    path.write_text(collection(*nulls, feature("Point", [5, 5], classification=qupath("roof"), width=None)))
    result_of(import_outlines(store, path, note=said.append))
    assert said == ["2 of 3 features have no geometry and are left out."]
    assert store.class_counts()[0] == 0
    assert store.class_counts()[1] > 0
    path.write_text(collection(*nulls))
    result_of(import_outlines(store, path, note=said.append))
    assert said[1:] == ["2 of 2 features have no geometry and are left out.", "nulls.geojson holds no shape."]


def test_numbers_name_classes_and_indices_count_those_of_the_annotation(store, tmp_path):
    path = tmp_path / "numbers.geojson"
    about = [
        {"class": 1}, {"class": 2.0}, {"classification": 3}, {"label": 4}, {"classification": {"name": 5}},
        {"class_index": 1}, {"class_index": 9}, {"class": 1, "label": "road"}, {"class": True}, {"class_index": -1},
    ]  # fmt: skip
    path.write_text(collection(*(feature("Point", [20 * n, 5], **p) for n, p in enumerate(about))))
    assert [d.name for d in read_drawn(path, classes=store.classes)] == [
        "1", "2", "3", "4", "5", "roof", "9", "road", None, "-1",
    ]  # fmt: skip
    result_of(import_outlines(store, path, default_class="imported"))
    assert [c.name for c in store.classes] == [
        "water", "roof", "1", "2", "3", "4", "5", "9", "road", "imported", "-1",
    ]  # fmt: skip
    assert all(store.class_counts()[1:])
    path.write_text(collection(feature("Point", [5, 25], **{"class": "Roof "})))
    result_of(import_outlines(store, path))
    assert len(store.classes) == 11  # the roof that is there


def test_shapes_that_cover_no_pixel_are_refused(store, tmp_path):
    path = tmp_path / "degrees.geojson"
    ring = [[13.01, 52.01], [13.02, 52.01], [13.02, 52.02], [13.01, 52.01]]
    path.write_text(collection(feature("Polygon", [ring], classification=qupath("house"))))
    reference = GeoReference("EPSG:32640", (0.5, 0.0, 400_000.0, 0.0, -0.5, 2_800_000.0))
    with pytest.raises(InputError, match=r"longitude and latitude, reproject the file to the image's pixels\.$"):
        result_of(import_outlines(store, path))
    with pytest.raises(InputError, match=r"look like longitude and latitude of another place; .*QuPath does\.$"):
        result_of(import_outlines(store, path, georeference=reference))
    assert (store.position, len(store.classes)) == (0, 2)
    path.write_text(collection(feature("Polygon", [ring], classification=qupath("house")), square_at(5, 5, "roof")))
    result_of(import_outlines(store, path))  # one that covers something is enough
    result_of(import_outlines(store, path))  # also where it changes nothing
    assert store.class_counts()[1] == 400


def test_boxes_are_joined_until_none_touches_another():
    boxes = [Window(0, 0, 10, 10), Window(10, 10, 10, 10), Window(0, 20, 10, 10), Window(100, 100, 10, 10)]
    joined = connected(boxes)
    assert joined == [Window(0, 0, 20, 30), Window(100, 100, 10, 10)]


@settings(max_examples=60)
@given(st.lists(st.tuples(*[st.integers(0, 40)] * 2, *[st.integers(1, 9)] * 2), max_size=30))
def test_joined_boxes_hold_all_windows_and_no_more_than_they_must(corners):
    windows = [Window(*corner) for corner in corners]
    joined = connected(windows)
    assert joined == sorted(joined)
    for number, box in enumerate(joined):
        assert all(box.expanded(1).intersect(other).empty for other in joined[number + 1 :])
    expected = list(windows)  # any two that touch, one after the other
    while pair := next(((a, b) for a, b in combinations(expected, 2) if not a.expanded(1).intersect(b).empty), None):
        a, b = pair
        expected = [w for w in expected if w not in pair]
        expected.append(
            Window.from_bounds(
                min(a.row, b.row), min(a.column, b.column), max(a.bottom, b.bottom), max(a.right, b.right)
            )
        )
    assert joined == sorted(expected)


def test_strokes_all_over_a_large_image_are_told_apart_in_no_time(monkeypatch):
    """Each is compared with those beside it, not with all: of 10,000 that took minutes."""
    looked = [0]
    right = Window.right

    def counted(window):
        looked[0] += 1
        return right.fget(window)

    windows = [Window(row * 2048, column * 2048, 512, 512) for row in range(60) for column in range(10)]
    monkeypatch.setattr(Window, "right", property(counted))
    assert len(connected(windows)) == 600
    assert looked[0] < 30 * 600
