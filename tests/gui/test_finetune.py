"""The Fine-tune dock in a real window: paint, train, see the layer change, undo, restart, go back in the history."""

from __future__ import annotations

import shlex
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from napari.utils.notifications import notification_manager
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QApplication, QWidget

from napari_isdnet.annotation.project import Project
from napari_isdnet.annotation.strokes import Brush
from napari_isdnet.progress import Progress
from napari_isdnet.widgets import _finetune_job as jobs
from napari_isdnet.widgets._engine import LocalEngine
from napari_isdnet.widgets._finetune_compare import AFTER, BEFORE
from napari_isdnet.widgets._finetune_controller import TuneController
from napari_isdnet.widgets._reader import read
from napari_isdnet.widgets.annotate import AnnotateWidget
from napari_isdnet.widgets.finetune import FineTuneWidget
from tests import finetune_tools as tools

from .canvas_tools import drag, key
from .tune_tools import (
    LONG,
    at_rest,
    classes_are_new_or_dropped_as_training_has_them,
    shown_everywhere,
    texts,
    the_axis_of_steps_has_whole_numbers,
    trained,
)

FAKE = Path(tools.__file__).with_name("fake_trainer.py")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One that sees blue everywhere, and one that sees red."""
    folder = tmp_path_factory.mktemp("models")
    return tools.network(folder / "bare.safetensors"), tools.network(folder / "better.safetensors", sees=0)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tools.scene(tmp_path / "scene.png")
    with Project.open(path, tools.CLASSES) as project:
        tools.paint(project.store)
    return path


@pytest.fixture
def quick() -> Iterator[pytest.MonkeyPatch]:
    """Devices and forecasts made up, for which torch asks and calculates a second; ``undo()`` brings the real ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalEngine, "devices", lambda _: [("auto", "Automatic"), ("cpu", "2 CPU cores, 3.0 GiB free")])
        patch.setattr(TuneController, "forecast", lambda *_: SimpleNamespace(seconds=90.0, measured=False))
        yield patch


@pytest.fixture
def opened(
    viewer: Any, qtbot: Any, picture: Path, models: Any, tmp_path: Path, monkeypatch: Any, quick: pytest.MonkeyPatch
) -> Any:
    """Makes a dock on the picture, as after a start of napari."""
    monkeypatch.setenv("NAPARI_ISDNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FAKE_TRAINER_MODEL", str(models[1]))
    viewer.window.resize(1000, 700)
    data, keywords, _ = read(picture)[0]
    viewer.add_image(data, **keywords)

    def make(pace: float | None = 0.05, steps: int = 4) -> FineTuneWidget:
        dock = FineTuneWidget(viewer)
        viewer.window.add_dock_widget(dock, name="Fine-tune")
        dock.small = dict(tools.TINY)
        if pace is not None:
            dock.controller.command = [sys.executable, str(FAKE), str(pace)]
        qtbot.waitUntil(lambda: dock.controller.project is not None, timeout=LONG)
        qtbot.waitUntil(lambda: dock.device.count() > 1 and bool(dock.estimate.text()), timeout=LONG)
        dock.choose_model(str(models[0]))
        dock.steps.setValue(steps)
        return dock

    return make


def test_what_an_open_dock_says(qtbot: Any, opened: Any, picture: Path, models: Any, quick: pytest.MonkeyPatch) -> None:
    quick.undo()  # the one that shows what there is on this machine
    dock = opened()
    every_control_says_what_it_does(dock)
    a_name_that_the_box_cuts_is_in_its_tooltip(dock)
    the_copied_command_says_everything(dock, picture, models)
    the_dock_says_what_is_painted_what_it_guards_and_how_long_it_takes(qtbot, dock)
    classes_are_new_or_dropped_as_training_has_them(qtbot, dock, models[0])
    the_axis_of_steps_has_whole_numbers(dock)


def every_control_says_what_it_does(dock: FineTuneWidget) -> None:
    kinds = ("QPushButton", "QToolButton", "QComboBox", "QSpinBox", "QCheckBox", "QTableWidget", "QLabel")
    seen = [w for w in dock.findChildren(QWidget) if w.objectName().startswith("finetune_")]
    controls = [w for w in seen if any(w.inherits(kind) for kind in kinds)]
    assert len(controls) > 25
    for control in controls:
        assert control.toolTip(), control.objectName()


def a_name_that_the_box_cuts_is_in_its_tooltip(dock: FineTuneWidget) -> None:
    tips = [dock.model.itemData(k, Qt.ItemDataRole.ToolTipRole) for k in range(dock.model.count())]
    assert "bare.safetensors" in tips
    backbone = dock.model.findData("backbone")
    assert dock.model.itemText(backbone) == "Pretrained backbone"
    assert "ImageNet" in tips[backbone]


