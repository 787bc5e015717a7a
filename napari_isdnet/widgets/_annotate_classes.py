"""The class list as a table: colour, name, key and number of painted pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from qtpy.QtCore import Qt, Signal
from qtpy.QtGui import QColor, QIcon, QPixmap
from qtpy.QtWidgets import QAbstractItemView, QColorDialog, QHeaderView, QTableWidget, QTableWidgetItem, QWidget

from napari_isdnet.annotation.classlist import AnnotationClass

NAME, KEY, PIXELS = range(3)
_TIPS = {
    NAME: "Click the colour square to change it, double-click the name to rename; the selected class is painted",
    KEY: "Key that picks this class while the annotation layer is selected; double-click to change (1 to 9)",
    PIXELS: "Painted pixels at full resolution",
}


class ClassTable(QTableWidget):
    """Signals: ``picked(index)``, ``renamed(index, name)``, ``recolored(index, hex)``, ``rekeyed(index, key)``."""

    picked = Signal(int)
    renamed = Signal(int, str)
    recolored = Signal(int, str)
    rekeyed = Signal(int, str)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(0, 3, parent)
        self.setObjectName("annotate_classes")
        self.setToolTip("The classes; select the one to paint")
        self.setHorizontalHeaderLabels(["Class", "Key", "Pixels"])
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.setShowGrid(False)
        self.setMinimumHeight(130)
        down, across = self.verticalHeader(), self.horizontalHeader()
        assert down is not None
        assert across is not None
        down.hide()
        across.setSectionResizeMode(NAME, QHeaderView.ResizeMode.Stretch)
        across.setSectionResizeMode(KEY, QHeaderView.ResizeMode.ResizeToContents)
        across.setSectionResizeMode(PIXELS, QHeaderView.ResizeMode.ResizeToContents)
        self._classes: tuple[AnnotationClass, ...] = ()
        self.ask_color: Callable[[QColor], QColor] = lambda now: QColorDialog.getColor(now, self, "Colour of the class")
        self.itemSelectionChanged.connect(self._selected)
        self.itemChanged.connect(self._edited)

    @property
    def shown_classes(self) -> tuple[AnnotationClass, ...]:
        """The classes as they are shown now."""
        return self._classes

    def show_classes(self, classes: Sequence[AnnotationClass], counts: Sequence[int], current: int) -> None:
        """Bring the table up to date."""
        self.blockSignals(True)
        if tuple(classes) != self._classes or self.rowCount() != len(classes):
            self._classes = tuple(classes)
            self.setRowCount(len(classes))
            for row, item in enumerate(classes):
                self._fill(row, item)
        for row in range(len(classes)):
            cell = self.item(row, PIXELS)
            text = f"{counts[row]:,}" if row < len(counts) else "0"
            if cell is not None and cell.text() != text:
                cell.setText(text)
        if self.currentRow() != current or not self.selectedItems():
            self.selectRow(current)
        self.blockSignals(False)

    def refill(self) -> None:
        """Show again what is true (after an edit that was refused)."""
        classes, self._classes = self._classes, ()
        counts = [int(self._text(row, PIXELS).replace(",", "") or 0) for row in range(self.rowCount())]
        self.show_classes(classes, counts, max(self.currentRow(), 0))

    def _text(self, row: int, column: int) -> str:
        cell = self.item(row, column)
        return "" if cell is None else cell.text()

    def _fill(self, row: int, item: AnnotationClass) -> None:
        square = QPixmap(14, 14)
        square.fill(QColor(*item.info.color))
        for column, text in ((NAME, item.info.name), (KEY, item.shortcut or ""), (PIXELS, "0")):
            cell = QTableWidgetItem(text)
            cell.setToolTip(_TIPS[column])
            if column == NAME:
                cell.setIcon(QIcon(square))
            elif column == KEY:
                cell.setTextAlignment(Qt.AlignmentFlag.AlignCenter)
            else:
                cell.setTextAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
                cell.setFlags(cell.flags() & ~Qt.ItemFlag.ItemIsEditable)
            self.setItem(row, column, cell)

    def _selected(self) -> None:
        rows = {item.row() for item in self.selectedItems()}
        if len(rows) == 1:
            self.picked.emit(rows.pop())

    def _edited(self, cell: QTableWidgetItem) -> None:
        row, text = cell.row(), cell.text().strip()
        if row >= len(self._classes):
            return
        if cell.column() == NAME and text != self._classes[row].info.name:
            self.renamed.emit(row, text)
        elif cell.column() == KEY and text != (self._classes[row].shortcut or ""):
            self.rekeyed.emit(row, text)

    def mousePressEvent(self, event: Any) -> None:
        """A click on the colour square asks for another colour."""
        super().mousePressEvent(event)
        place = event.position().toPoint()
        cell = self.itemAt(place)
        if cell is not None and cell.column() == NAME and place.x() < self.visualItemRect(cell).left() + 22:
            self.pick_color(cell.row())

    def pick_color(self, row: int) -> None:
        """Ask for another colour of a class."""
        color = self.ask_color(QColor(*self._classes[row].info.color))
        if color.isValid():
            self.recolored.emit(row, color.name())
