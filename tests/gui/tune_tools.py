"""A Fine-tune dock under test: a run to its end, its maps, its tables."""

from __future__ import annotations

from typing import Any

import numpy as np
from qtpy.QtCore import Qt

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
