"""Polygons: exact areas, no cut at a window border, holes kept, no gaps when simplified; drawn, the same pixels."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from shutil import which
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio.features
import shapely
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from napari_isdnet.annotation.drawn import read_drawn
from napari_isdnet.classes import classes_from
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.array import ArraySource
from napari_isdnet.io.geojson import read_items
from napari_isdnet.io.polygons import _Joiner, polygonise, window_polygons
from napari_isdnet.io.source import GeoReference
from napari_isdnet.io.vector import export_polygons
from napari_isdnet.progress import result_of
from napari_isdnet.window import Grid, Window
from tests.label_source import LabelSource

CLASSES = classes_from([("road", "#ff0000"), ("tree", "#00ff00"), ("wåter", "#0000ff")])
UTM = GeoReference("EPSG:32633", (0.5, 0.0, 500_000.0, 0.0, -0.5, 5_000_000.0))


def blobs(shape: tuple[int, int], seed: int, sigma: float = 4.0) -> npt.NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    fields = [ndimage.gaussian_filter(rng.normal(size=shape), sigma) for _ in range(3)]
    labels = np.argmax(fields, axis=0).astype(np.uint8)
    labels[ndimage.gaussian_filter(rng.normal(size=shape), sigma) > 0.06] = 255
    return labels


def all_polygons(labels: npt.NDArray[np.uint8], **more: Any) -> list[tuple[int, shapely.Polygon]]:
    result = []
    for joined in polygonise(LabelSource(labels), **more):
        result += list(zip(joined.classes, joined.polygons))
    return result


def signature(polygons: list[tuple[int, shapely.Polygon]]) -> list[tuple[int, str]]:
    return sorted((k, shapely.normalize(p).wkt) for k, p in polygons)


def burnt(shapes: list[tuple[Any, int]], shape: tuple[int, int]) -> npt.NDArray[Any]:
    """GDAL's raster of (polygon in pixels, class)."""
    return np.asarray(rasterio.features.rasterize(shapes, out_shape=shape, fill=255, dtype="uint8"))


def read_back(path: Path, shape: tuple[int, int], reference: GeoReference | None = None) -> npt.NDArray[Any]:
    """The class map that a GeoJSON file draws."""
    items, found = read_items(path, reference)
    names = [info.name for info in CLASSES]
    shapes = []
    for _, item in items:
        polygon = shapely.geometry.shape(item["geometry"])
        polygon = polygon if found is None else shapely.transform(polygon, lambda points: np.rint(found.pixels(points)))
        shapes.append((polygon, names.index(item["properties"]["classification"]["name"])))
    return burnt(shapes, shape)


def components(labels: npt.NDArray[np.uint8]) -> int:
    return sum(int(ndimage.label(labels == k)[1]) for k in range(3))


def noise(shape: tuple[int, int], seed: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).choice(np.array([0, 1, 2, 255], np.uint8), shape)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0, 10**6),
    st.integers(5, 45),  # smaller ones make thousands of windows: one example of them is enough
    st.sampled_from([noise, lambda s, seed: blobs(s, seed, 2.0)]),
)
@example(13, 17, 7, 1, noise)
def test_areas_are_exact_and_windows_do_not_show(rows: int, columns: int, seed: int, core: int, make: Any) -> None:
    labels = make((rows, columns), seed)
    polygons = all_polygons(labels, core=core)
    assert len(polygons) == components(labels)  # one polygon per 4-connected area: nothing cut, nothing merged
    for k in range(3):
        assert sum(p.area for v, p in polygons if v == k) == np.count_nonzero(labels == k)
    assert all(p.is_valid for _, p in polygons)
    assert signature(polygons) == signature(all_polygons(labels, core=64))
    np.testing.assert_array_equal(burnt([(p, k) for k, p in polygons], labels.shape), labels)


