"""Charts of the Inspect dock: attention vectors as bars, a relation matrix as a heat map. Legible in both themes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyqtgraph as pg
from qtpy.QtWidgets import QHBoxLayout, QVBoxLayout, QWidget

from napari_isdnet.engine.rendering import colormap
from napari_isdnet.widgets._plots import ThemedPlots

SHALLOW, DEEP = "#3b9ddd", "#e8833a"


class AttentionCharts(ThemedPlots):
    """M_s and M_d of one fusion as bars over the channels, R beside them."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent, "inspect_charts")
        self.shallow = self._plot("Shallow channels: M_s", "How much each shallow channel counts, before the relation")
        self.deep = self._plot("Deep channels: M_d", "How much each deep channel counts, before the relation")
        self.relation = self._plot(
            "Relation: R", "Relation of 16 groups of shallow channels (down) with 16 groups of deep ones (across)"
        )
        self.relation.setAspectLocked(True)
        self.relation.invertY(True)
        self.relation.getPlotItem().hideAxis("left")
        self.relation.getPlotItem().hideAxis("bottom")
        self.picture = pg.ImageItem(axisOrder="row-major")
        self.picture.setLookupTable(colormap("viridis"))
        self.relation.addItem(self.picture)
        bars = QVBoxLayout()
        bars.addWidget(self.shallow)
        bars.addWidget(self.deep)
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.addLayout(bars, 3)
        row.addWidget(self.relation, 2)
        self.setMinimumHeight(220)
        self._follow_theme()

    def show_attention(self, attention: dict[str, Any], stride: int) -> None:
        """Show the vectors (C,) and the matrix (G, G) of the fusion at ``stride``; what is missing stays empty."""
        for plot, name, color in ((self.shallow, f"M_s{stride}", SHALLOW), (self.deep, f"M_d{stride}", DEEP)):
            plot.clear()
            if name in attention:
                values = np.asarray(attention[name], float)
                plot.addItem(pg.BarGraphItem(x=np.arange(len(values)), height=values, width=1.0, brush=color, pen=None))
                plot.setXRange(-0.5, len(values) - 0.5, padding=0.01)
        relation = attention.get(f"R{stride}")
        self.relation.setVisible(relation is not None)
        if relation is not None:
            self.picture.setImage(np.asarray(relation, np.float32), autoLevels=True)
