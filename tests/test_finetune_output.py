"""What a fine-tuning writes and what it never clears; forced weights; a pause is no work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from napari_isdnet_training import worker
from napari_isdnet_training.finetune import checkpoint_folder, finetune
from napari_isdnet_training.judging import Guard
from napari_isdnet_training.tuning import Tuning

from napari_isdnet.annotation.project import Project
from napari_isdnet.annotation.strokes import Rectangle
from napari_isdnet.exceptions import InputError
from napari_isdnet.progress import Progress
from napari_isdnet.window import Window
from tests.benchmark_tools import drain
from tests.finetune_tools import CLASSES, TINY, network, paint, scene


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return scene(tmp_path / "scene.tif")


@pytest.fixture
def project(image: Path, tmp_path: Path) -> Iterator[Project]:
    with Project.open(image, CLASSES, folder=tmp_path / "p.isdnet") as project:
        paint(project.store)
        yield project


def test_a_folder_that_is_no_unfinished_run_is_never_cleared(image: Path, project: Project, tmp_path: Path) -> None:
    output, model = tmp_path / "m.safetensors", network(tmp_path / "model.safetensors")
    folder = checkpoint_folder(output)
    folder.mkdir()
    (folder / "precious.txt").write_text("mine")
    for resume in (True, False):
        with pytest.raises(InputError, match=r"m\.ckpt would hold the unfinished run of m\.safetensors"):
            next(finetune(image, project.store, model, output=output, resume=resume, **TINY))
    assert (folder / "precious.txt").read_text() == "mine"
    (folder / "precious.txt").unlink()
    output.write_text("a finished model")
    with pytest.raises(InputError, match="exists already"):  # an empty folder is no reason to write over it
        next(finetune(image, project.store, model, output=output, **TINY))
    assert output.read_text() == "a finished model"
    folder.rmdir()
    folder.write_text("a file")
    with pytest.raises(InputError, match="is something else"):
        next(finetune(image, project.store, model, output=output, overwrite=True, **TINY))


def test_forced_weights_are_the_last_also_where_earlier_ones_were_taken(
    image: Path, project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judgements = iter([True, False])
    monkeypatch.setattr(Guard, "takes", lambda guard, counts: next(judgements))
    monkeypatch.setattr(Tuning, "_due", lambda run: 0 < run.state.step != run.state.validated)
    options: dict[str, Any] = {**TINY, "steps": 2, "allow_worse": True}
    shown: list[Progress] = []
    output, model = tmp_path / "m.safetensors", network(tmp_path / "model.safetensors")
    result = drain(finetune(image, project.store, model, output=output, **options), shown)
    assert [p.figures["taken"] for p in shown if "taken" in p.figures] == [1, 0]
    assert (result.steps, result.best_step) == (2, 2)
    last = [p.figures for p in shown if "taken" in p.figures][-1]
    assert result.after == {k: v for k, v in last.items() if k != "taken"}
    assert output.is_file()


def test_a_pause_is_no_work_for_the_next_forecast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [10.0]
    monkeypatch.setattr(worker.time, "monotonic", lambda: now[0])
    watch = worker._Watch(tmp_path / "m.safetensors")
    for _ in range(3):
        now[0] += 2
        watch.news(Progress(1, 9, "train"))
        now[0] += 500  # paused
        watch.go_on()
    assert watch._seconds == 6


def test_a_class_that_was_added_is_told_and_no_damage(image: Path, project: Project, tmp_path: Path) -> None:
    output, model = tmp_path / "m.safetensors", network(tmp_path / "model.safetensors")
    steps = finetune(image, project.store, model, output=output, **TINY)
    next(steps), next(steps)
    steps.close()
    project.store.paint(Rectangle(Window(0, 0, 40, 40)), project.store.add_class("yellow"))
    with pytest.raises(InputError, match="holds an unfinished run, but the annotations changed"):
        next(finetune(image, project.store, model, output=output, **TINY))
