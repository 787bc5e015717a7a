"""Models of the images' projects among those that Segment, Inspect and Batch list."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qtpy.QtCore import Qt

from napari_isdnet.annotation.project import Project, models_in
from napari_isdnet.widgets._engine import LocalEngine
from napari_isdnet.widgets._projects import models_changed, tell_models
from napari_isdnet.widgets._reader import read
from napari_isdnet.widgets.batch import BatchWidget
from napari_isdnet.widgets.inspect import InspectWidget
from napari_isdnet.widgets.segment import SegmentWidget
from tests.gui.segment_tools import fields_network, write_field

WAIT = 30_000


def entries(box: Any) -> list[str]:
    return [box.itemText(row) for row in range(box.count())]


@pytest.mark.long
def test_docks_list_the_models_of_their_images_projects(
    viewer: Any, qtbot: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("NAPARI_ISDNET_CACHE", str(tmp_path / "cache"))
    picture, file = write_field(tmp_path, (128, 160)), Path(fields_network(tmp_path))
    with Project.open(picture, ("a", "b")) as project:  # and it stays open: nobody else could lock it
        for _ in range(2):
            project.add_model(file, name="a run")
        project.set_current("m001")
        data, keywords, _ = read(picture)[0]
        layer = viewer.add_image(data, **keywords)
        docks = [SegmentWidget(viewer, LocalEngine(tmp_path)), InspectWidget(viewer), BatchWidget(viewer)]
        segment, inspect, batch = docks
        for dock in docks:
            viewer.window.add_dock_widget(dock)
        batch.add([str(picture)])
        for dock, whose in zip(docks, ("this project", "this project", "field.tif"), strict=True):
            wanted = [f"m001 ({whose}, in use)", f"m002 ({whose})", "landcover-lite"]
            qtbot.waitUntil(lambda box=dock.model, wanted=wanted: entries(box)[:3] == wanted, timeout=WAIT)
            qtbot.waitUntil(lambda box=dock.model: box.currentText() == "landcover-lite", timeout=WAIT)
        assert segment.model.itemData(0, Qt.ItemDataRole.ToolTipRole) == f"a run\n{project.model_path('m001')}"
        segment.model.setCurrentIndex(1)
        segment.model.activated.emit(1)
        path = str(project.model_path("m002"))
        qtbot.waitUntil(lambda: segment.model.toolTip() == path, timeout=WAIT)
        inspect.model.setCurrentIndex(1)
        project.set_current("m002")
        tell_models()
        qtbot.waitUntil(lambda: entries(segment.model)[0] == "m002 (this project, in use)", timeout=WAIT)
        qtbot.waitUntil(lambda: entries(inspect.model)[0] == "m002 (this project, in use)", timeout=WAIT)
        assert segment.model.currentData() == inspect.model.currentData() == path
        viewer.add_image(np.zeros((64, 64, 3), np.uint8), name="of no project")
        segment.image.setCurrentIndex(segment.image.findText("of no project"))
        qtbot.waitUntil(lambda: entries(segment.model)[0] == "m002 (field.tif, in use)", timeout=WAIT)
        assert segment.model.currentData() == path
        assert entries(segment.model)[1] == "landcover-lite"
        segment.image.setCurrentIndex(segment.image.findText(layer.name))
        qtbot.waitUntil(lambda: entries(segment.model)[0] == "m002 (this project, in use)", timeout=WAIT)
    for dock in docks:
        viewer.window.remove_dock_widget(dock)
        dock.close()
        dock.deleteLater()
    qtbot.waitUntil(lambda: not models_changed, timeout=WAIT)


def test_a_project_that_cannot_be_read_has_no_models(tmp_path: Path) -> None:
    assert models_in(tmp_path) == (None, [])
    entry = {"id": "m001", "name": "n", "file": "models/m001.safetensors", "parent": None, "position": 0}
    whole = {"format": 1, "models": [entry | {"annotation": "x", "time": 0.0}], "current": "m001"}
    for content in ("{", "[]", json.dumps({**whole, "format": 9}), json.dumps({**whole, "models": [entry]})):
        (tmp_path / "project.json").write_text(content)
        assert models_in(tmp_path) == (None, [])
    (tmp_path / "project.json").write_text(json.dumps(whole))
    assert models_in(tmp_path) == ("m001", []), "the file of the model is gone"
