"""The tables of the Fine-tune dock: what is painted, what changed, the models of the project."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QTableWidget

from napari_isdnet.annotation.project import ModelEntry
from napari_isdnet.io.source import PixelSize
from napari_isdnet.widgets._finetune_changes import Change
from napari_isdnet.widgets._finetune_controller import Annotated
from napari_isdnet.widgets._segment_controller import area_text
from napari_isdnet.widgets._tables import cell, fit_rows

ROW_ID = Qt.ItemDataRole.UserRole
_MOST_ROWS = 8
BEFORE_ALL = "Before any fine-tuning"


def show_counts(table: QTableWidget, found: Annotated | None) -> str:
    """Fill the table of what is painted; returns the line under it."""
    rows = [] if found is None else list(zip(found.classes, found.painted, found.held, strict=True))
    table.setRowCount(len(rows))
    for row, (info, painted, held) in enumerate(rows):
        tip = f"{info.name}: {painted:,} pixels painted, {held:,} of them held out"
        table.setItem(row, 0, cell(info.name, tip, color=info.hex))
        table.setItem(row, 1, cell(f"{painted:,}" if painted else "–", tip, right=True))
        table.setItem(row, 2, cell(f"{held:,}" if held else "–", tip, right=True))
    fit_rows(table, _MOST_ROWS)
    table.setVisible(bool(rows))
    if found is None or not any(found.painted):
        return ""
    if found.missing:
        return found.missing
    places, judging = found.regions
    if not judging:
        return f"{_count(places, 'place')} painted, none held out: nothing can judge the new weights yet."
    return f"{_count(places, 'place')} painted, {judging} of them held out to judge. {found.untaught}".rstrip()


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def show_changes(table: QTableWidget, rows: Sequence[Change], size: PixelSize | None) -> None:
    """Fill the table of what changed: shares of what is seen, and scores, before and after; areas in the tooltip."""
    totals = [sum(getattr(row, side) or 0.0 for row in rows) for side in ("area_before", "area_after")]
    table.setRowCount(len(rows))
    for row, change in enumerate(rows):
        tip = _change_tip(change, size)
        shares = [
            None if area is None or not total else area / total
            for area, total in zip((change.area_before, change.area_after), totals, strict=True)
        ]
        table.setItem(row, 0, cell(change.info.name, tip, color=change.info.hex))
        table.setItem(row, 1, cell(_arrow([None if s is None else f"{s:.1%}" for s in shares]), tip, right=True))
        scores = (change.iou_before, change.iou_after)
        table.setItem(row, 2, cell(_arrow([None if s is None else f"{s:.2f}" for s in scores]), tip, right=True))
    fit_rows(table, _MOST_ROWS)
    table.setVisible(bool(rows))


def _arrow(texts: Sequence[str | None]) -> str:
    if not any(texts):
        return ""
    return " → ".join("–" if text is None else text for text in texts)


def _change_tip(change: Change, size: PixelSize | None) -> str:
    if change.area_before is None or change.area_after is None:
        return f"{change.info.name}: only one of the two models knows this class"
    grown = change.area_after - change.area_before
    word = "more" if grown >= 0 else "less"
    both = " → ".join(area_text(area, size) for area in (change.area_before, change.area_after))
    return f"{change.info.name}: {both} of what you see, {area_text(abs(grown), size)} {word} than before"


def show_history(table: QTableWidget, entries: Sequence[ModelEntry], current: str | None) -> None:
    """Fill the table of models, newest first, and the row before all; the selection stays where it was."""
    selected = selected_id(table)
    rows: list[ModelEntry | None] = [*entries, None] if entries else []
    table.setRowCount(len(rows))
    chosen = None
    for row, entry in enumerate(rows):
        used = (entry.id if entry is not None else None) == current
        texts = [BEFORE_ALL, "", "", ""] if entry is None else _entry_texts(entry)
        tip = "The model that the first fine-tuning started from" if entry is None else _entry_tip(entry)
        for column, text in enumerate(texts):
            item = cell(("● " if used else "") + text if column == 0 else text, tip, right=column > 1)
            item.setData(ROW_ID, "" if entry is None else entry.id)
            font = item.font()
            font.setBold(used)
            item.setFont(font)
            table.setItem(row, column, item)
        if selected is not None and selected == ("" if entry is None else entry.id):
            chosen = row
    table.clearSelection()
    if chosen is not None:
        table.selectRow(chosen)
    fit_rows(table, _MOST_ROWS)
    table.setVisible(bool(rows))


def selected_id(table: QTableWidget) -> str | None:
    """Id of the selected model, '' for the row before all, None where no row is selected."""
    items = table.selectedItems()
    return str(items[0].data(ROW_ID)) if items else None


def _entry_texts(entry: ModelEntry) -> list[str]:
    figures = entry.figures
    before, after = figures.get("before") or {}, figures.get("after") or {}
    score = "–" if "miou" not in after else f"{after['miou']:.2f}"
    if "miou" in before and "miou" in after:
        score = f"{before['miou']:.2f} → {after['miou']:.2f}"
    painted = sum((figures.get("pixels") or {}).values())
    return [entry.id, entry.parent or str(figures.get("start", "–")), score, f"{painted:,}" if painted else "–"]


def _entry_tip(entry: ModelEntry) -> str:
    figures: Mapping[str, Any] = entry.figures
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.time))
    lines = [f"{entry.name}, {when}", f"From {entry.parent or figures.get('start', 'a model of its own')}"]
    lines.append(f"Annotation up to journal entry {entry.position}")
    lines += [f"{name}: {count:,} pixels" for name, count in (figures.get("pixels") or {}).items()]
    if figures.get("steps"):
        steps = f"{figures['steps']} of {figures['of']}" if figures.get("of") else str(figures["steps"])
        lines.append(f"{figures.get('preset', '')}, {steps} steps, seed {figures.get('seed', 0)}".strip())
    for key, value in (figures.get("after") or {}).items():
        start = (figures.get("before") or {}).get(key)
        name = "mIoU" if key == "miou" else key.removeprefix("iou_")
        lines.append(f"{name}: {'' if start is None else f'{start:.3f} → '}{value:.3f}")
    if figures.get("reason"):
        lines.append(str(figures["reason"]))
    return "\n".join(lines)
