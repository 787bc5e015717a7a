"""The live view where what it looks at goes, and where two windows look at the same image."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from napari.utils.notifications import notification_manager

from napari_isdnet.engine.lock import JobLock
from napari_isdnet.progress import result_of
from napari_isdnet.widgets._engine import LocalEngine, _others_turn
from napari_isdnet.widgets.segment import SegmentWidget
from napari_isdnet.window import Window
from tests.gui.test_segment_controller import FakeEngine
from tests.network_tools import lively, picture, policy_of, small, source_of


class SlowEngine(FakeEngine):
    """Loads its network once it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.loading, self.let = threading.Event(), threading.Event()

    def live(self, *arguments: Any, **options: Any) -> Any:
        self.loading.set()
        self.let.wait(10)
        return super().live(*arguments, **options)


@pytest.mark.parametrize("others", [0, pytest.param(1, marks=pytest.mark.long)])
def test_an_image_that_goes_while_the_model_loads_ends_live_without_a_word(viewer, qtbot, others) -> None:
    for number in range(others):
        viewer.add_image(np.zeros((300, 300, 3), np.uint8), name=f"other {number}")
    image = viewer.add_image(np.zeros((300, 300, 3), np.uint8), name="field")
    engine = SlowEngine()
    dock = SegmentWidget(viewer, engine)
    viewer.window.add_dock_widget(dock, name="Segment")
    qtbot.waitUntil(lambda: dock.controller.about is not None and dock.device.count() > 0, timeout=10_000)
    assert dock.image.currentData() is image
    said = len(notification_manager.records)
    dock.live_button.click()
    qtbot.waitUntil(engine.loading.is_set, timeout=10_000)
    viewer.layers.remove(image)
    assert not dock.live.on
    engine.let.set()
    qtbot.waitUntil(lambda: engine.closed == ["live"], timeout=10_000)  # nobody will answer by it
    assert dock.live.layer is None
    assert dock.controller.live is None
    assert len(engine.averaged) == 1  # live did not begin on the image that is left
    assert not notification_manager.records[said:]


def test_a_job_that_another_window_works_on_is_waited_for(tmp_path: Path) -> None:
    job = tmp_path / "means.job"
    result_of(_others_turn(job))  # nobody has begun it
    job.mkdir()
    lock = JobLock(job / "lock")
    lock.acquire()
    waiting = _others_turn(job)
    assert "another window of napari" in next(waiting).stage
    assert "another window of napari" in next(waiting).stage
    lock.release()
    assert next(waiting, None) is None


@pytest.mark.long
def test_two_windows_that_look_at_one_image_search_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from napari_isdnet.model.checkpoint import save_model

    monkeypatch.setenv("NAPARI_ISDNET_CACHE", str(tmp_path / "cache"))
    file = str(save_model(lively(small()), tmp_path / "m.safetensors", half=False))
    image = picture((160, 128))
    source, policy = source_of(image), policy_of(image)
    first, second = (LocalEngine(tmp_path / "live").exact(source, file, "cpu", policy, None) for _ in range(2))
    while not list((tmp_path / "live").glob("*/lock")):
        next(first)
    stages = [next(second).stage for _ in range(3)]
    assert stages[-1] == "another window of napari goes over this image"
    works = result_of(first), result_of(second)
    whole = Window(0, 0, 160, 128)
    answers = [work.compute(whole) for work in works]
    for work in works:
        work.close()
    assert (answers[0] != answers[1]).mean() < 1e-2
