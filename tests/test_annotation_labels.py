"""Label images in and out of an annotation: what their values mean, where they lie, whose classes they count."""

from __future__ import annotations

from threading import Thread

import numpy as np
import pytest

from napari_isdnet.annotation import exchange
from napari_isdnet.annotation.exchange import IndexView, annotation_values, export_labels, import_labels
from napari_isdnet.annotation.files import bring_in, kind_of, write_out
from napari_isdnet.annotation.store import AnnotationStore
from napari_isdnet.annotation.strokes import Rectangle
from napari_isdnet.classes import ANNOTATIONS_ZARR, classes_from
from napari_isdnet.engine.classlist import default_classes
from napari_isdnet.engine.labels import open_labels
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.open import open_source
from napari_isdnet.io.source import GeoReference, ImageSource
from napari_isdnet.progress import result_of
from napari_isdnet.window import Window
from tests.exchange_tools import SHAPE, paint_both, values, water_and_roof
from tests.label_source import LabelSource


@pytest.fixture
def store(tmp_path):
    with water_and_roof(tmp_path) as store:
        yield store


@pytest.fixture
def painted(store):
    paint_both(store)
    return store


@pytest.mark.parametrize(
    ("crs", "column", "fits"), [("EPSG:32633", 0, True), ("EPSG:32633", 416, False), ("EPSG:32634", 0, False)]
)
def test_a_label_image_of_another_place_is_refused(store, crs, column, fits):
    place = GeoReference("EPSG:32633", (0.5, 0.0, 400_000.0, 0.0, -0.5, 5_400_000.0))
    labels = LabelSource(np.ones(SHAPE, np.uint8))
    labels.georeference = GeoReference(crs, (0.5, 0.0, 400_000.0 + column / 2, 0.0, -0.5, 5_400_000.0))
    if fits:
        result_of(import_labels(store, labels, place=place))
        assert values(store).any()
        return
    with pytest.raises(InputError, match="map lies elsewhere than the image: its corner is at x 400"):
        result_of(import_labels(store, labels, place=place))
    assert not values(store).any()


@pytest.mark.parametrize(
    ("transform", "how"),
    [
        ((1.0, 0.0, 400_000.0, 0.0, -1.0, 5_400_000.0), "its pixels are 1 x 1 instead of 0.5 x 0.5; bring it"),
        (
            (0.0, 0.5, 400_000.0, 0.5, 0.0, 5_400_000.0),
            "its pixels are 0.5 x 0.5 instead of 0.5 x 0.5, and turned; bri",
        ),
    ],
)
def test_a_label_image_of_the_same_corner_and_other_pixels_is_refused(store, transform, how):
    place = GeoReference("EPSG:32633", (0.5, 0.0, 400_000.0, 0.0, -0.5, 5_400_000.0))
    labels = LabelSource(np.ones(SHAPE, np.uint8))
    labels.georeference = GeoReference("EPSG:32633", transform)
    with pytest.raises(InputError, match=how):
        result_of(import_labels(store, labels, place=place))


def test_label_files_with_names_are_matched_by_name(painted, tmp_path):
    expected = values(painted)
    mask = result_of(export_labels(painted, tmp_path / "labels.tif"))
    painted.flush()
    named = [("roof", "#ff0000"), ("road", "#00ff00")]
    for number, (path, kind) in enumerate(
        ((mask, "auto"), (mask, "mask"), (painted.folder / ANNOTATIONS_ZARR, "auto"))
    ):
        with AnnotationStore.create(tmp_path / f"{number}.isdnet", SHAPE, named) as other:
            result_of(import_labels(other, path, kind))
            assert [c.name for c in other.classes] == ["roof", "road", "water"]  # added with its colour
            assert other.classes[2].color == (0, 0, 255)
            assert np.array_equal(values(other), np.array([0, 3, 1], np.uint8)[expected])
            other.undo()  # one step, with the class
            assert [c.name for c in other.classes] == ["roof", "road"]
    with AnnotationStore.create(tmp_path / "given.isdnet", SHAPE, named) as other:
        result_of(import_labels(other, mask, "auto", classes_from(["road", "roof"])))  # what is given goes before
        assert np.array_equal(values(other), np.array([0, 2, 1], np.uint8)[expected])
    with AnnotationStore.create(tmp_path / "case.isdnet", SHAPE, ["Roof", " WATER"]) as other:
        result_of(import_labels(other, mask, "auto"))
        assert len(other.classes) == 2
        assert np.array_equal(values(other), np.array([0, 2, 1], np.uint8)[expected])
    with AnnotationStore.create(tmp_path / "by index.isdnet", SHAPE, named) as other:
        result_of(import_labels(other, open_source((expected - 1).astype(np.uint8), name="plain"), "auto"))
        assert np.array_equal(values(other), expected)
        assert len(other.classes) == 2


