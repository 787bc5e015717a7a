"""Runs of the Fine-tune dock without a window: the training process, what survives its death, the project's history."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from napari_isdnet_training import worker
from napari_isdnet_training.cli import main
from napari_isdnet_training.finetune import finetune
from safetensors import safe_open
from safetensors.torch import load_file

pytest.importorskip("qtpy")  # the package of widgets needs it, the controller does not

from napari_isdnet.annotation.project import Project
from napari_isdnet.annotation.strokes import Rectangle
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.open import open_source
from napari_isdnet.model.checkpoint import load_model, read_header
from napari_isdnet.progress import result_of
from napari_isdnet.widgets import _finetune_job as jobs
from napari_isdnet.widgets import _finetune_process as processes
from napari_isdnet.widgets._finetune_controller import Annotated, Curves, Outcome, TuneController
from napari_isdnet.widgets._finetune_job import TuneSettings
from napari_isdnet.widgets._finetune_process import TrainingProcess
from napari_isdnet.window import Window
from tests.finetune_tools import CLASSES, TINY, network, paint, scene


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scene(tmp_path_factory.mktemp("scene") / "scene.png")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return network(tmp_path_factory.mktemp("model") / "bare.safetensors")


@pytest.fixture
def controller(picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TuneController]:
    """A controller of a project with strokes."""
    monkeypatch.setenv("NAPARI_ISDNET_CACHE", str(tmp_path / "cache"))
    with Project.open(picture, CLASSES, folder=tmp_path / "scene.isdnet") as project:
        paint(project.store)
    found = TuneController()
    source = open_source(picture)
    assert found.open(source, tmp_path / "scene.isdnet")
    yield found
    found.close()
    source.close()


def settings(model: Path, **changes: Any) -> TuneSettings:
    base = {"model": str(model), "steps": 4, "device": "cpu", "seed": 7, **TINY}
    return TuneSettings(**{**base, **changes})


def train(controller: TuneController, picture: Path, chosen: TuneSettings) -> Generator[Any, None, Outcome]:
    return controller.train(chosen, {"image": str(picture)}, None, lambda _: True)


def drain(controller: TuneController, steps: Generator[Any, None, Outcome]) -> tuple[list[Any], Outcome]:
    told: list[Any] = []

    def show(item: Any) -> None:
        controller.take(item)
        told.append(item)

    return told, result_of(steps, show)


def same(one: Path, two: Path) -> bool:
    a, b = load_file(one), load_file(two)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.long
def test_the_docks_process_the_generator_and_the_copied_command_give_the_same_weights(
    controller: TuneController, picture: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = settings(model)
    told, outcome = drain(controller, train(controller, picture, chosen))
    project = controller.project
    assert project is not None
    assert outcome.entry is not None
    assert outcome.entry.id == project.current == "m001"
    assert outcome.entry.position == project.store.position
    assert any(isinstance(item, dict) and item["kind"] == "improved" for item in told)
    assert [step for step, _ in controller.curves.losses] == [1, 2, 3, 4]
    assert [step for step, _ in controller.curves.scores] == [0, 4]
    assert controller.said.startswith("Step 4: held-out mIoU")
    assert not jobs.folder_of(project).exists()
    threads = torch.get_num_threads()
    torch.set_num_threads(chosen.threads)
    try:
        output = tmp_path / "headless.safetensors"
        for _ in finetune(picture, project.store, chosen.model, output=output, **chosen.options()):
            pass
        assert same(output, project.model_path("m001"))
        assert outcome.result["held_out_after"]["miou"] > outcome.result["held_out_before"]["miou"]
        line = jobs.command(str(picture), project.folder, tmp_path / "shell.safetensors", chosen)
        with pytest.raises(SystemExit) as done:
            main([*shlex.split(line)[1:], "--json"])
        assert done.value.code == 0, capsys.readouterr().err
    finally:
        torch.set_num_threads(threads)
    assert same(tmp_path / "shell.safetensors", output)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_kill_9_of_the_process_loses_nothing_older_than_a_checkpoint(
    controller: TuneController, picture: Path, model: Path, tmp_path: Path
) -> None:
    chosen = settings(model, steps=30)
    steps = train(controller, picture, chosen)
    told = 0
    for item in steps:
        if getattr(item, "stage", "") != "train":
            continue
        told, kept = int(item.done), controller.unfinished()
        if (kept is not None and kept.step) or told >= 20:  # where saving is slow, the first checkpoint is all there is
            assert controller.process is not None
            os.kill(controller.process.pid, signal.SIGKILL)
            break
    with pytest.raises(InputError, match="ended from outside"):
        list(steps)
    state = controller.unfinished()
    assert state is not None
    assert state.step < 30
    assert told
    assert controller.project is not None
    controller.project.store.paint(Rectangle(Window(0, 0, 30, 30)), 1)  # painting went on; the run does not see it
    told, outcome = drain(controller, controller.resume())
    assert outcome.entry is not None
    done = [item.done for item in told if getattr(item, "stage", "") == "train"]
    assert done[0] == state.step + 1
    assert done[-1] == 30
    controller.project.store.undo()
    threads = torch.get_num_threads()
    torch.set_num_threads(chosen.threads)
    try:
        output = tmp_path / "whole.safetensors"
        for _ in finetune(picture, controller.project.store, chosen.model, output=output, **chosen.options()):
            pass
    finally:
        torch.set_num_threads(threads)
    assert same(output, controller.project.model_path("m001"))


@pytest.mark.slow
def test_stop_keeps_the_best_and_the_run_goes_on_later(controller: TuneController, picture: Path, model: Path) -> None:
    steps = train(controller, picture, settings(model, steps=4000, held_out=0.0))
    for item in steps:
        if getattr(item, "stage", "") == "train" and item.done == 3:
            controller.stop()
            break
    outcome = rest(steps)
    assert outcome.stopped
    assert outcome.entry is not None  # nothing is held out, so the last weights are the best
    assert "Resume goes on" in outcome.text
    state = controller.unfinished()
    assert state is not None
    assert 3 <= state.step < 4000
    assert controller.project is not None
    assert load_model(controller.project.model_path(outcome.entry.id)).header is not None


@pytest.mark.slow
def test_closing_in_the_middle_ends_the_process_and_leaves_a_run_to_resume(
    controller: TuneController, picture: Path, model: Path
) -> None:
    steps = train(controller, picture, settings(model, steps=4000))
    process = None
    for item in steps:
        if getattr(item, "stage", "") == "train" and item.done >= 2:
            process = controller.process
            break
    assert process is not None
    steps.close()
    deadline = time.monotonic() + 60
    while process.alive and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not process.alive
    assert controller.unfinished() is not None
    while [t for t in threading.enumerate() if t.name in ("isdnet-view-close", "isdnet-job-reader")]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_run_that_finished_alone_is_taken_into_the_history(
    controller: TuneController, picture: Path, model: Path, tmp_path: Path
) -> None:
    project = controller.project
    assert project is not None
    job = jobs.begin(project, settings(model), {"image": str(picture)})
    Path(job["output"]).write_bytes(model.read_bytes())
    result = {"model": job["output"], "steps": 4, "best_step": 4, "held_out_before": {"miou": 0.2}}
    (jobs.folder_of(project) / jobs.RESULT).write_text(json.dumps(result))
    controller.close()
    source = open_source(picture)
    assert controller.open(source, tmp_path / "scene.isdnet")
    (entry,) = controller.history()
    assert entry.figures["before"] == {"miou": 0.2}
    assert entry.figures["start"] == "bare"
    assert controller.unfinished() is None
    source.close()


def test_a_run_that_was_taken_in_is_not_taken_in_again(
    controller: TuneController, picture: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = controller.project
    assert project is not None
    for run in (1, 2):
        job = jobs.begin(project, settings(model), {"image": str(picture)})
        Path(job["output"]).write_bytes(model.read_bytes())
        result = {"model": job["output"], "steps": 4, "best_step": 4}
        (jobs.folder_of(project) / jobs.RESULT).write_text(json.dumps(result))
        with monkeypatch.context() as patch:
            patch.setattr(jobs, "remove", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                jobs.take_in(project)
        entry = jobs.take_in(project)
        assert entry is not None
        assert entry.id == f"m00{run}"
        assert not jobs.folder_of(project).exists()
    assert [entry.id for entry in project.history()] == ["m001", "m002"]


def test_history_goes_back_and_exports_one_file_with_its_card(
    controller: TuneController, model: Path, tmp_path: Path
) -> None:
    project = controller.project
    assert project is not None
    first, second = (project.add_model(model, name=name) for name in "ab")
    assert second.parent == first.id
    assert [entry.id for entry in controller.history()] == [second.id, first.id]
    assert controller.use(first.id) == project.model_path(first.id)
    assert project.current == first.id
    assert controller.use(None) is None
    with pytest.raises(InputError, match="has no model 'm009'"):
        controller.use("m009")
    path = controller.export(second.id, tmp_path / "shared.safetensors")
    assert same(path, model)
    assert read_header(path).name == "shared"
    with safe_open(str(path), framework="pt") as file:
        card = file.metadata()["card"]
    assert card.startswith("# shared\n")
    assert "0. red (#" in card
    with pytest.raises(InputError, match="must be named"):
        controller.export(second.id, tmp_path / "shared.pt")
    assert sorted(p.name for p in tmp_path.glob("*.pt")) == []


def test_nothing_painted_is_one_sentence(picture: Path, model: Path, tmp_path: Path) -> None:
    controller = TuneController()
    source = open_source(picture)
    assert not controller.open(source, tmp_path / "none.isdnet")
    with pytest.raises(InputError, match="Nothing is annotated yet"):
        next(train(controller, picture, settings(model)))
    with Project.open(picture, CLASSES, folder=tmp_path / "empty.isdnet"):
        pass
    assert controller.open(source, tmp_path / "empty.isdnet")
    with pytest.raises(InputError, match="0 of them painted"):
        drain(controller, train(controller, picture, settings(model)))
    assert controller.unfinished() is None
    controller.close()
    source.close()


@pytest.mark.parametrize(
    ("painted", "regions", "words"),
    [
        ((9, 0), (2, 1), ""),
        ((9, 0), (1, 0), ""),
        ((0, 0), (0, 0), "Nothing is annotated yet"),
        ((9, 0), (1, 1), "The only place painted is held out, so nothing can teach yet: paint another place"),
        ((9, 0), (3, 3), "All 3 places painted are held out"),
    ],
)
def test_what_a_run_lacks_is_known_from_the_counts(
    painted: tuple[int, ...], regions: tuple[int, int], words: str
) -> None:
    missing = Annotated((), painted, (0, 0), regions, 0).missing
    assert missing.startswith(words)
    assert bool(missing) == bool(words)


def test_counts_say_what_would_be_held_out(controller: TuneController) -> None:
    found = controller.annotated(0.2)
    project = controller.project
    assert project is not None
    assert found.painted == project.store.class_counts()
    assert all(0 < held < painted for held, painted in zip(found.held[:2], found.painted[:2], strict=True))
    assert found.regions == (6, 1)
    assert controller.annotated(0.0).held == (0, 0, 0)


def test_a_second_forecast_goes_by_the_first_run(
    controller: TuneController, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from napari_isdnet_training import estimate

    from napari_isdnet.engine.device import choose

    chosen, placement = settings(model, steps=40), choose("cpu")
    guess = controller.forecast(chosen, 2)
    assert not guess.measured
    assert guess.seconds > estimate.START_SECONDS
    todo = estimate.work(read_header(model).config, "quick", 40, 1, 96, 2, 20)
    assert todo.judging == pytest.approx(todo.training / 40 / estimate.PASSES["quick"] * 2 * 3)  # at 0, 20, 40
    estimate.remember(todo, 100.0, "quick", placement)
    again = controller.forecast(chosen, 2)
    assert again.measured
    assert again.seconds == pytest.approx(100 + estimate.START_SECONDS)


def test_curves_keep_one_judgement_a_step() -> None:
    from napari_isdnet.progress import Progress

    curves = Curves()
    told = [
        Progress(0, 9, "validate", figures={"miou": 0.4}),
        Progress(1, 9, "train", figures={"loss": 2.0}),
        Progress(1, 9, "validate", figures={"miou": 0.6}),
        Progress(1, 9, "validate", figures={"miou": 0.6}),
        Progress(2, 9, "loading"),
    ]
    assert [curves.take(item) for item in told] == [True, True, True, True, False]
    assert curves.before == {"miou": 0.4}
    assert curves.best == 0.6
    assert [step for step, _ in curves.scores] == [0, 1]


def rest(steps: Generator[Any, None, Any]) -> Any:
    """What a generator returns in the end."""
    try:
        while True:
            next(steps)
    except StopIteration as end:
        return end.value


def fake(tmp_path: Path, code: str) -> TrainingProcess:
    return TrainingProcess({"a": 1}, tmp_path / "log", [sys.executable, "-c", code])


def test_a_process_that_does_not_answer_is_ended_by_force(tmp_path: Path) -> None:
    process = fake(tmp_path, 'import time\nprint(\'{"kind": "started"}\', flush=True)\ntime.sleep(600)')
    events = process.events()
    assert next(item for item in events if item) == {"kind": "started"}
    process.stop(patience=0.0)
    assert rest(events) == {"kind": "stopped", "result": None}
    process.end()
    assert not process.alive


@pytest.mark.parametrize(
    ("line", "error", "words"),
    [
        ('{"kind": "failed", "error": "The disk is full.", "bug": false}', InputError, "The disk is full"),
        ('{"kind": "failed", "error": "KeyError: 1", "bug": true}', processes.TrainingError, "KeyError: 1 .see "),
        ("not json", InputError, "ended from outside .code 0"),
    ],
)
def test_what_goes_wrong_in_the_process_is_said(tmp_path: Path, line: str, error: type[Exception], words: str) -> None:
    process = fake(tmp_path, f"print('''{line}''')")
    with pytest.raises(error, match=words):
        list(process.events())
    process.end()


def test_the_worker_refuses_a_job_it_cannot_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process: that it is one of its own, and that its words arrive, is shown above."""
    job = {
        "image": "nowhere.tif", "annotations": "", "model": "x", "output": str(tmp_path / "m" / "o.safetensors"),
        "options": {"device": "cpu"},
    }  # fmt: skip
    told: list[Any] = []
    for name, put in (("_out", told.append), ("_in", -1), ("Orders", SimpleNamespace(wait_for_job=lambda: job))):
        monkeypatch.setattr(worker, name, lambda *_, put=put: put)
    monkeypatch.setattr(worker, "_step_back", lambda: None)  # this process has other tests to do
    for name in ("set_threads", "keep_freed_memory"):
        monkeypatch.setattr(f"napari_isdnet.engine.device.{name}", lambda *_: None)
    assert worker.main() == 1
    assert [(item["kind"], item["bug"], "nowhere.tif" in item["error"]) for item in told] == [("failed", False, True)]
