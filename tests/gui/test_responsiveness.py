"""The gap meter: it sees what holds the main thread, and moves over an image without harm."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from napari_isdnet.engine.tiles import TilePyramid
from napari_isdnet.widgets import _responsiveness
from napari_isdnet.widgets._lazy import layer_data, watch
from napari_isdnet.widgets._responsiveness import DOING, Heartbeat, measure, pan_and_zoom
from napari_isdnet.window import pyramid_shapes
from tests import finetune_tools as tools


def test_a_held_main_thread_is_seen(qtbot, monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(_responsiveness, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    heartbeat = Heartbeat()
    with heartbeat:
        qtbot.waitUntil(lambda: len(heartbeat.gaps) >= 2)
        now[0] += 0.2
        before = len(heartbeat.gaps)
        qtbot.waitUntil(lambda: len(heartbeat.gaps) >= before + 2)
    assert [round(gap, 3) for gap in heartbeat.gaps if gap] == [0.195]


def test_the_scripted_path_goes_from_the_whole_to_full_resolution(viewer, qtbot) -> None:
    levels: set[int] = set()

    def read(level, window):
        levels.add(level)
        return np.zeros((*window.shape, 3), np.uint8)

    pyramid = TilePyramid(pyramid_shapes((8192, 8192)), read, channels=3)
    watch(viewer)
    data, multiscale = layer_data(pyramid)
    image = viewer.add_image(data, multiscale=multiscale, rgb=True)
    for seconds in (1, 5, 25):  # a machine that draws few pictures a second misses parts of a short path
        report = pan_and_zoom(viewer, image, seconds)
        if 0 in levels:
            break
    assert report.ticks > 0
    assert report.without_drawing["max"] <= report.with_drawing["max"]
    assert 0 in levels
    assert max(levels) >= 2


@pytest.mark.long
@pytest.mark.parametrize(
    "doing", [pytest.param(name, marks=[pytest.mark.slow] if name == "finetune" else []) for name in DOING]
)
def test_loading_and_what_the_plugin_does_are_measured_apart(viewer, qtbot, tmp_path: Path, monkeypatch, doing) -> None:
    monkeypatch.setenv("NAPARI_ISDNET_CACHE", str(tmp_path / "cache"))
    picture, model = tools.scene(tmp_path / "scene.png"), tools.network(tmp_path / "model.safetensors")
    reports = measure(viewer, str(picture), doing, str(model), 0.5, settle=0.1)
    assert list(reports) == ["load", doing]
    assert all(report.ticks > 0 for report in reports.values())
    names = [layer.name for layer in viewer.layers]
    assert names[0] == "scene"
    assert (len(names) > 1) == (doing != "nothing"), names