def test_classes_beyond_the_most_are_refused_before_painting(tmp_path):
    labels = np.arange(200, dtype=np.uint8).reshape(10, 20)
    with AnnotationStore.create(tmp_path / "full.isdnet", (10, 20), [f"a{n}" for n in range(100)]) as store:
        with pytest.raises(InputError, match="would add 200 classes to the 100 of the annotation; 254 are allowed"):
            result_of(import_labels(store, open_source(labels, name="many"), "mask", default_classes(200)))
        assert store.position == 0


@pytest.mark.parametrize(
    ("rows", "named", "nodata", "expected"),
    [
        ((0, 0, 1, 1), True, None, "mask"),
        ((0, 0, 1, 1), False, 255.0, "mask"),
        ((0, 0, 1, 255), False, None, "mask"),
        ((0, 1, 1, 2), False, 0.0, "annotation"),
        ((0, 0, 0, 1), False, None, "annotation"),
        ((0, 0, 0, 0), False, None, "annotation"),
        ((1, 2, 1, 2), False, None, "annotation"),
        ((0, 0, 1, 1), False, None, None),
        ((0, 1, 2, 1), False, None, None),
    ],
)
def test_what_values_mean_is_told_by_the_file(store, monkeypatch, rows, named, nodata, expected):
    monkeypatch.setattr(exchange, "_CORE", 16)  # several windows
    labels = np.repeat(np.array(rows, np.uint8), 10)[:, None] * np.ones((1, 40), np.uint8)
    source = open_source(labels, name="truth")
    monkeypatch.setattr(type(source), "nodata", nodata)
    if expected is None:
        with pytest.raises(InputError, match=r"^truth has neither .* add --values mask .* or --values annotation \("):
            result_of(exchange.values_of(source, named))
    else:
        assert result_of(exchange.values_of(source, named)) == expected
    with pytest.raises(InputError, match="or 'mask'"):  # a file that is written needs to be told
        result_of(export_labels(store, "x.tif", values="auto"))


def test_annotation_values_are_written_tile_by_tile_and_a_cancelled_file_is_none(painted, tmp_path):
    steps = list(export_labels(painted, tmp_path / "labels.tif", values="annotation"))
    assert len(steps) == 3 * 3 + 2 * 2 + 1  # tiles of 512 pixels over all levels
    assert steps[-1].fraction == pytest.approx(1)
    steps = export_labels(painted, tmp_path / "part.tif", values="annotation")
    next(steps)
    steps.close()
    assert [path.name for path in tmp_path.glob("*.tif*")] == ["labels.tif"]


@pytest.mark.parametrize("kind", ["annotation", "mask"])
def test_label_tiff_there_and_back(painted, tmp_path, kind):
    path = result_of(export_labels(painted, tmp_path / "labels.tif", values=kind))
    source, _ = open_labels(path)
    assert np.array_equal(source.read(Window.whole(SHAPE))[..., 0], values(painted) - np.uint8(1))
    assert len(source.levels) > 1
    source.close()
    with AnnotationStore.create(tmp_path / "back.isdnet", SHAPE, painted.classes) as back:
        back.paint(Rectangle(Window(0, 0, 20, 20)), 1)  # unlabelled pixels of the file leave it alone
        dirty = result_of(import_labels(back, path, kind))
        assert dirty
        again = values(back)
        assert (again[:20, :20] == 2).all()
        again[:20, :20] = values(painted)[:20, :20]
        assert np.array_equal(again, values(painted))
        back.undo()
        assert back.class_counts() == (0, 400)


