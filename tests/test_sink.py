"""Exports, each read back by a reader that is not ours: tifffile, rasterio / GDAL, Pillow, zarr."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from shutil import which
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
import tifffile
import zarr
from PIL import Image

from napari_isdnet.exceptions import InputError
from napari_isdnet.io.geotiff import _check_whole, _to_cog
from napari_isdnet.io.open import open_source
from napari_isdnet.io.png import check_png
from napari_isdnet.io.pyramid import halve_by_mode, quantise
from napari_isdnet.io.sink import FORMATS, check_format, export, result_path, shifted_georeference
from napari_isdnet.io.source import GeoReference, PixelSize
from napari_isdnet.io.store import LabelStore
from napari_isdnet.progress import Progress
from napari_isdnet.window import Window
from tests.label_source import LabelSource

CLASSES = [("road", "#ff0000"), ("trees & <shrubs>", "#00ff00"), ("wåter", "#0000ff")]
UTM = GeoReference("EPSG:32633", (0.5, 0.0, 500_000.25, 0.0, -0.5, 5_000_000.0))
SHAPE = (1111, 1300)
# GDAL says so when a test opens a file that has no position, as some have here.
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def corner(reference: GeoReference, row: int, column: int) -> tuple[float, float]:
    a, b, c, d, e, f = reference.transform
    return a * column + b * row + c, d * column + e * row + f


def noise(shape: tuple[int, int], seed: int = 0) -> npt.NDArray[np.uint8]:
    """Blocks of 5 pixels, so that levels differ by method and files stay small."""
    blocks = np.random.default_rng(seed).choice(
        np.array([0, 1, 2, 255], np.uint8), (shape[0] // 5 + 1, shape[1] // 5 + 1)
    )
    return blocks.repeat(5, 0).repeat(5, 1)[: shape[0], : shape[1]].copy()


def run(steps: Generator[Progress, None, Path]) -> Path:
    def path_of() -> Generator[Progress, None, None]:
        result.append((yield from steps))

    result: list[Path] = []
    fractions = [step.fraction for step in path_of()]
    assert fractions[-1] == 1.0
    return result[0]


@pytest.fixture(scope="module")
def labels() -> npt.NDArray[np.uint8]:
    return noise(SHAPE)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, labels: npt.NDArray[np.uint8]) -> LabelStore:
    path = tmp_path_factory.mktemp("job") / "scene.ome.zarr"
    store = LabelStore.create(path, SHAPE, CLASSES, pixel_size=PixelSize(0.5, 0.5), georeference=UTM, shard=512)
    for index, window in enumerate(store.shards):
        store.write_shard(index, labels[window.slices])
    list(store.finish_pyramid())
    return store


def levels(labels: npt.NDArray[np.uint8], count: int) -> list[npt.NDArray[np.uint8]]:
    result = [labels]
    while len(result) < count:
        result.append(halve_by_mode(result[-1]))
    return result


def names_left(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_ome_zarr_is_a_plain_copy_without_markers(
    tmp_path: Path, store: LabelStore, labels: npt.NDArray[np.uint8]
) -> None:
    path = run(export(store, result_path(tmp_path, "scene")))
    assert names_left(tmp_path) == ["scene.ome.zarr"]
    assert not (path / ".done").exists()
    group = zarr.open_group(path, mode="r")
    for level, expected in enumerate(levels(labels, len(store.levels))):
        np.testing.assert_array_equal(group[str(level)][:], expected)  # type: ignore[index]
    again = LabelStore.open(path)
    assert again.finished
    assert again.georeference == UTM
    path = run(export(again, tmp_path / "copy.ome.zarr"))  # an export is a source like any other
    assert LabelStore.open(path).classes == store.classes


def test_ome_tiff_by_tifffile(tmp_path: Path, store: LabelStore, labels: npt.NDArray[np.uint8]) -> None:
    path = run(export(store, result_path(tmp_path, "scene", "ome-tiff"), "ome-tiff"))
    assert path.name == "scene.ome.tif"
    with tifffile.TiffFile(path) as tiff:
        assert tiff.is_ome
        assert len(tiff.pages) == 1  # the lower levels are SubIFDs
        page = tiff.pages.first
        assert page.photometric == tifffile.PHOTOMETRIC.PALETTE
        assert page.tile == (512, 512)
        assert page.compression == tifffile.COMPRESSION.ADOBE_DEFLATE
        np.testing.assert_array_equal(page.colormap[:, 1] >> 8, [0, 255, 0])
        found = tiff.series[0].levels
        assert len(found) == len(store.levels)
        for level, expected in zip(found, levels(labels, len(found))):
            np.testing.assert_array_equal(level.asarray(), expected)
        tree = ElementTree.fromstring(tiff.ome_metadata or "")
    notes = {m.get("K"): m.text for m in tree.iter("{http://www.openmicroscopy.org/Schemas/OME/2016-06}M")}
    assert notes["class.1.name"] == "trees & <shrubs>"
    assert notes["class.2.color"] == "#0000ff"
    (pixels,) = tree.iter("{http://www.openmicroscopy.org/Schemas/OME/2016-06}Pixels")
    assert (pixels.get("PhysicalSizeX"), pixels.get("PhysicalSizeXUnit")) == ("500000.0", "µm")


def test_geotiff_by_rasterio(tmp_path: Path, store: LabelStore, labels: npt.NDArray[np.uint8]) -> None:
    path = run(export(store, result_path(tmp_path, "scene", "geotiff"), "geotiff"))
    assert names_left(tmp_path) == ["scene.tif", "scene.tif.aux.xml"]
    with rasterio.open(path) as data:
        assert data.crs == rasterio.CRS.from_epsg(32633)
        assert data.transform == rasterio.Affine(*UTM.transform)
        assert data.nodata == 255
        assert data.block_shapes == [(512, 512)]
        assert data.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert data.tags()["CLASS_1"] == "trees & <shrubs>"
        assert data.colormap(1)[2] == (0, 0, 255, 255)
        np.testing.assert_array_equal(data.read(1), labels)
        factors = data.overviews(1)
    assert len(factors) == len(store.levels) - 1
    for index, expected in enumerate(levels(labels, len(store.levels))[1:]):
        with rasterio.open(path, OVERVIEW_LEVEL=index) as data:
            np.testing.assert_array_equal(data.read(1), expected)


@pytest.mark.skipif(which("gdalinfo") is None, reason="needs gdalinfo")
def test_geotiff_by_gdalinfo(tmp_path: Path, store: LabelStore) -> None:
    path = run(export(store, tmp_path / "scene.tif", "geotiff"))
    said = subprocess.run(["gdalinfo", "-json", str(path)], capture_output=True, text=True, check=True).stdout
    info = json.loads(said)
    assert info["geoTransform"] == [500_000.25, 0.5, 0.0, 5_000_000.0, 0.0, -0.5]
    assert info["bands"][0]["noDataValue"] == 255
    assert info["bands"][0]["colorInterpretation"] == "Palette"
    text = subprocess.run(["gdalinfo", "-nomd", str(path)], capture_output=True, text=True, check=True).stdout
    assert "1: trees & <shrubs>" in text  # the category names that QGIS shows


def test_png_by_pillow(tmp_path: Path, store: LabelStore, labels: npt.NDArray[np.uint8]) -> None:
    path = run(export(store, result_path(tmp_path, "scene", "png"), "png"))
    with Image.open(path) as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), labels)
        assert json.loads(image.text["classes"])[1] == {"name": "trees & <shrubs>", "color": "#00ff00"}  # type: ignore[attr-defined]
        rgba = np.asarray(image.convert("RGBA"))
    assert set(rgba[labels == 255][:, 3]) == {0}
    assert {tuple(v) for v in rgba[labels == 2]} == {(0, 0, 255, 255)}


@pytest.mark.parametrize("format", FORMATS)
def test_a_region_is_the_crop_and_its_position_moves(
    tmp_path: Path, store: LabelStore, labels: npt.NDArray[np.uint8], format: str
) -> None:
    roi = Window(301, 77, 640, 515)
    path = run(export(store, result_path(tmp_path, "scene", format), format, roi=roi))
    if format == "geotiff":
        with rasterio.open(path) as whole:
            found = whole.read(1)
            assert (whole.transform.c, whole.transform.f) == corner(UTM, 301, 77)
    elif format == "ome-zarr":
        part = LabelStore.open(path)
        found = part.read_labels(Window.whole(part.shape))
        assert part.origin == (301, 77)
        assert part.georeference == GeoReference("EPSG:32633", (0.5, 0, 500_038.75, 0, -0.5, 4_999_849.5))
    elif format == "ome-tiff":
        found = tifffile.imread(path)
    else:
        found = np.asarray(Image.open(path))
    np.testing.assert_array_equal(found, labels[roi.slices])
    assert [n for n in names_left(tmp_path) if "partial" in n] == []


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_result_gives_the_same_bytes(tmp_path: Path, store: LabelStore, format: str) -> None:
    def content(path: Path) -> dict[str, bytes]:
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        return {str(p.relative_to(path)): p.read_bytes() for p in files}

    first = run(export(store, result_path(tmp_path / "1", "scene", format), format))
    second = run(export(store, result_path(tmp_path / "2", "scene", format), format))
    assert content(first) == content(second)


def test_sheared_transforms_shift_too() -> None:
    reference = GeoReference(None, (1.0, 2.0, 10.0, 3.0, 4.0, 20.0))
    moved = shifted_georeference(reference, 5, 7)
    assert moved is not None
    assert corner(moved, 0, 0) == corner(reference, 5, 7)
    assert corner(moved, 2, 3) == corner(reference, 7, 10)
    assert shifted_georeference(None, 1, 1) is None


def test_any_source_of_class_indices(tmp_path: Path, labels: npt.NDArray[np.uint8]) -> None:
    wide = labels.astype(np.int32)
    wide[labels == 255] = -1
    source = LabelSource(wide, nodata=-1)
    path = run(export(source, tmp_path / "a.tif", "geotiff", CLASSES))
    with rasterio.open(path) as data:
        np.testing.assert_array_equal(data.read(1), labels)
        assert data.crs is None
    with pytest.raises(InputError, match="--classes"):
        run(export(source, tmp_path / "b.tif", "geotiff"))
    wide[4, 4] = 3
    with pytest.raises(InputError, match="value 3; class indices 0 to 2"):
        run(export(source, tmp_path / "b.tif", "geotiff", CLASSES))
    assert names_left(tmp_path) == ["a.tif", "a.tif.aux.xml"]


def test_probabilities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "scene_probabilities.ome.zarr"
    store = LabelStore.create(path, (600, 700), CLASSES, kind="probabilities")
    values = quantise(np.random.default_rng(0).random((600, 700, 3)))
    store.write_shard(0, values)
    list(store.finish_pyramid())
    read: list[int] = []
    usual = LabelStore.planes
    monkeypatch.setattr(LabelStore, "planes", lambda *how: read.append(how[3].stop - how[3].start) or usual(*how))
    out = run(export(store, result_path(tmp_path, "scene", "ome-tiff", "probabilities"), "ome-tiff"))
    assert set(read) == {1}  # of many classes no more than the one that is being written
    assert out.name == "scene_probabilities.ome.tif"
    with tifffile.TiffFile(out) as tiff:
        assert tiff.series[0].axes == "CYX"
        np.testing.assert_array_equal(np.moveaxis(tiff.asarray(), 0, -1), values)
        for level, (rows, columns) in zip(tiff.series[0].levels, store.levels):
            assert level.shape == (3, rows, columns)
    with pytest.raises(InputError, match="class labels only"):
        run(export(store, tmp_path / "x", "png"))
    roi = Window(100, 0, 200, 300)
    part = LabelStore.open(run(export(store, tmp_path / "part.ome.zarr", roi=roi)))
    np.testing.assert_array_equal(part.read(Window.whole(part.shape)), values[roi.slices])


@pytest.mark.parametrize("without", [False, True])
def test_maps_in_a_geotiff_say_their_scale_and_their_bands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without: bool
) -> None:
    rng = np.random.default_rng(3)
    values = rng.integers(0, 256, (1100, 900, 3)).astype(np.uint8)
    place = None if without else UTM
    bands = LabelStore.create(tmp_path / "p.ome.zarr", (1100, 900), CLASSES, kind="probabilities", georeference=place)
    one = LabelStore.create(tmp_path / "u.ome.zarr", (1100, 900), CLASSES, kind="uncertainty", georeference=place)
    for index, part in enumerate(bands.shards):
        bands.write_shard(index, values[part.slices])
        one.write_shard(index, values[part.slices][..., :1])
    for store in (bands, one):
        list(store.finish_pyramid())
    with monkeypatch.context() as patched:
        patched.setattr("napari_isdnet.io.geotiff._has_rasterio", lambda: not without)
        paths = [run(export(store, tmp_path / f"{store.kind}.tif", "geotiff")) for store in (bands, one)]
    assert not list(tmp_path.glob("*.aux.xml"))  # class names of values that are no classes
    for store, path, names in zip((bands, one), paths, (tuple(c.name for c in bands.classes), ("uncertainty",))):
        with rasterio.open(path) as data:
            assert (data.count, data.nodata, data.descriptions) == (len(names), 255, names)
            assert data.scales == pytest.approx([1 / 254] * len(names))
            assert data.crs == (None if without else rasterio.CRS.from_epsg(32633))
            np.testing.assert_array_equal(np.moveaxis(data.read(), 0, -1), values[..., : len(names)])
            assert len(data.overviews(1)) == len(store.levels) - 1
        with rasterio.open(path, OVERVIEW_LEVEL=0) as data:
            expected = store.read(Window.whole(store.levels[1]), 1)
            np.testing.assert_array_equal(np.moveaxis(data.read(), 0, -1), expected)
        with closing(open_source(path)) as source:
            np.testing.assert_array_equal(source.read(Window.whole(source.shape)), values[..., : len(names)])


@pytest.mark.parametrize("format", FORMATS)
def test_cancelled_and_refused_exports_leave_nothing(tmp_path: Path, store: LabelStore, format: str) -> None:
    path = result_path(tmp_path, "scene", format)
    steps = export(store, path, format, roi=Window(0, 0, 1000, 1000))
    for _ in range(3):
        next(steps)
    steps.close()
    assert names_left(tmp_path) == []
    path.write_bytes(b"mine")
    with pytest.raises(InputError, match="--overwrite"):
        run(export(store, path, format))
    assert path.read_bytes() == b"mine"
    run(export(store, path, format, overwrite=True))
    assert path.is_dir() or path.read_bytes() != b"mine"
    run(export(store, path, format, overwrite=True))  # over one of its own, too
    assert names_left(tmp_path)[0] == path.name


def test_a_geotiff_that_the_disk_did_not_take_whole_is_no_result(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    plain, path = tmp_path / "plain.tif", tmp_path / "a.tif"
    values = np.random.default_rng(0).integers(0, 255, (1024, 1024), np.uint8)
    with tifffile.TiffWriter(plain) as writer:
        for step in (1, 2):
            writer.write(values[::step, ::step], tile=(512, 512), compression="zstd", subfiletype=int(step > 1))
    _to_cog(plain, path)
    whole, limits = path.stat().st_size, resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in (0, 500, whole // 4, whole // 2, whole * 3 // 4, whole - 300_000, whole - 300, whole - 1):
        path.unlink(missing_ok=True)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))  # a write beyond fails, as on a full disk
        try:
            with pytest.raises(InputError, match=r"GDAL could not write a.tif \(.*\); check the free space"):
                _to_cog(plain, path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    _to_cog(plain, path)
    data = bytearray(path.read_bytes())
    data[whole // 2 : whole // 2 + 200_000] = bytes(200_000)  # what lay in between was not taken
    path.write_bytes(data)
    with pytest.raises(ValueError, match="is not whole"):
        _check_whole(path, plain)


def test_cancelling_in_the_middle_of_a_tiff_stops_the_writer(tmp_path: Path, store: LabelStore) -> None:
    import threading

    steps = export(store, tmp_path / "a.ome.tif", "ome-tiff")
    next(steps)
    steps.close()
    assert names_left(tmp_path) == []
    assert not [t for t in threading.enumerate() if t.name.startswith("export")]


def test_bad_requests(tmp_path: Path, store: LabelStore) -> None:
    with pytest.raises(InputError, match="ome-zarr, ome-tiff, geotiff, png"):
        run(export(store, tmp_path / "a", "jpeg"))
    for roi in (Window(0, 0, 1112, 5), Window(-1, 0, 5, 5), Window(3, 3, 0, 9)):
        with pytest.raises(InputError, match="1111 x 1300"):
            run(export(store, tmp_path / "a", roi=roi))
    with pytest.raises(InputError, match="too large"):
        check_png((20_000, 20_000))
    with pytest.raises(InputError, match="too large"):
        check_format("png", (20_000, 20_000))
    bad = LabelSource(np.zeros((4, 4), np.uint8), GeoReference("EPSG:0", UTM.transform))
    with pytest.raises(InputError, match="EPSG:0"):
        run(export(bad, tmp_path / "a.tif", "geotiff", CLASSES))
    assert names_left(tmp_path) == []


def test_without_rasterio(tmp_path: Path) -> None:
    code = (
        "import sys, importlib.util as u; find = u.find_spec; sys.modules['rasterio'] = None\n"
        "u.find_spec = lambda n, *a: None if n == 'rasterio' else find(n, *a)\n"
        "import numpy as np; from pathlib import Path; from label_source import LabelSource\n"
        "from napari_isdnet.io.sink import export; from napari_isdnet.io.source import GeoReference\n"
        "out = Path(sys.argv[1]); labels = np.eye(600, dtype=np.uint8)\n"
        "list(export(LabelSource(labels), out / 'a.tif', 'geotiff', ['x', 'y']))\n"
        "geo = GeoReference('EPSG:32633', (1, 0, 0, 0, -1, 0))\n"
        "list(export(LabelSource(labels, geo), out / 'b.tif', 'geotiff', ['x', 'y']))\n"
    )
    ran: Any = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    assert 'pip install "napari-isdnet[geo]"' in ran.stderr
    with rasterio.open(tmp_path / "a.tif") as data:
        np.testing.assert_array_equal(data.read(1), np.eye(600))
        assert data.nodata == 255
        assert data.overviews(1) == [2, 4]
    assert not (tmp_path / "b.tif").exists()
