"""A new run of the Fine-tune dock takes the place of one that was cut off, but only once all of it is there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("qtpy")  # the package of widgets needs it, what is tested here does not

from napari_isdnet.annotation.lock import FolderLock
from napari_isdnet.annotation.project import Project
from napari_isdnet.annotation.strokes import Brush
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.array import ArraySource
from napari_isdnet.widgets import _finetune_job as jobs
from napari_isdnet.widgets._finetune_controller import TuneController
from napari_isdnet.widgets._finetune_job import TuneSettings

SETTINGS, IMAGE = TuneSettings("fields"), {"image": "scene.tif"}


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    source = ArraySource([np.zeros((600, 600, 3), np.uint8)], "scene", rgb=True)
    with Project.open(source, ("a", "b"), folder=tmp_path / "scene.isdnet") as opened:
        for index in range(2):
            opened.store.paint(Brush([(100.0 + 300 * index, 100.0), (100.0 + 300 * index, 400.0)], 9), index)
        yield opened


def run_of(project: Project) -> Any:
    found = jobs.unfinished_job(project)
    return None if found is None else found[0]["run"]


def test_a_new_run_lies_where_its_job_says(project: Project) -> None:
    folder = jobs.folder_of(project)
    first = jobs.begin(project, SETTINGS, IMAGE)
    (folder / jobs.OUTPUT).write_bytes(b"weights")
    pixels = np.ones((4, 5, 3), np.uint8)
    second = jobs.begin(project, SETTINGS, {}, pixels)
    assert run_of(project) == second["run"] != first["run"]
    assert np.array_equal(np.load(second["image"]), pixels)
    assert sorted(os.listdir(folder)) == sorted([jobs.JOB, jobs.SNAPSHOT, jobs.PIXELS])
    assert all(Path(second[key]).parent == folder for key in ("image", "annotations", "output"))
    assert os.listdir(folder.parent) == ["tuning"]


@pytest.mark.parametrize("why", ["pixels", "disk", "held"])
def test_a_run_that_cannot_begin_leaves_the_one_before_to_resume(project: Project, why: str, monkeypatch: Any) -> None:
    folder = jobs.folder_of(project)
    before = jobs.begin(project, SETTINGS, IMAGE)
    (folder / jobs.OUTPUT).write_bytes(b"weights")

    def full(*_: Any) -> Any:
        raise InputError("The disk is full.")

    held = FolderLock(folder) if why == "held" else None
    if why == "disk":
        monkeypatch.setattr(jobs, "write_atomic", full)
    with pytest.raises(InputError):
        jobs.begin(project, SETTINGS, IMAGE, None if why != "pixels" else [[1]])
    if held is not None:
        held.release()
    assert run_of(project) == before["run"]
    assert (folder / jobs.OUTPUT).read_bytes() == b"weights"
    assert os.listdir(folder.parent) == ["tuning"]


def test_what_is_still_being_painted_is_waited_for_or_nothing_begins(project: Project) -> None:
    controller = TuneController()
    controller.project = project
    asked: list[float] = []
    steps = controller.train(SETTINGS, IMAGE, None, lambda seconds: asked.append(seconds) is not None)
    next(steps)
    with pytest.raises(InputError, match="is not saved yet; try again in a moment"):
        next(steps)
    assert asked == [30.0]
    assert run_of(project) is None
