from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pytest

from napari_isdnet.annotation import project as module
from napari_isdnet.annotation.project import Project, project_folder
from napari_isdnet.annotation.strokes import Brush
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.open import open_source


@pytest.fixture
def image(tmp_path):
    import tifffile

    path = tmp_path / "scene.tif"
    tifffile.imwrite(path, np.zeros((600, 700, 3), np.uint8), photometric="rgb")
    return path


def test_lies_beside_the_image_and_is_found_again(image):
    with Project.open(image, classes=["a", "b"]) as project:
        assert project.folder == image.with_name("scene.tif.isdnet")
        project.store.paint(Brush([(100, 100)], 20), 1)
    for way_in in (
        image,
        str(image),
        image.with_name("scene.tif.isdnet"),
        image.parent / "scene.tif.isdnet/annotations.zarr",
    ):
        with Project.open(way_in) as project:
            assert project.store.class_counts() == (0, 1257)
            assert project.store.name == "scene.tif"


def test_lies_in_the_cache_when_the_image_is_read_only_or_has_no_file(image, tmp_path, monkeypatch):
    monkeypatch.setenv("NAPARI_ISDNET_CACHE", str(tmp_path / "cache"))
    with Project.open(open_source(np.zeros((50, 60), np.uint8), name="tile"), classes=["a"]) as project:
        assert (tmp_path / "cache") in project.folder.parents
        assert project.store.shape == (50, 60)
    monkeypatch.setattr(module, "_can_write", lambda folder: False)
    with Project.open(image, classes=["a"]) as project:
        first = project.folder
        assert (tmp_path / "cache" / "projects") == first.parent
        assert first.name.startswith("scene.tif-")
    with Project.open(image) as project:
        assert project.folder == first


def test_history_of_models(image, tmp_path):
    file = tmp_path / "trained.safetensors"
    file.write_bytes(b"weights")
    with Project.open(image, classes=["a", "b"]) as project:
        assert (project.history(), project.current) == ([], None)
        project.store.paint(Brush([(100, 100)], 20), 1)
        first = project.add_model(file, name="from scratch", figures={"miou": 0.5})
        project.store.paint(Brush([(200, 100)], 20), 0)
        second = project.add_model(lambda path: path.write_bytes(b"better"), figures={"miou": 0.6})
        assert (first.id, first.parent, first.position) == ("m001", None, 1)
        assert (second.id, second.parent, second.position) == ("m002", "m001", 2)
        assert second.annotation == project.store.journal.last_id
        project.set_current("m001")
    with Project.open(image) as project:
        assert project.current == "m001"
        assert [(m.name, m.figures["miou"]) for m in project.history()] == [("from scratch", 0.5), ("m002", 0.6)]
        assert project.model_path("m002").read_bytes() == b"better"
        assert project.add_model(file).parent == "m001"
        with pytest.raises(InputError, match="no model 'm009'; it has m001, m002, m003"):
            project.set_current("m009")


def test_a_model_that_cannot_be_written_leaves_no_trace(image):
    with Project.open(image, classes=["a"]) as project:

        def full(path):
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")

        with pytest.raises(InputError, match="nothing was added"):
            project.add_model(full)
        assert project.history() == []
        assert list((project.folder / "models").iterdir()) == []


def said_of(image):
    with closing(open_source(image)) as source, Project.open(source) as project:
        return project.other_image(source)


def test_another_image_in_its_place_is_noticed(image):
    import tifffile

    def write(shade, **options):
        pixels = np.full((600, 700, 3), shade, np.uint8)
        tifffile.imwrite(image, pixels, photometric="rgb", metadata=None, **options)

    write(0)
    size = image.stat().st_size
    with Project.open(image, classes=["a"]):
        pass
    assert said_of(image) == ""
    write(0)  # at another time
    assert said_of(image) == ""
    write(1)
    assert image.stat().st_size == size
    assert said_of(image).startswith("'scene' is not the image that this annotation was begun on")
    write(0, compression="deflate")
    assert said_of(image) != ""
    tifffile.imwrite(image, np.zeros((300, 700, 3), np.uint8), photometric="rgb")
    with pytest.raises(InputError, match="belongs to an image of 600 x 700 pixels, scene has 300 x 700"):
        Project.open(image)
    with Project.open(image.with_name("scene.tif.isdnet")) as project:  # the refusal let go of the lock
        assert project.store.shape == (600, 700)


