"""What the Annotate dock looks like; what its controls do is in :mod:`napari_isdnet.widgets.annotate`."""

from __future__ import annotations

from collections.abc import Callable

from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QButtonGroup,
    QComboBox,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QMenu,
    QPushButton,
    QSlider,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)

from napari_isdnet.widgets._annotate_classes import ClassTable
from napari_isdnet.widgets._annotate_layer import TOOL_KEYS
from napari_isdnet.widgets._annotate_regions import METHODS
from napari_isdnet.widgets._controls import Box, scrolled
from napari_isdnet.widgets._job import JobBar

_TOOLS = {
    "pan": ("Pan", "Move the picture (Z, or hold Space with any tool)"),
    "brush": ("Brush", "Paint with the selected class (B); hold Shift to erase"),
    "eraser": ("Eraser", "Take paint away (E)"),
    "polygon": (
        "Polygon",
        "Click corners, double-click or Enter to fill, Backspace for one back, Escape to give up (P)",
    ),
    "lasso": ("Lasso", "Draw around an area with the button held; it is filled when you let go (L)"),
    "superpixel": ("Superpixel", "Click to fill the patch of similar colour under the pointer; its size is below (S)"),
    "accept": ("Accept", "Click a predicted region to take it over as annotation (A)"),
}
_CHECKED = "QPushButton:checked { background-color: #3b82c4; color: white; }"