def test_holes_and_straight_edges_over_seams() -> None:
    labels = np.zeros((40, 60), np.uint8)
    labels[10:30, 10:50] = 1  # crosses many seams of 8
    labels[15:20, 20:40] = 0  # a hole in it that crosses seams too
    found = all_polygons(labels, core=8)
    assert signature(found) == signature(
        [
            (0, shapely.box(0, 0, 60, 40) - shapely.box(10, 10, 50, 30)),
            (0, shapely.box(20, 15, 40, 20)),
            (1, shapely.box(10, 10, 50, 30) - shapely.box(20, 15, 40, 20)),
        ]
    )
    assert sum(len(p.exterior.coords) - 1 for _, p in found) == 12  # corners only


def test_only_windows_are_read_and_finished_pieces_leave_early() -> None:
    labels = np.zeros((64, 64), np.uint8)
    labels[::4, ::4] = 1
    source = LabelSource(labels)
    steps = list(polygonise(source, core=16))
    assert source.largest == 16 * 16
    assert sum(len(s.polygons) for s in steps[:-1]) >= 200  # only the background waits for the last window
    assert [k for k in steps[-1].classes if k == 0] == [0]


def test_what_is_finished_is_forgotten() -> None:
    labels = noise((320, 32), 3)
    grid = Grid(labels.shape, (16, 16))
    joiner = _Joiner(grid)
    kept, found = [], 0
    for index, window in enumerate(grid):
        found += len(joiner.add(index, *window_polygons(labels[window.slices]))[1])
        assert len(joiner._parent) == sum(map(len, joiner._pieces.values()))
        kept.append(sum(len(held) for held in vars(joiner).values() if isinstance(held, dict)))
    assert found == components(labels)
    assert kept[-1] == 0
    assert max(kept) < 2 * max(kept[:6])  # it does not grow with the number of windows


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([16, 23, 48, 64]), st.sampled_from([1.0, 2.0, 4.0]))
def test_simplified_neighbours_leave_no_gap(seed: int, core: int, tolerance: float) -> None:
    labels = blobs((64, 64), seed, 3.0)
    labels[labels == 255] = 0
    exact = all_polygons(labels, core=core)
    simple = all_polygons(labels, core=core, simplify=tolerance)
    assert all(p.is_valid for _, p in simple)
    # They still tile the whole image: no overlap (areas add up) and no gap (the union is the image's rectangle).
    assert sum(p.area for _, p in simple) == pytest.approx(64 * 64, abs=1e-6)
    assert shapely.union_all([p for _, p in simple]).symmetric_difference(shapely.box(0, 0, 64, 64)).area < 1e-6
    points = [sum(shapely.get_num_coordinates(p) for _, p in some) for some in (simple, exact)]
    assert points[0] < 0.8 * points[1]


def test_simplified_edges_at_nodata_too() -> None:
    labels = np.full((64, 64), 255, np.uint8)
    rows, columns = np.mgrid[:64, :64]
    labels[rows > columns] = 0
    simple = all_polygons(labels, simplify=2.0)
    assert len(simple) == 1
    assert len(simple[0][1].exterior.coords) < 12  # the staircase of 64 steps is gone


def write(path: Path, labels: npt.NDArray[np.uint8], **more: Any) -> Path:
    source = LabelSource(labels, UTM)
    shown: list[Any] = []
    written = result_of(export_polygons(source, path, CLASSES, **more), shown.append)
    assert shown[-1].fraction == 1.0
    return Path(written)


def test_geojson_as_qupath_has_it(tmp_path: Path) -> None:
    labels = blobs((50, 70), 1)
    path = write(tmp_path / "a.geojson", labels, core=32, map_coordinates=False)
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["type"] == "FeatureCollection"
    assert "crs" not in content
    names = {f["properties"]["classification"]["name"] for f in content["features"]}
    assert names == {"road", "tree", "wåter"}
    for feature in content["features"]:
        info = CLASSES[feature["properties"]["class_index"]]
        assert feature["properties"]["classification"] == {"name": info.name, "color": list(info.color)}
        assert feature["properties"]["objectType"] == "annotation"
        outer = feature["geometry"]["coordinates"][0]
        assert outer[0] == outer[-1]
        assert all(isinstance(v, int) for point in outer for v in point)
    np.testing.assert_array_equal(read_back(path, labels.shape), labels)


