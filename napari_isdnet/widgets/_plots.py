"""Small plots for a dock: they can be looked at, not dragged about, and are legible in both themes."""

from __future__ import annotations

from typing import Any

import pyqtgraph as pg
from qtpy.QtCore import QEvent
from qtpy.QtGui import QColor, QPalette
from qtpy.QtWidgets import QWidget


class ThemedPlots(QWidget):
    """Makes plots that follow the theme, from the first call of :meth:`_follow_theme` on."""

    def __init__(self, parent: QWidget | None, name: str) -> None:
        super().__init__(parent)
        self.setObjectName(name)
        self._plots: list[Any] = []
        self._follows = False

    def _plot(self, title: str, tip: str) -> Any:
        """A plot without menu, buttons and mouse."""
        plot = pg.PlotWidget(self)
        plot.setObjectName(f"{self.objectName()}_{title.split()[0].strip(':').lower()}")
        plot.setTitle(title, size="9pt")
        plot.setToolTip(tip)
        plot.setMouseEnabled(x=False, y=False)
        plot.setMenuEnabled(False)
        plot.hideButtons()
        self._plots.append(plot)
        return plot

    @property
    def _text(self) -> QColor:
        return self.palette().color(QPalette.ColorRole.WindowText)

    def _follow_theme(self) -> None:
        self._follows = True
        for plot in self._plots:
            plot.setBackground(None)
            for side in ("left", "bottom"):
                axis = plot.getAxis(side)
                axis.setPen(self._text)
                axis.setTextPen(self._text)
            label = plot.getPlotItem().titleLabel
            label.setText(label.text, color=self._text.name())

    def changeEvent(self, event: Any) -> None:
        """The theme was changed."""
        kinds = (QEvent.Type.PaletteChange, QEvent.Type.StyleChange)
        if event is not None and event.type() in kinds and getattr(self, "_follows", False):
            self._follow_theme()
        super().changeEvent(event)