def the_copied_command_says_everything(dock: FineTuneWidget, picture: Path, models: Any) -> None:
    dock.seed.setValue(5)
    dock.copy_button.click()
    line = QApplication.clipboard().text()
    assert line == jobs.command(
        str(picture), picture.with_name("scene.png.isdnet"), picture.with_name("scene_tuned.safetensors"),
        dock.settings(),
    )  # fmt: skip
    words = shlex.split(line)
    assert words[:4] == ["isdnet-train", "finetune", str(picture), f"{picture}.isdnet"]
    assert words[words.index("--model") + 1] == str(models[0])
    assert words[words.index("--seed") + 1] == "5"
    assert words[words.index("--held-out") + 1] == "0.2"


def the_dock_says_what_is_painted_what_it_guards_and_how_long_it_takes(qtbot: Any, dock: FineTuneWidget) -> None:
    rows = texts(dock.counts)
    assert [row[0] for row in rows] == ["red", "green", "blue"]
    assert rows[2][1:] == ["–", "–"]
    assert int(rows[0][1].replace(",", "")) > int(rows[0][2].replace(",", "")) > 0
    assert dock.places.text().startswith("6 places painted, ")
    qtbot.waitUntil(lambda: "Every 4 steps" in dock.guards.text(), timeout=LONG)
    assert "taken unless these places got worse by more than chance" in dock.guards.text()
    dock.allow_worse.setChecked(True)
    qtbot.waitUntil(lambda: "even if the held-out places got worse" in dock.guards.text(), timeout=LONG)
    dock.held_out.setValue(0)
    qtbot.waitUntil(lambda: "none held out" in dock.places.text(), timeout=LONG)
    assert dock.estimate.text().startswith("About ")
    dock.preset.setCurrentIndex(1)
    assert dock.steps.value() == 400
    dock.choose_model("backbone")
    assert "all else new" in dock.model_facts.text()


@pytest.mark.long
@pytest.mark.timeout(900)  # two runs and five maps of the whole picture
def test_better_weights_show_at_once_and_the_history_goes_back(
    viewer: Any, qtbot: Any, opened: Any, models: Any, tmp_path: Path
) -> None:
    from napari.utils.notifications import notification_manager

    notification_manager.records.clear()
    dock = opened(steps=6)
    trained(qtbot, dock)
    assert dock.outcome.entry.id == "m001"
    assert "mIoU 0.300 → 0.600" in dock.status.text()
    assert (shown_everywhere(qtbot, dock, AFTER) == 0).all()  # red, as the better model has it
    assert (shown_everywhere(qtbot, dock, BEFORE) == 2).all()
    assert [layer.name for layer in viewer.layers] == ["scene", "scene before (bare)", "scene after (m001)"]
    qtbot.waitUntil(lambda: dock.changes.rowCount() == 3 and "100" in dock.changes.item(2, 1).text(), timeout=LONG)
    assert texts(dock.changes) == [
        ["red", "0.0% → 100.0%", "0.30 → 0.60"], ["green", "0.0% → 0.0%", ""], ["blue", "100.0% → 0.0%", ""]
    ]  # fmt: skip
    assert "less than before" in dock.changes.item(2, 1).toolTip()
    # Flicker: by key and by button, one map at a time.
    old, new = (dock.compare.sides[side].layer for side in (BEFORE, AFTER))
    assert (old.visible, new.visible) == (False, True)
    key(viewer, Qt.Key.Key_B, Qt.KeyboardModifier.ControlModifier)
    assert (old.visible, new.visible) == (True, False)
    assert dock.compared.text().startswith("Before: bare")
    dock.flip_button.click()
    assert (old.visible, new.visible) == (False, True)
    # The next run starts from the new model; then back to the first one, and to none.
    assert dock.settings().parent == "m001"
    trained(qtbot, dock)
    assert dock.outcome.entry.parent == "m001"
    assert [row[0] for row in texts(dock.history)] == ["● m002", "m001", "Before any fine-tuning"]
    dock.history.selectRow(1)
    dock.use_button.click()
    assert dock.controller.project.current == "m001"
    assert [row[0] for row in texts(dock.history)] == ["m002", "● m001", "Before any fine-tuning"]
    qtbot.waitUntil(lambda: dock.compare.sides[AFTER].name == "m001", timeout=LONG)
    assert dock.settings().parent == "m001"
    dock.use("")
    assert dock.controller.project.current is None
    assert dock.settings().model == str(models[0])
    assert (shown_everywhere(qtbot, dock, AFTER) == 2).all()
    dock.export("m002", tmp_path / "mine.safetensors")
    qtbot.waitUntil(lambda: (tmp_path / "mine.safetensors").is_file() and not dock.export_bar.running, timeout=LONG)
    assert not [record for record in notification_manager.records if str(record.severity) == "error"]
    at_rest(qtbot, dock)


