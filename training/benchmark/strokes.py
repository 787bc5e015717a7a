"""Strokes as a person would draw them from the truth: short lines of a few pixels' width inside one region."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from napari_isdnet.annotation.store import AnnotationStore
from napari_isdnet.annotation.strokes import Brush
from napari_isdnet.classes import IGNORE_INDEX
from napari_isdnet.window import Window

RADIUS = 2.0
LENGTH = 48


def draw(truth: npt.NDArray[np.uint8], rng: np.random.Generator) -> list[tuple[int, Brush]]:
    """One stroke for every class in ``truth`` (h, w) that has room for a brush; (row, column) are relative to it.

    A stroke starts at a random pixel at least the brush's radius inside a region, and follows the direction of four
    tried that stays inside longest.
    """
    from scipy.ndimage import distance_transform_edt

    found = []
    for index in np.unique(truth[truth != IGNORE_INDEX]):
        # The border of the window is a border too: a person stays on the screen.
        depth = distance_transform_edt(np.pad(truth == index, 1))[1:-1, 1:-1]
        rows, columns = np.nonzero(depth > RADIUS + 1)
        if not len(rows):
            continue
        at = int(rng.integers(len(rows)))
        start = np.array([rows[at], columns[at]], float)
        paths = [_walk(depth, start, angle) for angle in rng.uniform(0, 2 * np.pi, 4)]
        found.append((int(index), Brush(max(paths, key=len), RADIUS)))
    return found


def _walk(depth: npt.NDArray[np.float64], start: npt.NDArray[np.float64], angle: float) -> list[tuple[float, float]]:
    step = np.array([np.sin(angle), np.cos(angle)]) * 2
    path = [(float(start[0]), float(start[1]))]
    for number in range(1, LENGTH // 2):
        point = start + number * step
        row, column = round(point[0]), round(point[1])
        if not (0 <= row < depth.shape[0] and 0 <= column < depth.shape[1]) or depth[row, column] <= RADIUS + 1:
            break
        path.append((float(point[0]), float(point[1])))
    return path


def painted(store: AnnotationStore, region: Window) -> int:
    """Pixels of ``region`` that are annotated."""
    return int(np.count_nonzero(store.read_labels(region)))


def paint_at(
    store: AnnotationStore, truth: npt.NDArray[np.uint8], places: list[Window], region: Window, budget: int,
    rng: np.random.Generator,
) -> int:  # fmt: skip
    """Draw at ``places`` in turn until ``budget`` pixels of ``region`` are annotated; returns the number of strokes."""
    strokes = 0
    for place in places:
        for index, brush in draw(truth[place.slices], rng):
            if painted(store, region) >= budget:
                return strokes
            points = [(r + place.row, c + place.column) for r, c in brush.points]
            store.paint(Brush(points, brush.radius), index)
            strokes += 1
    return strokes
