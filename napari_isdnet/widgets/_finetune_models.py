"""The part of the Fine-tune dock that chooses what the network starts from."""

from __future__ import annotations

from pathlib import Path

from napari_isdnet_training.presets import BACKBONE, preset_of
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QFileDialog

from napari_isdnet.widgets import _finetune_words as words
from napari_isdnet.widgets._engine import LocalEngine, ModelAbout
from napari_isdnet.widgets._finetune_controller import Annotated, TuneController
from napari_isdnet.widgets._finetune_form import FineTuneForm
from napari_isdnet.widgets._job import JobBar
from napari_isdnet.widgets._notify import notify_error
from napari_isdnet.widgets._segment_controller import Engine
from napari_isdnet.widgets._worker import one_step

TOOLTIP = Qt.ItemDataRole.ToolTipRole
BACKBONE_TIP = "A backbone that knows ImageNet only; the annotation's classes are all new to it"


class ChoosingModel(FineTuneForm):
    """Lists the models of the project, the named ones, files and the backbone; reads headers in the background."""

    def __init__(self, engine: Engine | None) -> None:
        super().__init__()
        self.engine: Engine = engine or LocalEngine()
        self.controller = TuneController()
        self.parents: dict[str, str] = {}
        """Ids of the history by model file."""
        self.annotated: Annotated | None = None
        self._names: list[str] = []
        self._others: list[str] = []
        self._about: ModelAbout | None = None
        self._chosen_by_hand = self._fresh = False
        self._header = JobBar(self, "finetune_header", unseen=True)

    def refresh_later(self) -> None:
        """Count and estimate soon."""
        raise NotImplementedError

    def in_use(self) -> str | None:
        """File of the project's current model."""
        project = self.controller.project
        current = None if project is None else project.current
        return None if project is None or current is None else str(project.model_path(current))

    def fill_models(self, select: str | None = None) -> None:
        """List the models of the project, the named ones, other files and the backbone; keep what is chosen."""
        project, chosen = self.controller.project, select or str(self.model.currentData() or "") or self.in_use()
        self.parents = {}
        self.model.blockSignals(True)
        self.model.clear()
        for entry in self.controller.history():
            assert project is not None
            path = str(project.model_path(entry.id))
            self.parents[path] = entry.id
            mark = " (in use)" if entry.id == project.current else ""
            self.model.addItem(f"{entry.id}{mark} · {entry.name}", path)  # what tells it apart is seen in a narrow box
        for name in self._names:
            self.model.addItem(name, name)
        for path in self._others:
            self.model.addItem(Path(path).name, path)
        self.model.addItem("Pretrained backbone", BACKBONE)
        if chosen and self.model.findData(chosen) < 0 and chosen not in self._names and Path(chosen).is_file():
            self._others.append(chosen)
            self.model.addItem(Path(chosen).name, chosen)
        for row in range(self.model.count()):  # the box may be too narrow for a whole name
            backbone = self.model.itemData(row) == BACKBONE
            self.model.setItemData(row, BACKBONE_TIP if backbone else self.model.itemText(row), TOOLTIP)
        index = self.model.findData(chosen) if chosen else -1
        if select is None and chosen == BACKBONE and not self._chosen_by_hand:
            index = self.model.findData(self._names[0]) if self._names else 0
        self.model.setCurrentIndex(max(0, index))
        self.model.blockSignals(False)
        self._read_header()

    def choose_model(self, model: str) -> None:
        """Start from a model by name or path, or from ``backbone``."""
        self._chosen_by_hand = True
        self.fill_models(select=model)
        self.refresh_later()

    def _model_chosen(self) -> None:
        self._chosen_by_hand = True
        self._read_header()
        self.refresh_later()

    def _choose_model_file(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self, "Choose a model", "", "Models (*.safetensors);;All files (*)")
        if path:
            self.choose_model(path)

    def _read_header(self) -> None:
        model, engine = str(self.model.currentData() or ""), self.engine
        self._about = None
        self.show_facts()
        fresh = model == BACKBONE and (self._chosen_by_hand or bool(self._names))  # not while it is the only one yet
        if fresh != self._fresh:  # a backbone needs more steps than a model that has learnt something
            self._fresh = fresh
            self.steps.setValue(preset_of(str(self.preset.currentData()), model).steps)
        if not model or model == BACKBONE:
            return

        def show(about: ModelAbout) -> None:
            if self.model.currentData() == model:
                self._about = about
                self.show_facts()

        look = one_step("Reading the model", lambda: engine.about(model))
        self._header.run(look, on_result=show, on_error=notify_error)

    def show_facts(self) -> None:
        """Say what the chosen model is, and how its classes and the painted ones differ."""
        painted = [] if self.annotated is None else [info.name for info in self.annotated.classes]
        if self.model.currentData() == BACKBONE:
            text = "ImageNet weights in both branches, all else new: give it more strokes."
        elif self._about is None:
            text = ""
        else:
            taught, called = self._about.taught, {}
            if self.annotated is not None:
                called = self.annotated.naming.of_model(taught, self._about.lineage)
            text = " · ".join([self._about.summary, *words.class_changes(painted, taught, called)])
        self.model_facts.setText(text)
        self.model_facts.setToolTip("What the chosen model was trained for" if self._about is None else "")
        if self._about is not None:
            self.model_facts.setToolTip(self._about.details)