@pytest.mark.long
def test_stop_keeps_the_best_and_another_start_resumes(viewer: Any, qtbot: Any, opened: Any) -> None:
    dock = opened(steps=5000)
    dock.train_button.click()
    assert not dock.train_button.isEnabled()
    qtbot.waitUntil(lambda: len(dock.controller.curves.losses) > 3, timeout=LONG)
    assert dock.curves.isVisibleTo(dock)
    dock.bar.cancel_button.click()
    qtbot.waitUntil(lambda: dock.outcome is not None, timeout=LONG)
    assert dock.outcome.stopped
    assert dock.status.text().startswith("Stopped at step")
    assert "kept as m001" in dock.status.text()
    assert dock.train_button.isEnabled()
    done = dock.controller.unfinished().step
    assert dock.resume_button.isVisibleTo(dock)
    assert f"cut off after {done} of 5000 steps" in dock.left_over.text()
    dock.resume_button.click()
    qtbot.waitUntil(lambda: dock.controller.curves.losses[-1][0] > done + 1, timeout=LONG)
    steps = [step for step, _ in dock.controller.curves.losses]
    assert steps == list(range(1, len(steps) + 1))  # it went on where it had stopped
    assert not dock.left_over.isVisibleTo(dock)
    dock.stop()
    qtbot.waitUntil(lambda: not dock.busy, timeout=LONG)
    at_rest(qtbot, dock)


@pytest.mark.long
@pytest.mark.parametrize("what", ["window", "dock", "image", "layer"])
def test_what_is_closed_in_the_middle_leaves_nothing(viewer: Any, qtbot: Any, opened: Any, what: str) -> None:
    dock = opened(steps=5000)
    dock.train_button.click()
    qtbot.waitUntil(lambda: dock.controller.process is not None, timeout=LONG)
    process = dock.controller.process
    qtbot.waitUntil(lambda: len(dock.controller.curves.losses) > 2, timeout=LONG)
    qtbot.waitUntil(lambda: dock.compare.sides[AFTER].layer is not None, timeout=LONG)
    folder = jobs.folder_of(dock.controller.project)
    if what == "layer":
        viewer.layers.remove(dock.compare.sides[AFTER].layer)
        assert not dock.flip_button.isEnabled()
        assert process.alive  # it is only looked at no more
    elif what == "image":
        viewer.layers.remove(viewer.layers["scene"])
        qtbot.wait(100)
    if what == "dock":
        viewer.window.remove_dock_widget(dock)
        dock.close()
        dock.deleteLater()
    elif what != "window":
        dock.stop()
        qtbot.waitUntil(lambda: not dock.bar.running, timeout=LONG)
    else:
        viewer.close()
    qtbot.waitUntil(lambda: not process.alive, timeout=LONG)
    assert (folder / jobs.JOB).is_file()
    assert not list(folder.glob("*.part"))
    qtbot.waitUntil(lambda: not [t for t in threading.enumerate() if t.name.startswith("isdnet-job")], timeout=LONG)


@pytest.mark.long
def test_a_process_that_dies_is_said_and_the_dock_goes_on(viewer: Any, qtbot: Any, opened: Any, models: Any) -> None:
    from napari.utils.notifications import notification_manager

    dock = opened()
    dock.controller.command = [sys.executable, "-c", "import sys; sys.stdin.readline()"]
    dock.train_button.click()
    qtbot.waitUntil(lambda: not dock.bar.running, timeout=LONG)
    assert "ended from outside" in notification_manager.records[-1].message
    assert dock.train_button.isEnabled()


def test_strokes_of_the_annotate_dock_are_in_the_snapshot_and_its_project_is_shared(
    viewer: Any, qtbot: Any, opened: Any
) -> None:
    painter = AnnotateWidget(viewer)
    viewer.window.add_dock_widget(painter, name="Annotate")
    painter.start_button.click()
    dock = opened(steps=3)
    assert dock.controller.project is painter.controller.project
    before = dock.annotated.painted[2]
    painter.choose(key="3", tool="brush", size=30)
    drag(viewer, painter.canvas.layer, [(500, 300), (520, 500)])
    dock.train_button.click()  # at once: the stroke may still be on its way
    qtbot.waitUntil(lambda: dock.outcome is not None, timeout=LONG)
    entry = dock.outcome.entry
    assert entry.figures["pixels"]["blue"] > before == 0
    qtbot.waitUntil(lambda: dock.annotated is not None and dock.annotated.painted[2] > 0, timeout=LONG)
    assert entry.position <= painter.controller.store.position
    painter.stop()
    assert not dock.controller.project.store.read_only  # the other dock still has it