class AnnotateForm(QWidget):
    """Image, classes, tools, steps, next region, exchange. Everything is shown once an annotation is open."""

    def __init__(self) -> None:
        super().__init__()
        self.setObjectName("isdnet_annotate")
        self._image_row()
        self._body()
        page = QWidget(self)
        column = QVBoxLayout(page)
        column.addLayout(self._top)
        column.addWidget(self.hint)
        column.addWidget(self.writing)
        column.addWidget(self.body)
        self.bar = JobBar(self, "annotate_job")
        column.addWidget(self.bar)
        column.addStretch(1)
        self.body.hide()
        scrolled(self, page, "annotate_scroll")

    def button(self, name: str, text: str, tip: str, checkable: bool = False) -> QPushButton:
        """A push button with its name and tooltip."""
        button = QPushButton(text, self)
        button.setObjectName(f"annotate_{name}")
        button.setToolTip(tip)
        button.setCheckable(checkable)
        return button

    def _combo(self, name: str, tip: str) -> QComboBox:
        box = Box(self)
        box.setObjectName(f"annotate_{name}")
        box.setToolTip(tip)
        return box

    def _label(self, name: str, tip: str, text: str = "") -> QLabel:
        label = QLabel(text, self)
        label.setObjectName(f"annotate_{name}")
        label.setToolTip(tip)
        label.setWordWrap(True)
        return label

    def _image_row(self) -> None:
        self.image = self._combo("image", "The image to annotate")
        self.start_button = self.button(
            "start", "Start", "Open the annotation of this image, or begin one in a folder beside it"
        )
        self._top = QHBoxLayout()
        self._top.addWidget(self.image, 1)
        self._top.addWidget(self.start_button)
        self.hint = self._label(
            "hint",
            "Everything is saved as you paint, in <image>.isdnet beside the image",
            "Choose an image and press Start. What you paint is saved at once, beside the image.",
        )
        self.writing = self._label(
            "writing",
            "Nothing of it is lost whatever happens; until this is gone, other programs find the annotation in use",
            "The annotation that was closed is still being written to the disk; go on with whatever you like.",
        )
        self.writing.hide()

    def _body(self) -> None:
        self.body = QWidget(self)
        column = QVBoxLayout(self.body)
        column.setContentsMargins(0, 0, 0, 0)
        self.other = self._label("other", "Nothing of what is painted was changed; from a shell: annotation info")
        column.addWidget(self.other)
        self.classes = ClassTable(self.body)
        column.addWidget(self.classes)
        column.addLayout(self._class_buttons())
        column.addLayout(self._tools())
        self.waiting = self._label("waiting", "What keeps the tools from painting")
        self.waiting.hide()
        column.addWidget(self.waiting)
        column.addLayout(self._size_row())
        column.addLayout(self._choices())
        column.addLayout(self._steps())
        column.addLayout(self._next_row())
        self.reason = self._label("reason", "Why this place helps the network most")
        self.reason.hide()
        column.addWidget(self.reason)
        column.addLayout(self._exchange())
        self.status = self._label("status", "Where the annotation is kept, and how much is painted")
        column.addWidget(self.status)

    def _row(self, *widgets: QWidget) -> QHBoxLayout:
        row = QHBoxLayout()
        for widget in widgets:
            row.addWidget(widget)
        return row

    def _class_buttons(self) -> QHBoxLayout:
        self.add_button = self.button("add", "Add", "Add a class")
        self.merge_button = self.button("merge", "Merge into", "Make the selected class part of another one")
        self.merge_menu = QMenu(self)
        self.merge_menu.setToolTipsVisible(True)
        self.merge_button.setMenu(self.merge_menu)
        self.remove_button = self.button(
            "remove", "Remove", "Remove the selected class and what is painted with it (undo brings it back)"
        )
        return self._row(self.add_button, self.merge_button, self.remove_button)

    def _tools(self) -> QGridLayout:
        grid = QGridLayout()
        grid.setSpacing(3)
        self.tools = QButtonGroup(self)
        self.tool_buttons: dict[str, QPushButton] = {}
        for number, (tool, (text, tip)) in enumerate(_TOOLS.items()):
            button = self.button(f"tool_{tool}", text, tip, checkable=True)
            button.setStyleSheet(_CHECKED)
            self.tools.addButton(button)
            self.tool_buttons[tool] = button
            grid.addWidget(button, number // 4, number % 4)
            grid.setColumnStretch(number % 4, 1)
        assert self.tool_buttons.keys() == TOOL_KEYS.keys()
        self.tool_buttons["pan"].setChecked(True)
        self.edit_button = self.button(
            "edit", "Edit window", "Edit what you see (at most 4096 x 4096) with all of napari's own label tools",
            checkable=True,
        )  # fmt: skip
        self.edit_button.setStyleSheet(_CHECKED)
        grid.addWidget(self.edit_button, 1, 3)
        return grid

    def _size_row(self) -> QGridLayout:
        tip = "Width of the brush and of superpixels in pixels of the screen, the same at every zoom ([ and ])"
        self.size_slider = QSlider(Qt.Orientation.Horizontal, self)
        self.size_slider.setObjectName("annotate_size_slider")
        self.size_slider.setToolTip(tip)
        self.size_slider.setRange(1, 200)
        self.size_box = QSpinBox(self)
        self.size_box.setObjectName("annotate_size")
        self.size_box.setToolTip(tip)
        self.size_box.setRange(1, 2000)
        self.size_box.setMinimumWidth(90)
        self.size_box.setKeyboardTracking(False)
        self.size_note = self._label("size_note", "Width of the brush on the screen, and in the image at this zoom")
        label = self._label("size_label", tip, "Size")
        label.setWordWrap(False)
        grid = QGridLayout()
        grid.addWidget(label, 0, 0)
        grid.addWidget(self.size_slider, 0, 1)
        grid.addWidget(self.size_box, 0, 2)
        grid.addWidget(self.size_note, 1, 1, 1, 2)
        grid.setColumnStretch(1, 1)
        return grid

    def _choices(self) -> QGridLayout:
        self.method = self._combo("method", "How superpixels are made: slic is compact, felzenszwalb follows edges")
        for method in METHODS:
            self.method.addItem(method)
        self.prediction = self._combo("prediction", "The labels layer that Accept takes regions from")
        self.prediction.setPlaceholderText("a labels layer, once there is one")
        grid = QGridLayout()
        for row, (text, box) in enumerate((("Superpixels", self.method), ("Accept from", self.prediction))):
            label = self._label(f"{box.objectName()[9:]}_label", box.toolTip(), text)
            label.setWordWrap(False)
            label.setBuddy(box)
            grid.addWidget(label, row, 0)
            grid.addWidget(box, row, 1)
        grid.setColumnStretch(1, 1)
        return grid

    def _steps(self) -> QHBoxLayout:
        self.undo_button = self.button("undo", "Undo", "Take back the last step, also one of last week (Ctrl+Z)")
        self.redo_button = self.button("redo", "Redo", "Do again what was taken back (Ctrl+Shift+Z)")
        return self._row(self.undo_button, self.redo_button)

    def _next_row(self) -> QHBoxLayout:
        self.next_button = self.button(
            "next",
            "Next region",
            "Fly to where a stroke would help the network most (N); again for the next best."
            " From a shell: napari-isdnet annotation suggest",
        )
        return self._row(self.next_button)

    def _exchange(self) -> QHBoxLayout:
        self.import_button = self.button(
            "import", "Import…", "Paint what a file holds: GeoJSON, QuPath, a label image. From a shell:"
            " napari-isdnet annotation import",
        )  # fmt: skip
        self.export_button = self.button(
            "export", "Export", "Write the annotation for QGIS, QuPath, Python or training"
        )
        self.export_menu = QMenu(self)
        self.export_menu.setToolTipsVisible(True)
        self.export_button.setMenu(self.export_menu)
        return self._row(self.import_button, self.export_button)

    def export_action(self, name: str, text: str, tip: str, action: Callable[[], None]) -> None:
        """One entry of the export menu."""
        entry = self.export_menu.addAction(text)
        assert entry is not None
        entry.setObjectName(f"annotate_export_{name}")
        entry.setToolTip(tip)
        entry.triggered.connect(lambda: action())
