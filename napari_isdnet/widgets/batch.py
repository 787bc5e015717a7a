"""The Batch dock: many images, one model, a queue that survives failures and restarts."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

from qtpy.QtWidgets import QFileDialog

from napari_isdnet.engine.batch import DONE, QUEUED, SKIPPED, BatchProgress, BatchQueue, Item, command, find_images
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.disk import check_folder, make_folder
from napari_isdnet.io.intensity import parse_channels, parse_contrast
from napari_isdnet.progress import Progress
from napari_isdnet.widgets import _batch_controller as work
from napari_isdnet.widgets import _segment_layers as layers
from napari_isdnet.widgets import _settings
from napari_isdnet.widgets._batch_form import BatchForm, show_typed, typed
from napari_isdnet.widgets._clipboard import copy_text
from napari_isdnet.widgets._engine import look_for_models
from napari_isdnet.widgets._image import image_layer
from napari_isdnet.widgets._job import end_with_dock
from napari_isdnet.widgets._lazy import real_viewer, watch
from napari_isdnet.widgets._notify import notify_error, notify_info
from napari_isdnet.widgets._project_models import ProjectModels, of_files
from napari_isdnet.widgets._segment_controller import color_table
from napari_isdnet.widgets.load import FILTER, _dropped


class BatchWidget(BatchForm):
    """A thin view over :class:`~napari_isdnet.engine.batch.BatchQueue`; it is run by one worker thread at a time."""

    def __init__(self, napari_viewer: Any) -> None:  # napari passes the viewer by this name
        super().__init__()
        viewer = real_viewer(napari_viewer)
        self._viewer = viewer
        self.queue = BatchQueue(Path())
        self._to_add: list[list[str]] = []
        self.project_models = ProjectModels(self, self.model, lambda: of_files([i.path for i in self.queue.items]))
        watch(viewer)
        self.files_button.clicked.connect(lambda: self._choose_files())
        self.folder_button.clicked.connect(lambda: self._choose_folder())
        self.pattern.returnPressed.connect(lambda: self.add([self.pattern.text().strip()]))
        self.output_button.clicked.connect(lambda: self._choose_output())
        self.output.editingFinished.connect(self.read_queue)
        self.model_button.clicked.connect(lambda: self._choose_model())
        self.run_button.clicked.connect(lambda: self.run())
        self.copy_button.clicked.connect(lambda: self.copy_command())
        self.open_button.clicked.connect(lambda: self.open_results())
        self.table.cellDoubleClicked.connect(lambda *_: self.open_results())
        self.again_button.clicked.connect(lambda: self._change(self.queue.again))
        self.skip_button.clicked.connect(lambda: self._change(self.queue.skip))
        self.remove_button.clicked.connect(lambda: self._change(self.queue.remove))
        self.bar.ended.connect(self._ended)
        for box in (self.model, self.context, self.orientations, self.format, self.outlines):
            box.currentIndexChanged.connect(lambda _: self._show_notes())
        self.min_area.valueChanged.connect(lambda _: self._show_notes())
        for tick in (self.polygons, self.geopackage, self.uncertainty):
            tick.toggled.connect(lambda _: self._show_notes())
        for box in (self.channels, self.contrast):
            box.activated.connect(lambda _: self._colors_changed())
            box.lineEdit().editingFinished.connect(self._colors_changed)  # type: ignore[union-attr]
        self._asked = (typed(self.channels), typed(self.contrast))
        end_with_dock(self)
        self._list_models()

    # -- models and folders --------------------------------------------------------------------------------------
    def _list_models(self) -> None:
        def show(names: list[str]) -> None:
            for name in names:
                if self.model.findData(name) < 0:
                    self.model.addItem(name, name)
            if names and self.model.currentIndex() < 0:  # models of projects alone choose none
                self.model.setCurrentIndex(self.model.findData(names[0]))

        self.models_look.run(look_for_models, on_result=show)

    def _choose_model(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self, "A model", "", "Models (*.safetensors)")
        if path:
            self.choose_model(path)

    def choose_model(self, model: str) -> None:
        """Take a model by name or file."""
        if self.model.findData(model) < 0:
            self.model.addItem(Path(model).stem, model)
        self.model.setCurrentIndex(self.model.findData(model))

    def _choose_output(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "Folder for the results", self.output.text())
        if folder:
            self.output.setText(folder)
            self.read_queue()

    def read_queue(self) -> bool:
        """Take up the queue of the output folder, where there is one, with the images that are listed here.

        False where that cannot be, which is said.
        """
        text = self.output.text().strip()
        folder = Path(os.path.expanduser(text))  # '~nobody' stays as it is
        same = folder == self.queue.output
        if not text or (same and not self.queue.changed) or self.bar.running:
            return True
        here = [item.path for item in self.queue.items]
        left_out = {item.path for item in self.queue.items if item.state == SKIPPED}
        try:
            check_folder(folder)
            queue = BatchQueue.open(folder)
            queue.add(here)
            queue.skip(row for row, item in enumerate(queue.items) if item.path in left_out)
        except InputError as error:
            notify_error(error)
            return False
        self.queue = queue
        if queue.model and not same:
            self.choose_model(queue.model)
            self._show_settings()
        self._show_all()
        if same:
            notify_info(f"Another window has changed the queue of {folder}: look at what it holds now, then run it.")
        return not same

    def _show_settings(self) -> None:
        chosen = self.queue.settings
        self.context.setCurrentIndex(max(0, self.context.findData(chosen.get("context"))))
        self.format.setCurrentIndex(max(0, self.format.findData((chosen.get("formats") or ["ome-zarr"])[0])))
        self.orientations.setCurrentIndex(max(0, self.orientations.findData(chosen.get("orientations", 1))))
        self.outlines.setCurrentIndex(max(0, self.outlines.findData(float(chosen.get("simplify", 0.0)))))
        self.min_area.setValue(int(chosen.get("min_area", 1)))
        for name in ("polygons", "geopackage", "uncertainty", "overwrite"):
            getattr(self, name).setChecked(bool(chosen.get(name)))
        show_typed(self.where, chosen.get("dask", ""))
        show_typed(self.channels, work.in_text(chosen.get("channels"), ""))
        show_typed(self.contrast, work.in_text(chosen.get("contrast"), "auto"))
        self._forget_pictures()

    # -- adding --------------------------------------------------------------------------------------------------
    def _choose_files(self) -> None:
        paths, _ = QFileDialog.getOpenFileNames(self, "Images", "", FILTER)
        if paths:
            self.add(paths)

    def _choose_folder(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "A folder of images", "")
        if folder:
            self.add([folder])

    def dragEnterEvent(self, event: Any) -> None:
        """Accept local files and folders."""
        if _dropped(event):
            event.acceptProposedAction()

    def dropEvent(self, event: Any) -> None:
        """Add what was dropped."""
        event.acceptProposedAction()
        self.add(_dropped(event))

    def add(self, what: list[str]) -> None:
        """Add files, folders or patterns; looking through folders happens in a worker thread."""
        if not any(what) or self._busy():
            return
        self._to_add.append(list(what))
        if not self.looking.running:
            self._look_next()

    def _look_next(self) -> None:
        """Look through the next of what was added while another look was under way."""
        if not self._to_add:
            return
        what = self._to_add.pop(0)

        def look() -> Generator[Progress, None, list[Path]]:
            yield Progress(0, 1, "Looking for images")
            return find_images(what)

        def show(paths: list[Path]) -> None:
            try:
                self.queue.add(paths)
            except InputError as error:
                notify_error(error)
            else:
                self.pattern.clear()
                self._show_all()
            self._look_next()

        def failed(error: BaseException) -> None:
            notify_error(error)
            self._look_next()

        self.looking.run(look, on_result=show, on_error=failed)

    def _busy(self) -> bool:
        if self.bar.running:
            notify_info("The queue is running; cancel it first, what is finished is kept.")
        return self.bar.running

    def _change(self, change: Any) -> None:
        if self.selected_rows() and not self._busy():
            change(self.selected_rows())
            self._show_all()

    # -- showing -------------------------------------------------------------------------------------------------
    def _show_all(self) -> None:
        self.show_items(self.queue.items)
        self._show_counts()
        self.project_models.look()
        without = [
            item.path for row, item in enumerate(self.queue.items)
            if self.table.item(row, 0).icon().isNull()  # type: ignore[union-attr]
        ]  # fmt: skip
        try:
            colors = self._colors()
        except InputError:
            return  # no picture is better than one of other colours
        if without:
            look = work.thumbnails(without, colors)
            self.thumbnails.run(look, on_items=self._show_thumbnails, on_error=lambda _: None)

    def _show_thumbnails(self, found: list[work.Thumbnail]) -> None:
        for item in found:
            self.show_thumbnail(item.path, item.pixels)

    def _show_counts(self) -> None:
        parts = [f"{count} {state}" for state, count in self.queue.counts().items() if count]
        self.status.setText(" · ".join(parts) or "Add images to begin.")

    # -- running -------------------------------------------------------------------------------------------------
    def _colors(self) -> dict[str, Any]:
        """Channels and contrast that are chosen or typed; :class:`InputError` where they cannot be read."""
        channels, contrast = typed(self.channels), typed(self.contrast) or "auto"
        try:
            wanted = list(parse_channels(channels)) if channels else None
            parse_contrast(contrast)
        except InputError as error:
            raise InputError(f"Channels or contrast cannot be read: {error}") from None
        return work.settings(channels=wanted, contrast=None if contrast == "auto" else contrast)

    def _colors_changed(self) -> None:
        """Pictures and notes follow; a line edit also says that it was edited when it only loses the focus."""
        if self._forget_pictures():
            try:
                self._colors()
            except InputError as error:
                notify_error(error)
            self._show_all()

    def _forget_pictures(self) -> bool:
        """Take the pictures off where they have other colours than those that are asked for now."""
        before, self._asked = self._asked, (typed(self.channels), typed(self.contrast))
        if self._asked != before:
            self.clear_thumbnails()
        return self._asked != before

    def _chosen(self) -> dict[str, Any]:
        """What is chosen in the form, as a queue keeps it; :class:`InputError` where that cannot be read."""
        device = _settings.device()
        outlined = self.polygons.isChecked() or self.geopackage.isChecked()
        return work.settings(
            context=self.context.currentData(),
            **self._colors(),
            formats=[self.format.currentData()],
            polygons=self.polygons.isChecked(),
            geopackage=self.geopackage.isChecked(),
            simplify=float(self.outlines.currentData()) if outlined else None,
            min_area=least if outlined and (least := self.min_area.value()) > 1 else None,
            uncertainty=self.uncertainty.isChecked(),
            overwrite=self.overwrite.isChecked(),
            orientations=count if (count := int(self.orientations.currentData())) > 1 else None,
            device=device if device != "auto" else None,
            memory=_settings.memory_gib(),
            dask=typed(self.where),
        )

    def take_settings(self) -> None:
        """What is chosen in the form, into the queue."""
        self.queue.model = str(self.model.currentData() or "")
        self.queue.settings = self._chosen()

    def note(self, item: Item) -> str:
        """With what an image was done, where that is not what is chosen now."""
        try:
            return work.done_with(item, str(self.model.currentData() or ""), self._chosen())
        except InputError:  # was said when it was typed, and is again when it is to run
            return ""

    def _show_notes(self) -> None:
        for row, item in enumerate(self.queue.items):
            if item.state == DONE:
                self.show_item(row, item)

    def run(self) -> None:
        """Segment what is queued."""
        if self._busy() or not self.read_queue():
            return
        try:
            if not self.output.text().strip():
                raise InputError("The results need a folder: choose one under Results.")
            if self.model.currentData() is None:
                raise InputError("No model is chosen; choose one, or a .safetensors file.")
            if not any(item.state == QUEUED for item in self.queue.items):
                raise InputError("No image is queued; add some, or select images and choose Queue again.")
            self.take_settings()
            make_folder(self.queue.output)
        except InputError as error:
            notify_error(error)
            return
        if self.overwrite.isChecked():
            self._give_up_results()
        self.run_button.setEnabled(False)
        self.bar.run(
            lambda: work.run(self.queue), on_items=self._progressed, on_result=self._finished, title="Starting"
        )

    def _give_up_results(self) -> None:
        """Remove the layers of results that are about to be replaced: they would show other data."""
        zarr = self.format.currentData() == "ome-zarr"
        for item in self.queue.items:
            if item.state == QUEUED:
                layers.remove_all(self._viewer, layers.showing(self._viewer, self.queue.output, item.stem, zarr))

    def _progressed(self, steps: list[BatchProgress]) -> None:
        latest = {step.index: step.item for step in steps if step.item is not None}
        for row, item in latest.items():
            self.show_item(row, item)
        self._show_counts()

    def _finished(self, counts: dict[str, int]) -> None:
        warned = sum(bool(item.warnings) for item in self.queue.items if item.state == DONE)
        parts = [f"{counts['done']} done"]
        parts += [f"{warned} of them with notes (⚠)"] if warned else []
        parts += [f"{counts['failed']} failed"] if counts["failed"] else []
        notify_info(f"Batch: {', '.join(parts)}{': see the list' if len(parts) > 1 else ''}.")

    def _ended(self) -> None:
        self.run_button.setEnabled(True)
        self.show_items(self.queue.items)
        self._show_counts()

    def copy_command(self) -> None:
        """The same from a shell, on the clipboard."""
        if not self.bar.running:
            if not self.read_queue():
                return
            try:
                self.take_settings()
            except InputError as error:
                notify_error(error)
                return
        if not self.queue.items:
            notify_error(InputError("No image is in the list; add some first."))
            return
        copy_text(self.copy_button, command(self.queue))

    # -- results -------------------------------------------------------------------------------------------------
    def open_results(self) -> None:
        """Image and class map of the selected rows that are done, as layers."""
        rows = [row for row in self.selected_rows() if self.queue.items[row].state == DONE]
        if not rows:
            notify_info("Select an image that is done.")
            return
        self.opening.run(work.open_results(self.queue, rows, _settings.pyramid_folder()), on_items=self._add_layers)

    def _add_layers(self, found: list[work.Opened]) -> None:
        for item in found:
            data, keywords, _ = image_layer(item.source, item.policy, path=item.path)
            image = self._viewer.add_image(data, **keywords)
            if item.warning:
                notify_info(item.warning)
            if item.labels is not None:
                labels, note = item.labels, self.note(item.item)
                note = ", ".join(part for part in (note, "of another image" if item.warning else "") if part)
                name = f"{item.source.name} classes"
                layers.add_labels(
                    self._viewer, image, layers.store_pyramid(labels), labels.classes, color_table(labels.classes),
                    f"{name} ({note})" if note else name, origin=labels.origin, opacity=0.6, store=labels,
                )  # fmt: skip
