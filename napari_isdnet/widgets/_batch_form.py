"""The controls of the Batch dock and how they lie; what they do is in ``batch.py``."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from qtpy.QtCore import QSize, Qt
from qtpy.QtGui import QIcon, QImage, QPixmap
from qtpy.QtWidgets import (
    QAbstractItemView,
    QComboBox,
    QFormLayout,
    QGridLayout,
    QLabel,
    QLineEdit,
    QProgressBar,
    QVBoxLayout,
    QWidget,
)

from napari_isdnet.engine.batch import DONE, FAILED, QUEUED, RUNNING, SKIPPED, Item
from napari_isdnet.widgets._controls import (
    GEOPACKAGE_TIP,
    ORIENTATIONS,
    ORIENTATIONS_TIP,
    OUTLINES,
    OUTLINES_TIP,
    Controls,
    in_row,
    scrolled,
)
from napari_isdnet.widgets._job import JobBar
from napari_isdnet.widgets._notify import in_dock
from napari_isdnet.widgets._tables import cell, reading_table

THUMBNAIL = 48
HEADER = ("", "Image", "State")
MARKS = {QUEUED: "○", RUNNING: "●", DONE: "✓", FAILED: "✗", SKIPPED: "–"}
FORMATS = (("OME-Zarr", "ome-zarr"), ("OME-TIFF", "ome-tiff"), ("GeoTIFF", "geotiff"), ("PNG", "png"))
BY_THE_FILE = "By the file"


def typed(box: QComboBox) -> str:
    """What stands in an editable box: the key of one of its items, or what was typed."""
    text = box.currentText().strip()
    index = box.findText(text, Qt.MatchFlag.MatchFixedString)  # whatever its case
    return str(box.itemData(index)) if index >= 0 else text


def show_typed(box: QComboBox, value: str) -> None:
    """Inverse of :func:`typed`."""
    index = box.findData(value)
    box.setEditText(box.itemText(index) if index >= 0 else value)


class BatchForm(Controls):
    """Table of images, one model and one set of settings, and where to compute."""

    PREFIX = "batch"

    def __init__(self) -> None:
        super().__init__()
        self.setObjectName("isdnet_batch")
        self.setAcceptDrops(True)
        self.files_button = self._button("files", "Files…", "Add image files")
        self.folder_button = self._button("folder", "Folder…", "Add every image of a folder")
        self.pattern = QLineEdit(self)
        self._dress(self.pattern, "pattern", "A file, folder or pattern such as scans/**/*.tif; press Enter to add")
        self.pattern.setPlaceholderText("scans/*.tif, or drop images here")
        self.table = reading_table(
            self, "batch_table", "The images in the order they are segmented; double-click one that is done to open it",
            HEADER, stretch=1,
        )  # fmt: skip
        self.table.setSelectionMode(QAbstractItemView.SelectionMode.ExtendedSelection)
        self.table.setIconSize(QSize(THUMBNAIL, THUMBNAIL))
        self.table.setColumnWidth(0, THUMBNAIL + 8)
        self.open_button = self._button("open", "Open result", "Show the results of the selected images as layers")
        self.again_button = self._button("again", "Queue again", "Segment the selected images again or after a failure")
        self.skip_button = self._button("skip", "Skip", "Leave the selected images out")
        self.remove_button = self._button("remove", "Remove", "Take the selected images off the list; results stay")
        self.model = self._combo("model", "The model that segments all images: by name, or one of an image's project")
        self.model_button = self._button("model_file", "File…", "Use a model from a .safetensors file")
        self.context = self._combo(
            "context",
            "Whole image: the network's pooling sees all of an image. Window by window: every window by itself",
            ("Whole image (exact)", "whole"), ("Window by window", "window"),
        )  # fmt: skip
        self.orientations = self._combo("orientations", ORIENTATIONS_TIP, *ORIENTATIONS)
        self.format = self._combo("format", "File format of the class maps", *FORMATS)
        self.channels = self._typed(
            "channels",
            "Which channels are segmented: those that each file says are red, green and blue, else the first three, or "
            "the first one; or type their numbers from 0, such as 3,1,0, or one for a grey picture",
            (BY_THE_FILE, ""),
        )
        self.contrast = self._typed(
            "contrast",
            "Auto: 8-bit as it is, others by the 0.5 and 99.5 percentiles of each image. None: the full range of the "
            "type. Or type LOW,HIGH: the values that become black and white, such as 200,3000",
            ("Auto", "auto"), ("None", "none"),
        )  # fmt: skip
        self.polygons = self._check("polygons", "Polygons", "Write class polygons as GeoJSON too")
        self.geopackage = self._check("geopackage", "GeoPackage", GEOPACKAGE_TIP)
        self.outlines = self._combo("outlines", OUTLINES_TIP, *OUTLINES)
        self.min_area = self._area_box()
        self.uncertainty = self._check("uncertainty", "Uncertainty", "Write an uncertainty map too")
        self.overwrite = self._check(
            "overwrite", "Replace", "Start over where an earlier result or job of other settings lies in the folder"
        )
        self.where = self._typed(
            "where", "This program, processes on this machine, or the address of a Dask scheduler (tcp://…)",
            ("This program", ""), ("local", "local"),
        )  # fmt: skip
        self.output = QLineEdit(self)
        self._dress(self.output, "output", "Folder for the results and the queue; press Enter to read a queue there")
        self.output.setPlaceholderText("Choose a folder")
        self.output_button = self._button("output_folder", "Folder…", "Choose the folder for the results")
        self.run_button = self._button("run", "Run", "Segment what is queued; pause and cancel appear below")
        self.copy_button = self._button("copy", "Copy as command", "Copy the shell command that does the same")
        self.status = QLabel("Add images to begin.", self)
        self._dress(self.status, "status", "Images in each state")
        self.status.setWordWrap(True)
        self.bar = JobBar(self, "batch_job")
        self.looking = JobBar(self, "batch_look")
        self.models_look, self.opening = JobBar(self, "batch_models_look"), JobBar(self, "batch_opening")
        self.thumbnails = JobBar(self, "batch_thumbnails")
        self._rows: dict[str, int] = {}  # of the table, by the path of the image
        for bar in (self.looking, self.models_look, self.opening, self.thumbnails):
            bar.setMaximumHeight(0)
        self._lay_out()

    def _typed(self, name: str, tip: str, *items: tuple[str, str]) -> QComboBox:
        """A choice that can be typed as well (:func:`typed`)."""
        box = self._combo(name, tip, *items)
        box.setEditable(True)
        box.setInsertPolicy(QComboBox.InsertPolicy.NoInsert)
        return box

    def _lay_out(self) -> None:
        page = QWidget(self)
        column = QVBoxLayout(page)
        column.addLayout(in_row(self.pattern, self.files_button, self.folder_button))
        column.addWidget(self.table, 1)
        actions = QGridLayout()
        for place, button in enumerate((self.open_button, self.again_button, self.skip_button, self.remove_button)):
            actions.addWidget(button, 0, place)
        column.addLayout(actions)
        form = QFormLayout()
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.ExpandingFieldsGrow)
        form.addRow("Model", in_row(self.model, self.model_button))
        form.addRow("Context", self.context)
        form.addRow("Average over", self.orientations)
        form.addRow("Channels", self.channels)
        form.addRow("Contrast", self.contrast)
        form.addRow("Format", in_row(self.format, self.overwrite))
        form.addRow("Also", in_row(self.polygons, self.geopackage, self.uncertainty))
        form.addRow("Outlines", self.outlines)
        form.addRow("Areas", self.min_area)
        form.addRow("Compute on", self.where)
        form.addRow("Results", in_row(self.output, self.output_button))
        column.addLayout(form)
        column.addLayout(in_row(self.run_button, self.copy_button))
        for widget in (self.bar, self.status, self.looking, self.thumbnails):
            column.addWidget(widget)
        self.table.setMinimumHeight(3 * THUMBNAIL)
        scrolled(self, page, "batch_scroll")

    # -- the table -----------------------------------------------------------------------------------------------
    def show_items(self, items: list[Item]) -> None:
        """Bring the whole table up to date; thumbnails of images that stay are kept."""
        table = self.table
        icons = {
            table.item(r, 0).toolTip(): table.item(r, 0).icon()  # type: ignore[union-attr]
            for r in range(table.rowCount())
            if table.item(r, 0) is not None
        }
        table.setRowCount(len(items))
        self._rows = {item.path: row for row, item in enumerate(items)}
        for row, item in enumerate(items):
            picture = cell("", tip=item.path)
            if item.path in icons:
                picture.setIcon(icons[item.path])
            table.setItem(row, 0, picture)
            table.setItem(row, 1, cell(item.stem, tip=item.path))
            table.removeCellWidget(row, 2)
            self.show_item(row, item)

    def show_item(self, row: int, item: Item) -> None:
        """State of one image: a bar while it runs, else a word; an error is told below the name.

        Warnings of a result are counted below its state, and both cells tell them to who rests on them.
        """
        table = self.table
        name = table.item(row, 1)
        if name is None:
            return
        error = in_dock(item.error)
        name.setText(f"{item.stem}\n{error}" if error else item.stem)
        warnings = [in_dock(text) for text in item.warnings]
        name.setToolTip("\n".join([item.path, *warnings]))
        bar: Any = table.cellWidget(row, 2)
        if item.state == RUNNING:
            if bar is None:
                bar = QProgressBar(table)
                bar.setToolTip(f"How much of {item.stem} is done")
                bar.setRange(0, 100)
                table.setCellWidget(row, 2, bar)
            bar.setValue(round(100 * item.done))
            self._fit(row)
            return
        if bar is not None:
            table.removeCellWidget(row, 2)
        share = f" {100 * item.done:.0f} %" if item.state == QUEUED and item.done > 0 else ""
        seconds = f" · {item.seconds:.0f} s" if item.state == DONE else ""
        count = f"⚠ {len(warnings)} note{'s' if len(warnings) > 1 else ''}" if warnings else ""
        notes = [self.note(item), count]
        text = "\n".join([f"{MARKS[item.state]} {item.state}{share}{seconds}", *filter(None, notes)])
        tip = error or f"{item.state} {notes[0]}".strip()
        table.setItem(row, 2, cell(text, tip="\n".join([tip, *warnings])))
        self._fit(row)

    def _fit(self, row: int) -> None:
        """Height for all of an error, and for the picture."""
        self.table.resizeRowToContents(row)
        self.table.setRowHeight(row, max(THUMBNAIL + 6, self.table.rowHeight(row)))

    def note(self, item: Item) -> str:  # noqa: ARG002
        """What is said below the state of an image."""
        return ""

    def show_thumbnail(self, path: str, pixels: npt.NDArray[np.uint8]) -> None:
        """A picture (h, w, 3) beside its image."""
        pixels = np.ascontiguousarray(pixels)
        height, width = pixels.shape[:2]
        image = QImage(pixels.data, width, height, 3 * width, QImage.Format.Format_RGB888).copy()
        picture = QPixmap.fromImage(image).scaled(
            THUMBNAIL, THUMBNAIL, Qt.AspectRatioMode.KeepAspectRatio, Qt.TransformationMode.SmoothTransformation
        )
        item = self.table.item(self._rows.get(path, -1), 0)
        if item is not None:
            item.setIcon(QIcon(picture))

    def clear_thumbnails(self) -> None:
        """Take the pictures off."""
        for row in range(self.table.rowCount()):
            if (item := self.table.item(row, 0)) is not None:
                item.setIcon(QIcon())

    def selected_rows(self) -> list[int]:
        """Rows that are selected, ascending."""
        return sorted({index.row() for index in self.table.selectedIndexes()})