def test_regions_keep_image_coordinates(tmp_path: Path) -> None:
    labels = blobs((50, 70), 2)
    roi = Window(11, 13, 30, 41)
    path = write(tmp_path / "a.geojson", labels, roi=roi, core=16, map_coordinates=False)
    expected = np.full_like(labels, 255)
    expected[roi.slices] = labels[roi.slices]
    np.testing.assert_array_equal(read_back(path, labels.shape), expected)


def test_a_placed_map_has_map_coordinates_unless_told_and_they_come_back(tmp_path: Path) -> None:
    labels = blobs((50, 70), 4)
    path = write(tmp_path / "a.geojson", labels)
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["crs"]["properties"]["name"] == "urn:ogc:def:crs:EPSG::32633"
    np.testing.assert_array_equal(read_back(path, labels.shape, UTM), labels)
    # pixels stay pixels, also for an image that is placed
    plain = write(tmp_path / "b.geojson", labels, map_coordinates=False)
    np.testing.assert_array_equal(read_back(plain, labels.shape, UTM), labels)


def test_another_reference_system_is_refused_where_nothing_can_move_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.geojson", blobs((50, 70), 4))
    other = GeoReference("EPSG:32639", UTM.transform)
    for name in ("rasterio", "rasterio.crs", "rasterio.errors"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=r"is in the reference system .*32633, the image in EPSG:32639; save it in"):
        read_items(path, other)


def test_polygons_of_a_resampled_map_count_the_files_pixels(tmp_path: Path) -> None:
    labels = blobs((50, 70), 5)
    path = write(tmp_path / "a.geojson", labels, map_coordinates=False, pixels=(2.0, 3.0))
    large = np.kron(labels, np.ones((2, 3), np.uint8))
    np.testing.assert_array_equal(read_back(path, large.shape), large)


def test_map_coordinates_agree_with_gdal(tmp_path: Path) -> None:
    labels = blobs((50, 70), 3)
    path = write(tmp_path / "a.geojson", labels, map_coordinates=True, core=32)
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["crs"]["properties"]["name"] == "urn:ogc:def:crs:EPSG::32633"
    shapes = [(f["geometry"], f["properties"]["class_index"]) for f in content["features"]]
    drawn = rasterio.features.rasterize(
        shapes, out_shape=labels.shape, fill=255, transform=rasterio.Affine(*UTM.transform), dtype="uint8"
    )
    np.testing.assert_array_equal(drawn, labels)
    np.testing.assert_array_equal(read_back(path, labels.shape, UTM), labels)
    with pytest.raises(InputError, match="no position on the earth"):
        list(export_polygons(LabelSource(labels), tmp_path / "b.geojson", CLASSES, map_coordinates=True))
    assert not list(tmp_path.glob("*b.geojson"))


def test_a_map_that_shares_its_space_with_no_other_has_its_own_pixels(tmp_path: Path) -> None:
    labels = blobs((50, 70), 3)
    path = tmp_path / "a.geojson"
    result_of(export_polygons(ArraySource([labels], "map"), path, CLASSES))
    np.testing.assert_array_equal(read_back(path, labels.shape), labels)


@pytest.mark.skipif(which("ogrinfo") is None, reason="needs GDAL's ogrinfo")
def test_ogr_reads_every_feature(tmp_path: Path) -> None:
    path = write(tmp_path / "a.geojson", blobs((50, 70), 3), map_coordinates=True)
    said = subprocess.run(["ogrinfo", "-so", "-al", str(path)], capture_output=True, text=True, check=True).stdout
    count = len(json.loads(path.read_text(encoding="utf-8"))["features"])
    assert f"Feature Count: {count}" in said
    assert "UTM zone 33N" in said


