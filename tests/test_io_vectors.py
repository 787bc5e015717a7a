"""GeoPackages, Shapefiles and the like as annotations: where they lie, what holds the class, what is refused."""

from __future__ import annotations

import sqlite3
import struct
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely

from napari_isdnet.annotation.drawn import read_drawn
from napari_isdnet.annotation.files import bring_in, look
from napari_isdnet.annotation.store import AnnotationStore
from napari_isdnet.classes import ClassInfo
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.sink import export
from napari_isdnet.io.source import GeoReference
from napari_isdnet.io.vectors import is_vector, read_features
from napari_isdnet.progress import result_of
from napari_isdnet.window import Window
from tests.cli_tools import runner
from tests.label_source import LabelSource

pyogrio = pytest.importorskip("pyogrio")
warp = pytest.importorskip("rasterio.warp")

SHAPE = (300, 400)
PLACE = GeoReference("EPSG:32640", (0.5, 0.0, 400_000.0, 0.0, -0.5, 2_800_000.0))
BOXES = ((20, 30, 60, 90), (100, 200, 140, 290))  # top, left, bottom, right in pixels of the image


def on_the_map(box: tuple[int, int, int, int], crs: str = "EPSG:32640") -> Any:
    top, left, bottom, right = box
    a, _, c, _, e, f = PLACE.transform
    polygon = shapely.box(c + a * left, f + e * bottom, c + a * right, f + e * top)
    if crs == PLACE.crs:
        return polygon
    return shapely.transform(
        polygon, lambda xy: np.stack(warp.transform(PLACE.crs, crs, *xy.T.tolist()), axis=1), include_z=False
    )


def written(path: Path, polygons: Any, crs: str | None = "EPSG:32640", layer: str = "fields", **columns: Any) -> Path:
    driver = {".kml": "KML", ".gml": "GML"}.get(path.suffix)
    pyogrio.raw.write(
        path,
        geometry=shapely.to_wkb(np.array(polygons, object)),
        field_data=[
            np.array(values, object if isinstance(values[0], str | None) else None) for values in columns.values()
        ],
        fields=list(columns),
        crs=crs,
        geometry_type="Polygon",
        driver=driver,
        layer=layer,
        append=path.exists(),
    )
    return path


def painted(path: Path, tmp_path: Path, place: GeoReference | None = PLACE, **meant: Any) -> tuple[Any, Any, str]:
    """Class names by pixel ('' where nothing is), the class list, and what was said."""
    with AnnotationStore.create(tmp_path / f"{path.stem}.isdnet", SHAPE, []) as store:
        said = result_of(bring_in(store, path, "auto", "imported", place, **meant))
        names = [c.name for c in store.classes]
        return np.array(["", *names])[store.read_labels(Window.whole(SHAPE))], names, said


def expected(*names: str) -> Any:
    found = np.full(SHAPE, "", object)
    for (top, left, bottom, right), name in zip(BOXES, names):
        found[top:bottom, left:right] = name
    return found


@pytest.mark.parametrize("ending", [".gpkg", ".shp", ".fgb", ".gml", ".geojsonl"])
def test_outlines_of_a_gis_are_painted_where_they_lie(tmp_path: Path, ending: str) -> None:
    crs = "EPSG:32640" if ending != ".geojsonl" else None  # which names none
    shapes = [on_the_map(box, crs or "EPSG:4326") for box in BOXES]
    path = written(tmp_path / f"fields{ending}", shapes, crs or "EPSG:4326", CLASS=["wheat", "Brache"])
    labels, names, said = painted(path, tmp_path)
    assert sorted(names) == ["Brache", "wheat"]  # FlatGeobuf sorts by place
    assert np.count_nonzero(labels != expected("wheat", "Brache")) <= (
        0 if crs else 60
    )  # degrees are moved, to millimetres
    assert said == "" or "taken as longitude and latitude" in said


@pytest.mark.parametrize(("ending", "crs"), [(".gpkg", "EPSG:32639"), (".shp", "EPSG:3857"), (".kml", "EPSG:4326")])
def test_another_system_is_moved_to_that_of_the_image(tmp_path: Path, ending: str, crs: str) -> None:
    path = written(tmp_path / f"fields{ending}", [on_the_map(box, crs) for box in BOXES], crs, Name=["a", "b"])
    labels, names, said = painted(path, tmp_path)
    assert names == ["a", "b"]
    wrong = np.count_nonzero(labels != expected("a", "b"))
    assert wrong <= 60  # of 6000: what lies on an edge
    moved = f"{path.name} was moved from {crs} to EPSG:32640, the system of the image."
    assert said == ("" if crs == "EPSG:4326" else moved)  # degrees are what these formats are in, unless told


