"""The Annotate dock's state without a window: order, pieces of a drag, what is accepted, crashes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("qtpy")  # the package of widgets needs it, the controller does not

from napari_isdnet.annotation.project import Project
from napari_isdnet.annotation.store import AnnotationStore
from napari_isdnet.annotation.strokes import Brush, Rectangle
from napari_isdnet.classes import ClassInfo
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.array import ArraySource
from napari_isdnet.progress import Progress
from napari_isdnet.widgets import _annotate_controller as module
from napari_isdnet.widgets._annotate_controller import AnnotateController
from napari_isdnet.widgets._annotate_exchange import Watched
from napari_isdnet.widgets._annotate_regions import (
    Placing,
)
from napari_isdnet.window import Window

SHAPE = (3000, 4000)


class Told:
    """What the controller said, from its thread."""

    def __init__(self) -> None:
        self.changes: list[tuple[list[Window], bool]] = []
        self.errors: list[Exception] = []

    def change(self, dirty: list[Window], idle: bool) -> None:
        self.changes.append((dirty, idle))


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def controller(told: Told, tmp_path: Path) -> Any:
    found = AnnotateController(told.change, told.errors.append)
    source = ArraySource([np.broadcast_to(np.uint8(0), (*SHAPE, 3))], "image", rgb=True)
    found.open(source, ["a", "b"], tmp_path / "image.isdnet")
    found.tool = "brush"
    yield found
    found.close_project()


def values(controller: AnnotateController) -> np.ndarray:
    assert controller.wait(10)
    return controller.store.read_labels(Window.whole(SHAPE))


def test_a_drag_in_pieces_equals_one_stroke_and_is_one_step(controller, monkeypatch) -> None:
    monkeypatch.setattr(module, "PIECE_POINTS", 4)
    path = [(100.0 + 7 * k, 100.0 + 90 * np.sin(k)) for k in range(30)]
    controller.press(path[0], 15)
    for point in path[1:]:
        controller.move(point)
    controller.release()
    expected = Brush(path, 15).cover(SHAPE).mask(Window.whole(SHAPE))
    assert np.array_equal(values(controller) == 1, expected)
    assert len([e for e in controller.store.journal.entries() if e["kind"] == "brush"]) > 5
    controller.undo()
    assert not values(controller).any()
    controller.redo()
    assert np.array_equal(values(controller) == 1, expected)


def test_a_drag_that_rests_is_saved(controller, monkeypatch) -> None:
    controller.press((50, 50), 5)
    controller.move((60, 60))
    controller.tick()
    assert controller.wait(5)
    assert not controller.store.read_labels(Window(55, 55, 1, 1)).any()
    monkeypatch.setattr(module, "PIECE_SECONDS", 0)
    controller.tick()
    assert values(controller)[55, 55] == 1
    assert controller.dragging


def test_a_drag_whose_end_was_never_told_ends_with_the_next_one(controller) -> None:
    controller.press((50, 50), 5)
    controller.move((50, 250))
    controller.press((450, 50), 5)
    controller.move((450, 250))
    controller.release()
    assert values(controller)[[50, 450], 200].all()
    controller.undo()
    assert values(controller)[[50, 450], 200].tolist() == [1, 0]


def test_a_brush_that_is_too_wide_is_refused_before_the_drag_begins(controller) -> None:
    with pytest.raises(InputError, match="got 20,000,000; zoom in, or take a smaller brush"):
        controller.press((50, 50), (2e7, 2e7))
    assert not controller.dragging
    controller.undo()
    assert controller.wait(5)


def test_changes_come_in_order_and_the_last_one_says_idle(controller, told) -> None:
    for k in range(20):
        controller.class_index = k % 2
        controller.paint(Rectangle(Window(0, 0, 200 - k, 200)))
    found = values(controller)
    assert found[180, 0] == 2
    assert found[181, 0] == 1
    assert told.changes[-1][1]
    assert controller.counts == controller.store.class_counts()


def test_nothing_is_painted_while_a_long_change_of_the_classes_goes_on(controller, monkeypatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.01)
    gate: list[bool] = []

    def slow(store: AnnotationStore) -> None:
        while not gate:
            time.sleep(0.005)
        store.remove_class(0)

    controller.edit(slow)
    assert controller.busy
    corners = [(10.0, 10.0), (10.0, 200.0), (200.0, 200.0)]
    for paint in (
        lambda: controller.press((5, 5), 3),
        lambda: controller.outline(corners),
        lambda: controller.fill_superpixel(None, (5, 5), 1.0),
        lambda: controller.accept([], None, (5, 5), 1.0),
    ):
        with pytest.raises(InputError, match="being changed; paint again in a moment"):
            paint()
    assert not controller.dragging
    gate.append(True)
    assert controller.wait(5)
    assert not controller.busy
    assert [c.name for c in controller.store.classes] == ["b"]


def test_edits_that_wait_for_one_another_change_the_class_that_was_meant(controller, told) -> None:
    seen, gate = ["a", "b"], threading.Event()
    controller.class_index = 1
    controller.edit(lambda _store: gate.wait(10) and None)
    controller.edit_class(seen, 0, AnnotationStore.remove_class)
    controller.edit_class(seen, 1, AnnotationStore.recolor_class, "#010203")
    controller.edit_class(seen, 1, AnnotationStore.rename_class, "c")
    controller.edit_class(seen, 0, AnnotationStore.rename_class, "d")
    gate.set()
    assert controller.wait(10)
    assert [(c.name, c.color) for c in controller.store.classes] == [("c", (1, 2, 3))]
    assert [str(error) for error in told.errors] == ["Class 'a' is gone by now, so nothing of it was changed."]


def test_the_class_at_hand_stays_at_hand_where_the_list_changes(controller) -> None:
    controller.class_index = 1
    controller.edit(lambda store: store.remove_class(0))
    assert controller.wait(10)
    assert controller.class_index == 0
    controller.undo()
    assert controller.wait(10)
    assert controller.class_index == 1
    controller.edit(lambda store: store.add_class("c"))
    assert controller.wait(10)
    assert controller.class_index == 2
    controller.undo()
    assert controller.wait(10)
    assert controller.class_index == 1


def test_a_change_that_waits_in_an_annotation_that_was_closed_keeps_no_other_from_painting(
    controller, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.01)
    gate = threading.Event()
    controller.edit(lambda store: gate.wait(10) and store.add_class("c"))
    source = ArraySource([np.broadcast_to(np.uint8(0), (*SHAPE, 3))], "another", rgb=True)
    controller.open(source, ["x"], tmp_path / "another.isdnet")
    controller.class_index = 0
    controller.paint(Rectangle(Window(0, 0, 10, 10)))
    gate.set()
    assert values(controller)[5, 5] == 1
    assert controller.class_index == 0


def test_an_error_is_told_and_the_next_change_goes_on(controller, told) -> None:
    controller.edit(lambda store: store.rename_class(0, "b"))
    controller.paint(Rectangle(Window(0, 0, 5, 5)))
    assert values(controller)[0, 0] == 1
    assert [type(e) for e in told.errors] == [InputError]


def test_no_classes_and_no_project_are_said(controller, told) -> None:
    controller.edit(lambda store: store.remove_class(1))
    controller.edit(lambda store: store.remove_class(0))
    assert controller.wait(5)
    with pytest.raises(InputError, match="add one first"):
        controller.press((5, 5), 3)
    with pytest.raises(InputError, match="press Start"):
        _ = AnnotateController(told.change, told.errors.append).store


def test_accepting_adds_the_class_once_and_undo_takes_both_back(controller) -> None:
    labels = np.full(SHAPE, 255, np.uint8)
    labels[100:300, 100:400] = 1
    classes = (ClassInfo("x", (1, 1, 1)), ClassInfo("water", (0, 0, 200)))
    controller.accept([labels], classes, (200, 200), 1.0)
    assert np.array_equal(values(controller) == 3, labels == 1)
    controller.accept([labels], None, (200, 200), 1.0)
    assert np.array_equal(values(controller) == 1, labels == 1)
    controller.undo()
    controller.undo()
    assert not values(controller).any()
    assert len(controller.store.classes) == 2


def test_a_prediction_of_a_part_is_accepted_where_it_lies(controller, told) -> None:
    labels = np.zeros((600, 700), np.uint8)
    labels[10:200, 20:300] = 1
    labels[200:, 350:] = 1  # reaches the edge of the prediction
    levels, placing = [labels, labels[::2, ::2]], Placing(offset=(437.0, 490.0))
    expected = np.zeros(SHAPE, np.uint8)
    controller.accept(levels, None, (500, 600), 1.0, placing=placing)
    expected[447:637, 510:790] = 1
    assert np.array_equal(values(controller), expected)
    controller.accept(levels, None, (1030, 1180), 2.0, placing=placing)  # as seen from farther away
    expected[637:1037, 840:1190] = 1
    assert np.array_equal(values(controller), expected)
    for outside in ((436, 600), (1037, 600), (600, 489), (100, 100)):  # (100, 100) is a pixel of its arrays
        controller.accept(levels, None, outside, 1.0, placing=placing)
    assert np.array_equal(values(controller), expected)
    assert len(told.errors) == 4
    assert {str(error) for error in told.errors} == {
        "The prediction does not reach this place; click inside it, or segment this place first."
    }


@pytest.mark.parametrize(
    ("matrix", "offset", "rows", "columns"),
    [
        (((2.0, 0.0), (0.0, 2.0)), (100.5, 200.5), (120, 160), (240, 300)),  # half the resolution
        (((0.0, 1.0), (-1.0, 0.0)), (50.0, 900.0), (70, 100), (871, 891)),  # turned by a quarter
        (((1.0, 0.0), (0.0, 1.0)), (0.25, -0.25), (10, 30), (20, 50)),  # between the pixels
    ],
)
def test_a_prediction_of_another_resolution_or_turned_is_accepted_where_it_lies(
    controller, matrix, offset, rows, columns
) -> None:
    labels = np.zeros((300, 400), np.uint8)
    labels[10:30, 20:50] = 1
    point = (np.mean(rows), np.mean(columns))
    controller.accept([labels], None, point, 1.0, placing=Placing(matrix, offset))
    expected = np.zeros(SHAPE, np.uint8)
    expected[slice(*rows), slice(*columns)] = 1
    assert np.array_equal(values(controller), expected)


def test_a_prediction_that_reaches_beyond_the_image_is_cut_there(controller) -> None:
    controller.accept([np.zeros((100, 100), np.uint8)], None, (5, 5), 1.0, placing=Placing(offset=(-20.0, -30.0)))
    found = values(controller)
    assert found[:80, :70].all()
    assert found.sum() == 80 * 70


def test_nothing_predicted_is_said(controller, told) -> None:
    controller.accept([np.full(SHAPE, 255, np.uint8)], None, (5, 5), 1.0)
    assert controller.wait(5)
    assert "Nothing is predicted here" in str(told.errors[0])


PAINTER = """
import sys, time
from types import SimpleNamespace
import numpy as np
from napari_isdnet.io.array import ArraySource
from napari_isdnet.widgets import _annotate_controller as module

