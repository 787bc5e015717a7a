"""An annotation is closed while it is painted or written: all of it is stored, and nothing waits for the disk."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qtpy.QtWidgets import QApplication

from napari_isdnet.annotation.project import Project
from napari_isdnet.annotation.saving import read_state
from napari_isdnet.annotation.store import AnnotationStore
from napari_isdnet.annotation.strokes import Rectangle
from napari_isdnet.exceptions import InputError
from napari_isdnet.widgets.annotate import AnnotateWidget
from napari_isdnet.window import Window

from .annotate_tools import settle
from .canvas_tools import drag
from .large_world import LargeWorld, large, run_limited

WAIT_SECONDS = 20
HOLD_SECONDS = 30
"""A window that is held for longer than this waits for the disk, which takes nothing for a minute."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "field.isdnet"


@pytest.fixture
def dock(viewer: Any, qtbot: Any, folder: Path) -> AnnotateWidget:
    viewer.add_image(np.zeros((400, 500, 3), np.uint8), name="field")
    widget = AnnotateWidget(viewer)
    viewer.window.add_dock_widget(widget, name="Annotate")
    widget.start(folder)
    qtbot.wait(50)
    viewer.camera.center, viewer.camera.zoom = (200, 250), 1.0
    return widget


def close_by_its_cross(viewer: Any, qtbot: Any) -> None:
    window = viewer.window._qt_window
    with qtbot.waitSignal(window.destroyed, timeout=2000 * WAIT_SECONDS):
        window.close()
    del viewer.window._qt_window  # which whoever closes the viewer after the test would close again
    QApplication.processEvents()


def until_written() -> None:
    for thread in threading.enumerate():
        if thread.name == "isdnet-job-closing":
            thread.join(WAIT_SECONDS)
            assert not thread.is_alive()


def value_at(folder: Path, row: int, column: int) -> int:
    with Project.open(folder) as project:  # refused while someone still paints in it
        return int(project.store.read_labels(Window(row, column, 1, 1))[0, 0])


@pytest.mark.long
def test_a_stroke_that_is_being_stored_is_stored_and_nothing_waits_for_good(
    viewer: Any, qtbot: Any, dock: AnnotateWidget, folder: Path, monkeypatch: Any
) -> None:
    store = dock.controller.store
    paint, at_it = store.paint, threading.Event()

    def slowly(*arguments: Any) -> Any:
        at_it.set()
        threading.Event().wait(0.5)  # the window is gone before it is stored
        return paint(*arguments)

    monkeypatch.setattr(store, "paint", slowly)
    for column in (150, 300):
        drag(viewer, dock.canvas.layer, [(200, column), (200, column + 50)])
    assert at_it.wait(WAIT_SECONDS)
    close_by_its_cross(viewer, qtbot)
    until_written()
    assert [value_at(folder, 200, column) for column in (175, 325)] == [1, 1]


def test_what_was_painted_in_an_edit_window_just_now_is_stored(
    viewer: Any, qtbot: Any, dock: AnnotateWidget, folder: Path
) -> None:
    dock.edit_button.click()
    at = dock.editing.window
    dock.editing.layer.paint((50, 60), 1)
    close_by_its_cross(viewer, qtbot)
    until_written()
    assert value_at(folder, at.row + 50, at.column + 60) == 1


class StuckDisk:
    """A disk that takes nothing until :meth:`go`: the writing of a store stands before its next file."""

    def __init__(self, store: AnnotationStore) -> None:
        self._moves = threading.Event()
        self.reached = threading.Event()
        store._saver.checkpoint = self._stage

    def _stage(self, stage: str) -> None:
        if stage == "file":
            self.reached.set()
            assert self._moves.wait(3 * WAIT_SECONDS)

    def go(self) -> None:
        self._moves.set()


@pytest.fixture
def disk(qtbot: Any, dock: AnnotateWidget) -> Iterator[StuckDisk]:
    """Stuck in the middle of writing that a large stroke was taken back."""
    dock.controller.paint(Rectangle(Window(50, 50, 200, 200)))
    settle(qtbot, dock)
    dock.controller.store.flush()
    stuck = StuckDisk(dock.controller.store)
    dock.undo_button.click()
    settle(qtbot, dock)
    assert stuck.reached.wait(WAIT_SECONDS)
    yield stuck
    stuck.go()


def held(action: Any) -> float:
    before = time.monotonic()
    action()
    return time.monotonic() - before


def test_close_does_not_wait_for_the_disk_and_says_that_it_is_written(
    qtbot: Any, dock: AnnotateWidget, folder: Path, disk: StuckDisk
) -> None:
    assert held(dock.start_button.click) < HOLD_SECONDS
    assert dock.controller.project is None
    assert dock.writing.isVisible()
    with pytest.raises(InputError, match="is open in another window or process"):
        Project.open(folder)
    disk.go()
    qtbot.waitUntil(lambda: not dock.writing.isVisible(), timeout=1000 * WAIT_SECONDS)
    with Project.open(folder) as project:
        assert project.store.class_counts() == (0, 0)
        assert read_state(folder).position == project.store.position


