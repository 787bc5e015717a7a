"""The part of the Fine-tune dock that keeps every model of a project: go back to any, compare, export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qtpy.QtWidgets import QFileDialog

from napari_isdnet.exceptions import InputError
from napari_isdnet.widgets import _finetune_job as jobs
from napari_isdnet.widgets import _finetune_tables as tables
from napari_isdnet.widgets._finetune_compare import AFTER, BEFORE, Comparison
from napari_isdnet.widgets._finetune_start import Starting
from napari_isdnet.widgets._job import JobBar
from napari_isdnet.widgets._notify import notify_error, notify_info
from napari_isdnet.widgets._projects import tell_models
from napari_isdnet.widgets._segment_controller import Engine
from napari_isdnet.widgets._worker import one_step


class Keeping(Starting):
    """The table of models and what can be done with one."""

    def __init__(self, viewer: Any, engine: Engine | None) -> None:
        super().__init__(viewer, engine)
        self.compare = Comparison(self.viewer, self.engine, self)
        self.export_bar = JobBar(self, "finetune_export", unseen=True)

    def _connect_history(self) -> None:
        self.use_button.clicked.connect(lambda: self.use())
        self.export_button.clicked.connect(self._choose_export)
        self.history.itemSelectionChanged.connect(self._selected)

    def _show_history(self) -> None:
        project = self.controller.project
        tables.show_history(self.history, self.controller.history(), None if project is None else project.current)
        for button in (self.use_button, self.export_button):
            button.setVisible(self.history.rowCount() > 0)
        self._selected()

    def _selected(self) -> None:
        chosen = tables.selected_id(self.history)
        self.use_button.setEnabled(chosen is not None)
        self.export_button.setEnabled(bool(chosen))

    def use(self, identifier: str | None = None) -> None:
        """Go (back) to a model of the history ('' for the one before all; default: the selected row)."""
        chosen = tables.selected_id(self.history) if identifier is None else identifier
        if chosen is None:
            return
        try:
            before, before_scores = self._model_and_scores(self.controller.opened().current or "")
            self.controller.use(chosen or None)
            tell_models()
            after, after_scores = self._model_and_scores(chosen)
        except InputError as error:
            notify_error(error)
            return
        self.fill_models(select=after)
        self._show_history()
        self.compare.device = str(self.device.currentData() or "auto")
        self.compare.scores = (before_scores, after_scores)
        for side, model in ((BEFORE, before), (AFTER, after)):
            if not jobs.is_backbone(model):
                self.compare.show(side, model, self.parents.get(model) or Path(model).stem)
        self.say(f"{chosen or Path(after).stem} is the model in use now.")

    def _model_and_scores(self, identifier: str) -> tuple[str, dict[str, float]]:
        """File (or name) of a model of the history, and its IoU on the strokes that were held out then."""
        project = self.controller.opened()
        if identifier:
            return str(project.model_path(identifier)), dict(project.model(identifier).figures.get("after") or {})
        history = project.history()
        first = history[0].figures if history else {}
        return str(first.get("start_model", jobs.BACKBONE)), dict(first.get("before") or {})

    def _choose_export(self) -> None:
        chosen = tables.selected_id(self.history)
        if chosen:
            project = self.controller.opened()
            start = project.folder.with_name(f"{Path(project.store.name).stem}_{chosen}.safetensors")
            path, _ = QFileDialog.getSaveFileName(self, "Export the model", str(start), "Models (*.safetensors)")
            if path:
                self.export(chosen, Path(path if path.endswith(".safetensors") else f"{path}.safetensors"))

    def export(self, identifier: str, path: Path) -> None:
        """Write a model of the history to one file, with its card inside."""
        work = one_step("Writing the model", lambda: self.controller.export(identifier, path))
        self.export_bar.run(work, on_result=lambda found: notify_info(f"Written: {found}"), title="Exporting")