now = 0.0
module.time = SimpleNamespace(monotonic=lambda: now)
controller = module.AnnotateController(lambda dirty, idle: None, print)
source = ArraySource([np.broadcast_to(np.uint8(0), (20_000, 30_000, 3))], "image", rgb=True)
controller.open(source, ["a"], sys.argv[1])
controller.tool = "brush"
for number in range(19_000):
    now += 0.005
    row = 10.0 + number
    if number == 0:
        controller.press((row, 100.0), 2.0)
    controller.move((row, 100.0))  # one endless drag
    controller.tick()
    while controller.pending > 1:  # the disk may be slower than the hand
        time.sleep(0.001)
    print(number, flush=True)
"""


@pytest.mark.long
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_kill_9_in_the_middle_of_a_drag_loses_less_than_a_second(tmp_path: Path) -> None:
    """By the clock of the hand, whose steps are of 5 ms; the machine takes what it needs to store a piece."""
    folder = tmp_path / "image.isdnet"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    script = [sys.executable, "-c", PAINTER, str(folder)]
    with subprocess.Popen(script, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for number in range(500):
            assert process.stdout.readline() == f"{number}\n"
        process.send_signal(signal.SIGKILL)
        reported = [499, *map(int, process.stdout.read().split())]
    assert process.returncode == -signal.SIGKILL
    with Project.open(folder) as project:
        rows = np.arange(10, 10 + reported[-1] - 200)
        assert (project.store.read_labels(Window(0, 100, int(rows.max()) + 1, 1))[rows, 0] == 1).all()


def test_an_exchange_says_how_it_ended_also_when_it_is_cut_off() -> None:
    def work(error: Exception | None = None):
        yield Progress(0, 1, "Exporting")
        if error is not None:
            raise error
        return "Written."

    said: list[str] = []
    done = Watched(work(), said.append, "Cancelled.")
    assert [item.stage for item in done] == ["Exporting"]
    done.close()
    assert said == ["Written."]
    for steps in (0, 1):  # one that has not begun says so too
        cut = Watched(work(), said.append, "Cancelled.")
        for _ in range(steps):
            next(cut)
        cut.close()
        cut.close()
    assert said[1:] == ["Cancelled."] * 2
    failed = Watched(work(InputError("Full.")), said.append, "Cancelled.")
    with pytest.raises(InputError):
        list(failed)
    failed.close()
    assert len(said) == 3


def test_the_controller_needs_no_window_toolkit() -> None:
    code = (
        "import sys, napari_isdnet.widgets._annotate_controller as c;"
        "print([m for m in ('qtpy', 'napari', 'vispy', 'PyQt6') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
