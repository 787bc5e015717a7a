"""The controls of the Segment dock, laid out; what they do is in :mod:`napari_isdnet.widgets.segment`."""

from __future__ import annotations

from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QLabel,
    QLineEdit,
    QSlider,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from napari_isdnet.io.sink import FORMATS
from napari_isdnet.widgets._class_table import ClassTable
from napari_isdnet.widgets._controls import (
    AREAS_TIP,
    GEOPACKAGE_TIP,
    ORIENTATIONS,
    ORIENTATIONS_TIP,
    OUTLINES,
    OUTLINES_TIP,
    Controls,
    form_layout,
    in_row,
    scrolled,
    separator,
)
from napari_isdnet.widgets._job import JobBar

TITLES = {"ome-zarr": "OME-Zarr", "ome-tiff": "OME-TIFF", "geotiff": "GeoTIFF", "png": "PNG"}


class SegmentForm(Controls):
    """Every control of the dock as an attribute; no behaviour."""

    PREFIX = "segment"

    def __init__(self) -> None:
        super().__init__()
        self.setObjectName("isdnet_segment")
        self._make_choices()
        self._make_actions()
        self._make_output()
        self._lay_out()

    def _make_choices(self) -> None:
        self.image = self._combo("image", "The image layer to segment")
        self.model = self._combo(
            "model", "A model of this image's project, or one by name; File… takes any other model file"
        )
        self.model_button = self._button(
            "model_file", "File…",
            "Choose a model file (.safetensors), for instance one fine-tuned here or a converted published checkpoint",
        )  # fmt: skip
        self.model_facts = self._dress(QLabel(self), "model_facts", "What the model was trained for")
        self.model_facts.setWordWrap(True)
        self.context = self._combo(
            "context",
            "Whole image: the network's pooling sees all of the image, so the answer does not depend on where you look"
            " (the live view is provisional until it has been over the image once). Window: every window by itself;"
            " quicker to start",
            ("Whole image (exact)", "whole"), ("Window by window", "window"),
        )  # fmt: skip
        self.region = self._combo(
            "region",
            "What is segmented: what you see (live follows the view), a rectangle of a Shapes layer, or all of it",
            ("What is visible", "visible"), ("Drawn rectangle", "drawn"), ("Whole image", "whole"),
        )  # fmt: skip
        self.draw_button = self._button("draw", "Draw", "Draw the rectangle on the image, in a Shapes layer")
        self.orientations = self._combo("orientations", ORIENTATIONS_TIP, *ORIENTATIONS)
        self.device = self._combo("device", "Where the network runs, and the memory that is free there")

    def _make_actions(self) -> None:
        self.live_button = self._button(
            "live", "Live segmentation",
            "Segment what is on the screen first and follow the view (Ctrl+Shift+L); nothing is written to disk",
        )  # fmt: skip
        self.live_button.setCheckable(True)
        self.live_status = self._dress(QLabel(self), "live_status", "How far the live segmentation is")
        self.live_status.setWordWrap(True)
        self.live_status.hide()
        self.live_bar = JobBar(self, "segment_live_job")
        self.classes = ClassTable(self)
        self.opacity = self._dress(QSlider(Qt.Orientation.Horizontal, self), "opacity", "Opacity of the class map")
        self.opacity.setRange(0, 100)
        self.opacity.setValue(60)

    def _make_output(self) -> None:
        self.output = self._dress(
            QLineEdit(self), "output",
            "Folder for the results and for the job, which can be resumed after a restart",
        )  # fmt: skip
        self.output_button = self._dress(QToolButton(self), "output_folder", "Choose the folder for the results")
        self.output_button.setText("…")
        self.format = self._combo("format", "File format of the class map", *((TITLES[key], key) for key in FORMATS))
        self.polygons = self._check("polygons", "Polygons", "Write class polygons as GeoJSON too (QuPath, QGIS)")
        self.geopackage = self._check("geopackage", "GeoPackage", GEOPACKAGE_TIP)
        self.outlines = self._combo("outlines", f"{OUTLINES_TIP}. Export takes them so, too", *OUTLINES)
        self.min_area = self._area_box(f"{AREAS_TIP}. Export takes them so, too")
        self.uncertainty = self._check(
            "uncertainty", "Uncertainty", "Write a map of where the network is unsure, and show it as a layer"
        )
        self.probabilities = self._check("probabilities", "Probabilities", "Write the share of every class too")
        self.overwrite = self._check(
            "overwrite", "Replace", "Start over where an earlier result or job of other settings lies in the folder"
        )
        self.segment_button = self._button(
            "segment", "Segment to files",
            "Segment the region and write the files; can be paused, cancelled and resumed",
        )  # fmt: skip
        self.copy_button = self._button(
            "copy", "Copy as command", "Copy the command line that does the same from a shell"
        )
        self.export_button = self._button(
            "export", "Export…", "Write the last result in another format, or its polygons"
        )
        self.export_button.setEnabled(False)
        self.job_hint = self._dress(QLabel(self), "job_hint", "Whether an earlier job is there to go on with")
        self.job_hint.setWordWrap(True)
        self.job_hint.hide()
        self.bar = JobBar(self, "segment_job")
        self.export_bar = JobBar(self, "segment_export_job")

    def _lay_out(self) -> None:
        inside = QWidget(self)
        inside.setObjectName("segment_page")
        column = QVBoxLayout(inside)
        column.setContentsMargins(8, 6, 8, 8)
        column.setSpacing(6)
        form = form_layout()
        form.addRow("Image", self.image)
        form.addRow("Model", in_row(self.model, self.model_button))
        form.addRow("", self.model_facts)
        form.addRow("Context", self.context)
        form.addRow("Region", in_row(self.region, self.draw_button))
        form.addRow("Average over", self.orientations)
        form.addRow("Device", self.device)
        column.addLayout(form)
        for widget in (self.live_button, self.live_status, self.live_bar, self.classes):
            column.addWidget(widget)
        shown = form_layout()
        shown.addRow("Opacity", self.opacity)
        column.addLayout(shown)
        column.addWidget(separator(inside))
        files = form_layout()
        files.addRow("Folder", in_row(self.output, self.output_button))
        files.addRow("Format", in_row(self.format, self.overwrite))
        files.addRow("Also", in_row(self.polygons, self.geopackage))
        files.addRow("", in_row(self.uncertainty, self.probabilities))
        files.addRow("Outlines", self.outlines)
        files.addRow("Areas", self.min_area)
        column.addLayout(files)
        column.addWidget(self.segment_button)
        column.addWidget(self.job_hint)
        column.addWidget(self.bar)
        column.addLayout(in_row(self.copy_button, self.export_button))
        column.addWidget(self.export_bar)
        column.addStretch(1)
        scrolled(self, inside, "segment_scroll")
