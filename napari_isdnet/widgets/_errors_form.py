"""The controls of the Errors dock and how they lie; what they do is in ``errors.py``."""

from __future__ import annotations

import html

import numpy as np
from qtpy.QtCore import QSize
from qtpy.QtGui import QColor
from qtpy.QtWidgets import (
    QDoubleSpinBox,
    QFormLayout,
    QHeaderView,
    QLabel,
    QTableWidget,
    QTabWidget,
    QVBoxLayout,
    QWidget,
)

from napari_isdnet.engine.errors import ERROR_COLORS, FALSE_ALARM, MISSED, MISSED_AT_BOUNDARY, WRONG
from napari_isdnet.engine.evaluation import Evaluation
from napari_isdnet.widgets import _errors_controller as facts
from napari_isdnet.widgets._controls import Controls, in_row, scrolled
from napari_isdnet.widgets._job import JobBar
from napari_isdnet.widgets._tables import cell, reading_table
from napari_isdnet.window import Window

CHANGED = "The annotation has changed since"
AGAIN = "again"
LINK = "#3d85c6"
"""Legible on the dark theme and on the light one; Qt's own blue is not on the dark."""


class ErrorsForm(Controls):
    """Two maps, a class, a region; figures in three tabs."""

    PREFIX = "errors"

    def __init__(self) -> None:
        super().__init__()
        self.setObjectName("isdnet_errors")
        self.prediction = self._combo("prediction", "The class map that is judged: a Labels layer or a file")
        self.truth = self._combo("truth", "The class map that is right: a Labels layer or a file")
        self.prediction_button = self._button("prediction_file", "File…", "Judge a class map in a file")
        self.truth_button = self._button("truth_file", "File…", "Compare with truth in a file")
        self.classes = self._combo("class", "Errors of one class (missed, false alarm), or of any")
        self.classes.addItem("Any class", None)
        self.region = self._combo("region", "Where the figures count; the error layer always covers everything")
        for text, key in (("Whole image", "whole"), ("What is visible", "visible"), ("Drawn rectangle", "drawn")):
            self.region.addItem(text, key)
        self.draw_button = self._button("draw", "Draw", "Draw a rectangle in a Shapes layer")
        self.tolerance = QDoubleSpinBox(self)
        self.tolerance.setObjectName("errors_tolerance")
        self.tolerance.setToolTip(
            "Errors this near to a boundary of the truth are paler, and boundary F1 allows them; 0: all alike"
        )
        self.tolerance.setRange(0, 50)
        self.tolerance.setValue(3)
        self.tolerance.setSuffix(" px")
        self.compare_button = self._button("compare", "Show errors and compare", "Add the error layer and find figures")
        self.report_button = self._button(
            "report", "Export report…", "Write report.html with pictures, and the figures as JSON and CSV"
        )
        self.report_button.setEnabled(False)
        self.legend = QLabel(self)
        self.legend.setObjectName("errors_legend")
        self.legend.setToolTip("Colours of the error layer; paler ones lie at a boundary of the truth")
        self.summary = QLabel("", self)
        self.summary.setObjectName("errors_summary")
        self.summary.setToolTip("Mean IoU over the classes that occur, and the share of pixels that are right")
        self.summary.setWordWrap(True)
        self.worst_windows: list[Window] = []
        self.stale = False  # the figures are of strokes or pixels that are no longer what there is
        self.table = reading_table(self, "errors_table", "Figures of every class that occurs", facts.CLASS_HEADER)
        self.matrix = reading_table(self, "errors_matrix", "Rows: truth; columns: what it was called", ("",))
        self.worst = reading_table(
            self,
            "errors_worst",
            "Windows with the most wrong pixels, of the chosen class or of any; click one to fly there",
            facts.WORST_HEADER,
            stretch=2,
        )
        # The last column says more than one line of a narrow dock holds.
        self.worst.setWordWrap(True)
        down = self.worst.verticalHeader()
        assert down is not None
        down.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        self.bar = JobBar(self, "errors_job")
        self.looking = JobBar(self, "errors_look")
        self.looking.setMaximumHeight(0)
        self._lay_out()
        self.show_legend(one_class=False)

    def _lay_out(self) -> None:
        form = QFormLayout()
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.ExpandingFieldsGrow)
        form.addRow("Prediction", in_row(self.prediction, self.prediction_button))
        form.addRow("Truth", in_row(self.truth, self.truth_button))
        form.addRow("Class", self.classes)
        form.addRow("Region", in_row(self.region, self.draw_button))
        form.addRow("Boundary", self.tolerance)
        self.tabs = QTabWidget(self)
        self.tabs.setObjectName("errors_tabs")
        self.tabs.setToolTip("Figures, confusions and the worst windows")
        for widget, title in ((self.table, "Classes"), (self.matrix, "Confusion"), (self.worst, "Worst windows")):
            self.tabs.addTab(widget, title)
        page = QWidget(self)
        column = QVBoxLayout(page)
        column.addLayout(form)
        column.addWidget(self.compare_button)
        column.addWidget(self.legend)
        column.addWidget(self.bar)
        column.addWidget(self.looking)
        column.addWidget(self.summary)
        column.addWidget(self.tabs, 1)
        column.addWidget(self.report_button)
        scrolled(self, page, "errors_scroll")

    def sizeHint(self) -> QSize:
        """Wide enough for all columns of the figures; the dock may be made narrower."""
        return QSize(450, super().sizeHint().height())

    # -- showing -------------------------------------------------------------------------------------------------
    def show_legend(self, one_class: bool) -> None:
        """Swatches of the codes that the error layer holds."""
        shown = {MISSED: "missed", FALSE_ALARM: "false alarm"} if one_class else {WRONG: "wrong class"}
        shown[MISSED_AT_BOUNDARY if one_class else WRONG + 3] = "paler: at a boundary"
        parts = [f"<span style='color:rgb{ERROR_COLORS[k]}'>■</span> {text}" for k, text in shown.items()]
        self.legend.setText("&nbsp;&nbsp; ".join(parts))

    def mark_stale(self, why: str, result: Evaluation) -> bool:
        """Grey the figures and say ``why`` they are of other maps than there are now; '' takes that back. True if new.

        The sentence ends in a link that compares again.
        """
        stale = bool(why)
        if stale == self.stale:
            return False
        self.stale = stale
        text = facts.summary(result)
        link = f"<a href='{AGAIN}' style='color: {LINK}'>compare again</a>"
        said = f"<b>{html.escape(why, quote=False)}: {link}.</b><br>{html.escape(text)}"
        self.summary.setText(said if stale else text)
        self.tabs.setEnabled(not stale)
        self.report_button.setEnabled(not stale)  # its pictures would be of what there is now
        return True

    def clear_figures(self) -> None:
        """Empty all three tabs: figures of other maps than the chosen ones would be taken for theirs."""
        self.stale = False
        self.tabs.setEnabled(True)
        self.summary.clear()
        for table in (self.table, self.matrix, self.worst):
            table.setRowCount(0)
        self.matrix.setColumnCount(1)
        self.matrix.setHorizontalHeaderLabels([""])
        self.report_button.setEnabled(False)

    def show_figures(self, result: Evaluation) -> None:
        """Fill all three tabs."""
        self.summary.setText(facts.summary(result))
        rows = facts.class_rows(result)
        self.table.setRowCount(len(rows))
        for row, (color, cells) in enumerate(rows):
            for column, text in enumerate(cells):
                item = cell(text, right=column > 0, color=color if column == 0 else "")
                if not color:
                    font = item.font()
                    font.setBold(True)
                    item.setFont(font)
                self.table.setItem(row, column, item)
        self._show_matrix(result)
        self.show_worst(result)

    def show_worst(self, result: Evaluation) -> None:
        """Fill the tab of the worst windows: of the chosen class, or of any."""
        index = self.classes.currentData()
        windows = facts.worst_rows(result, index)
        self.worst_windows = [window for window, _ in windows]
        what = facts.WORST_HEADER[-1] if index is None else "Pixels"
        self.worst.setHorizontalHeaderLabels([*facts.WORST_HEADER[:-1], what])
        self.worst.setRowCount(len(windows))
        for row, (window, texts) in enumerate(windows):
            for column, text in enumerate(texts):
                tip = f"Mostly {texts[2]}" if index is None else f"{self.classes.currentText()}: {texts[2]} pixels"
                tip = f"{tip}; click to fly to row {window.row}, column {window.column}"
                item = cell(text, tip=tip, right=column == 0)
                self.worst.setItem(row, column, item)

    def _show_matrix(self, result: Evaluation) -> None:
        present, shares, counts = facts.confusion_shares(result)
        names = [result.classes[index].name for index in present]
        colors = [result.classes[index].hex for index in present]
        matrix: QTableWidget = self.matrix
        matrix.setColumnCount(len(names) + 1)
        matrix.setHorizontalHeaderLabels(["truth \\ called", *names])
        matrix.setRowCount(len(names))
        for row, name in enumerate(names):
            matrix.setItem(row, 0, cell(name, color=colors[row]))
            for column, other in enumerate(names):
                share = float(shares[row, column])
                tip = f"{counts[row, column]:,} pixels of {name} were called {other}"
                item = cell(f"{100 * share:.1f}" if counts[row, column] else "·", tip, right=True)
                # A tint, not a fill: the theme's own text colour stays legible on it.
                right = QColor(34, 160, 90) if row == column else QColor(220, 38, 38)
                right.setAlpha(int(np.clip(20 + 130 * share, 0, 150)) if counts[row, column] else 0)
                item.setBackground(right)
                matrix.setItem(row, column + 1, item)
        matrix.resizeColumnsToContents()
