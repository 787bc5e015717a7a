"""A small plot for a dock: it can be looked at, not dragged about."""

from __future__ import annotations

from typing import Any

import pyqtgraph as pg
from qtpy.QtWidgets import QWidget


def small_plot(parent: QWidget, name: str, title: str, tip: str) -> Any:
    """A plot widget without menu, buttons and mouse."""
    plot = pg.PlotWidget(parent)
    plot.setObjectName(name)
    plot.setTitle(title, size="9pt")
    plot.setToolTip(tip)
    plot.setMouseEnabled(x=False, y=False)
    plot.setMenuEnabled(False)
    plot.hideButtons()
    return plot