def test_a_system_that_is_spelt_out_is_the_same(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    wkt = rasterio.crs.CRS.from_epsg(32640).to_wkt()
    path = written(tmp_path / "fields.gpkg", [on_the_map(BOXES[0])], name=["a"])
    labels, _, said = painted(path, tmp_path, GeoReference(wkt, PLACE.transform))
    assert (labels == expected("a")).all()
    assert said == ""


def test_layers_and_attributes_that_a_file_leaves_open_are_asked_for_and_named(tmp_path: Path) -> None:
    path = written(tmp_path / "region.gpkg", [on_the_map(BOXES[0])], layer="roads", id=[7])
    shapes = [on_the_map(box) for box in BOXES]
    written(path, shapes, layer="land use", nr=[1, 2], use=["wood", "lake"], code=[311.0, 512.0])
    assert result_of(look(path)) == {"roads": ("id",), "land use": ("nr", "use", "code")}
    with pytest.raises(InputError, match=r"region.gpkg has 2 layers; import one of 'roads', 'land use' into the ann"):
        list(read_drawn(path, PLACE))
    with pytest.raises(InputError, match=r"has no layer 'x'; there are 'roads', 'land use'\."):
        list(read_drawn(path, PLACE, layer="x"))
    with pytest.raises(InputError, match=r"has the attribute 'x'; there are 'nr', 'use', 'code'\."):
        list(read_drawn(path, PLACE, layer="land use", attribute="x"))
    for attribute, classes in (("use", ["wood", "lake"]), ("code", ["311", "512"])):
        names = [item.name for item in read_drawn(path, PLACE, layer="land use", attribute=attribute)]
        assert names == classes
    labels, names, said = painted(path, tmp_path, layer="roads")
    assert names == ["imported"]
    assert (labels == expected("imported")).all()
    assert said.endswith("Where one of 'id' is their class, undo this and say so (--attribute).")


def test_nothing_is_asked_where_the_class_is_plain(tmp_path: Path) -> None:
    path = written(tmp_path / "a.gpkg", [on_the_map(BOXES[0])], id=[1], Class=["a"])
    assert result_of(look(path)) == {"fields": ()}


def test_only_what_lies_on_the_image_is_read_of_a_large_file(tmp_path: Path) -> None:
    near = on_the_map(BOXES[0], "EPSG:32639")
    far = [shapely.transform(near, lambda xy, n=n: xy + np.array([1e4 * n, 0])) for n in range(1, 50)]
    path = written(
        tmp_path / "country.gpkg", [*far, on_the_map(BOXES[1], "EPSG:32639")], "EPSG:32639", name=["b"] * 49 + ["a"]
    )
    features, _, whole = read_features(path, None, PLACE, SHAPE)
    assert (len(features), whole) == (1, 50)
    _, names, said = painted(path, tmp_path)
    assert names == ["a"]
    assert said.startswith("1 of 50 shapes of country.gpkg lie near the image and were read.")
    elsewhere = GeoReference("EPSG:32640", (0.5, 0.0, 300_000.0, 0.0, -0.5, 3_800_000.0))
    with pytest.raises(InputError, match=r"^0 of 50 shapes of country.gpkg lie on the image"):
        painted(path, tmp_path / "elsewhere", elsewhere)


def test_a_shapefile_is_read_from_a_zip_file_and_without_a_system_counts_pixels(tmp_path: Path) -> None:
    shape = shapely.Polygon([(30.5, 20), (90, 20), (90, 60), (30.5, 60)])
    written(tmp_path / "pixels.shp", [shape], label=["a"])
    (tmp_path / "pixels.prj").unlink()
    packed = tmp_path / "pixels.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for part in sorted(tmp_path.glob("pixels.*")):
            if part != packed:
                archive.write(part, part.name)
    assert is_vector(packed)
    labels, _, _ = painted(packed, tmp_path, None)
    found = expected("a")
    found[:, 30] = ""  # the centre of this column is the edge itself, which is no part of a polygon's left side
    assert np.count_nonzero(labels != found) <= 40


def test_curves_are_read_as_polygons(tmp_path: Path) -> None:
    path = written(tmp_path / "round.gpkg", [on_the_map(BOXES[0])], name=["a"])
    curve = struct.pack("<BII", 1, 10, 1) + struct.pack("<BII", 1, 8, 5)
    x, y = 400_050.0, 2_799_950.0
    curve += struct.pack("<10d", x, y, x + 10, y + 10, x + 20, y, x + 10, y - 10, x, y)
    blob = b"GP\0\1" + struct.pack("<i", 32640) + curve
    with sqlite3.connect(path) as file:
        for (trigger,) in file.execute("select name from sqlite_master where type = 'trigger'").fetchall():
            file.execute(f'drop trigger "{trigger}"')
        file.execute("drop table if exists rtree_fields_geom")
        file.execute("delete from gpkg_extensions where extension_name = 'gpkg_rtree_index'")
        file.execute("update fields set geom = ?", (blob,))
    file.close()
    labels, _, _ = painted(path, tmp_path)
    assert abs(np.count_nonzero(labels == "a") - np.pi * 100 * 4) < 30  # a circle of 10 m, 4 pixels a square metre


def test_what_cannot_be_read_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = tmp_path / "bad.gpkg"
    bad.write_bytes(b"SQLite format 3\0 and nothing")
    with pytest.raises(InputError, match=r"bad\.gpkg cannot be read \([^;]*\); save it anew, or as GeoJSON\.$"):
        list(read_drawn(bad, PLACE))
    with pytest.raises(InputError, match=r"none\.shp does not exist"):
        list(read_drawn(tmp_path / "none.shp", PLACE))
    table = tmp_path / "table.gpkg"
    pyogrio.raw.write(
        table, geometry=None, field_data=[np.arange(2)], fields=["id"], driver="GPKG", layer="t", geometry_type=None,
        crs=None,
    )  # fmt: skip
    with pytest.raises(InputError, match=r"table\.gpkg holds no layer with shapes"):
        list(read_drawn(table, PLACE))
    monkeypatch.setattr("napari_isdnet.io.vectors.find_spec", lambda _: None)
    with pytest.raises(InputError, match=r'Reading bad\.gpkg needs pyogrio, which is not installed: pip install "nap'):
        list(read_drawn(bad, PLACE))


def test_a_class_map_is_judged_by_reference_outlines(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[20:60, 30:70] = 1  # 40 of the 60 columns of the first box; the second box is all land
    classes = [ClassInfo(name, (9, 9, number)) for number, name in enumerate("ab")]
    for _ in export(LabelSource(labels, PLACE), tmp_path / "map.tif", "geotiff", classes):
        pass
    shapes = [on_the_map(box, "EPSG:32639") for box in BOXES]
    plots = written(tmp_path / "plots.gpkg", shapes, "EPSG:32639", id=[1, 2], cover=["B", "a"])
    more = written(tmp_path / "more.gpkg", shapes, "EPSG:32639", name=["b", "lake"])
    evaluate = partial(runner(capfd), "evaluate", tmp_path / "map.tif")

    ran = evaluate(plots, "--attribute", "cover", "--json")
    assert ran.code == 0, ran.err
    assert (ran.json["prediction"], ran.json["truth"]) == ("map.tif", "plots.gpkg")
    land, plot = ran.json["classes"]
    assert (land["name"], plot["name"]) == ("a", "b")
    assert plot["iou"] == pytest.approx(40 / 60, abs=0.02)
    assert land["recall"] == 1.0
    # Nothing is judged beside the outlines.
    assert land["truth_pixels"] + plot["truth_pixels"] == pytest.approx(40 * 60 + 40 * 90, abs=60)
    assert "plots.gpkg was moved from EPSG:32639 to EPSG:32640" in ran.err

    ran = evaluate(plots)
    assert ran.code == 1
    assert "plots.gpkg, shape 0 has no class; name the attribute that holds it ('id', 'cover')" in ran.err
    ran = evaluate(tmp_path / "map.tif", "--attribute", "cover")
    assert "map.tif holds no outlines, so that it has neither layers nor attributes" in ran.err
    lake = evaluate(more, "--json").json["classes"][2]  # a class that the map lacks is truth that it missed
    assert (lake["name"], lake["iou"]) == ("lake", 0.0)
