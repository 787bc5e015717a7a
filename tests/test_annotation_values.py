"""Files of annotation values are known as such, and maps that are none of uncertainty too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from napari_isdnet.annotation.project import Project
from napari_isdnet.annotation.strokes import Rectangle
from napari_isdnet.classes import ANNOTATION, classes_from
from napari_isdnet.engine.kinds import result_kind
from napari_isdnet.engine.labels import open_labels
from napari_isdnet.io.sink import export
from napari_isdnet.io.store import LabelStore
from napari_isdnet.window import Window
from tests.cli_tools import Runner

SHAPE = (600, 700)
CLASSES = [("road", "#010203"), ("Dächer", "#ff0000")]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "land.png"
    Image.fromarray(np.zeros((*SHAPE, 3), np.uint8)).save(path)
    with Project.open(path, CLASSES) as project:
        project.store.paint(Rectangle(Window(0, 0, 300, 700)), 0)
        project.store.paint(Rectangle(Window(200, 100, 300, 400)), 1)
    return path


def pyramid(image: Path) -> Path:
    return Path(f"{image}.isdnet") / "annotations.zarr"


def without_mark(folder: Path) -> None:
    meta = json.loads((folder / "zarr.json").read_text())
    del meta["attributes"][ANNOTATION]
    (folder / "zarr.json").write_text(json.dumps(meta))


@pytest.mark.parametrize("kind", ["folder", "project", "older project", "copy", "tiff"])
def test_own_annotations_are_read_as_the_classes_that_they_hold(
    cli: Runner, image: Path, tmp_path: Path, kind: str
) -> None:
    mask, truth = tmp_path / "mask.ome.tif", pyramid(image)
    assert cli("annotation", "export", image, "-o", mask).code == 0
    if kind == "folder":
        truth = truth.parent
    elif kind == "older project":
        without_mark(truth)
    elif kind == "copy":
        truth = truth.rename(tmp_path / "copy.zarr")
    elif kind == "tiff":
        truth = tmp_path / "values.ome.tif"
        assert cli("annotation", "export", image, "-o", truth, "--values", "annotation").code == 0
    ran = cli("evaluate", mask, truth)
    assert ran.code == 0, ran.err
    assert "mIoU 100.00" in ran.out
    ours, _ = open_labels(mask)
    theirs, classes = open_labels(truth)
    assert classes == classes_from(CLASSES)
    assert np.array_equal(theirs.read(Window.whole(SHAPE)), ours.read(Window.whole(SHAPE)))
    assert theirs.identity() != ours.identity()
    ours.close()
    theirs.close()


@pytest.mark.parametrize("values", ["auto", "annotation", "mask"])
@pytest.mark.parametrize("kind", ["project", "tiff"])
def test_an_own_annotation_is_imported_as_what_it_is_whatever_is_said(
    cli: Runner, image: Path, tmp_path: Path, kind: str, values: str
) -> None:
    file = pyramid(image)
    if kind == "tiff":
        file = tmp_path / "values.tif"
        assert cli("annotation", "export", image, "-o", file, "--values", "annotation").code == 0
    other = tmp_path / "other.png"
    Image.fromarray(np.zeros((*SHAPE, 3), np.uint8)).save(other)
    ran = cli("annotation", "import", other, file, "--values", values, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["pixels"] == {"road": 300 * 700 - 100 * 400, "Dächer": 300 * 400}


def written(folder: Path, kind: str, format: str) -> Path:
    """A map of ``kind`` as segmenting writes it."""
    channels = {"probabilities": 2}.get(kind, 1)
    store = LabelStore.create(folder / f"{kind}.ome.zarr", SHAPE, classes_from(CLASSES), kind=kind)
    for index, window in enumerate(store.shards):
        data = np.full((*window.shape, channels), 1 if kind == "labels" else 30, np.uint8)
        store.write_shard(index, data[..., 0] if kind == "labels" else data)
    for _ in store.finish_pyramid():
        pass
    if format == "ome-zarr":
        return store.path
    path = folder / f"{kind}{'.ome.tif' if format == 'ome-tiff' else '.tif'}"
    for _ in export(store, path, format, store.classes):
        pass
    return path


@pytest.mark.parametrize("format", ["ome-zarr", "ome-tiff", "geotiff"])
@pytest.mark.parametrize("kind", ["labels", "uncertainty", "probabilities"])
def test_only_a_map_of_uncertainty_is_taken_for_one(
    cli: Runner, image: Path, tmp_path: Path, kind: str, format: str
) -> None:
    path = written(tmp_path / "maps", kind, format)
    ran = cli("annotation", "suggest", image, "--uncertainty", path)
    if kind == "uncertainty":
        assert result_kind(path) == "uncertainty"
        assert ran.code == 0, ran.err
        return
    assert ran.code == 1
    what = "a class map" if kind == "labels" else "a map of probabilities"
    assert f"is {what}, not of uncertainty; give the map that 'segment --uncertainty' wrote." in ran.err


def picture(path: Path, values: Any) -> Path:
    Image.fromarray(values).save(path)
    return path


def test_other_files_are_taken_for_uncertainty_where_they_may_be(cli: Runner, image: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tifffile.imwrite(tmp_path / "float.tif", rng.random(SHAPE, np.float32))
    maps = {
        image: "a picture of 3 bands",
        picture(tmp_path / "classes.png", rng.integers(0, 5, SHAPE).astype(np.uint8)): "a class map, by its values",
        pyramid(image): "an annotation",
        picture(tmp_path / "unsure.png", rng.integers(0, 200, SHAPE).astype(np.uint8)): None,
        tmp_path / "float.tif": None,
    }
    for path, said in maps.items():
        ran = cli("annotation", "suggest", image, "--uncertainty", path)
        assert ran.code == (0 if said is None else 1), ran.err
        if said is not None:
            assert f"{path.name} is {said}, not of uncertainty" in ran.err
