"""Classes of a model as a table: shown or not, colour, name, area."""

from __future__ import annotations

from collections.abc import Sequence

from qtpy.QtCore import Qt, Signal
from qtpy.QtGui import QColor, QIcon, QPixmap
from qtpy.QtWidgets import QHeaderView, QTableWidget, QTableWidgetItem, QWidget

from napari_isdnet.classes import ClassInfo
from napari_isdnet.io.source import PixelSize
from napari_isdnet.widgets._segment_controller import area_text
from napari_isdnet.widgets._tables import fit_rows, leave_alone

_MOST_ROWS = 9


class ClassTable(QTableWidget):
    """One row per class. ``shown(index, bool)`` is emitted when the user ticks a row; areas are set from outside."""

    shown = Signal(int, bool)

    def __init__(self, parent: QWidget) -> None:
        super().__init__(0, 3, parent)
        self.setObjectName("segment_classes")
        self.setToolTip("Classes of the model: untick one to hide it. The area is that of what is done so far")
        self.setHorizontalHeaderLabels(["Class", "Area", "Share"])
        leave_alone(self)
        across = self.horizontalHeader()
        assert across is not None
        across.setDefaultAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)
        across.setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
        for column in (1, 2):
            across.setSectionResizeMode(column, QHeaderView.ResizeMode.ResizeToContents)
        self.itemChanged.connect(self._changed)

    def set_classes(self, classes: Sequence[ClassInfo]) -> None:
        """Show ``classes``, all ticked, without areas."""
        self.blockSignals(True)
        self.setRowCount(len(classes))
        for row, info in enumerate(classes):
            picture = QPixmap(14, 14)
            picture.fill(QColor(*info.color))
            item = QTableWidgetItem(QIcon(picture), info.name)
            item.setFlags(Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsUserCheckable)
            item.setCheckState(Qt.CheckState.Checked)
            item.setToolTip(f"Class {row}: {info.name} ({info.hex}); untick to hide it")
            self.setItem(row, 0, item)
            for column in (1, 2):
                cell = QTableWidgetItem("")
                cell.setFlags(Qt.ItemFlag.ItemIsEnabled)
                cell.setTextAlignment(int(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter))
                self.setItem(row, column, cell)
        self.blockSignals(False)
        fit_rows(self, _MOST_ROWS)

    def set_areas(self, pixels: Sequence[int], size: PixelSize | None) -> None:
        """Area and share of every class; a class without a pixel shows a dash."""
        self.blockSignals(True)
        total = sum(pixels)
        for row, count in enumerate(pixels):
            texts = (area_text(count, size), f"{100 * count / total:.1f} %") if count else ("–", "")
            for column, text in enumerate(texts, start=1):
                cell = self.item(row, column)
                if cell is not None:
                    cell.setText(text)
        self.blockSignals(False)

    def clear_areas(self) -> None:
        """No area is known; the ticks stay."""
        for row in range(self.rowCount()):
            for column in (1, 2):
                cell = self.item(row, column)
                if cell is not None:
                    cell.setText("")

    def _changed(self, item: QTableWidgetItem) -> None:
        if item.column() == 0:
            self.shown.emit(item.row(), item.checkState() == Qt.CheckState.Checked)
