"""Every kind of image a user may have, through the shell: a class map, or one sentence and nothing left behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from napari_isdnet import cli
from napari_isdnet.model.checkpoint import save_model
from tests.network_tools import lively, picture, small

SHAPE = (96, 130)
RGB = picture(SHAPE)
ALPHA = np.full((*SHAPE, 1), 255, np.uint8)
ALPHA[10:20, 30:50] = 0
FLOAT = RGB.astype(np.float32) / 255
Write = Callable[[Path], object]


def tiff(data: np.ndarray, **options: object) -> Write:
    return lambda path: tifffile.imwrite(path, data, **options)  # type: ignore[arg-type]


def pil(data: np.ndarray, mode: str | None = None) -> Write:
    return lambda path: (Image.fromarray(data) if mode is None else Image.fromarray(data).convert(mode)).save(path)


def with_hole(value: float) -> np.ndarray:
    data = FLOAT.copy()
    data[5:9, 7:11, 1] = value
    return data


FOUR = np.concatenate([RGB, RGB[..., :1]], -1)
# What is written, and how many pixels are nodata.
READ: dict[str, tuple[Write, int]] = {
    "rgb.jpg": (pil(RGB), 0),
    "grey.tif": (tiff(RGB[..., 0], photometric="minisblack"), 0),
    "grey.png": (pil(RGB[..., 0]), 0),
    "grey.jpg": (pil(RGB[..., 0]), 0),
    "bilevel.png": (pil(RGB[..., 0] > 128), 0),
    "palette.png": (pil(RGB, "P"), 0),
    "cmyk.jpg": (pil(RGB, "CMYK"), 0),
    "rgba.png": (pil(np.concatenate([RGB, ALPHA], -1)), 200),
    "rgba.tif": (tiff(np.concatenate([RGB, ALPHA], -1), photometric="rgb", extrasamples=["unassalpha"]), 200),
    "grey with alpha.png": (pil(np.concatenate([RGB[..., :1], ALPHA], -1)), 200),
    "four bands.tif": (tiff(FOUR.transpose(2, 0, 1), photometric="minisblack", planarconfig="separate"), 0),
    "sixteen.tif": (tiff(RGB.astype(np.uint16) * 200, photometric="rgb"), 0),
    "sixteen.png": (pil(RGB[..., 0].astype(np.uint16) * 200), 0),
    "signed.tif": (tiff(RGB.astype(np.int32) - 100, photometric="rgb"), 0),
    "nan.tif": (tiff(with_hole(np.nan), photometric="rgb"), 16),
    "infinite.tif": (tiff(with_hole(np.inf), photometric="rgb"), 16),
    "nothing but nan.tif": (tiff(np.full((*SHAPE, 3), np.nan, np.float32), photometric="rgb"), 96 * 130),
    "one value.tif": (tiff(np.zeros((*SHAPE, 3), np.float32), photometric="rgb"), 0),
}


def cut(write: Write, share: float = 2 / 3) -> Write:
    def shortened(path: Path) -> None:
        write(path)
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])

    return shortened


def array(data: np.ndarray) -> Write:
    return lambda path: np.save(path, data, allow_pickle=True)


REFUSED: dict[str, tuple[Write, str]] = {
    "cut.tif": (cut(READ["sixteen.tif"][0]), "cannot read rows 0-95, columns 0-129 at level 0 (the file ends at byte"),
    "cut tiles.tif": (cut(tiff(picture((256, 256)), photometric="rgb", tile=(64, 64))), "--skip-bad-tiles"),
    "cut.png": (cut(pil(RGB)), "is a damaged PNG"),
    "cut.jpg": (cut(pil(RGB)), "is a damaged JPEG (the file ends before the picture does)"),
    "nearly whole.jpg": (cut(pil(RGB), 0.98), "is a damaged JPEG"),
    "cut.npy": (cut(array(RGB)), "no array file that can be read"),
    "no rows.npy": (array(np.zeros((0, 50, 3), np.uint8)), "is empty: it must have at least one pixel"),
    "no columns.npy": (array(np.zeros((50, 0, 3), np.uint8)), "is empty"),
    "small.npy": (array(RGB[:31]), "31 x 130 pixels; the network needs at least 32 on each side"),
    "objects.npy": (array(np.array([{}], dtype=object)), "save it again with numpy.save"),
    "complex.tif": (tiff(RGB[..., 0].astype(np.complex64)), "complex64 samples; integers and real numbers"),
    "empty.png": (lambda path: path.write_bytes(b""), "the file is empty (0 bytes)"),
    "text.jpg": (lambda path: path.write_text("hello"), "no image format that is known"),
    "folder.tif": (lambda path: path.mkdir(), "a folder without Zarr metadata"),
    "missing.tif": (lambda path: None, "does not exist; check the path"),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = lively(small(branches="shallow", channels=16, classes=4, auxiliary=False))
    return save_model(network, tmp_path_factory.mktemp("model") / "m.safetensors")


@pytest.fixture
def segment(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, list[str]]]:
    monkeypatch.setenv("NAPARI_ISDNET_CACHE", str(tmp_path / "cache"))

    def call(path: Path, *more: str) -> tuple[int, str, list[str]]:
        capfd.readouterr()
        words = ["segment", str(path), "-m", str(model), "-o", str(tmp_path / "out"), "-f", "png", "--json", *more]
        code = cli.run(cli.app, [*words, "--precision", "float32", "--device", "cpu"], "napari-isdnet")
        out, err = capfd.readouterr()
        return code, out, [line for line in err.splitlines() if "%" not in line]

    return call


@pytest.mark.parametrize("name", READ)
def test_is_segmented(segment: Callable[..., tuple[int, str, list[str]]], tmp_path: Path, name: str) -> None:
    write, nodata = READ[name]
    write(tmp_path / name)
    code, out, err = segment(tmp_path / name)
    assert code == 0, err
    assert err == []
    facts = json.loads(out)
    assert facts["class_pixels"]["nodata"] == nodata
    with Image.open(facts["outputs"]["labels"]) as labels:
        values = np.asarray(labels)
    assert values.shape == SHAPE
    assert (values == 255).sum() == nodata
    assert values[values != 255].max(initial=0) < 4


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused_in_one_sentence(
    segment: Callable[..., tuple[int, str, list[str]]], tmp_path: Path, name: str
) -> None:
    write, words = REFUSED[name]
    write(tmp_path / name)
    code, out, err = segment(tmp_path / name)
    assert code == 1
    assert len(err) == 1, err
    assert err[0] == f"Error: {json.loads(out)['error']}"
    assert words in err[0]
    assert "Traceback" not in err[0]
    left = {path.suffix for path in (tmp_path / "out").glob("*")}
    assert left <= {".job"}, "no result, and no part of one"
    if left:  # a job that can go on once the file is mended has found nothing to be true of it
        assert name.startswith("cut")


@pytest.mark.parametrize(
    ("module", "option", "needs"),
    [
        ("polygons", "--polygons", "Making polygons needs rasterio"),
        ("geopackage", "--geopackage", "Writing a GeoPackage needs pyogrio"),
    ],
)
def test_a_library_that_is_missing_is_said_before_anything_is_computed(
    segment: Callable[..., tuple[int, str, list[str]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: str,
    option: str,
    needs: str,
) -> None:
    pytest.importorskip("rasterio")
    monkeypatch.setattr(f"napari_isdnet.io.{module}.find_spec", lambda _: None)
    READ["rgb.jpg"][0](tmp_path / "rgb.jpg")
    code, _, err = segment(tmp_path / "rgb.jpg", option)
    assert code == 1
    assert err == [f'Error: {needs}, which is not installed: pip install "napari-isdnet[geo]".']
    assert not (tmp_path / "out").exists()


def test_outlines_are_simplified_when_asked_also_of_a_job_that_is_done(
    segment: Callable[..., tuple[int, str, list[str]]], tmp_path: Path
) -> None:
    shapely = pytest.importorskip("shapely")
    pytest.importorskip("rasterio")
    READ["rgb.jpg"][0](tmp_path / "rgb.jpg")

    def outlines(*options: str) -> tuple[float, int]:
        code, out, err = segment(tmp_path / "rgb.jpg", "--polygons", *options)
        assert code == 0, err
        found = shapely.from_geojson(Path(json.loads(out)["outputs"]["polygons"]).read_text(encoding="utf-8"))
        return shapely.area(found), shapely.get_num_coordinates(found)

    code, out, err = segment(tmp_path / "rgb.jpg", "--geopackage", "--min-area", "40")
    assert code == 0, err
    file = Path(json.loads(out)["outputs"]["geopackage"])
    shapes = pytest.importorskip("pyogrio").raw.read(file, layer="classes")[2]
    assert shapely.area(shapely.from_wkb(shapes)).sum() == pytest.approx(SHAPE[0] * SHAPE[1])
    area, points = outlines()
    simple, fewer = outlines("--simplify", "2")
    assert simple == pytest.approx(area) == pytest.approx(SHAPE[0] * SHAPE[1])
    assert fewer < 0.7 * points
    whole, fewer = outlines("--min-area", "1000")
    assert whole == area
    assert fewer < 0.7 * points
    assert outlines() == (area, points)
    for options in (("--simplify", "2"), ("--polygons", "--simplify", "-1"), ("--polygons", "--simplify", "inf")):
        code, _, err = segment(tmp_path / "rgb.jpg", *options)
        assert code != 0
        assert "simplif" in err[-1]
    for options in (("--min-area", "2"), ("--polygons", "--min-area", "0")):
        code, _, err = segment(tmp_path / "rgb.jpg", *options)
        assert code == 2
        assert "--min-area" in err[-1]


def test_a_damaged_file_is_segmented_around_its_damage_when_asked(
    segment: Callable[..., tuple[int, str, list[str]]], tmp_path: Path, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    REFUSED["cut tiles.tif"][0](tmp_path / "cut.tif")
    assert segment(tmp_path / "cut.tif")[0] == 1
    code, out, err = segment(tmp_path / "cut.tif", "--skip-bad-tiles", "--overwrite")
    assert code == 0, err
    facts = json.loads(out)
    assert 0 < facts["class_pixels"]["nodata"] < 256 * 256 / 2
    assert facts["bad_windows"]
    said = f"{len(facts['bad_windows'])} windows of cut could not be read and are nodata in the result."
    assert said in facts["warnings"]
    words = ["segment", tmp_path / "cut.tif", "-m", model, "-o", tmp_path / "out", "-f", "png", "--skip-bad-tiles"]
    assert cli.run(cli.app, [*map(str, words), "--precision", "float32", "--device", "cpu"], "napari-isdnet") == 0
    assert f"Note: {said}" in capfd.readouterr().out  # also of a job that was done before
