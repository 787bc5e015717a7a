"""GeoJSON that names no reference system, on an image that has one: degrees or pixels."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_isdnet.annotation.outlines import import_outlines
from napari_isdnet.annotation.store import AnnotationStore
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.geojson import read_items
from napari_isdnet.io.source import GeoReference
from napari_isdnet.progress import result_of
from napari_isdnet.window import Window

SHAPE = (300, 400)
PROJECTED = GeoReference("EPSG:32640", (0.5, 0.0, 400_000.0, 0.0, -0.5, 2_800_000.0))
DEGREES = GeoReference("EPSG:4326", (0.01, 0.0, 54.0, 0.0, -0.01, 26.0))
PIXELS = np.array([(100.5, 50.5), (300.5, 50.5), (300.5, 250.5)])  # x, y


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with AnnotationStore.create(tmp_path / "scene.isdnet", SHAPE, ["road"]) as store:
        yield store


def written(path: Path, kind: str, points: Any, **properties: Any) -> Path:
    points = np.asarray(points, float).tolist()
    parts = {"Polygon": [[*points, points[0]]], "LineString": points, "Point": points[0]}
    shape = {"type": kind, "coordinates": parts[kind]}
    path.write_text(json.dumps({"type": "Feature", "geometry": shape, "properties": {"class": "road", **properties}}))
    return path


def degrees(reference: GeoReference) -> Any:
    a, _, c, _, e, f = reference.transform
    points = PIXELS * (a, e) + (c, f)
    if reference.crs != "EPSG:4326":
        warp = pytest.importorskip("rasterio.warp")
        points = np.stack(warp.transform(reference.crs, "EPSG:4326", *points.T.tolist()), axis=1)
    return points


def lie_there(store, folder: Path, kind: str) -> None:
    """What was just painted lies where the same outline in pixels does."""
    found = store.read_labels(Window.whole(SHAPE))
    store.undo()
    result_of(import_outlines(store, written(folder / "pixels.geojson", kind, PIXELS)))
    expected = store.read_labels(Window.whole(SHAPE))
    assert found.any()
    assert np.count_nonzero(found != expected) <= 0.002 * expected.sum() + 1  # centimetres of the projection


@pytest.mark.parametrize("kind", ["Polygon", "LineString", "Point"])
@pytest.mark.parametrize("reference", [PROJECTED, DEGREES])
def test_degrees_are_painted_where_they_lie(store, tmp_path: Path, kind: str, reference: GeoReference) -> None:
    said: list[str] = []
    path = written(tmp_path / "in.geojson", kind, degrees(reference))
    result_of(import_outlines(store, path, georeference=reference, note=said.append))
    assert said == ["in.geojson names no reference system (crs) and was taken as longitude and latitude."]
    lie_there(store, tmp_path, kind)


@pytest.mark.parametrize("kind", ["LineString", "Point"])
def test_degrees_of_another_place_are_refused(store, tmp_path: Path, kind: str) -> None:
    pytest.importorskip("rasterio")
    path = written(tmp_path / "in.geojson", kind, [(24.1234, 57.5678), (24.2, 57.6)])
    with pytest.raises(InputError, match=r"look like longitude and latitude of another place; give the file of this"):
        result_of(import_outlines(store, path, georeference=PROJECTED))
    assert store.position == 0


@pytest.mark.parametrize(
    ("points", "properties"),
    [([(24.1234, 57.5678), (24.2, 57.6)], {"objectType": "annotation"}), ([(24, 57.5), (30, 60)], {})],
)
@pytest.mark.parametrize("reference", [PROJECTED, GeoReference("EPSG:32640", (0.1, 0.0, 0.0, 0.0, -0.1, 0.0)), None])
def test_files_that_count_pixels_still_do(store, tmp_path: Path, points: Any, properties: Any, reference: Any) -> None:
    said: list[str] = []
    path = written(tmp_path / "in.geojson", "Point", points, **properties)
    result_of(import_outlines(store, path, georeference=reference, note=said.append))
    assert store.read_labels(Window(56, 23, 2, 2)).all()
    assert not said


def test_without_rasterio_degrees_are_refused(store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "in.geojson", "LineString", [(56.0123, 25.3), (56.02, 25.31)])
    for name in ("rasterio.warp", "rasterio.errors"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=r"install napari-isdnet\[geo\] to place them"):
        result_of(import_outlines(store, path, georeference=PROJECTED))


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("EPSG:32640", True),
        ("urn:ogc:def:crs:EPSG::32640", True),
        ("urn:ogc:def:crs:EPSG:9.9.1:32640", True),
        ("http://www.opengis.net/def/crs/EPSG/0/32640", True),
        ("https://www.opengis.net/def/crs/epsg/9.9.1/32640", True),
        ("http://www.opengis.net/def/crs/EPSG/0/32641", False),
        ("urn:ogc:def:crs:OGC:1.3:CRS84", True),
        ("http://www.opengis.net/def/crs/OGC/1.3/CRS84", True),
        ("EPSG:4258", False),
    ],
)
def test_every_spelling_of_a_reference_system_is_known(tmp_path: Path, name: str, same: bool) -> None:
    path = tmp_path / "in.geojson"
    crs = {"type": "name", "properties": {"name": name}}
    path.write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": []}))
    if same:
        assert read_items(path, PROJECTED, note=pytest.fail)[1] is PROJECTED
        return
    said: list[str] = []
    assert read_items(path, PROJECTED, note=said.append)[1] is PROJECTED
    assert len(said) == 1
    assert said[0].startswith("in.geojson was moved from EPSG:")
    assert said[0].endswith(" to EPSG:32640, the system of the image.")


def named(path: Path, kind: str, points: Any, name: str = "urn:ogc:def:crs:OGC:1.3:CRS84") -> Path:
    feature = json.loads(written(path, kind, points).read_text())
    crs = {"type": "name", "properties": {"name": name}}
    path.write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": [feature]}))
    return path


@pytest.mark.parametrize("kind", ["Polygon", "LineString", "Point"])
@pytest.mark.parametrize("reference", [PROJECTED, DEGREES])
def test_degrees_as_qgis_saves_them_are_painted_where_they_lie(
    store, tmp_path: Path, kind: str, reference: GeoReference
) -> None:
    said: list[str] = []
    result_of(
        import_outlines(
            store, named(tmp_path / "q.geojson", kind, degrees(reference)), georeference=reference, note=said.append
        )
    )
    assert not said
    lie_there(store, tmp_path, kind)


@pytest.mark.parametrize("how", [named, written])
@pytest.mark.parametrize("west", [179.0, -182.0])
def test_longitudes_across_the_date_line_are_those_of_the_image(store, tmp_path: Path, how: Any, west: float) -> None:
    fiji = GeoReference("EPSG:4326", (0.01, 0.0, west, 0.0, -0.01, -16.0))
    points = degrees(fiji)
    points[:, 0] = (points[:, 0] + 180) % 360 - 180
    assert points[0, 0] * west < 0 or points[1, 0] * west < 0
    result_of(import_outlines(store, how(tmp_path / "q.geojson", "LineString", points), georeference=fiji))
    found = store.read_labels(Window.whole(SHAPE))
    store.undo()
    result_of(import_outlines(store, written(tmp_path / "pixels.geojson", "LineString", PIXELS)))
    np.testing.assert_array_equal(found, store.read_labels(Window.whole(SHAPE)))


FEET = GeoReference("EPSG:2263", (1.0, 0.0, 980_000.0, 0.0, -1.0, 200_000.0))  # Lambert of New York, in feet


@pytest.mark.parametrize("how", [named, written])
def test_a_point_that_no_projection_reaches_is_one_sentence(store, tmp_path: Path, how: Any) -> None:
    here = degrees(FEET)
    path = how(tmp_path / "q.geojson", "LineString", [*here, (20.1234, -90.0)])
    with pytest.raises(InputError, match=r"holds the point 20\.1234, -90, which has no place in"):
        result_of(import_outlines(store, path, georeference=FEET))
    assert store.position == 0
    result_of(import_outlines(store, how(tmp_path / "q.geojson", "LineString", here), georeference=FEET))
    assert store.position == 1


def test_shapes_in_a_system_that_the_image_does_not_name_are_no_pixels(store, tmp_path: Path) -> None:
    path = named(tmp_path / "q.geojson", "Polygon", PIXELS, "EPSG:32640")
    for place in (None, GeoReference(None, PROJECTED.transform)):
        with pytest.raises(InputError, match="in the reference system EPSG:32640, and the image names none; give the"):
            result_of(import_outlines(store, path, georeference=place))
    with pytest.raises(InputError, match=r"0 of 1 shapes of q.geojson lie on the image; give those of this place"):
        result_of(import_outlines(store, path, georeference=PROJECTED))
    assert store.position == 0
