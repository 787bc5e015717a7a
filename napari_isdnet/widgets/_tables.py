"""Tables that are read, not edited."""

from __future__ import annotations

from collections.abc import Sequence

from qtpy.QtCore import Qt
from qtpy.QtGui import QColor, QPixmap
from qtpy.QtWidgets import QHeaderView, QTableWidget, QTableWidgetItem, QWidget


def reading_table(
    parent: QWidget, name: str, tip: str, header: Sequence[str], stretch: int | None = None
) -> QTableWidget:
    """A table with a column header; columns fit what they hold, and ``stretch`` takes what is left of the width."""
    table = QTableWidget(0, len(header), parent)
    table.setObjectName(name)
    table.setToolTip(tip)
    table.setHorizontalHeaderLabels(list(header))
    table.setEditTriggers(QTableWidget.EditTrigger.NoEditTriggers)
    table.setSelectionBehavior(QTableWidget.SelectionBehavior.SelectRows)
    table.setShowGrid(False)
    table.setAlternatingRowColors(False)
    across, down = table.horizontalHeader(), table.verticalHeader()
    assert across is not None
    assert down is not None
    down.hide()
    for column in range(len(header)):
        mode = QHeaderView.ResizeMode.Stretch if column == stretch else QHeaderView.ResizeMode.ResizeToContents
        across.setSectionResizeMode(column, mode)
    return table


def leave_alone(table: QTableWidget) -> None:
    """A table that is only looked at: no grid, no numbers of rows, nothing to edit, select or focus."""
    table.setShowGrid(False)
    table.setEditTriggers(QTableWidget.EditTrigger.NoEditTriggers)
    table.setSelectionMode(QTableWidget.SelectionMode.NoSelection)
    table.setFocusPolicy(Qt.FocusPolicy.NoFocus)
    down = table.verticalHeader()
    assert down is not None
    down.hide()


def fit_rows(table: QTableWidget, most: int) -> None:
    """As high as its rows, up to so many."""
    across = table.horizontalHeader()
    assert across is not None
    rows = min(table.rowCount(), most)
    table.setFixedHeight(across.sizeHint().height() + sum(table.rowHeight(row) for row in range(rows)) + 4)


def cell(text: str, tip: str = "", right: bool = False, color: str = "") -> QTableWidgetItem:
    """A cell; ``color`` puts a swatch before the text, which is then legible in every theme."""
    item = QTableWidgetItem(text)
    item.setToolTip(tip or text)
    if right:
        item.setTextAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
    if color:
        swatch = QPixmap(12, 12)
        swatch.fill(QColor(color))
        item.setData(Qt.ItemDataRole.DecorationRole, swatch)
    return item
