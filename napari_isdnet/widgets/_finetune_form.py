"""The controls of the Fine-tune dock, laid out; what they do is in :mod:`napari_isdnet.widgets.finetune`."""

from __future__ import annotations

from napari_isdnet_training.presets import HELD_OUT, PRESETS, SPREAD, SPREADS
from qtpy.QtWidgets import (
    QCheckBox,
    QLabel,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)

from napari_isdnet.widgets._controls import Controls, form_layout, in_row, scrolled, separator
from napari_isdnet.widgets._finetune_curves import CurvesWidget
from napari_isdnet.widgets._job import JobBar
from napari_isdnet.widgets._tables import reading_table

FLIP_KEY = "Control-B"


class FineTuneForm(Controls):
    """Every control of the dock as an attribute; no behaviour."""

    PREFIX = "finetune"

    def __init__(self) -> None:
        super().__init__()
        self.setObjectName("isdnet_finetune")
        self._make_start()
        self._make_choices()
        self._make_actions()
        self._make_outcome()
        self._lay_out()

    def _label(self, name: str, tip: str) -> QLabel:
        label = self._dress(QLabel(self), name, tip)
        label.setWordWrap(True)
        return label

    def _spin(self, name: str, tip: str, low: int, high: int, value: int, suffix: str = "") -> QSpinBox:
        box = super()._spin(name, tip, low, high, value, suffix)
        box.setKeyboardTracking(False)
        return box

    def _make_start(self) -> None:
        self.image = self._combo("image", "The image layer whose annotation teaches; paint it in the Annotate dock")
        self.model = self._combo(
            "model",
            "What the network starts from: a model of this project's history, a named one, a file, or a backbone that"
            " knows ImageNet only, with the annotation's classes all new",
        )
        self.model_button = self._button("model_file", "File…", "Start from any other model file (.safetensors)")
        self.model_facts = self._label("model_facts", "What the chosen model was trained for")
        self.counts = reading_table(
            self, "finetune_counts", "How many pixels of each class are painted, and how many of them judge",
            ("Class", "Painted", "Held out"), stretch=0,
        )  # fmt: skip
        self.places = self._label(
            "places", "Whole places (512 x 512 pixels) are held out; each stays on its side whatever is painted later"
        )

    def _make_choices(self) -> None:
        self.preset = self._combo(
            "preset",
            "Quick trains the last layers, for a first look after a few strokes; Thorough trains everything, for"
            " longer",
            *((name.capitalize(), name) for name in PRESETS),
        )
        self.steps = self._spin(
            "steps", "Steps of training; it ends earlier when held-out places keep getting worse", 1, 100_000,
            PRESETS["quick"].steps,
        )  # fmt: skip
        self.held_out = self._spin(
            "held_out", "Share of what is painted that judges the weights instead of teaching; 0: nothing judges",
            0, 50, round(100 * HELD_OUT), " %",
        )  # fmt: skip
        self.spread = self._combo(
            "spread",
            "Superpixels of about this side take the class of the thin stroke that lies in them; what is painted as an"
            " area stays as it is. Off: strokes teach their own pixels only",
            ("Off", "0"), *((f"{side} pixels", str(side)) for side in SPREADS),
        )  # fmt: skip
        self.spread.setCurrentIndex(self.spread.findData(str(SPREAD)))
        self.seed = self._spin("seed", "The same annotation, seed and device give the same model", 0, 999_999, 0)
        self.device = self._combo("device", "Where the network is trained", ("Automatic", "auto"))
        self.allow_worse = self._dress(
            QCheckBox("Keep new weights even if worse", self), "allow_worse",
            "Off: weights that are worse on the held-out places than the model before, by more than chance, are thrown"
            " away",
        )  # fmt: skip
        self.guards = self._label("guards", "What keeps the model from getting worse")
        self.estimate = self._label(
            "estimate", "From the work to do and this machine's speed; the first run here makes it exact"
        )

    def _make_actions(self) -> None:
        self.train_button = self._button(
            "train", "Fine-tune", "Train with the annotation of this moment, in a process of its own; go on painting"
        )
        self.train_button.setEnabled(False)  # until it is known that there is something to learn from
        self.resume_button = self._button(
            "resume", "Resume", "Go on with the run that was cut off, as if it had never stopped"
        )
        self.resume_button.hide()
        self.copy_button = self._button(
            "copy", "Copy as command", "Copy the command line that trains the same weights from a shell"
        )
        self.copy_button.setEnabled(False)
        self.left_over = self._label("left_over", "A run that was cut off is kept until it is resumed or replaced")
        self.left_over.hide()
        self.bar = JobBar(self, "finetune_job")
        self.bar.cancel_button.setText("Stop")
        self.bar.cancel_button.setToolTip("Stop after the step at hand and keep the weights that were taken last")
        self.status = self._label("status", "What the held-out places said last, and how the last run ended")
        self.status.hide()
        self.curves = CurvesWidget(self)
        self.curves.hide()

    def _make_outcome(self) -> None:
        self.flip_button = self._button(
            "flip", "Before / after", f"Switch between the old and the new model's map ({FLIP_KEY.replace('-', '+')})"
        )
        self.flip_button.setEnabled(False)
        self.compared = self._label("compared", "Which of the two maps is on the screen, and how far it is")
        self.compared.hide()
        self.changes = reading_table(
            self, "finetune_changes",
            "What changed: area of each class in what you see, and IoU on the held-out strokes, before and after",
            ("Class", "Area in view", "IoU"), stretch=0,
        )  # fmt: skip
        self.changes.hide()
        self.history = reading_table(
            self, "finetune_history", "The models of this project, newest first; the one in use is marked",
            ("Model", "From", "mIoU", "Painted"), stretch=0,
        )  # fmt: skip
        self.history.setSelectionMode(self.history.SelectionMode.SingleSelection)
        self.use_button = self._button(
            "use", "Use", "Go (back) to the selected model: it is shown, and the next run starts from it"
        )
        self.export_button = self._button(
            "export", "Export…", "Write the selected model as one file, with its card (classes, origin, figures) inside"
        )
        for button in (self.use_button, self.export_button):
            button.setEnabled(False)

    @staticmethod
    def _add(column: QVBoxLayout, *widgets: QWidget) -> None:
        for widget in widgets:
            column.addWidget(widget)

    def _lay_out(self) -> None:
        inside = QWidget(self)
        inside.setObjectName("finetune_page")
        column = QVBoxLayout(inside)
        column.setContentsMargins(8, 6, 8, 8)
        column.setSpacing(6)
        start = form_layout()
        start.addRow("Image", self.image)
        start.addRow("Start from", in_row(self.model, self.model_button))
        start.addRow("", self.model_facts)
        column.addLayout(start)
        column.addWidget(self.counts)
        column.addWidget(self.places)
        choices = form_layout()
        choices.addRow("Preset", self.preset)
        choices.addRow("Steps", self.steps)
        choices.addRow("Held out", self.held_out)
        choices.addRow("Spread strokes", self.spread)
        choices.addRow("Seed", self.seed)
        choices.addRow("Device", self.device)
        column.addLayout(choices)
        self._add(column, self.allow_worse, self.guards, self.estimate)
        column.addWidget(self.train_button)
        column.addLayout(in_row(self.copy_button, self.resume_button))
        self._add(column, self.left_over, self.bar, self.status, self.curves)
        column.addWidget(separator(inside))
        self._add(column, self.flip_button, self.compared, self.changes)
        column.addWidget(separator(inside))
        column.addWidget(self.history)
        column.addLayout(in_row(self.use_button, self.export_button))
        column.addStretch(1)
        scrolled(self, inside, "finetune_scroll")
