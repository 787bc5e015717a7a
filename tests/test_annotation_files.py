"""Annotations and files that are not as one hopes: masks that may be two things, shapes that spoil a file, targets
that must stay, a project in the cache, damage, another program that paints."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from napari_isdnet import cli_painted
from napari_isdnet.annotation import moment
from napari_isdnet.annotation import project as projects
from napari_isdnet.annotation.chunks import REPAIR, ChunkCache
from napari_isdnet.annotation.exchange import IndexView
from napari_isdnet.annotation.layout import STATE
from napari_isdnet.annotation.outlines import import_outlines
from napari_isdnet.annotation.project import Project
from napari_isdnet.annotation.store import AnnotationStore
from napari_isdnet.annotation.strokes import Rectangle
from napari_isdnet.annotation.undo import Before, UndoArea
from napari_isdnet.exceptions import InputError
from napari_isdnet.progress import result_of
from napari_isdnet.window import Window
from tests.cli_tools import Runner

SIDE = 300


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    Image.fromarray(np.zeros((SIDE, SIDE, 3), np.uint8)).save(path)
    return path


def square(name: Any = "tree", at: int = 10, side: int = 50, **classification: Any) -> dict[str, Any]:
    ring = [[at, at], [at + side, at], [at + side, at + side], [at, at + side], [at, at]]
    found = {"classification": {"name": name, **classification}}
    return {"type": "Feature", "properties": found, "geometry": {"type": "Polygon", "coordinates": [ring]}}


def written(path: Path, *features: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"type": "FeatureCollection", "features": list(features)}))
    return path


def mask(path: Path, **rows: int) -> Path:
    """A label image of zeros but for ``rows`` (``_10`` is value 10) at the top, in that order."""
    values, top = np.zeros((SIDE, SIDE), np.uint8), 0
    for name, count in rows.items():
        values[top : top + count] = int(name[1:])
        top += count
    Image.fromarray(values).save(path)
    return path


# -- what a mask means ------------------------------------------------------------------------------------------------


def test_a_mask_that_may_be_either_is_asked_about_where_its_classes_are_given(
    cli: Runner, image: Path, tmp_path: Path
) -> None:
    names = tmp_path / "classes.txt"
    names.write_text("land\nbuilding\nroad\n")
    labels = mask(tmp_path / "m.png", _1=50, _2=50)
    ran = cli("annotation", "import", image, labels, "--classes", names)
    assert ran.code == 1
    assert "add --values mask (0 is the first class) or --values annotation" in ran.err
    ran = cli("annotation", "import", image, labels, "--classes", names, "--values", "mask", "--json")
    assert ran.json["pixels"] == {"land": 200 * SIDE, "building": 50 * SIDE, "road": 50 * SIDE}


def test_black_and_white_is_asked_about_and_what_was_found_is_said(cli: Runner, image: Path, tmp_path: Path) -> None:
    names = tmp_path / "classes.txt"
    names.write_text("building\nland\nroad\n")
    ran = cli("annotation", "import", image, mask(tmp_path / "b.png", _255=100), "--classes", names)
    assert ran.code == 1
    assert "holds only 0 and 255" in ran.err
    labels = mask(tmp_path / "m.png", _255=250, _1=10, _2=10)
    ran = cli("annotation", "import", image, labels, "--classes", names, "--json")
    assert ran.json["note"] == "m was read as class indices (0 is the first class, 255 unlabelled)."
    assert ran.json["pixels"] == {"building": 30 * SIDE, "land": 10 * SIDE, "road": 10 * SIDE}


def test_without_classes_a_label_image_asks_for_their_names(cli: Runner, image: Path, tmp_path: Path) -> None:
    labels = mask(tmp_path / "m.png", _1=200, _2=50)
    for values in ("mask", "annotation"):
        ran = cli("annotation", "import", image, labels, "--values", values)
        assert "does not name its classes; give them (--classes FILE" in ran.err
    Project.open(image).close()
    ran = cli("annotation", "export", image, "-o", tmp_path / "out.png")
    assert "Nothing is painted yet, and there are no classes" in ran.err


# -- shapes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("color", [[300, 0, 0], [1e999, 0, 0], "red?", [1, 2], {"r": 1}])
def test_a_colour_that_is_none_spoils_no_import(image: Path, tmp_path: Path, color: Any) -> None:
    path = written(tmp_path / "g.json", square(color=[10, 200, 30]), square("house", 100, color=color))
    with Project.open(image) as project:
        result_of(import_outlines(project.store, path))
        assert [c.name for c in project.store.classes] == ["tree", "house"]
        assert project.store.classes[0].color == (10, 200, 30)
        assert project.store.class_counts() == (2500, 2500)


def test_an_empty_number_for_a_colour_and_a_blank_name(image: Path, tmp_path: Path) -> None:
    blank = square(" ", 100)
    blank["properties"]["name"] = "house"
    path = written(tmp_path / "g.json", square(colorRGB=None), square("pond", 200, colorRGB=-16711936), blank)
    with Project.open(image) as project:
        result_of(import_outlines(project.store, path))
        assert [(c.name, n) for c, n in zip(project.store.classes, project.store.class_counts(), strict=True)] == [
            ("tree", 2500), ("pond", 2500), ("house", 2500),
        ]  # fmt: skip
        assert project.store.classes[1].color == (0, 255, 0)


def test_too_many_classes_are_refused_before_a_shape_is_painted(image: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "g.json", *[square(f"class {k}", side=3) for k in range(300)])
    with Project.open(image) as project:
        with pytest.raises(InputError, match="would add 300 classes to the 0 of the annotation; 254 are allowed"):
            result_of(import_outlines(project.store, path))
        assert not project.store.classes


def test_an_import_of_many_shapes_is_one_step_that_can_be_undone(tmp_path: Path) -> None:
    with AnnotationStore.create(tmp_path / "s.isdnet", (SIDE, SIDE), ["cell"]) as store:
        store._undo.records = 10
        store.paint(Rectangle(Window(200, 200, 10, 10)), 0)
        with store.group():
            for k in range(40):
                store.paint(Rectangle(Window(4 * (k // 8), 4 * (k % 8), 3, 3)), 0)
                if k % 7 == 0:
                    store.flush()
        store.flush()
        assert store.class_counts() == (100 + 360,)
        assert store.can_undo
        store.undo()
        assert store.class_counts() == (100,)
        store.undo()
        assert store.class_counts() == (0,)


def test_steps_and_not_records_are_counted(tmp_path: Path) -> None:
    area = UndoArea(tmp_path, records=2, size=1000, step=lambda n: n // 10)
    assert area.trimmed(dict.fromkeys(range(10, 40), 1)) == set(range(10, 20))
    assert area.trimmed(dict.fromkeys(range(10, 30), 100)) == set(range(10, 20))  # by size
    area.add(1, Before({}))
    assert 1 in area


# -- where a project is -----------------------------------------------------------------------------------------------


def test_a_project_in_the_cache_is_found_again_once_the_folder_can_be_written(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projects, "cache_folder", lambda: tmp_path / "cache")
    with monkeypatch.context() as patched:
        patched.setattr(projects, "_can_write", lambda folder: False)
        with Project.open(image, ["tree"]) as project:
            project.store.paint(Rectangle(Window(0, 0, 50, 50)), 0)
            folder = project.folder
    assert tmp_path / "cache" in folder.parents
    with Project.open(image) as project:
        assert project.folder == folder
        assert project.store.class_counts() == (2500,)
    shutil.rmtree(folder)
    with Project.open(image, ["tree"]) as project:
        assert project.folder == image.with_name("a.png.isdnet")


@pytest.mark.skipif(sys.platform != "linux", reason="names that are no text")
def test_an_image_whose_name_is_no_text_can_be_annotated(image: Path, cli: Runner, tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(str(tmp_path)) + b"/bad\xff.png"))
    shutil.copy(image, odd)
    ran = cli("annotation", "import", odd, written(tmp_path / "g.json", square("Wäldchen")))
    assert ran.code == 0, ran.err
    with Project.open(odd, read_only=True) as project:
        assert [c.name for c in project.store.classes] == ["Wäldchen"]


# -- out --------------------------------------------------------------------------------------------------------------


def test_an_export_never_replaces_the_image_or_the_project(cli: Runner, image: Path, tmp_path: Path) -> None:
    assert cli("annotation", "import", image, written(tmp_path / "g.json", square())).code == 0
    before = image.read_bytes()
    for target, words in (
        (image, "is the image that is annotated"),
        (tmp_path / "a.png.isdnet" / "annotations.zarr", "belongs to the annotation itself"),
        (tmp_path / "a.png.isdnet" / "x.geojson", "belongs to the annotation itself"),
    ):
        ran = cli("annotation", "export", image, "-o", target, "--overwrite")
        assert (ran.code, words in ran.err) == (1, True), ran.err
    assert image.read_bytes() == before
    assert cli("annotation", "export", image, "-o", tmp_path / "ok.png").code == 0


def test_class_names_are_printed_as_they_are(cli: Runner, image: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "g.json", square("low_vegetation"))
    assert "low_vegetation: 2500" in cli("annotation", "import", image, path).out
    assert "low_vegetation: 2500 pixels" in cli("annotation", "info", image).out


def test_what_is_saved_between_the_list_of_chunks_and_the_state_is_exported_too(
    cli: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "tall.png"
    Image.fromarray(np.zeros((600, 40, 3), np.uint8)).save(image)
    with Project.open(image, ["a", "b"]) as project:
        store, real, waiting = project.store, ChunkCache.rescan, [True]
        monkeypatch.setattr(store._saver, "wake", lambda: None)  # nothing is saved but here

        def rescan(cache: ChunkCache) -> None:
            real(cache)
            if waiting:  # the other program has listed the chunks, and has not read the state
                waiting.pop()
                store.flush()

        monkeypatch.setattr(ChunkCache, "rescan", rescan)
        store.paint(Rectangle(Window(0, 0, 10, 10)), 0)
        assert cli("annotation", "export", image, "-o", tmp_path / "out.geojson").code == 0
        shapes = json.loads((tmp_path / "out.geojson").read_text())["features"]
        assert [f["properties"]["classification"]["name"] for f in shapes] == ["a"]
        waiting.append(True)
        store.paint(Rectangle(Window(550, 0, 10, 10)), 1)
        facts = cli("annotation", "info", image, "--json").json
        assert not waiting
        assert [c["pixels"] for c in facts["classes"]] == [100, 100]


def test_an_export_beside_a_program_that_paints_is_of_one_moment(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Project.open(image, ["a", "b", "c"]) as project:
        project.store.paint(Rectangle(Window(0, 0, 100, SIDE)), 1)
        project.store.paint(Rectangle(Window(100, 0, 100, SIDE)), 2)
        project.store.flush()
        export, times = cli_painted.drive, []

        def meddling(steps: Any, *rest: Any) -> Any:
            times.append(1)
            if len(times) == 1:  # napari removes a class between the opening and the reading
                project.store.remove_class(0)
                project.store.flush()
            return export(steps, *rest)

        monkeypatch.setattr(cli_painted, "drive", meddling)
        facts = cli_painted.take_out(image, tmp_path / "out.png", "mask", False, False)
        assert len(times) == 2
        assert facts["pixels"] == 200 * SIDE
        values = np.asarray(Image.open(tmp_path / "out.png"))
        assert (values[0, 0], values[150, 0], values[250, 0]) == (0, 1, 255)
        np.testing.assert_array_equal(values, IndexView(project.store).read(Window(0, 0, SIDE, SIDE))[..., 0])

        def always(steps: Any, *rest: Any) -> Any:
            project.store.paint(Rectangle(Window(0, len(times), 1, 1)), 0)
            project.store.flush()
            times.append(1)
            return export(steps, *rest)

        monkeypatch.setattr(cli_painted, "drive", always)
        monkeypatch.setattr(moment, "_PAUSE", 0)
        with pytest.raises(InputError, match="faster than it can be exported"):
            cli_painted.take_out(image, tmp_path / "never.png", "mask", False, False)


@pytest.mark.parametrize("damage", ["empty", "gone", "state"])
def test_damage_is_mended_by_the_command_that_the_message_names(
    cli: Runner, image: Path, tmp_path: Path, damage: str
) -> None:
    assert cli("annotation", "import", image, written(tmp_path / "g.json", square())).code == 0
    chunk = tmp_path / "a.png.isdnet" / "annotations.zarr" / "0" / "c" / "0" / "0"
    if damage == "empty":
        chunk.write_bytes(b"")
    else:
        (chunk if damage == "gone" else tmp_path / "a.png.isdnet" / STATE).unlink()
    ran = cli("annotation", "export", image, "-o", tmp_path / "out.png")
    assert ran.code == 1
    assert REPAIR in ran.err
    ran = cli("annotation", "repair", image, "--json")
    assert ran.json["pixels"] == {"tree": 2500}
    assert cli("annotation", "export", f"{image}.isdnet", "-o", tmp_path / "out.png").code == 0
    assert cli("annotation", "repair", f"{image}.isdnet").code == 0
