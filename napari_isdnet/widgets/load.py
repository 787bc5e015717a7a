"""The Load dock: choose an image, see what it is, and add it as a layer that never blocks the window."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from qtpy.QtCore import QEvent, QObject, Qt, Signal
from qtpy.QtWidgets import (
    QFileDialog,
    QHBoxLayout,
    QHeaderView,
    QLabel,
    QLineEdit,
    QPushButton,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from napari_isdnet.exceptions import InputError
from napari_isdnet.io.intensity import IntensityPolicy, parse_contrast
from napari_isdnet.io.open import open_source
from napari_isdnet.io.overviews import with_overviews
from napari_isdnet.io.sample_files import SampleFile, sample_files
from napari_isdnet.io.samples import open_sample, samples
from napari_isdnet.progress import Progress
from napari_isdnet.widgets import _facts
from napari_isdnet.widgets._channels import ChannelChoice
from napari_isdnet.widgets._controls import Controls, Question, scrolled
from napari_isdnet.widgets._image import image_layer
from napari_isdnet.widgets._job import JobBar, end_with_dock, stop_with
from napari_isdnet.widgets._lazy import real_viewer, watch
from napari_isdnet.widgets._notify import in_dock, notify_error
from napari_isdnet.widgets._settings import pyramid_folder
from napari_isdnet.widgets._tables import leave_alone
from napari_isdnet.widgets._worker import one_step

FILTER = (
    "Images (*.tif *.tiff *.btf *.svs *.ndpi *.scn *.mrxs *.png *.jpg *.jpeg *.jp2 *.npy *.zarr *.vrt);;All files (*)"
)


HINT = "Open an image of any size. Files without a pyramid get one in the cache."
ON_REQUEST = ("gigapixel", "slide-region", "slide")
"""Samples that are files: the others are opened without one."""


class LoadWidget(Controls):
    """File, folder, drop or sample -> facts -> lazy image layer. Opening and building run in a worker thread."""

    PREFIX = "load"
    loaded = Signal(object)

    def __init__(
        self, napari_viewer: Any, folder: Callable[[], Path] = pyramid_folder
    ) -> None:  # napari passes the viewer by this name
        super().__init__()
        viewer = real_viewer(napari_viewer)
        self.setObjectName("isdnet_load")
        self.setAcceptDrops(True)
        self._viewer = viewer
        self._folder = folder
        self._opened: list[dict[str, Any]] = []  # at most one: what the table shows; not yet a layer's
        self._wanted: tuple[str | None, str | None] | None = None  # path and sample that is looked at, or was loaded
        self._asked: tuple[Any, ...] = ()  # the contrast and channels it was last to be looked at with
        watch(viewer)
        self._build()
        opened = self._opened
        end_with_dock(self)
        stop_with(self, lambda: [entry["source"].close() for entry in opened])

    # -- building the view ---------------------------------------------------------------------------------------
    def _build(self) -> None:
        self.path = QLineEdit(self)
        self._dress(self.path, "path", "Path of an image file or an OME-Zarr folder; press Enter to look at it")
        self.path.setPlaceholderText("Drop an image here, or choose one")
        self.path.returnPressed.connect(self._open_path)
        self.path.installEventFilter(self)
        self.file_button = self._acting("file", "File…", "Choose an image file", self._choose_file)
        self.folder_button = self._acting("folder", "Folder…", "Choose an OME-Zarr folder", self._choose_folder)
        # Not as wide as its longest entry: the dock could not be narrow.
        self.sample = self._combo(
            "sample",
            "Pictures to try things with. The last ones are written or downloaded to the cache, after you were asked",
        )
        self.sample.addItem("Samples…", None)
        for sample in samples():
            self.sample.addItem(sample.title, sample.name)
        self._files = {sample.name: sample for sample in sample_files() if sample.name in ON_REQUEST}
        for file in self._files.values():
            how = "a file in the cache" if file.item is None else "download"
            self.sample.addItem(f"{file.title} ({how})", file.name)
            self.sample.setItemData(self.sample.count() - 1, file.about, Qt.ItemDataRole.ToolTipRole)
        self.question = Question(self, "load")
        self.sample.activated.connect(self._open_sample)
        self.table = QTableWidget(0, 2, self)
        self._dress(self.table, "facts", "What the image is, read from its header")
        self.contrast = self._combo(
            "contrast",
            "Auto: 8-bit as it is, others by their 0.5 and 99.5 percentiles. None: the full range of the type. "
            "Limits: two values that become black and white",
            ("Auto", "auto"), ("None", "none"), ("Limits", "limits"),
        )  # fmt: skip
        self.limits = QLineEdit(self)
        self._dress(self.limits, "limits", "LOW,HIGH: the sample values that become black and white, e.g. 200,3000")
        self.limits.setPlaceholderText("LOW,HIGH")
        self.limits.hide()
        self.contrast.currentIndexChanged.connect(self._contrast_changed)
        self.limits.editingFinished.connect(self._look_again)
        self.channels = ChannelChoice(self)
        self.channels.changed.connect(self._look_again)
        self.load_button = self._acting(
            "load",
            "Load",
            "Add the image as a layer, of which only what you look at is read; with other colours once more",
            self.load,
        )
        self.load_button.setEnabled(False)
        self.bar = JobBar(self, "load_job")
        self._tidy_table()
        self._lay_out()

    def _acting(self, name: str, text: str, tip: str, action: Callable[[], None]) -> QPushButton:
        button = self._button(name, text, tip)
        button.clicked.connect(lambda: action())
        return button

    def _tidy_table(self) -> None:
        leave_alone(self.table)
        self.table.setWordWrap(True)
        self.table.setStyleSheet("QTableWidget::item { padding: 4px 2px; }")  # rows of several lines would touch
        across, down = self.table.horizontalHeader(), self.table.verticalHeader()
        assert across is not None
        assert down is not None
        across.hide()
        across.setSectionResizeMode(0, QHeaderView.ResizeMode.ResizeToContents)
        across.setSectionResizeMode(1, QHeaderView.ResizeMode.Stretch)
        down.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        self.table.hide()

    def _lay_out(self) -> None:
        self.hint = QLabel(HINT, self)
        self.hint.setObjectName("load_hint")
        self.hint.setToolTip("TIFF, SVS, NDPI, OME-Zarr, PNG, JPEG, JPEG 2000, NPY; more with the geo and wsi extras")
        self.hint.setWordWrap(True)
        choose = QHBoxLayout()
        for widget in (self.file_button, self.folder_button, self.sample):
            choose.addWidget(widget)
        contrast = QHBoxLayout()
        label = QLabel("Contrast", self)
        label.setBuddy(self.contrast)
        contrast.addWidget(label)
        contrast.addWidget(self.contrast, 1)
        contrast.addWidget(self.limits, 1)
        page = QWidget(self)
        column = QVBoxLayout(page)
        column.addWidget(self.path)
        column.addLayout(choose)
        column.addWidget(self.question)
        column.addWidget(self.hint)
        column.addWidget(self.table, 1)
        column.addWidget(self.channels)
        column.addLayout(contrast)
        column.addWidget(self.load_button)
        column.addWidget(self.bar)
        column.addStretch(0)
        scrolled(self, page, "load_scroll")

    # -- choosing ------------------------------------------------------------------------------------------------
    def _choose_file(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self, "Open an image", self.path.text(), FILTER)
        if path:
            self.open(path)

    def _choose_folder(self) -> None:
        path = QFileDialog.getExistingDirectory(self, "Open an OME-Zarr folder", self.path.text())
        if path:
            self.open(path)

    def _open_path(self) -> None:
        if self.path.text().strip():
            self.open(self.path.text().strip())

    def _open_sample(self, index: int) -> None:
        name = self.sample.itemData(index)
        if name in self._files:
            self._ask_for(self._files[name])
        elif name is not None:
            self.open(sample=name)

    def _ask_for(self, sample: SampleFile) -> None:
        """Say what a sample takes and get it if that is wanted; open it at once where it is there."""
        if sample.ready():
            self.open(str(sample.paths()[0]))
            return

        def ask(size: int) -> None:
            text = f"{sample.title}: {sample.cost(size)}, to {sample.paths()[0].parent}"
            verb = "Write it" if sample.item is None else "Download"
            tip = f"{sample.about}\nIn a shell: napari-isdnet sample {sample.name}"
            self.question.ask(text, verb, tip, lambda: self._obtain(sample))

        self.bar.run(one_step("Asking for its size", sample.bytes_to_come), on_result=ask, title=sample.title)
        self.load_button.setEnabled(bool(self._opened))

    def _obtain(self, sample: SampleFile) -> None:
        path = str(sample.paths()[0])
        self.bar.run(sample.obtain, on_result=lambda _: self.open(path), title=sample.title)

    def dragEnterEvent(self, event: Any) -> None:
        """Accept local files and folders."""
        if _dropped(event):
            event.acceptProposedAction()

    def dropEvent(self, event: Any) -> None:
        """Look at the first file that was dropped."""
        paths = _dropped(event)
        if paths:
            event.acceptProposedAction()
            self.open(paths[0])

    def eventFilter(self, watched: QObject | None, event: QEvent | None) -> bool:
        """A line edit would take a dropped file as text: hand it to the dock."""
        if event is not None and event.type() == QEvent.Type.DragEnter and _dropped(event):
            self.dragEnterEvent(event)
            return True
        if event is not None and event.type() == QEvent.Type.Drop and _dropped(event):
            self.dropEvent(event)
            return True
        return bool(super().eventFilter(watched, event))

    # -- looking -------------------------------------------------------------------------------------------------
    def _contrast_text(self) -> str:
        key = str(self.contrast.currentData())
        return self.limits.text().strip() if key == "limits" else key

    def _colors(self) -> tuple[str, tuple[int, ...] | None]:
        return self._contrast_text(), self.channels.chosen()

    def _contrast_changed(self) -> None:
        self.limits.setVisible(self.contrast.currentData() == "limits")
        if self.contrast.currentData() != "limits" or self.limits.text().strip():
            self._look_again()

    def _look_again(self) -> None:
        """With other colours; a line edit also says that it was edited when it only loses the focus."""
        if self._wanted is not None and self._colors() != self._asked:
            path, sample = self._wanted
            self.open(path, sample=sample)

    def open(self, path: str | None = None, sample: str | None = None) -> None:
        """Look at an image: read its header in the background and show what it is."""
        self._forget()
        if (path, sample) != self._wanted:
            self.channels.reset()
        # Before the contrast is read: where that is wrong, this is what is looked at once it is corrected.
        self._wanted, self._asked = (path, sample), self._colors()
        self.question.hide()
        self.hint.setText(HINT)
        self.path.setText(path or "")
        self.sample.setCurrentIndex(max(0, self.sample.findData(sample)))

        def failed(error: BaseException) -> None:
            self._show_no_facts(in_dock(str(error)) or type(error).__name__)  # the notification goes by
            notify_error(error)

        try:
            contrast = parse_contrast(self._contrast_text())
        except InputError:
            self.bar.abandon()
            failed(InputError(f"Contrast limits must look like LOW,HIGH, got '{self._contrast_text()}'."))
            return
        folder, channels = self._folder(), self.channels.chosen()

        def look() -> Generator[Progress, None, dict[str, Any]]:
            yield Progress(0, 1, "Opening")
            source = open_sample(sample) if sample is not None else open_source(path)
            try:
                source = with_overviews(source, folder)
                policy = IntensityPolicy.from_source(source, contrast, channels)
                report = _facts.report(source, policy)
            except BaseException:
                source.close()
                raise
            return {**report, "path": path, "sample": sample}

        self.bar.run(
            look, on_result=self._show, on_error=failed, on_cancel=self._show_no_facts, title="Opening",
            drop=lambda entry: entry["source"].close(),
        )  # fmt: skip

    def _show(self, entry: dict[str, Any]) -> None:
        self._opened[:] = [entry]
        self.channels.offer(entry["source"], entry["policy"])
        self.table.setRowCount(len(entry["rows"]))
        for row, (name, value) in enumerate(entry["rows"]):
            for column, text in enumerate((name, value)):
                item = QTableWidgetItem(text)
                item.setToolTip(value)
                self.table.setItem(row, column, item)
        self.hint.hide()
        self.table.show()
        self.load_button.setEnabled(True)

    def _show_no_facts(self, reason: str = "") -> None:
        """What the table says is of the image before, not of the one whose name stands above it."""
        self.table.hide()
        self.hint.setText(reason or HINT)
        self.hint.show()

    def _forget(self) -> None:
        for entry in self._opened:
            entry["source"].close()
        self._opened.clear()
        self.load_button.setEnabled(False)

    # -- loading -------------------------------------------------------------------------------------------------
    def load(self) -> None:
        """Add the image on view as a layer; where the file has no pyramid, one is built while it is looked at."""
        if not self._opened:
            return
        entry = self._opened.pop()  # the layer owns the source now; with other colours the file is opened anew
        self.load_button.setEnabled(False)
        data, keywords, _ = image_layer(entry["source"], entry["policy"], path=entry["path"], sample=entry["sample"])
        layer = self._viewer.add_image(data, **keywords)
        self.loaded.emit(layer)


def _dropped(event: Any) -> list[str]:
    """Local paths of a drag and drop event."""
    mime = event.mimeData()
    return [url.toLocalFile() for url in mime.urls() if url.isLocalFile()] if mime.hasUrls() else []
