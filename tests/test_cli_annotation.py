"""``napari-isdnet annotation`` on real files: in, out, what is said of them, and where to paint next."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from napari_isdnet.annotation.project import Project
from napari_isdnet.engine.labels import open_labels
from napari_isdnet.window import Window
from tests.cli_tools import Runner

SHAPE = (600, 700)
ROAD = [[10, 20], [60, 20], [60, 50], [10, 50], [10, 20]]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "land.tif"
    # A metre a pixel, the upper left corner at 500000, 4000000 of UTM zone 33.
    keys = (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32633)
    tags = [
        (33550, 12, 3, (1.0, 1.0, 0.0), True),
        (33922, 12, 6, (0.0, 0.0, 0.0, 500000.0, 4000000.0, 0.0), True),
        (34735, 3, len(keys), keys, True),
    ]
    tifffile.imwrite(path, np.zeros((*SHAPE, 3), np.uint8), tile=(256, 256), extratags=tags)
    return path


@pytest.fixture
def outlines(tmp_path: Path) -> Path:
    path = tmp_path / "drawn.geojson"
    road = {"classification": {"name": "road", "color": [1, 2, 3]}}
    shapes = [(road, {"type": "Polygon", "coordinates": [ROAD]}), ({}, {"type": "Point", "coordinates": [300, 300]})]
    features = [{"type": "Feature", "properties": p, "geometry": g} for p, g in shapes]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def test_outlines_go_in_and_come_out(cli: Runner, image: Path, outlines: Path, tmp_path: Path) -> None:
    ran = cli("annotation", "import", image, outlines, "--class", "well", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["pixels"] == {"road": 50 * 30, "well": 4}
    facts = cli("annotation", "info", image, "--json").json
    assert (facts["shape"], facts["strokes"], facts["models"]) == ([600, 700], 2, [])
    assert [(c["name"], c["pixels"]) for c in facts["classes"]] == [("road", 1500), ("well", 4)]
    assert facts["classes"][0]["color"] == [1, 2, 3]
    assert "road: 1500 pixels" in cli("annotation", "info", image).out
    assert "note" not in facts
    # by the project's folder too, in pixels and on the map
    written = tmp_path / "out.geojson"
    assert cli("annotation", "export", f"{image}.isdnet", "-o", written).code == 0
    polygons = json.loads(written.read_text())["features"]
    assert {tuple(p) for p in polygons[0]["geometry"]["coordinates"][0]} == {tuple(p) for p in ROAD}
    assert cli("annotation", "export", f"{image}.isdnet", "-o", written).code == 1
    assert cli("annotation", "export", f"{image}.isdnet", "-o", written, "--map", "--overwrite").code == 0
    placed = json.loads(written.read_text())
    assert "32633" in placed["crs"]["properties"]["name"]
    corners = {tuple(p) for p in placed["features"][0]["geometry"]["coordinates"][0]}
    assert corners == {(500000 + x, 4000000 - y) for x, y in ROAD}
    # a GeoPackage is in map coordinates, and comes back into the annotation of an image of the same place
    pytest.importorskip("pyogrio")
    package, other = tmp_path / "out.gpkg", tmp_path / "other.tif"
    assert cli("annotation", "export", image, "-o", package).code == 0
    other.write_bytes(image.read_bytes())
    ran = cli("annotation", "import", other, package, "--layer", "classes", "--attribute", "class", "--json")
    assert ran.json["pixels"] == {"road": 50 * 30, "well": 4}, ran.err
    ran = cli("annotation", "import", other, other, "--attribute", "class")
    assert "holds no outlines, so that it has neither layers nor attributes" in ran.err


def test_an_image_that_was_replaced_is_said_and_nothing_lost(cli: Runner, image: Path, outlines: Path) -> None:
    assert cli("annotation", "import", image, outlines).code == 0
    tifffile.imwrite(image, np.full((*SHAPE, 3), 9, np.uint8))
    for way_in in (image, f"{image}.isdnet"):
        ran = cli("annotation", "info", way_in)
        assert "note: 'land' is not the image that this annotation was begun on, or was changed since" in ran.out
        assert "road: 1500 pixels" in ran.out
    image.write_bytes(b"no image any more")
    ran = cli("annotation", "info", f"{image}.isdnet")
    assert (ran.code, "note" in ran.out) == (0, False)


@pytest.mark.parametrize("ending", [".tif", ".ome.tif", ".ome.zarr", ".png"])
def test_label_files_come_back_as_they_went(
    cli: Runner, image: Path, outlines: Path, tmp_path: Path, ending: str
) -> None:
    assert cli("annotation", "import", image, outlines).code == 0
    written = tmp_path / f"labels{ending}"
    ran = cli("annotation", "export", image, "--output", written, "--json")
    assert ran.code == 0, ran.err
    source, classes = open_labels(written)
    labels = source.read(Window.whole(SHAPE))[..., 0]
    source.close()
    assert (labels == 0).sum() == 1500
    assert (labels[20:50, 10:60] == 0).all()
    assert (labels == 255).sum() == labels.size - 1504
    if classes is not None:  # a plain PNG does not name them
        assert [c.name for c in classes] == ["road", "imported"]
    # into the annotation of another image, which takes the file's classes where it names them; found to be a mask
    other = tmp_path / "other.png"
    Image.fromarray(np.zeros((*SHAPE, 3), np.uint8)).save(other)
    more = [] if classes is not None else ["--classes", tmp_path / "names.txt"]
    (tmp_path / "names.txt").write_text("road\nimported\n")
    again = cli("annotation", "import", other, written, "--json", *more)
    assert again.code == 0, again.err
    assert again.json["pixels"] == {"road": 1500, "imported": 4}


def test_values_with_0_for_unlabelled(cli: Runner, image: Path, outlines: Path, tmp_path: Path) -> None:
    assert cli("annotation", "import", image, outlines).code == 0
    written = tmp_path / "values.ome.tif"
    assert cli("annotation", "export", image, "-o", written, "--values", "annotation").code == 0
    values = tifffile.imread(written)
    assert (values == 1).sum() == 1500
    assert (values == 0).sum() == values.size - 1504


def test_the_help_of_an_export_says_where_0_for_unlabelled_goes(cli: Runner) -> None:
    assert "*.tif and *.ome.tif only" in " ".join(cli("annotation", "export", "--help").out.replace("│", " ").split())


def test_places_are_unsure_and_far_from_what_is_painted(cli: Runner, image: Path, tmp_path: Path) -> None:
    unsure = np.zeros(SHAPE, np.uint8)
    unsure[300:400, 500:600] = 254
    tifffile.imwrite(tmp_path / "land_uncertainty.tif", unsure, tile=(256, 256))
    arguments = ("annotation", "suggest", image, "--window", 100, "--count", 3)
    guided = (*arguments, "--uncertainty", tmp_path / "land_uncertainty.tif", "--json")
    found = cli(*guided, "--hardest").json["places"]
    assert (found[0]["row"], found[0]["column"], found[0]["uncertainty"]) == (300, 500, 1.0)
    assert found[1]["uncertainty"] == 0.0
    assert cli(*guided).json["places"][0]["uncertainty"] == 0.0  # nothing is painted: an ordinary place
    # nothing was made by asking; with a stroke at the corner, the first place is far from it
    assert not Path(f"{image}.isdnet").exists()
    with Project.open(image, ["road"]) as project:
        from napari_isdnet.annotation.strokes import Brush

        project.store.paint(Brush([(20.0, 20.0)], 5.0), 0)
        project.store.flush()
    output = tmp_path / "places.geojson"
    ran = cli(*arguments, "--output", output)
    assert ran.code == 0, ran.err
    assert "uncertainty" not in ran.out
    first, *others = json.loads(output.read_text())["features"]
    assert len(others) == 2
    assert first["properties"]["classification"]["name"] == "place 1"
    columns, rows = zip(*first["geometry"]["coordinates"][0])
    assert min(columns) >= 400 or min(rows) >= 400
    assert cli(*arguments, "--output", output).code == 1
    assert cli(*arguments, "--output", output, "--overwrite", "--map").code == 0
    columns, rows = zip(*json.loads(output.read_text())["features"][0]["geometry"]["coordinates"][0])
    assert min(columns) >= 500000
    assert max(rows) <= 4000000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("info", "{image}"), "Nothing is annotated yet"),
        (("export", "{image}", "-o", "{folder}/a.tif"), "Nothing is annotated yet"),
        (("import", "{image}", "{folder}/none.geojson"), "none.geojson does not exist; give a file of outlines"),
        (("import", "{image}", "{folder}/small.png"), "needs 600 x 700"),
        (("import", "{image}", "{folder}/roads.gpkg"), "roads.gpkg cannot be read (not recognized"),
        (("export", "{plain}", "-o", "{folder}/a.txt"), "'a.txt' must end with one of .geojson"),
        (("export", "{plain}", "-o", "{folder}/a.geojson", "--map"), "has no position on the earth"),
        (("export", "{plain}", "-o", "{folder}/a.geojson", "--values", "annotation"), "Outlines carry class names"),
        (
            ("export", "{plain}", "-o", "{folder}/a.png", "--values", "annotation"),
            "only, got 'a.png'; use --values mask.",
        ),
        (("suggest", "{plain}", "--map"), "has no position on the earth"),
        (("suggest", "{image}", "--uncertainty", "{folder}/small.png"), "give the map of the same image"),
        (("suggest", "{folder}/nothing.tif"), "nothing.tif"),
    ],
)
def test_what_cannot_be_done_is_said(
    cli: Runner, image: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    plain = tmp_path / "plain.png"
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(plain)
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / "small.png")
    (tmp_path / "roads.gpkg").write_bytes(b"SQLite format 3\0")
    Project.open(plain, ["road"]).close()
    ran = cli("annotation", *(a.format(image=image, plain=plain, folder=tmp_path) for a in arguments))
    assert ran.code == 1
    assert ran.err.strip().splitlines()[-1].startswith("Error: ")
    assert said in ran.err


def test_a_label_file_goes_to_the_classes_of_its_names(cli: Runner, tmp_path: Path) -> None:
    image, labels, names = tmp_path / "land.png", tmp_path / "plain.png", tmp_path / "names.txt"
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(image)
    values = np.full((64, 64), 255, np.uint8)
    values[:10], values[10:15] = 0, 1
    Image.fromarray(values).save(labels)
    names.write_text("road\nroof\n")
    Project.open(image, ["roof", "water", "road"]).close()
    ran = cli("annotation", "import", image, labels, "--classes", names, "--json")
    assert ran.json["pixels"] == {"roof": 5 * 64, "water": 0, "road": 10 * 64}
    # without names by index
    ran = cli("annotation", "import", image, labels, "--json")
    assert ran.json["pixels"] == {"roof": 10 * 64, "water": 5 * 64, "road": 0}


def test_an_import_that_fails_leaves_no_project(cli: Runner, image: Path, tmp_path: Path) -> None:
    ring = [[13.01, 52.01], [13.02, 52.01], [13.02, 52.02], [13.01, 52.01]]
    degrees, half = tmp_path / "degrees.geojson", tmp_path / "half.tif"
    degrees.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    labels = np.ones(SHAPE, np.uint8)
    labels[:300] = 0
    tifffile.imwrite(half, labels)
    (tmp_path / "names.txt").write_text("road\n")
    classes = ("--classes", tmp_path / "names.txt")
    for file, said in (
        (degrees, "look like longitude and latitude of another place"),
        (half, "add --values mask (0 is the first"),
    ):
        ran = cli("annotation", "import", image, file, *classes)
        assert ran.code == 1
        assert ran.err.strip().splitlines()[-1].startswith("Error: ")
        assert said in ran.err
        assert not Path(f"{image}.isdnet").exists()
    # one that was there stays as it is
    Project.open(image, ["road"]).close()
    assert cli("annotation", "import", image, degrees).code == 1
    assert [c["name"] for c in cli("annotation", "info", image, "--json").json["classes"]] == ["road"]
