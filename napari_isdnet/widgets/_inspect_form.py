"""The controls of the Inspect dock, without what they do."""

from __future__ import annotations

from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QFormLayout,
    QHBoxLayout,
    QHeaderView,
    QLabel,
    QSlider,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from napari_isdnet.classes import ClassInfo
from napari_isdnet.widgets._controls import Controls, form_layout, in_row, scrolled
from napari_isdnet.widgets._inspect_charts import AttentionCharts
from napari_isdnet.widgets._job import JobBar
from napari_isdnet.widgets._tables import cell, leave_alone


class InspectForm(Controls):
    """Image, network, map and rendering; attention; what the branches say."""

    PREFIX = "inspect"

    def __init__(self) -> None:
        super().__init__()
        self.setObjectName("isdnet_inspect")
        self.image = self._combo("image", "The image to look at through the network")
        self.model = self._combo("model", "The network to look into: a model of this image's project, or one by name")
        self.model.setPlaceholderText("Choose a model file…")
        self.model_button = self._button("model_file", "File…", "Choose a model file (.safetensors)")
        self.context = self._combo(
            "context", "Whole: maps as the whole image makes them. Window: as each window alone makes them (quick)"
        )
        for text, key in (("Whole image (exact)", "whole"), ("Window by window", "window")):
            self.context.addItem(text, key)
        self.open_button = self._button("open", "Look inside", "Run the network and offer its maps")
        self.bar = JobBar(self, "inspect_job")
        self.map = self._combo("map", "Which map of the network is shown")
        self.rendering = self._combo("rendering", "How the channels of the map become a picture")
        self.channel = QSlider(Qt.Orientation.Horizontal, self)
        self._dress(self.channel, "channel", "Which channel is shown: the one that varies most is on the left")
        self.channel.setTracking(False)
        self.channel_text = QLabel("", self)
        self._dress(self.channel_text, "channel_text", "Rank by variance, and the channel's own number")
        self.region = self._combo("region", "Which part of the image the map covers; it is computed where you look")
        for text, key in (("What is visible", "visible"), ("Drawn rectangle", "drawn"), ("Whole image", "whole")):
            self.region.addItem(text, key)
        self.draw_button = self._button("draw", "Draw", "Draw a rectangle on the image and use it as the region")
        self.show_button = self._button("show", "Show map", "Show the map of the region over the image")
        self.keep_button = self._button("keep", "Keep layer", "Leave the layer as it is; the next map gets a new one")
        self.pick_button = self._button(
            "pick",
            "Pick a pixel",
            "Click on the image: how similar all pixels are to it, what each branch alone says",
        )
        self.pick_button.setCheckable(True)
        self.copy_button = self._button("copy", "Copy as command", "The command line that writes this map to files")
        self.status = QLabel("Choose a model and look inside.", self)
        self._dress(self.status, "status", "What is shown, and what can be done next")
        self.status.setWordWrap(True)
        self.table = QTableWidget(0, 4, self)
        self._dress(self.table, "opinions", "Probability of each class: by the whole network, and by one branch alone")
        self.asked = QLabel("", self)
        self._dress(self.asked, "asked", "The pixel with the cross; the table says what the network makes of it")
        self.asked.setWordWrap(True)
        self.fusion = self._combo(
            "fusion",
            "Which fusion of the branches the charts show: that at 1/16 or at 1/8 of the image's size",
        )
        for stride in (16, 8):
            self.fusion.addItem(f"Fusion at 1/{stride}", stride)
        self.charts = AttentionCharts(self)
        self._tidy_table()
        self._lay_out()

    def _attention(self) -> QWidget:
        """The charts of one fusion, and what their letters mean."""
        self.attention_box = QWidget(self)
        column = QVBoxLayout(self.attention_box)
        column.setContentsMargins(0, 0, 0, 0)
        form = form_layout()
        form.addRow("Attention in", self.fusion)
        legend = QLabel(
            "M_s, M_d: how much each channel of the shallow and the deep branch counts. R: how groups of shallow"
            " channels (down) go with groups of deep ones (across).",
            self,
        )
        self._dress(
            legend,
            "attention_legend",
            "Of the whole image, or of the window in the middle of the region",
        )
        legend.setWordWrap(True)
        for item in (self.charts, legend):
            column.addWidget(item)
        column.insertLayout(0, form)
        return self.attention_box

    def _tidy_table(self) -> None:
        self.table.setHorizontalHeaderLabels(["Class", "Network", "Shallow", "Deep"])
        leave_alone(self.table)
        across = self.table.horizontalHeader()
        assert across is not None
        across.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        across.setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
        self.table.setMinimumHeight(150)
        self.hide_opinions()

    def show_opinions(self, rows: list[tuple[ClassInfo, dict[str, float]]], row: int, column: int) -> None:
        """Probabilities of the classes at a pixel, each branch's most probable one in bold."""
        self.asked.setText(f"Classes at row {row:,}, column {column:,}:")
        self.asked.show()
        branches = [b for b in ("both", "shallow", "deep") if b in rows[0][1]]
        best = {b: max(values[b] for _, values in rows) for b in branches}
        self.table.setColumnCount(1 + len(branches))
        self.table.setRowCount(len(rows))
        for index, (info, values) in enumerate(rows):
            self.table.setItem(index, 0, cell(info.name, color=info.hex))
            for column, branch in enumerate(branches, 1):
                item = QTableWidgetItem(f"{values[branch]:.1%}")
                font = item.font()
                font.setBold(values[branch] == best[branch])
                item.setFont(font)
                self.table.setItem(index, column, item)
        self.table.show()

    def hide_opinions(self) -> None:
        """No pixel was asked about."""
        self.asked.hide()
        self.table.hide()

    def _lay_out(self) -> None:
        inside = QWidget(self)
        column = QVBoxLayout(inside)
        form = QFormLayout()
        form.addRow("Image", self.image)
        form.addRow("Model", in_row(self.model, self.model_button))
        form.addRow("Context", self.context)
        column.addLayout(form)
        column.addWidget(self.open_button)
        column.addWidget(self.bar)
        self.shown = QWidget(self)
        shown = QVBoxLayout(self.shown)
        shown.setContentsMargins(0, 0, 0, 0)
        maps = QFormLayout()
        maps.addRow("Map", self.map)
        maps.addRow("Shown as", self.rendering)
        self.channel_row = QWidget(self)
        channel = QHBoxLayout(self.channel_row)
        channel.setContentsMargins(0, 0, 0, 0)
        channel.addWidget(self.channel, 1)
        channel.addWidget(self.channel_text)
        maps.addRow("Channel", self.channel_row)
        maps.addRow("Region", in_row(self.region, self.draw_button))
        self.maps = maps
        shown.addLayout(maps)
        shown.addLayout(in_row(self.show_button, self.keep_button))
        shown.addLayout(in_row(self.pick_button, self.copy_button))
        shown.addWidget(self.asked)
        shown.addWidget(self.table)
        shown.addWidget(self._attention())
        column.addWidget(self.status)
        column.addWidget(self.shown)
        column.addStretch(1)
        self.shown.hide()
        scrolled(self, inside, "inspect_scroll")
        self.setMinimumWidth(340)
