"""What a fine-tuning writes and what it never clears; forced weights; a pause is no work."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from napari_isdnet_training import worker
from napari_isdnet_training.finetune import checkpoint_folder, finetune
from napari_isdnet_training.judging import Guard
from napari_isdnet_training.state import RunState, read_state, save_state
from napari_isdnet_training.tuning import JUDGED, Tuning
from napari_isdnet_training.unfinished import STATE

from napari_isdnet.annotation.project import Project
from napari_isdnet.annotation.strokes import Rectangle
from napari_isdnet.exceptions import InputError
from napari_isdnet.progress import Progress
from napari_isdnet.window import Window
from tests.benchmark_tools import drain
from tests.finetune_tools import CLASSES, TINY, network, paint, scene

pytestmark = pytest.mark.long  # each trains, or runs a network several times


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


def test_a_run_that_was_refused_is_taken_afterwards_without_training_again(
    image: Path, project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Guard, "takes", lambda guard, counts: False)
    output, model = tmp_path / "m.safetensors", network(tmp_path / "model.safetensors")
    options: dict[str, Any] = {**TINY, "steps": 1, "output": output}
    refused = drain(finetune(image, project.store, model, **options), [])
    assert refused.model is None
    shown: list[Progress] = []
    with monkeypatch.context() as patch:
        patch.setattr(Tuning, "_step", lambda run: pytest.fail("trained again"))
        assert drain(finetune(image, project.store, model, **options), []).to_dict() == refused.to_dict()
        taken = drain(finetune(image, project.store, model, **options, allow_worse=True), shown)
    assert (taken.model, taken.best_step) == (output, 1)
    assert taken.before == refused.before
    assert not checkpoint_folder(output).exists()


def test_a_run_that_was_refused_stands_in_no_ones_way(
    image: Path, project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, model = tmp_path / "m.safetensors", network(tmp_path / "model.safetensors")
    options: dict[str, Any] = {**TINY, "steps": 1, "output": output}
    with monkeypatch.context() as patch:
        patch.setattr(Guard, "takes", lambda guard, counts: False)
        drain(finetune(image, project.store, model, **options), [])
    project.store.paint(Rectangle(Window(0, 0, 40, 40)), 1)  # the other remedy: more places
    output.write_text("a finished model")
    with pytest.raises(InputError, match="exists already"):
        next(finetune(image, project.store, model, **options))
    output.unlink()
    shown: list[Progress] = []
    drain(finetune(image, project.store, model, **options), shown)
    assert [p.done for p in shown if p.stage == "train"] == [1]


def test_a_run_whose_judgement_is_lost_says_so(image: Path, project: Project, tmp_path: Path) -> None:
    output, model = tmp_path / "m.safetensors", network(tmp_path / "model.safetensors")
    steps = finetune(image, project.store, model, output=output, **TINY)
    next(steps), next(steps)
    steps.close()
    (checkpoint_folder(output) / JUDGED).write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"judged\.safetensors.*damaged; start over with --no-resume"):
        next(finetune(image, project.store, model, output=output, **TINY))


def test_a_checkpoint_is_on_the_disk_before_it_takes_the_place_of_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (done.append("sync"), sync(file))[1])
    monkeypatch.setattr(os, "replace", lambda old, new: (done.append("replace"), replace(old, new))[1])
    layer = torch.nn.Linear(2, 2)
    save_state(tmp_path / STATE, RunState(step=3), layer, torch.optim.SGD(layer.parameters()), None)
    assert done == ["sync", "replace"]
    assert read_state(tmp_path / STATE).step == 3


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
    project.store.paint(Rectangle(Window(600, 600, 40, 40)), project.store.add_class("yellow"))
    with pytest.raises(InputError, match="holds an unfinished run, but the annotations changed"):
        next(finetune(image, project.store, model, output=output, **TINY))


def test_a_model_that_the_disk_has_no_room_for_is_one_sentence(
    image: Path, project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, model = tmp_path / "m.safetensors", network(tmp_path / "model.safetensors")
    options: dict[str, Any] = {**TINY, "steps": 1, "held_out": 0.0, "spread": 0, "output": output}

    def full(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes()[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("napari_isdnet_training.tuning.link_or_copy", full)
        with pytest.raises(InputError, match=r"^The disk is full \(writing .*m\.safetensors\); free some space"):
            drain(finetune(image, project.store, model, **options), [])
    assert not list(tmp_path.glob(".*"))
    shown: list[Progress] = []
    assert drain(finetune(image, project.store, model, **options), shown).model == output
    assert shown == []  # nothing is trained again
