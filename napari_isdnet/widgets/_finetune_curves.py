"""Live curves of a fine-tuning: loss, and IoU on the held-out places. Legible in both themes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyqtgraph as pg
from qtpy.QtGui import QColor
from qtpy.QtWidgets import QVBoxLayout, QWidget

from napari_isdnet.classes import ClassInfo
from napari_isdnet.widgets._plots import ThemedPlots

Losses = Sequence[tuple[float, float]]
Scores = Sequence[tuple[float, Mapping[str, float]]]
LOSS = "#3b9ddd"
SMOOTHING = 0.8
MOST_POINTS = 2000


class WholeSteps(pg.AxisItem):  # type: ignore[misc]
    """An axis of steps: there is nothing between two of them, however few there are."""

    def tickSpacing(self, minVal: float, maxVal: float, size: float) -> list[tuple[float, float]]:
        """(distance, offset) of each level of ticks."""
        levels = super().tickSpacing(minVal, maxVal, size)
        return [(distance, offset) for distance, offset in levels if distance >= 1] or [(1.0, 0.0)]


class CurvesWidget(ThemedPlots):
    """Loss of every step with its running mean; mIoU (bold) and IoU of each class (its colour) at every judgement."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent, "finetune_curves")
        self.loss = self._plot("Loss", "Loss of each step (thin) and its running mean (bold)")
        self.iou = self._plot(
            "IoU on held-out places", "Bold: the mean over the classes; thin: each class, in its colour"
        )
        self.iou.setYRange(0, 1, padding=0.02)
        self.iou.getAxis("left").setTicks([[(k / 4, f"{k / 4:g}") for k in range(5)]])
        for plot in (self.loss, self.iou):
            plot.setAxisItems({"bottom": WholeSteps("bottom")})
            plot.showGrid(x=False, y=True, alpha=0.2)
            plot.getAxis("left").setWidth(38)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(2)
        column.addWidget(self.loss, 4)
        column.addWidget(self.iou, 5)
        self.setFixedHeight(300)
        self._shown: tuple[Losses, Scores, Sequence[ClassInfo], int] = ((), (), (), 1)
        self._follow_theme()

    def show_curves(self, losses: Losses, scores: Scores, classes: Sequence[ClassInfo], steps: int) -> None:
        """Draw what is known; the axis reaches to ``steps``."""
        self._shown = (losses, scores, classes, steps)
        self._draw()

    def _draw(self) -> None:
        losses, scores, classes, steps = self._shown
        text = self._text
        for plot in (self.loss, self.iou):
            plot.clear()
            plot.setXRange(0, max(1, steps), padding=0.02)
        if losses:
            x, y = np.asarray(losses, float).T
            step = max(1, len(x) // MOST_POINTS)
            faint = QColor(LOSS)
            faint.setAlpha(110)
            self.loss.plot(x[::step], y[::step], pen=pg.mkPen(faint, width=1))
            self.loss.plot(x[::step], running_mean(y)[::step], pen=pg.mkPen(LOSS, width=2))
        for info in classes:
            self._curve(scores, f"iou_{info.name}", pg.mkPen(info.hex, width=1.5), 4, info.hex)
        self._curve(scores, "miou", pg.mkPen(text, width=2.5), 6, text)

    def _curve(self, scores: Scores, key: str, pen: Any, size: int, color: Any) -> None:
        points = [(step, figures[key]) for step, figures in scores if key in figures]
        if points:
            x, y = np.asarray(points, float).T
            self.iou.plot(x, y, pen=pen, symbol="o", symbolSize=size, symbolBrush=color, symbolPen=None)

    def _follow_theme(self) -> None:
        super()._follow_theme()
        self.iou.setLabel("bottom", "Step", color=self._text.name())
        self._draw()


def running_mean(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Exponential running mean without the pull to zero at the start (Kingma and Ba, ICLR 2015, section 3)."""
    smooth, mean = np.empty(len(values)), 0.0
    for k, value in enumerate(values):  # scipy's filters take longer to import than this takes for a million steps
        mean = SMOOTHING * mean + (1 - SMOOTHING) * value
        smooth[k] = mean / (1 - SMOOTHING ** (k + 1))
    return smooth