@pytest.mark.parametrize("format", ["ome-zarr", "png"])
def test_other_formats_hold_class_indices(painted, tmp_path, format):
    path = result_of(export_labels(painted, tmp_path / f"x.{'png' if format == 'png' else 'ome.zarr'}", format=format))
    source, classes = open_labels(path)
    assert np.array_equal(source.read(Window.whole(SHAPE))[..., 0], values(painted) - np.uint8(1))
    assert [c.name for c in classes] == ["water", "roof"]
    source.close()


def test_own_pyramid_is_an_annotation_source(painted, tmp_path):
    painted.flush()
    source = open_source(painted.folder / "annotations.zarr")
    assert source.levels == painted.levels
    with AnnotationStore.create(tmp_path / "back.isdnet", SHAPE, painted.classes) as back:
        result_of(import_labels(back, source, "annotation"))
        assert np.array_equal(values(back), values(painted))
    source.close()


def test_view_of_class_indices(painted):
    view = IndexView(painted)
    assert isinstance(view, ImageSource)
    part = Window(40, 40, 100, 300)
    assert np.array_equal(view.read(part)[..., 0], painted.read_labels(part) - np.uint8(1))


def test_masks_and_annotations_are_never_mixed_up(store):
    mask = np.full(SHAPE, 255, np.uint8)
    mask[:10] = 0
    with pytest.raises(InputError, match=r"holds 255.*values='mask'"):
        result_of(import_labels(store, open_source(mask, name="truth"), "annotation"))
    mask[1100:] = 2
    with pytest.raises(InputError, match="holds the value 2; with 2 classes and values='mask' 0 to 1"):
        result_of(import_labels(store, open_source(mask, name="truth"), "mask"))
    assert store.position == 0
    with pytest.raises(InputError, match="needs 1200 x 1500 and one"):
        result_of(import_labels(store, open_source(mask[:5], name="truth"), "mask"))
    with pytest.raises(InputError, match=r"'annotation' .* or 'mask'"):
        result_of(import_labels(store, open_source(mask, name="truth"), "truth"))
    with pytest.raises(InputError, match="whole numbers"):
        annotation_values(np.zeros((2, 2), np.float32), "mask", 2, "truth")
    with pytest.raises(InputError, match="holds the value -1"):
        annotation_values(np.full((2, 2), -1), "mask", 2, "truth")


def test_what_is_painted_during_an_import_is_a_step_of_its_own(tmp_path):
    labels = np.zeros((100, 3000), np.uint8)
    labels[:10, :10] = labels[:10, 2900:2910] = 1  # two windows of the import
    with AnnotationStore.create(tmp_path / "a.isdnet", labels.shape, ["a", "b"]) as store:
        for step in import_labels(store, open_source(labels, name="labels")):
            if step.stage == "paint" and not store.class_counts()[1]:
                store.paint(Rectangle(Window(50, 50, 10, 20)), 1)
        assert store.class_counts() == (200, 200)
        store.undo()
        assert store.class_counts() == (100, 200)
        store.undo()
        assert store.class_counts() == (100, 0)


def test_a_group_belongs_to_the_thread_that_opened_it(store):
    with store.group():
        store.paint(Rectangle(Window(0, 0, 10, 10)), 0)
        other = Thread(target=store.paint, args=(Rectangle(Window(50, 50, 10, 20)), 1))
        other.start()
        other.join()
    store.undo()
    assert store.class_counts() == (100, 0)


@pytest.mark.parametrize("name", ["out.geojson", "out.ome.tif", "values.tif"])
def test_an_earlier_export_comes_back_as_the_classes_are_called_now(painted, tmp_path, name):
    """water has another name, and roof is one with a class that was added later."""
    if name.endswith("geojson"):
        pytest.importorskip("rasterio")
    path = tmp_path / name
    kind = "annotation" if name.startswith("values") else "mask"
    result_of(write_out(painted, path, kind_of(path), None, values=kind))
    painted.rename_class(0, "lake")
    painted.merge_classes(1, painted.add_class("house"))
    expected, classes = values(painted), painted.classes
    assert [c.name for c in classes] == ["lake", "house"]
    painted.paint(Rectangle(Window.whole(SHAPE)), None)
    said = result_of(bring_in(painted, path, "auto", None))
    assert painted.classes == classes
    assert np.array_equal(values(painted), expected)
    assert "'water' is called 'lake' now." in said
    assert "'roof' is called 'house' now." in said