@pytest.mark.long
def test_an_annotation_that_is_still_written_is_opened_again_and_painted(
    viewer: Any, qtbot: Any, dock: AnnotateWidget, folder: Path, disk: StuckDisk
) -> None:
    store = dock.controller.store
    dock.stop()
    assert held(lambda: dock.start(folder)) < HOLD_SECONDS
    assert dock.controller.store is store
    drag(viewer, dock.canvas.layer, [(200, 150), (200, 200)])
    settle(qtbot, dock)
    disk.go()
    qtbot.waitUntil(lambda: not dock.writing.isVisible(), timeout=1000 * WAIT_SECONDS)
    dock.redo_button.click()  # of nothing: the stroke has ended that
    settle(qtbot, dock)
    assert not store.read_only  # who opened it again has it to himself
    dock.stop()
    qtbot.waitUntil(lambda: store.read_only, timeout=1000 * WAIT_SECONDS)
    assert value_at(folder, 200, 175) == 1
    assert value_at(folder, 60, 60) == 0


@pytest.mark.long
def test_two_that_are_written_at_once_are_both_told_of(
    qtbot: Any, dock: AnnotateWidget, tmp_path: Path, disk: StuckDisk
) -> None:
    dock.stop()
    dock.start(tmp_path / "other.isdnet")
    dock.stop()
    qtbot.wait(400)
    assert dock.writing.isVisible()  # the first one
    disk.go()
    qtbot.waitUntil(lambda: not dock.writing.isVisible(), timeout=1000 * WAIT_SECONDS)


def test_the_cross_of_the_window_does_not_wait_for_the_disk(
    viewer: Any, qtbot: Any, folder: Path, disk: StuckDisk
) -> None:
    assert held(lambda: close_by_its_cross(viewer, qtbot)) < HOLD_SECONDS
    disk.go()
    until_written()
    assert value_at(folder, 60, 60) == 0


def test_a_disk_that_refuses_at_the_end_is_told_of_and_nothing_is_lost(
    viewer: Any, qtbot: Any, dock: AnnotateWidget, folder: Path, capsys: Any
) -> None:
    from napari.utils.notifications import notification_manager

    def refuse(_stage: str) -> None:
        raise OSError(28, "No space left on device")

    store = dock.controller.store
    store._saver.checkpoint = refuse
    drag(viewer, dock.canvas.layer, [(200, 150), (200, 200)])
    dock.stop()
    told = notification_manager.records
    qtbot.waitUntil(lambda: any("free some space and open it again" in x.message for x in told), timeout=20_000)
    assert value_at(folder, 200, 175) == 1


SCRIPT = """
import sys, time
from pathlib import Path
import napari, numpy as np
from napari_isdnet.annotation.strokes import Rectangle
from napari_isdnet.widgets.annotate import AnnotateWidget
from napari_isdnet.window import Window
viewer = napari.Viewer(show=True)
viewer.add_image(np.zeros((400, 500, 3), np.uint8), name="field")
dock = AnnotateWidget(viewer)
viewer.window.add_dock_widget(dock)
dock.start(Path(sys.argv[1]))
dock.controller.store._saver.checkpoint = lambda stage: time.sleep(0.2) if stage == "file" else None
dock.controller.paint(Rectangle(Window(50, 50, 200, 200)))
dock.controller.wait()
dock.controller.store.flush()
dock.controller.undo()
viewer.close()
print("closed", time.time(), flush=True)
"""


@pytest.mark.long
def test_a_process_that_ends_writes_what_is_left(folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(folder)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "closed" in done.stdout
    with Project.open(folder, read_only=True) as project:
        assert project.store.class_counts() == (0, 0)
        assert read_state(folder).position == project.store.position > 1
    with Project.open(folder) as project:  # the lock is gone with the process
        assert project.store.can_redo


def close_after_an_undo(world: LargeWorld, place: str) -> None:
    """A stroke over 0.9 gigapixels is taken back; Close and the window go on at once."""
    import numpy as np

    from napari_isdnet.annotation.strokes import Polygon

    world.open()
    dock: Any = world.dock(AnnotateWidget(world.viewer))
    dock.start(Path(place))
    turn = np.linspace(0, 2 * np.pi, 200)
    dock.controller.paint(Polygon([np.c_[50_000 + 16_800 * np.sin(turn), 50_000 + 16_800 * np.cos(turn)].tolist()]))
    assert dock.controller.wait(WAIT_SECONDS)
    dock.controller.store.flush()
    world.wait(dock.undo_button.isEnabled)
    dock.undo_button.click()
    closing = held(dock.start_button.click)
    print(f"held by Close for {closing:.2f} s, still written: {dock.writing.isVisible()}")
    assert closing < HOLD_SECONDS / 2
    world.pause(500)


@large
def test_closing_after_the_undo_of_a_gigapixel_does_not_hold_the_window(tmp_path: Path) -> None:
    run_limited(close_after_an_undo, str(tmp_path / "world.isdnet"))
    with Project.open(tmp_path / "world.isdnet") as project:
        assert project.store.class_counts()[0] == 0
        assert project.store.can_redo
