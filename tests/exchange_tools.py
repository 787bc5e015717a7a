"""An annotation of two classes, with a polygon that has a hole and a stroke, to be taken out and brought in again."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from napari_isdnet.annotation.store import AnnotationStore
from napari_isdnet.annotation.strokes import Brush, Polygon
from napari_isdnet.window import Window

SHAPE = (1200, 1500)


def water_and_roof(folder: Path) -> AnnotationStore:
    """Nothing is painted yet."""
    return AnnotationStore.create(folder / "scene.isdnet", SHAPE, [("water", "#0000ff"), ("roof", "#ff0000")])


def paint_both(store: AnnotationStore) -> None:
    """A polygon of water, a stroke of roof."""
    store.paint(Polygon([[(50, 50), (60, 900), (700, 700)], [(200, 400), (200, 600), (300, 550)]]), 0)
    store.paint(Brush([(1000, 100), (1100, 1400)], 9), 1)


def values(store: AnnotationStore) -> np.ndarray:
    """All of what is painted."""
    return store.read_labels(Window.whole(store.shape))
