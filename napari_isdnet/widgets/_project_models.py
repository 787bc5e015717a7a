"""Models that were fine-tuned in the projects of images, among the models that a dock lists."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QComboBox, QWidget

from napari_isdnet.annotation.project import existing_folder, models_in
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.source import quick_identity
from napari_isdnet.widgets import _segment_layers as layers
from napari_isdnet.widgets._job import JobBar, stop_with
from napari_isdnet.widgets._projects import models_changed
from napari_isdnet.widgets._worker import one_step

OF_PROJECT = Qt.ItemDataRole.UserRole + 1
TOOLTIP = Qt.ItemDataRole.ToolTipRole


@dataclass(frozen=True)
class Listed:
    """One model as the box shows it: what it says, the file, and all there is to say of it."""

    text: str
    path: str
    tip: str


Find = Callable[[], Sequence[tuple[Path, str]]]
"""Folders of projects, each with whose it is; slow."""


class ProjectModels:
    """Keeps models of projects at the top of ``box``, the one in use first; which one is chosen stays.

    ``ask`` is called on the main thread for what finds the projects, which runs in a thread. :meth:`look` is to be
    called where these are others; a model that is made in this process is found by itself.
    """

    def __init__(self, dock: QWidget, box: QComboBox, ask: Callable[[], Find]) -> None:
        self._box, self._ask = box, ask
        self.bar = JobBar(dock, f"{dock.objectName()}_project_models", unseen=True)
        again = self.look
        models_changed.append(again)
        stop_with(dock, lambda: models_changed.remove(again))

    def look(self) -> None:
        """Find the models anew."""
        find = self._ask()
        work = one_step(
            "Looking for models of the project",
            lambda: [item for folder, whose in find() for item in _listed(folder, whose)],
        )
        self.bar.run(work, on_result=self._show, on_error=lambda _: self._show([]))

    def _show(self, found: Sequence[Listed]) -> None:
        box = self._box
        chosen, text = box.currentData(), box.currentText()
        paths = {item.path for item in found}
        box.blockSignals(True)
        for row in reversed(range(box.count())):
            gone = box.itemData(row, OF_PROJECT) and box.itemData(row) != chosen
            if gone or box.itemData(row) in paths:
                box.removeItem(row)
        for row, item in enumerate(found):
            box.insertItem(row, item.text, item.path)
            box.setItemData(row, True, OF_PROJECT)
            box.setItemData(row, item.tip, TOOLTIP)
        row = box.findData(chosen) if chosen else -1
        if row >= 0 and chosen not in paths and box.itemData(row, OF_PROJECT):  # of an image that was chosen before
            box.setItemText(row, text.replace("this project", Path(chosen).parents[1].stem))
        box.setCurrentIndex(row)
        box.blockSignals(False)


def of_layer(layer: Any) -> Find:
    """The project of an image layer."""

    def find() -> list[tuple[Path, str]]:
        if layer is None:
            return []
        try:
            identity = quick_identity(layers.opened(layer)[0])
        except InputError:  # a stack has none
            return []
        file = identity.get("path")
        folder = existing_folder(Path(file) if file else None, identity)
        return [] if folder is None else [(folder, "this project")]

    return find


def of_files(paths: Sequence[str]) -> Find:
    """The projects of image files."""

    def find() -> list[tuple[Path, str]]:
        found = ((existing_folder(Path(path), {}), Path(path).name) for path in paths)
        return [(folder, name) for folder, name in found if folder is not None]

    return find


def _listed(folder: Path, whose: str) -> list[Listed]:
    current, entries = models_in(folder)
    found = []
    for entry in entries:
        used = ", in use" if entry.id == current else ""
        path = folder / entry.file
        found.append(Listed(f"{entry.id} ({whose}{used})", str(path), f"{entry.name}\n{path}"))
    return found
