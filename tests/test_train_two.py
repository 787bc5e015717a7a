"""Two at once in one place: the second run, fine-tuning or benchmark gets one sentence, the first loses nothing."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from lightning.fabric import Fabric
from napari_isdnet_training import fit as runs
from napari_isdnet_training.benchmark.ablation import ablation
from napari_isdnet_training.benchmark.features import features
from napari_isdnet_training.benchmark.loop import LoopOptions, loop
from napari_isdnet_training.benchmark.speed import SpeedOptions, speed
from napari_isdnet_training.benchmark.table import table
from napari_isdnet_training.finetune import finetune
from napari_isdnet_training.fit import fit

from napari_isdnet.exceptions import InputError
from napari_isdnet.io.lock import alone
from tests.test_train_fit import drain, make_data, tiny
from tests.test_train_resume import plain, validations


@pytest.mark.parametrize("resume", [True, False])
def test_a_second_training_in_a_folder_is_refused(tmp_path: Path, resume: bool) -> None:
    recipe, output = tiny(make_data(tmp_path / "data"), steps=4, validate_every=2), tmp_path / "run"
    first = fit(recipe, output, network=plain())
    next(first)
    with pytest.raises(InputError, match=r"run is being written by process \d+ .*give another --output"):
        next(fit(recipe, output, network=plain(), resume=resume))
    drain(first)
    assert validations(output) == ["2", "4"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "run"]
    assert not (output / ".lock").exists()
    drain(fit(recipe, output, network=plain(), resume=resume))  # given back


def test_several_processes_are_not_started_where_another_run_writes_or_has_just_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would wait for the first one, which has ended, or end themselves while it waits for them."""
    monkeypatch.setattr(Fabric, "launch", lambda _: pytest.fail("processes were started"))
    root, output = make_data(tmp_path / "data"), tmp_path / "run"
    recipe = tiny(root, steps=1, devices=2, accelerator="cpu")
    with alone(output, folder=True), pytest.raises(InputError, match="is being written by process"):
        next(fit(recipe, output, network=plain()))
    answers = iter([None, "a result"])
    monkeypatch.setattr(runs, "finished", lambda *_: next(answers))
    with pytest.raises(InputError, match="was finished by another process just now"):
        next(fit(recipe, output, network=plain()))


@pytest.mark.skipif(sys.platform == "win32", reason="rights of folders are others there")
def test_a_training_writes_nothing_beside_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, output = tiny(make_data(tmp_path / "data"), steps=1), tmp_path / "closed" / "run"
    output.mkdir(parents=True)
    made: list[str] = []
    opened = os.open

    def watch(file: Any, *args: Any, **kwargs: Any) -> int:
        made.append(os.fspath(file))
        return opened(file, *args, **kwargs)

    monkeypatch.setattr(os, "open", watch)
    drain(fit(recipe, output, network=plain()))
    beside = [file for file in made if Path(file).parent == output.parent]
    assert beside == []
    assert str(output / ".lock") in made


def test_a_second_fine_tuning_of_a_file_is_refused(tmp_path: Path) -> None:
    output = tmp_path / "out.safetensors"
    with alone(output), pytest.raises(InputError, match=r"out\.safetensors is being written by process"):
        next(finetune(tmp_path / "scene.png", tmp_path / "scene.isdnet", output=output))


STEPS: dict[str, Any] = {
    "ablation": lambda output: ablation(None, output, (6,), 1, 1, None, []),  # type: ignore[arg-type]
    "table": lambda output: table(None, output, [], 1, 1, None, [], False),  # type: ignore[arg-type]
    "features": lambda output: features(None, "x", output, [1], 3, 1, []),  # type: ignore[arg-type]
    "loop": lambda output: loop(output, output, output, None, LoopOptions(), None, []),
    "speed": lambda output: speed([], SpeedOptions(), (), output),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_second_benchmark_of_a_file_is_refused(tmp_path: Path, name: str) -> None:
    output = tmp_path / "out.csv"
    with alone(output), pytest.raises(InputError, match=r"out\.csv is being written by process"):
        next(STEPS[name](output))