def test_an_image_that_moves_with_its_project_is_the_same(image, tmp_path):
    with Project.open(image, classes=["a"]) as project:
        folder = project.folder
    place = tmp_path / "elsewhere" / image.name
    place.parent.mkdir()
    shutil.copy(image, place)
    folder.rename(place.with_name(folder.name))
    assert said_of(place) == ""


def test_a_second_process_gets_one_sentence(image):
    code = "import sys; from napari_isdnet.annotation.project import Project; Project.open(sys.argv[1])"
    with Project.open(image, classes=["a"]) as project:
        other = subprocess.run([sys.executable, "-c", code, str(image)], capture_output=True, text=True, check=False)
        assert other.returncode == 1
        assert (
            other.stderr.strip()
            .splitlines()[-1]
            .startswith(
                f"napari_isdnet.exceptions.InputError: {project.folder} is open in another window or process (process"
            )
        )


def test_read_only_changes_nothing(image):
    with Project.open(image, classes=["a"]) as project:
        project.store.paint(Brush([(100, 100)], 20), 0)
        folder = project.folder
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    with Project.open(image, read_only=True) as project:
        assert project.store.class_counts() == (1257,)
        with pytest.raises(InputError, match="read-only"):
            project.set_current(None)
        with pytest.raises(InputError, match="read-only"):
            project.add_model(lambda path: path.write_bytes(b""))
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("content", "message"), [("{", "cannot be read"), (json.dumps({"format": 9}), "has format 9, this version reads 1")]
)
def test_a_damaged_project_file_is_named(image, content, message):
    with Project.open(image, classes=["a"]) as project:
        file = project.folder / "project.json"
    file.write_text(content)
    with pytest.raises(InputError, match=message):
        Project.open(image)


def test_what_is_no_image_is_named(tmp_path):
    with pytest.raises(InputError, match="holds no project"):
        Project.open(tmp_path / "x.isdnet")
    with pytest.raises(InputError, match="image file or source"):
        Project.open(7)


def test_a_model_is_taken_in_while_others_are_chosen(image, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    with Project.open(image, ["a", "b"]) as project:
        errors = []

        def work(step):
            try:
                for _ in range(30):
                    step()
            except Exception as error:
                errors.append(error)

        steps = (
            lambda: project.add_model(tmp_path / "model.safetensors"),
            lambda: project.set_current(None),
        )
        threads = [threading.Thread(target=work, args=(step,)) for step in steps]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        kept = [entry.id for entry in project.history()]
    assert kept == [f"m{n:03d}" for n in range(1, 31)]
    with Project.open(image) as again:
        assert [entry.id for entry in again.history()] == kept
        assert sorted(p.name for p in (again.folder / "models").iterdir()) == [f"{k}.safetensors" for k in kept]


def test_two_threads_that_ask_for_a_place_both_get_the_one_beside_the_image(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        places = list(pool.map(lambda _: project_folder(tmp_path / "scene.tif", {}), range(2000)))
    assert set(places) == {tmp_path / "scene.tif.isdnet"}


def test_a_thread_does_not_wait_for_a_file_that_another_tries_a_folder_with(tmp_path, monkeypatch):
    """On Windows a file that is open is not removed."""
    remove, both, asked = os.unlink, threading.Barrier(2), []

    def unlink(path, *_, **__):
        asked.append(str(path))
        both.wait(10)
        if asked.count(str(path)) > 1:
            raise PermissionError(13, "used by another process")
        remove(path)

    monkeypatch.setattr(os, "unlink", unlink)
    with ThreadPoolExecutor(2) as pool:
        places = list(pool.map(lambda _: project_folder(tmp_path / "scene.tif", {}), range(2)))
    assert set(places) == {tmp_path / "scene.tif.isdnet"}
    assert list(tmp_path.iterdir()) == []
