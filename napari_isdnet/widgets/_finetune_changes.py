"""What changed from one model to another: areas in what is looked at, IoU on the held-out strokes. No Qt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from napari_isdnet.classes import IGNORE_INDEX, ClassInfo
from napari_isdnet.engine.live import PredictionPyramid
from napari_isdnet.window import Window

MOST_PIXELS = 2**20


@dataclass(frozen=True)
class Change:
    """One class: pixels (of level 0) before and after, None for a model that lacks it or is not known yet; IoUs."""

    info: ClassInfo
    area_before: float | None
    area_after: float | None
    iou_before: float | None
    iou_after: float | None


def areas(pyramid: PredictionPyramid, view: Window, count: int) -> tuple[list[float], float]:
    """(pixels of level 0 of each of ``count`` classes in ``view``, share of the view that is known).

    Answered from the level that holds the view in about a million pixels; what is missing is computed next.
    """
    level = next((k for k, _ in enumerate(pyramid.shapes) if view.area / 4**k <= MOST_PIXELS), len(pyramid.shapes) - 1)
    window = view.divided(2**level).clipped(pyramid.shapes[level])
    if window.empty:
        return [0.0] * count, 0.0
    labels = pyramid.answer(level, window)
    counts = np.bincount(labels.ravel(), minlength=256)
    scale = view.area / labels.size
    known = 1 - counts[IGNORE_INDEX] / labels.size
    return [float(n) * scale for n in counts[:count]], float(known)


def changes(
    before: tuple[Sequence[ClassInfo], Sequence[float]] | None,
    after: tuple[Sequence[ClassInfo], Sequence[float]],
    scores: tuple[Mapping[str, float], Mapping[str, float]],
) -> list[Change]:
    """By class name, in the order of the new model; classes that only the old one has come last."""
    known = {} if before is None else dict(zip((c.name for c in before[0]), before[1], strict=True))
    rows = [
        Change(info, known.get(info.name), area, *(side.get(f"iou_{info.name}") for side in scores))
        for info, area in zip(*after, strict=True)
    ]
    names = {info.name for info in after[0]}
    for info in () if before is None else before[0]:
        if info.name not in names:
            rows.append(Change(info, known[info.name], None, *(side.get(f"iou_{info.name}") for side in scores)))
    return rows
