"""The report stands alone, says what the evaluation says, and evaluates files as users have them."""

import csv
import errno
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image
from rich.console import Console

from napari_isdnet.cli_evaluation import print_evaluation
from napari_isdnet.engine.evaluate import evaluate, evaluate_files
from napari_isdnet.engine.labels import open_labels
from napari_isdnet.engine.pictures import Shades, colored, overview
from napari_isdnet.engine.report import classes_csv, confusion_csv, write_report
from napari_isdnet.engine.report_html import area_text
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.disk import make_folder
from napari_isdnet.io.source import PixelSize
from napari_isdnet.window import Window
from tests.test_evaluate import CLASSES, Labels, finish, maps


def made(ignore=(), names=CLASSES):
    prediction, truth = maps()
    ours, theirs = Labels(prediction, "result", pixel_size=PixelSize(0.5, 0.5)), Labels(truth, "drawn")
    return finish(evaluate(ours, theirs, names, ignore, worst_size=32))[0], ours, theirs


class Reader(HTMLParser):
    """Collects tags and attributes, and notes what is never closed."""

    def __init__(self):
        super().__init__()
        self.open, self.attributes, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.attributes += attrs
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_report_needs_no_other_file_and_says_the_figures(tmp_path):
    names = (CLASSES[0], CLASSES[1], type(CLASSES[2])("wa<ter> & ice", (1, 2, 3)))
    result, ours, theirs = made(ignore=[1], names=names)
    image = Labels(np.random.default_rng(0).integers(0, 255, (90, 70, 3), dtype=np.uint8), "photo")
    paths = write_report(result, ours, theirs, image, tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(paths)
    html = paths["report.html"].read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(html)
    assert not reader.open
    for key, value in reader.attributes:
        if key in ("src", "href"):
            assert value.startswith("data:image/")
    assert "http" not in html
    assert "url(" not in html
    text = " ".join(reader.text)
    assert f"{100 * result.mean_iou:.1f} %" in text
    assert "wa<ter> & ice" in text
    assert "Ignored: road." in text
    assert "prefers-color-scheme" in html
    # Image, truth, prediction, errors; one map for each class that counts; four pictures for each worst window.
    assert html.count("<img ") == 4 + 2 + 4 * len(result.worst)


def test_pictures_hold_the_classes_colours(tmp_path):
    import base64

    result, ours, theirs = made()
    html = write_report(result, ours, theirs, None, tmp_path)["report.html"].read_text(encoding="utf-8")
    found = re.findall(r'src="data:image/png;base64,([^"]+)" alt="(\w+)', html)
    truth = imagecodecs.png_decode(base64.b64decode(next(data for data, name in found if name == "Truth")))
    np.testing.assert_array_equal(truth, colored(theirs.array[..., 0], {k: c.color for k, c in enumerate(CLASSES)}))


def test_json_and_csv_hold_the_same_figures(tmp_path):
    result, ours, theirs = made(ignore=[1])
    paths = write_report(result, ours, theirs, None, tmp_path)
    assert json.loads(paths["evaluation.json"].read_text(encoding="utf-8")) == result.to_dict()
    rows = list(csv.DictReader(io.StringIO(classes_csv(result))))
    assert [r["name"] for r in rows] == ["land", "road", "water"]
    assert float(rows[0]["iou"]) == result.confusion.iou[0]
    assert rows[1]["iou"] == ""
    table = list(csv.reader(io.StringIO(confusion_csv(result))))
    assert [[int(v) for v in row[1:4]] for row in table[1:]] == result.confusion.counts.tolist()
    assert [int(row[4]) for row in table[1:]] == result.confusion.unpredicted.tolist()


def test_a_failed_write_leaves_the_earlier_report(tmp_path):
    result, ours, theirs = made()
    write_report(result, ours, theirs, None, tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(InputError, match="give the image that was segmented"):
        write_report(result, ours, theirs, Labels(np.zeros((5, 5, 3), np.uint8)), tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_table_in_the_terminal():
    result, _, _ = made(ignore=[1])
    console = Console(file=io.StringIO(), width=120, color_system=None)
    print_evaluation(result, console)
    text = console.file.getvalue()
    assert "road (ignored)" in text
    assert f"mIoU {100 * result.mean_iou:.2f} % over land, water; ignored: road." in text
    assert result.notes[0][:20] in text


def test_files_are_evaluated_and_reported(tmp_path):
    prediction, truth = maps()
    picture = Image.fromarray(prediction)
    picture.putpalette([200, 30, 30, 30, 200, 30, 30, 30, 200] + [0] * 759)
    picture.save(tmp_path / "prediction.png")
    tifffile.imwrite(tmp_path / "truth.tif", truth, tile=(32, 32), compression="zlib")
    (tmp_path / "classes.txt").write_text("land\nroad\nwater\n")
    arguments = tmp_path / "prediction.png", tmp_path / "truth.tif", tmp_path / "classes.txt"
    result = finish(evaluate_files(*arguments, output=tmp_path / "out"))[0]
    expected = finish(evaluate(Labels(prediction), Labels(truth), CLASSES))[0]
    np.testing.assert_array_equal(result.confusion.counts, expected.confusion.counts)
    assert (result.prediction, result.truth) == ("prediction.png", "truth.tif")
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000
    steps = evaluate_files(*arguments)
    assert next(steps).stage == "Comparing"
    steps.close()


def test_an_image_of_another_size_is_refused_before_the_work(tmp_path):
    prediction, truth = maps()
    tifffile.imwrite(tmp_path / "prediction.tif", prediction)
    tifffile.imwrite(tmp_path / "truth.tif", truth)
    Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(tmp_path / "image.png")
    files = tmp_path / "prediction.tif", tmp_path / "truth.tif"
    with pytest.raises(InputError, match="give the image that was segmented"):
        next(evaluate_files(*files, output=tmp_path / "out", image=tmp_path / "image.png"))
    assert not (tmp_path / "out").exists()


def test_palettes_are_indices_not_colours(tmp_path):
    prediction, _ = maps()
    table = np.random.default_rng(0).integers(0, 65535, (3, 256), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "map.tif", prediction, photometric="palette", colormap=table, tile=(32, 32))
    source, classes = open_labels(tmp_path / "map.tif")
    np.testing.assert_array_equal(source.read(Window(0, 0, 90, 70))[..., 0], prediction)
    assert classes is None
    source.close()
    Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(tmp_path / "photo.png")
    with pytest.raises(InputError, match="one channel of class indices"):
        open_labels(tmp_path / "photo.png")


def test_overview_samples_the_middle_of_equal_parts():
    array = np.arange(100 * 80, dtype=np.uint16).reshape(100, 80)
    small = overview(Labels(array), Window(20, 0, 80, 80), 8, labels=False)[..., 0]
    np.testing.assert_array_equal(small, array[25:100:10, 5:80:10])


def test_sixteen_bit_pictures_are_stretched_and_bytes_are_not():
    wide = np.linspace(1000, 3000, 400).astype(np.uint16).reshape(20, 20, 1)
    shown = Shades(Labels(wide), wide)(wide)
    assert (shown.shape, shown.min(), shown.max()) == ((20, 20, 3), 0, 255)
    plain = np.full((4, 4, 3), 77, np.uint8)
    np.testing.assert_array_equal(Shades(Labels(plain), plain)(plain), plain)
    unknown = np.full((4, 4, 3), np.nan, np.float32)
    assert not Shades(Labels(unknown), unknown)(unknown).any()  # no warning of a NaN that became a byte


@pytest.mark.parametrize(
    ("area", "unit", "text"),
    [
        (None, "m", "–"),
        (12.34, "m", "12.3 m²"),
        (25_000.0, "m", "2.50 ha"),
        (2.5e7, "m", "25.00 km²"),
        (5e6, "µm", "5.000 mm²"),
        (1.857e17, "µm", "18.57 ha"),
        (2e12, "um", "2.0 m²"),
    ],
)
def test_areas_read_well(area, unit, text):
    assert area_text(area, unit) == text


@pytest.mark.parametrize("format", ["ome-zarr", "ome-tiff", "geotiff", "png"])
def test_results_of_this_package_bring_their_classes(tmp_path, format):
    from napari_isdnet.io.sink import export, result_path
    from napari_isdnet.io.store import LabelStore

    prediction, truth = maps()
    names = [("land & <sand>", "#102030"), ("road", "#ff8800"), ("water", "#0000ff")]
    store = LabelStore.create(tmp_path / "work.ome.zarr", prediction.shape, names)
    store.write_shard(0, prediction)
    finish(store.finish_pyramid())
    target = result_path(tmp_path / "results", "scene", format)
    target.parent.mkdir()
    finish(export(store, target, format))
    tifffile.imwrite(tmp_path / "truth.tif", truth)
    result = finish(evaluate_files(target, tmp_path / "truth.tif", output=tmp_path / "out"))[0]
    assert [(c.name, c.hex) for c in result.classes] == names
    expected = finish(evaluate(Labels(prediction), Labels(truth), CLASSES))[0]
    np.testing.assert_array_equal(result.confusion.counts, expected.confusion.counts)


def test_maps_that_number_their_classes_differently_are_refused(tmp_path):
    from napari_isdnet.io.store import LabelStore

    paths = []
    classes = (["land", "road"], ["road", "land"], ["soil", "road"], ["Land", "Road"])
    for stem, names in zip(("one", "two", "three", "four"), classes):
        paths.append(tmp_path / f"{stem}.ome.zarr")
        store = LabelStore.create(paths[-1], (8, 8), names)
        store.write_shard(0, np.zeros((8, 8), np.uint8))
        finish(store.finish_pyramid())
    with pytest.raises(InputError, match="bring one of them into the other's order"):
        finish(evaluate_files(paths[0], paths[1]))[0]
    assert "name their classes differently" in finish(evaluate_files(paths[0], paths[2]))[0].notes[-1]
    assert finish(evaluate_files(paths[0], paths[3]))[0].notes == ()


def test_files_are_not_compared_for_a_report_that_cannot_be_written(tmp_path, monkeypatch):
    def refused(folder):
        raise InputError(f"{folder} cannot be written.")

    monkeypatch.setattr("napari_isdnet.io.disk.make_folder", refused)
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((64, 64), np.uint8))
    with pytest.raises(InputError, match="cannot be written"):
        next(evaluate_files(tmp_path / "a.tif", tmp_path / "a.tif", output=tmp_path / "report"))


def test_a_place_that_cannot_be_written_is_said_and_a_good_one_is_left_clean(tmp_path, monkeypatch):
    make_folder(tmp_path / "new" / "report")
    assert list((tmp_path / "new" / "report").iterdir()) == []

    def refused(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "write_bytes", refused)  # root may write where the rights say no
    with pytest.raises(InputError, match=r"cannot be written \(Read-only file system\); choose another --output"):
        make_folder(tmp_path)
