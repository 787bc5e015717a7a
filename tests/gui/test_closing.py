"""A dock closed by its cross ends: napari only takes the widget out, and it must neither go on unseen nor crash."""

from __future__ import annotations

import gc
import threading
from typing import Any

import numpy as np
import pytest
from qtpy.QtWidgets import QDockWidget, QWidget

from napari_isdnet.progress import Clock, Progress
from napari_isdnet.widgets import _inspect_controller
from napari_isdnet.widgets._job import JobBar, end_with_dock
from tests.gui.conftest import our_threads, our_widgets

DOCKS = ("Load", "Segment", "Inspect", "Errors", "Batch", "Annotate", "Fine-tune")


def close_by_its_cross(viewer: Any, name: str) -> None:
    for dock in viewer.window._qt_window.findChildren(QDockWidget):
        if dock.objectName().startswith(name):
            dock.titleBarWidget().close_button.click()
            return
    raise AssertionError(f"there is no dock {name}")


def gone(qtbot: Any) -> None:
    qtbot.waitUntil(lambda: not our_widgets() and not our_threads(), timeout=30_000)


@pytest.mark.long
@pytest.mark.parametrize("name", DOCKS)
def test_a_closed_dock_is_destroyed_and_layers_may_come_and_go(viewer, qtbot, name: str) -> None:
    """As a person does it: nothing but napari refers to the dock, and napari collects when a layer is removed."""
    viewer.add_image(np.zeros((40, 50, 3), np.uint8), name="picture")
    for _ in range(2):
        viewer.window.add_plugin_dock_widget("napari-isdnet", name)
        assert our_widgets()
        close_by_its_cross(viewer, name)
        for _ in range(3):
            viewer.layers.remove(viewer.add_image(np.zeros((8, 8))))
            gc.collect()
            qtbot.wait(50)
        gone(qtbot)


def test_a_closed_dock_stops_its_job_without_freezing_the_window(viewer, qtbot) -> None:
    steps: list[int] = []
    at_it, go_on = threading.Event(), threading.Event()

    def work():
        clock = Clock(1000)
        for number in range(1000):
            at_it.set()
            go_on.wait(20)
            steps.append(number)
            yield clock.step(1, "slow")

    widget = QWidget()
    bar = JobBar(widget)
    end_with_dock(widget)
    viewer.window.add_dock_widget(widget, name="Slow")
    bar.run(work)
    assert at_it.wait(20)
    close_by_its_cross(viewer, "Slow")
    qtbot.wait(50)
    assert not steps  # not even one step is waited for
    go_on.set()
    del widget, bar
    qtbot.waitUntil(lambda: not our_threads(), timeout=20_000)
    assert len(steps) == 1


def test_a_widget_that_gets_another_dock_lives_on(viewer, qtbot) -> None:
    widget = QWidget()
    end_with_dock(widget)
    viewer.window.add_dock_widget(widget, name="First")
    viewer.window.remove_dock_widget(widget)
    viewer.window.add_dock_widget(widget, name="Second")
    qtbot.wait(200)
    assert widget.parent() is not None
    assert widget.isVisible()


@pytest.mark.long
def test_a_view_that_a_closed_dock_had_asked_for_is_let_go(viewer, qtbot, monkeypatch) -> None:
    at_it, go_on, released = threading.Event(), threading.Event(), threading.Event()

    class View(_inspect_controller.SharedView):
        def release(self) -> None:
            released.set()

    def open_view(*_: Any) -> Any:
        yield Progress(0, 1, "Loading the model")
        at_it.set()
        go_on.wait(20)
        return View(None, (), lambda: None)  # type: ignore[arg-type]

    monkeypatch.setattr(_inspect_controller, "open_view", open_view)
    viewer.add_image(np.zeros((40, 50, 3), np.uint8), name="picture")
    _, widget = viewer.window.add_plugin_dock_widget("napari-isdnet", "Inspect")
    widget.choose_model("any")
    widget.look_inside()
    assert at_it.wait(20)
    bar = widget.bar
    del widget
    close_by_its_cross(viewer, "Inspect")
    qtbot.waitUntil(lambda: not bar.running, timeout=10_000)
    go_on.set()
    qtbot.waitUntil(released.is_set, timeout=10_000)
    gone(qtbot)


@pytest.mark.long
def test_annotate_takes_its_layer_along_and_keeps_what_was_painted(viewer, qtbot, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("NAPARI_ISDNET_CACHE", str(tmp_path))
    viewer.add_image(np.zeros((60, 60, 3), np.uint8), name="picture")
    _, widget = viewer.window.add_plugin_dock_widget("napari-isdnet", "Annotate")
    widget.start(tmp_path / "picture.isdnet")
    assert len(viewer.layers) == 2
    del widget
    close_by_its_cross(viewer, "Annotate")
    qtbot.waitUntil(lambda: [layer.name for layer in viewer.layers] == ["picture"], timeout=5000)
    gone(qtbot)
    assert (tmp_path / "picture.isdnet").is_dir()
