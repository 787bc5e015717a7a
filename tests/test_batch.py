"""Queues of images: what is found, what is refused, failures, restarts."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tifffile

from napari_isdnet.engine import batch
from napari_isdnet.engine.batch import BatchQueue, Item, command, find_images
from napari_isdnet.exceptions import AlreadyThere, InputError
from napari_isdnet.io.store import LabelStore
from napari_isdnet.model.checkpoint import save_model
from napari_isdnet.progress import Progress
from napari_isdnet.window import Window
from tests.network_tools import lively, picture, small


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = tmp_path / "images"
    (images / "deeper").mkdir(parents=True)
    for name in ("b.tif", "a.TIF", "deeper/c.tif"):
        tifffile.imwrite(images / name, np.zeros((8, 8), np.uint8))
    (images / "notes.txt").write_text("no image")
    (images / ".hidden.tif").touch()
    (images / "store.ome.zarr").mkdir()
    (images / "store.ome.zarr" / "zarr.json").touch()
    return images


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


def test_images_of_folders_patterns_and_files(folder: Path) -> None:
    assert names(find_images([folder])) == ["a.TIF", "b.tif", "store.ome.zarr"]
    assert names(find_images([f"{folder}/**/*.tif"])) == ["b.tif", "c.tif"]
    assert names(find_images([folder / "b.tif", folder / "b.tif", folder / "store.ome.zarr"])) == [
        "b.tif",
        "store.ome.zarr",
    ]


@pytest.mark.parametrize(("what", "words"), [("nothing", "does not exist"), ("*.jp2", "holds no image")])
def test_what_is_not_there_is_said(folder: Path, what: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        find_images([folder / what])


def test_two_images_of_one_name_are_refused_and_nothing_is_added(tmp_path: Path) -> None:
    queue = BatchQueue(tmp_path)
    queue.add(["/one/x.tif"])
    assert queue.add(["/one/x.tif"]) == []
    with pytest.raises(InputError, match="have one name, 'x'"):
        queue.add(["/one/y.tif", "/two/x.png"])
    assert [item.stem for item in queue.items] == ["x"]


def engine(log: list[str], fail: dict[str, Exception]) -> Any:
    def segment(path: str, model: Any, *, output: Path, **settings: Any) -> Generator[Progress, None, Any]:
        stem = Path(path).stem
        for step in range(1, 5):
            log.append(f"{stem}{step}")
            if step == 3 and stem in fail:
                raise fail[stem]
            yield Progress(step, 4, "write")
        said = [f"{stem} lies nowhere."] if stem == "c" else []
        return SimpleNamespace(outputs={"labels": f"{output}/{stem}.ome.zarr"}, pixels=16, warnings=said)

    return segment


def test_goes_on_after_failures_and_says_them_in_words(tmp_path: Path) -> None:
    queue = BatchQueue(tmp_path / "out", model="lite", settings={"context": "window"})
    queue.add(f"/images/{name}.tif" for name in "abcd")
    queue.skip([3])
    fail: dict[str, Exception] = {"a": InputError("It is broken; mend it."), "b": RuntimeError("bug\nhere")}
    steps = list(queue.run("model", engine([], fail)))
    done = [step.done for step in steps]
    assert done == sorted(done)
    assert done[-1] == 1
    assert {item.stem: item.state for item in queue.items} == {
        "a": "failed", "b": "failed", "c": "done", "d": "skipped",
    }  # fmt: skip
    assert queue.items[0].error == "It is broken; mend it."
    assert queue.items[1].error == "An error of this program: RuntimeError: bug here"
    assert queue.items[2].outputs["labels"].endswith("c.ome.zarr")
    assert queue.items[2].warnings == ["c lies nowhere."]
    assert BatchQueue.open(tmp_path / "out").items == queue.items
    queue.again([2])
    assert not queue.items[2].warnings


def test_closed_in_the_middle_and_killed_it_goes_on(tmp_path: Path) -> None:
    log: list[str] = []
    queue = BatchQueue(tmp_path, model="lite")
    queue.add(["/images/a.tif", "/images/b.tif"])
    steps = queue.run("model", engine(log, {}))
    while log[-1:] != ["b2"]:
        next(steps)
    assert BatchQueue.open(tmp_path).counts()["running"] == 0  # what a killed program leaves behind
    assert json.loads((tmp_path / batch.QUEUE).read_text())["items"][1]["state"] == "running"
    steps.close()
    again = BatchQueue.open(tmp_path)
    assert [item.state for item in again.items] == ["done", "queued"]
    log.clear()
    list(again.run("model", engine(log, {})))
    assert log == ["b1", "b2", "b3", "b4"]


@pytest.mark.parametrize(
    "content", ["{", '{"version": 1}', '{"version": 1, "model": "", "settings": {}, "items": [3]}']
)
def test_a_damaged_queue_is_said_and_a_newer_one(tmp_path: Path, content: str) -> None:
    (tmp_path / batch.QUEUE).write_text(content)
    with pytest.raises(InputError, match="cannot be read"):
        BatchQueue.open(tmp_path)
    (tmp_path / batch.QUEUE).write_text('{"version": 9}')
    with pytest.raises(InputError, match="has version 9"):
        BatchQueue.open(tmp_path)


def test_results_lie_where_the_command_line_puts_them(tmp_path: Path) -> None:
    model = tmp_path / "model.safetensors"
    save_model(lively(small(channels=16)), model)
    for name in ("one", "two"):
        tifffile.imwrite(tmp_path / f"{name}.tif", picture((300, 280), len(name)), photometric="rgb", tile=(128, 128))
    (tmp_path / "bad.tif").write_bytes(b"II*\0 this is no picture")
    out = tmp_path / "out"
    queue = BatchQueue(out, model=str(model), settings={"context": "window", "formats": ["ome-zarr"], "device": "cpu"})
    queue.add(find_images([f"{tmp_path}/*.tif"]))
    list(queue.run())
    assert [item.state for item in queue.items] == ["failed", "done", "done"]
    for name in ("one", "two"):
        labels = LabelStore.open(out / f"{name}.ome.zarr")
        assert labels.read_labels(Window(0, 0, 300, 280)).max() < 5
    assert queue.items[1].pixels == 300 * 280


def test_results_that_exist_are_skipped_not_failed(tmp_path: Path) -> None:
    queue = BatchQueue(tmp_path)
    queue.add(["/images/a.tif"])
    error = AlreadyThere.at("out/a.ome.zarr")
    list(queue.run("model", engine([], {"a": error})))
    assert queue.items[0].state == "skipped"
    queue.again([0])
    assert queue.items[0] == Item("/images/a.tif", "a", seconds=queue.items[0].seconds)


def test_the_same_as_a_command(tmp_path: Path) -> None:
    settings = {"context": "whole", "formats": ["geotiff"], "polygons": True, "dask": "local", "device": "auto"}
    queue = BatchQueue(Path("out"), [Item("/a b.tif", "a b"), Item("/c.tif", "c", "done")], "lite", settings)
    assert command(queue) == (
        "napari-isdnet segment '/a b.tif' --output out --model lite --context whole --format geotiff --polygons"
        " --dask local"
    )


def test_a_queue_is_run_by_one_at_a_time_and_by_none_that_knows_an_old_one(tmp_path: Path) -> None:
    def work(*_: object, **__: object) -> Generator[Progress, None, SimpleNamespace]:
        yield Progress(1, 2, "half")
        return SimpleNamespace()

    BatchQueue(tmp_path, [Item("/a.tif", "a")]).save()
    first, second, third = (BatchQueue.open(tmp_path) for _ in range(3))
    first.add(["/b.tif"])
    steps = first.run("", work)
    next(steps)
    with pytest.raises(InputError, match=r"batch\.json is being written by process"):
        next(second.run("", work))
    assert list(steps)
    assert second.changed
    with pytest.raises(InputError, match="Another window has changed the queue"):
        next(third.run("", work))
    assert [(i.state, i.error) for i in BatchQueue.open(tmp_path).items] == [("done", "")] * 2
    assert not first.changed
    list(first.run("", work))


def test_a_long_queue_costs_little_to_write(tmp_path: Path) -> None:
    """It is written twice an image: step by step in Python it took a tenth of a second for a few thousand."""
    outputs = {"labels": "result.ome.zarr"}
    queue = BatchQueue(tmp_path, [Item(f"{n}.tif", str(n), outputs=outputs) for n in range(500)], "model")
    calls = []
    sys.setprofile(lambda _frame, event, _value: calls.append(1) if event == "call" else None)
    try:
        queue.save()
    finally:
        sys.setprofile(None)
    assert len(calls) < len(queue.items)
    assert BatchQueue.open(tmp_path).items == queue.items