@pytest.mark.long
def test_one_held_out_place_is_said_before_a_run_and_not_after_it(
    viewer: Any, qtbot: Any, opened: Any, picture: Path, models: Any
) -> None:
    shutil.rmtree(picture.with_name("scene.png.isdnet"))
    with Project.open(picture, tools.CLASSES) as project:
        project.store.paint(Brush([(200, 200)], 30), 0)
        project.store.pin({"512:0:0": "validation"})  # it judged once, and what taught was erased
    dock = FineTuneWidget(viewer)
    viewer.window.add_dock_widget(dock, name="Fine-tune")
    assert not dock.train_button.isEnabled(), "nothing is counted yet"
    dock.choose_model(str(models[0]))
    dock.held_out.setValue(0)
    qtbot.waitUntil(dock.train_button.isEnabled, timeout=LONG)
    dock.held_out.setValue(20)
    assert not dock.train_button.isEnabled(), "what was counted is of another share"
    qtbot.waitUntil(lambda: dock.places.text().startswith("The only place painted is held out"), timeout=LONG)
    assert not dock.train_button.isEnabled()
    assert not dock.copy_button.isEnabled()
    notification_manager.records.clear()
    dock.train()
    assert [record.message for record in notification_manager.records] == [dock.places.text()]
    assert not dock.busy
    dock.lock(False)  # as after a run
    assert not dock.train_button.isEnabled()
    with pytest.MonkeyPatch.context() as patch:  # counted before the forecast is there, which loads torch
        go = threading.Event()
        patch.setattr(dock.controller, "forecast", lambda *_: go.wait(LONG / 1000) and None)
        dock.held_out.setValue(0)
        qtbot.waitUntil(dock.train_button.isEnabled, timeout=LONG)
        assert dock.estimate.text() == ""
        go.set()
        qtbot.waitUntil(lambda: not dock._count.running, timeout=LONG)


def test_without_annotation_it_says_what_to_do(viewer: Any, qtbot: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("NAPARI_ISDNET_CACHE", str(tmp_path))
    dock = FineTuneWidget(viewer)
    viewer.window.add_dock_widget(dock, name="Fine-tune")
    qtbot.wait(500)
    assert not dock.train_button.isEnabled()
    viewer.add_image(np.zeros((300, 300, 3), np.uint8), name="made here")
    qtbot.waitUntil(lambda: "Nothing is annotated yet" in dock.places.text(), timeout=LONG)
    assert not dock.train_button.isEnabled()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_whole_loop_with_real_training(
    viewer: Any, qtbot: Any, opened: Callable[..., FineTuneWidget], models: Any, picture: Path, quick: Any
) -> None:
    """Paint, train, see the layer change, undo, restart, go back."""
    quick.undo()
    painter = AnnotateWidget(viewer)
    viewer.window.add_dock_widget(painter, name="Annotate")
    painter.start_button.click()
    dock = opened(pace=None, steps=4)
    painter.choose(key="1", tool="brush", size=30)
    drag(viewer, painter.canvas.layer, [(80, 60), (90, 120)])
    assert painter.controller.wait(10)
    painted = painter.controller.store.class_counts()
    trained(qtbot, dock)
    assert dock.outcome.entry is not None
    after = dock.outcome.entry.figures["after"]["miou"]
    assert after > dock.outcome.entry.figures["before"]["miou"]
    assert (shown_everywhere(qtbot, dock, BEFORE) == 2).all()
    assert (shown_everywhere(qtbot, dock, AFTER) != 2).any()
    key(viewer, Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
    assert painter.controller.wait(10)
    assert sum(painter.controller.store.class_counts()) < sum(painted)
    for widget in (dock, painter):  # the restart
        viewer.window.remove_dock_widget(widget)
        widget.close()
        widget.deleteLater()
    qtbot.wait(500)
    again = opened(pace=None)
    assert [entry.id for entry in again.controller.history()] == ["m001"]
    again.use("")
    assert again.controller.project is not None
    assert again.controller.project.current is None
    again.use("m001")
    assert again.settings().parent == "m001"
    assert (shown_everywhere(qtbot, again, AFTER) != 2).any()


@pytest.mark.long
def test_cancelling_before_the_first_step_is_said(qtbot: Any, opened: Any, monkeypatch: Any) -> None:
    dock = opened()
    at_it = threading.Event()

    def train(*_: Any) -> Any:
        while True:
            yield Progress(0, 1, "Taking a snapshot of the annotation")
            at_it.set()

    monkeypatch.setattr(dock.controller, "train", train)
    qtbot.waitUntil(dock.train_button.isEnabled, timeout=LONG)
    dock.train_button.click()
    qtbot.waitUntil(at_it.is_set, timeout=LONG)
    dock.bar.cancel_button.click()
    qtbot.waitUntil(lambda: not dock.busy, timeout=LONG)
    assert dock.status.text() == "Cancelled before the first step; nothing was trained."
    assert dock.status.isVisible()
