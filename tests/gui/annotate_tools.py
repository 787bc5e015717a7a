"""An Annotate dock under test: what was painted, the end of what is under way, and a picture to paint on."""

from __future__ import annotations

from typing import Any

import numpy as np
from qtpy.QtWidgets import QApplication

from napari_isdnet.widgets.annotate import AnnotateWidget
from napari_isdnet.window import Window


def tiles(shape: tuple[int, int], side: int = 200) -> np.ndarray:
    """Squares of flat colours with a little noise."""
    rows, columns = np.indices(shape) // side
    colors = np.random.default_rng(3).integers(30, 220, (64, 3))
    noise = np.random.default_rng(4).integers(-4, 5, (*shape, 3))
    return (colors[(rows * 7 + columns * 3) % 64] + noise).clip(0, 255).astype(np.uint8)


def settle(qtbot: Any, dock: AnnotateWidget) -> None:
    """Until what was painted is in the store and on the screen."""
    assert dock.controller.wait(10)
    QApplication.processEvents()  # the store has told; the dock hears it now
    qtbot.waitUntil(lambda: dock.canvas is None or not dock.canvas._dirty, timeout=5000)


def start_over(qtbot: Any, dock: AnnotateWidget) -> None:
    """Nothing is painted, as in a new dock: the next promise is of the same window, which takes seconds to make."""
    while dock.undo_button.isEnabled():
        dock.undo_button.click()
        settle(qtbot, dock)
    assert not painted(dock).any()


def look(viewer: Any, center: tuple[float, float], zoom: float) -> None:
    viewer.camera.center = center
    viewer.camera.zoom = zoom


def painted(dock: AnnotateWidget, window: Window | None = None) -> np.ndarray:
    store = dock.controller.store
    return store.read_labels(window or Window.whole(store.shape))
