"""A Fine-tune dock under test: a run to its end, its maps, its tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from qtpy.QtCore import Qt

from napari_isdnet.model.checkpoint import load_model, save_model
from napari_isdnet.widgets._lazy import pyramid_of
from napari_isdnet.widgets.finetune import FineTuneWidget
from napari_isdnet.window import Window

LONG = 240_000


def trained(qtbot: Any, dock: FineTuneWidget) -> None:
    qtbot.mouseClick(dock.train_button, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: dock.outcome is not None, timeout=LONG)


def shown_everywhere(qtbot: Any, dock: FineTuneWidget, side: str) -> np.ndarray:
    """The map of a side once it is known everywhere, as it is on the screen."""
    this = dock.compare.sides[side]
    qtbot.waitUntil(lambda: this.layer is not None and this.loaded == this.asked, timeout=LONG)
    live = pyramid_of(this.layer)
    assert live is not None
    labels = live.read(0, Window.whole(live.shapes[0]))  # type: ignore[attr-defined]
    return np.asarray(labels)


def at_rest(qtbot: Any, dock: FineTuneWidget) -> None:
    """Until no window is being computed: one that is takes its time on a busy machine."""
    lives = [side.controller.live for side in dock.compare.sides.values()]
    qtbot.waitUntil(lambda: not any(live.pending for live in lives if live is not None), timeout=LONG)


def texts(table: Any) -> list[list[str]]:
    return [[table.item(r, c).text() for c in range(table.columnCount())] for r in range(table.rowCount())]


def classes_are_new_or_dropped_as_training_has_them(qtbot: Any, dock: FineTuneWidget, bare: Path) -> None:
    """Part of a test: classes are renamed, and a model of the project knows them as well as before."""
    project = dock.controller.project
    assert project is not None
    made = {"annotations": {"position": project.store.position, "id": project.store.last_id}}
    network = load_model(bare, training=True)
    assert network.header is not None
    header = replace(network.header, lineage=made)
    entry = project.add_model(lambda path: save_model(network, path, header, half=False), make_current=False)
    project.store.rename_class(0, "roof")
    project.store.rename_class(1, "GREEN")
    dock.choose_model(str(bare))  # of no project
    said = dock.model_facts.text
    qtbot.waitUntil(lambda: said().endswith(" · new: roof · not in the annotation, so dropped: red"), timeout=LONG)
    dock.choose_model(str(project.model_path(entry.id)))
    qtbot.waitUntil(lambda: said().endswith(" · 'red' is called 'roof' now"), timeout=LONG)
    project.set_current(entry.id)
    dock.fill_models()
    dock.model.resize(dock.fontMetrics().horizontalAdvance("m001 (in use) · scen") + 40, dock.model.height())
    assert dock.model.currentText() == f"m001 (in use) · {entry.name}"
    assert dock.model.shown_text().startswith("m001 (in use)")
    assert dock.model.full_tip().startswith(dock.model.currentText())
    project.set_current(None)


def the_axis_of_steps_has_whole_numbers(dock: FineTuneWidget) -> None:
    """Part of a test: runs of few steps and of many."""
    for steps in (1, 2, 3, 7, 400):
        dock.curves.show_curves([(k, 1.0) for k in range(1, steps + 1)], [(0, {"miou": 0.5})], (), steps)
        for plot in (dock.curves.loss, dock.curves.iou):
            levels = plot.getAxis("bottom").tickValues(0, steps, 260)
            ticks = [float(value) for _, values in levels for value in values]
            assert ticks
            assert all(value.is_integer() for value in ticks)