def test_existing_files_and_cancelling(tmp_path: Path) -> None:
    labels = blobs((64, 64), 5)
    path = write(tmp_path / "a.geojson", labels)
    before = path.read_bytes()
    with pytest.raises(InputError, match="--overwrite"):
        write(path, labels)
    steps = export_polygons(LabelSource(labels), path, CLASSES, overwrite=True, core=16)
    next(steps)
    steps.close()
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.geojson"]
    labels[0, 0] = 9
    with pytest.raises(InputError, match="value 9"):
        write(tmp_path / "c.geojson", labels)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1]",
        '"x"',
        '{"features": 3}',
        "[" * 100_000,
        '{"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}',
        '{"type": "Polygon", "coordinates": [[["a", 0], [1, 1], [2, 0], ["a", 0]]]}',
        '{"type": "Polygon", "coordinates": [[[NaN, 0], [1, 1], [2, 0], [NaN, 0]]]}',
        '{"type": "Polygon"}',
    ],
)
def test_bad_geojson_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=r"a\.json"):
        list(read_drawn(tmp_path / "a.json"))


def test_missing_rasterio_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['rasterio'] = None\n"
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda n, *a: None if n == 'rasterio' else find(n, *a)\n"
        "import numpy as np; from label_source import LabelSource\n"
        "from napari_isdnet.io.polygons import polygonise\n"
        "next(iter(polygonise(LabelSource(np.zeros((2, 2), np.uint8)))))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent)
    assert ran.returncode == 1
    assert 'pip install "napari-isdnet[geo]"' in ran.stderr


def test_a_geopackage_holds_the_same_areas_in_map_coordinates_and_the_colours_for_qgis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pyogrio = pytest.importorskip("pyogrio")
    from napari_isdnet.io import geopackage

    monkeypatch.setattr(geopackage, "_AT_ONCE", 5)  # several transactions
    labels = blobs((50, 70), 6)
    path = write(tmp_path / "a.gpkg", labels)
    assert [tuple(layer) for layer in pyogrio.list_layers(path)] == [("classes", "Polygon"), ("layer_styles", None)]
    meta, _, shapes, (names, indices, areas) = pyogrio.raw.read(path, layer="classes")
    assert meta["crs"] == "EPSG:32633"
    assert [CLASSES[k].name for k in indices] == list(names)
    pixels = shapely.transform(shapely.from_wkb(shapes), lambda points: np.rint(UTM.pixels(points)))
    np.testing.assert_array_equal(burnt(list(zip(pixels, indices)), labels.shape), labels)
    np.testing.assert_array_equal(areas, shapely.area(pixels))
    style = pyogrio.raw.read(path, layer="layer_styles", columns=["styleQML"])[3][0][0]
    for info in CLASSES:
        assert f'label="{info.name}"' in style
        assert ",".join(map(str, (*info.color, 255))) in style
    drawn = list(read_drawn(path, UTM, shape=labels.shape))  # and is read again
    assert [item.name for item in drawn] == list(names)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.gpkg"]


def test_a_geopackage_of_nothing_and_of_an_image_without_a_place(tmp_path: Path) -> None:
    pyogrio = pytest.importorskip("pyogrio")
    path = write(tmp_path / "none.gpkg", np.full((8, 8), 255, np.uint8))
    assert pyogrio.read_info(path, layer="classes")["features"] == 0
    labels = blobs((50, 70), 6)
    path = write(tmp_path / "pixels.gpkg", labels, map_coordinates=False)
    meta, _, shapes, (_, indices, _) = pyogrio.raw.read(path, layer="classes")
    assert meta["crs"] is None
    np.testing.assert_array_equal(burnt(list(zip(shapely.from_wkb(shapes), indices)), labels.shape), labels)


def test_a_geopackage_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyogrio = pytest.importorskip("pyogrio")

    def full(*_: Any, **__: Any) -> None:
        raise pyogrio.errors.DataSourceError("disk I/O error; try again")

    monkeypatch.setattr(pyogrio.raw, "write", full)
    with pytest.raises(InputError, match=r"a\.gpkg cannot be written \(disk I/O error\)"):
        write(tmp_path / "a.gpkg", blobs((20, 20), 1))
    monkeypatch.setattr("napari_isdnet.io.geopackage.find_spec", lambda _: None)
    with pytest.raises(InputError, match="Writing a GeoPackage needs pyogrio, which is not installed"):
        write(tmp_path / "a.gpkg", blobs((20, 20), 1))
    assert not list(tmp_path.iterdir())
