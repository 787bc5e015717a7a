"""The Segment dock: what is on the screen at once, the region as files; a thin view over the controller."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from qtpy.QtWidgets import QFileDialog

from napari_isdnet.classes import ClassInfo
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.source import ImageSource, PixelSize
from napari_isdnet.progress import Progress
from napari_isdnet.widgets import _segment_layers as layers
from napari_isdnet.widgets import _settings
from napari_isdnet.widgets._controls import list_images
from napari_isdnet.widgets._engine import LocalEngine, ModelAbout
from napari_isdnet.widgets._job import JobBar, end_with_dock, stop_with, timer
from napari_isdnet.widgets._lazy import real_viewer, watch
from napari_isdnet.widgets._notify import in_dock, notify_error, notify_info
from napari_isdnet.widgets._project_models import ProjectModels, of_layer
from napari_isdnet.widgets._replaced import Replaced
from napari_isdnet.widgets._segment_controller import (
    Engine,
    Finished,
    SegmentController,
    Settings,
    region_window,
)
from napari_isdnet.widgets._segment_earlier import Earlier
from napari_isdnet.widgets._segment_export import Exporting, written_in_words
from napari_isdnet.widgets._segment_live import LiveView
from napari_isdnet.widgets._worker import one_step
from napari_isdnet.window import Window

SHORTCUT = "Control-Shift-L"
COMPARE_MS = 500
"""How often the view, which may be the region, is compared with that of an earlier job."""


class SegmentWidget(Exporting):
    """Model, region, live view, files. Loading, computing and writing run in worker threads."""

    def __init__(
        self, napari_viewer: Any, engine: Engine | None = None
    ) -> None:  # napari passes the viewer by this name
        super().__init__()
        viewer = real_viewer(napari_viewer)
        self.viewer = viewer
        watch(viewer)
        self.controller = SegmentController(engine or LocalEngine())
        self.live = LiveView(self)
        # They read headers and devices, each for itself.
        self._first = JobBar(self, "segment_first_look", unseen=True)
        self._look = JobBar(self, "segment_look", unseen=True)
        self.result_layer: Any = None
        self.uncertainty_layer: Any = None
        self._result_of: Any = None  # the image layer below them
        self._areas: dict[Any, tuple[Sequence[ClassInfo], list[int], PixelSize | None]] = {}  # of images with a result
        self.earlier: Earlier | None = None
        self._identity: dict[str, Any] | None = None  # of the chosen image, where it can be compared with that job's
        self._compare_timer = timer(self, COMPARE_MS, self._compare)
        self.finished: Finished | None = None
        self._output_is_ours = True
        self.project_models = ProjectModels(self, self.model, lambda: of_layer(self.image.currentData()))
        self._replaced = Replaced(self, self._pixels_replaced)
        self._connect()
        self._list_images()
        self._first_look()

    # -- wiring --------------------------------------------------------------------------------------------------
    def _connect(self) -> None:
        self.model.activated.connect(lambda _: self.choose_model(str(self.model.currentData() or "")))
        self.model_button.clicked.connect(self._choose_model_file)
        self.image.currentIndexChanged.connect(lambda _: self._image_changed())
        for box in (self.context, self.region, self.orientations, self.device):
            box.activated.connect(lambda _: self.live.again())
            box.activated.connect(lambda _: self._compare())
        for tick in (self.uncertainty, self.probabilities, self.overwrite):
            tick.toggled.connect(lambda _: self._compare())
        self.draw_button.clicked.connect(self._draw)
        self.live_button.clicked.connect(self.live.set_on)
        self.classes.shown.connect(self._show_class)
        self.opacity.valueChanged.connect(self._set_opacity)
        self.output.textEdited.connect(lambda _: self._output_edited())
        self.output_button.clicked.connect(self._choose_output)
        self.segment_button.clicked.connect(self.segment)
        self._connect_exports()
        events = self.viewer.layers.events
        events.inserted.connect(self._list_images)
        events.removed.connect(self._layer_removed)
        self.viewer.bind_key(SHORTCUT, lambda _: self.live_button.click(), overwrite=True)
        viewer, live = self.viewer, self.live

        def gone() -> None:
            events.inserted.disconnect(self._list_images)
            events.removed.disconnect(self._layer_removed)
            viewer.bind_key(SHORTCUT, None, overwrite=True)
            live.controller.stop_live()

        end_with_dock(self)
        stop_with(self, gone)

    def _first_look(self) -> None:
        """Models, devices and the first model's header need torch: not on the main thread."""
        engine = self.controller.engine

        def look() -> Generator[Progress, None, Any]:
            yield Progress(0, 1, "Looking for models and devices")
            names, devices = engine.models(), engine.devices()
            return names, devices, engine.about(names[0]) if names else None

        def show(found: Any) -> None:
            names, devices, about = found
            for name in names:
                if self.model.findData(name) < 0:
                    self.model.addItem(name, name)
            self.model.setPlaceholderText("Choose a model file…")
            for key, text in devices:
                self.device.addItem(text, key)
            self.device.setCurrentIndex(max(0, self.device.findData(_settings.device())))
            if self.controller.about is not None or self._look.running:  # a model was chosen meanwhile
                return
            if about is not None:
                self._model_read(names[0], about)
            else:
                self.model_facts.setText("No model is here yet: choose a file.")

        self._first.run(look, on_result=show)

    # -- image and model -----------------------------------------------------------------------------------------
    def _list_images(self, event: Any = None) -> None:  # noqa: ARG002
        if list_images(self.image, self.viewer):
            self._image_changed()

    def _image_changed(self) -> None:
        layer = self.image.currentData()
        self._replaced.follow(layer)
        if layer is not None and self._output_is_ours:
            path = layers.path_of(layer)
            folder = Path(path).resolve().parent if path else Path.home() / "napari-isdnet"
            self.output.setText(str(folder / "segmentation"))
        self.project_models.look()
        self._show_job_hint()
        self._show_areas()
        self.live.again()

    def _pixels_replaced(self) -> None:
        """Of the chosen image: areas and the live map are those of the pixels before."""
        self._areas.pop(self.image.currentData(), None)
        self._image_changed()

    def _show_areas(self) -> None:
        """Areas of the chosen image's result; none where it has no result yet, since others are not its own."""
        known = self._areas.get(self.image.currentData())
        if known is None:
            if self.controller.about is not None:
                self.list_classes(self.controller.classes)
            self.classes.clear_areas()
            return
        classes, pixels, size = known
        self.list_classes(classes)
        self.classes.set_areas(pixels, size)

    def _layer_removed(self, event: Any) -> None:
        if event.value is self.result_layer:
            self.result_layer = None
        if event.value is self.uncertainty_layer:
            self.uncertainty_layer = None
        self._areas.pop(event.value, None)
        self.live.layer_removed(event.value)
        self._list_images()

    def choose_model(self, model: str) -> None:
        """Take a model by name or path: its header is read in the background."""
        engine = self.controller.engine
        look = one_step("Reading the model", lambda: engine.about(model))
        self._look.run(look, on_result=partial(self._model_read, model))

    def _choose_model_file(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self, "Choose a model", "", "Models (*.safetensors);;All files (*)")
        if path:
            self.choose_model(path)

    def _model_read(self, model: str, about: ModelAbout) -> None:
        index = self.model.findData(model)
        if index < 0:
            self.model.addItem(Path(model).name, model)
            index = self.model.count() - 1
        self.model.setCurrentIndex(index)
        self.model.setToolTip(model)
        self.controller.choose_model(about)
        self.model_facts.setText(about.summary)
        self.model_facts.setToolTip(about.details)
        self.classes.set_classes(about.classes)
        self._compare()
        self.live.again()

    # -- choices -------------------------------------------------------------------------------------------------
    def settings(self) -> Settings:
        """What is chosen now; raises :class:`InputError` where something is missing."""
        if self.image.currentData() is None:
            raise InputError("There is no image to segment; load one first.")
        if self.controller.about is None:
            raise InputError("No model is chosen; choose a model file first.")
        return Settings(
            model=str(self.model.currentData()),
            context=str(self.context.currentData()),
            region=str(self.region.currentData()),
            device=str(self.device.currentData() or "auto"),
            output=self._folder(),
            format=str(self.format.currentData()),
            memory=_settings.memory_gib(),
            polygons=self.polygons.isChecked(),
            geopackage=self.geopackage.isChecked(),
            simplify=float(self.outlines.currentData()),
            min_area=self.min_area.value(),
            probabilities=self.probabilities.isChecked(),
            uncertainty=self.uncertainty.isChecked(),
            overwrite=self.overwrite.isChecked(),
            orientations=int(self.orientations.currentData()),
        )

    def _folder(self) -> Path:
        return Path(os.path.expanduser(self.output.text().strip() or "segmentation"))  # '~nobody' stays as it is

    def roi(self, kind: str) -> Window | None:
        """The chosen region in level-0 pixels, None for the whole image."""
        layer = self.image.currentData()
        shape, view = layers.shape_of(layer), layers.visible_window(self.viewer, layer)
        window = region_window(kind, shape, view, layers.drawn_window(self.viewer, layer))
        return None if window == Window.whole(shape) else window

    def _draw(self) -> None:
        if self.image.currentData() is not None:
            self.region.setCurrentIndex(self.region.findData("drawn"))
            layers.region_layer(self.viewer, self.image.currentData())

    def _choose_output(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "Folder for the results", self.output.text())
        if folder:
            self.output.setText(folder)
            self._output_edited()

    def _output_edited(self) -> None:
        self._output_is_ours = False
        self._show_job_hint()

    def _show_job_hint(self) -> None:
        """Look what lies in the folder."""
        layer = self.image.currentData()
        self.earlier = None if layer is None else Earlier.read(self._folder(), layers.stem_of(layer))
        self._identity = None
        with suppress(InputError):  # a stack is no image to segment
            if self.earlier is not None:
                self._identity = self.earlier.same_image(layer, layers.opened(layer)[0])
        (self._compare_timer.stop if self.earlier is None else self._compare_timer.start)()
        self._compare()

    def _differences(self) -> list[str]:
        """What was chosen otherwise for the job in the folder, in words; empty too where nothing is chosen yet."""
        if self.earlier is None or self.controller.about is None:
            return []
        try:
            settings = self.settings()
            region = self.roi(settings.region)
            return self.earlier.differences(settings, region, self.controller.about.name, self._identity)
        except InputError:  # no region is drawn yet, or the view is beside the image
            return []

    def _compare(self) -> None:
        """Say on the button and below it whether the job in the folder is the one that is chosen."""
        earlier = self.earlier
        found = self._differences()
        same = earlier is not None and not found and not earlier.damaged
        self.segment_button.setText("Resume or repeat" if same else "Segment to files")
        self.job_hint.setText(
            "" if earlier is None else earlier.hint(found, self.overwrite.isChecked(), self._identity is not None)
        )
        self.job_hint.setVisible(earlier is not None)

    # -- looks ---------------------------------------------------------------------------------------------------
    def _ours(self) -> list[Any]:
        return [layer for layer in (self.live.layer, self.result_layer) if layer is not None]

    def list_classes(self, classes: Sequence[ClassInfo]) -> None:
        """Bring the table to the classes that a layer of ours shows: the model's, or those of a result."""
        if self.controller.list_classes(classes):
            self.classes.set_classes(classes)

    def _show_class(self, index: int, shown: bool) -> None:
        self.controller.show_class(index, shown)
        for layer in self._ours():
            layer.colormap = layers.colormap(self.controller.colors(layer.metadata[layers.CLASSES]))

    def _set_opacity(self, percent: int) -> None:
        for layer in self._ours():
            layer.opacity = percent / 100

    # -- files ---------------------------------------------------------------------------------------------------
    def segment(self) -> None:
        """Segment the region to files, or go on with it."""
        try:
            layer, settings = self.image.currentData(), self.settings()
            roi = self.roi(settings.region)
            source, policy, _ = layers.opened(layer)
            self._show_job_hint()  # another program may have begun a job there
            found = self._differences()
            if found and not settings.overwrite:
                assert self.earlier is not None
                raise InputError(self.earlier.refusal(found))
            if found and self.export_bar.running:
                raise InputError("The result that would be replaced is being exported; wait for that, or cancel it.")
        except InputError as error:
            notify_error(error)
            return
        if found:
            self._give_up_result(settings, source.name)
        settings = replace(settings, **layers.colors_of(source, policy))
        self.segment_button.setEnabled(False)
        self.bar.run(
            lambda: self.controller.job(source, settings, roi),
            on_result=partial(self._finished, layer, source, settings),
            on_error=self._failed,
            on_cancel=self._cancelled,
            title="Segmenting",
        )

    def _give_up_result(self, settings: Settings, stem: str) -> None:
        """A job of other settings empties the store of the one before: what reads it would show other data."""
        layers.remove_all(self.viewer, self._showing(settings, stem))
        if self.finished is not None and self.finished.labels.path.parent == settings.output / f"{stem}.job":
            self.finished = None
            self.export_button.setEnabled(False)

    def _showing(self, settings: Settings, stem: str) -> list[Any]:
        return layers.showing(self.viewer, settings.output, stem, settings.format == "ome-zarr")

    def _failed(self, error: BaseException) -> None:
        self._idle()
        notify_error(error)

    def _cancelled(self) -> None:
        self._idle()
        notify_info("Stopped. What is done is kept; 'Resume' goes on from there.")

    def _idle(self) -> None:
        self.segment_button.setEnabled(True)
        self._show_job_hint()

    def _finished(self, image: Any, source: ImageSource, settings: Settings, finished: Finished) -> None:
        self._idle()
        self.finished = finished
        self.export_button.setEnabled(True)
        for warning in finished.result.warnings:
            notify_info(in_dock(warning))
        notify_info(written_in_words(finished.result.outputs.values()))
        replaced = self._showing(settings, source.name)
        if self._result_of is image:
            replaced += [self.result_layer, self.uncertainty_layer]
        layers.remove_all(self.viewer, replaced)
        if image not in self.viewer.layers:  # it was closed meanwhile; the files are there
            return
        if self.live.image in (None, image) or not self.live.on:
            self.live.stop(remove=True)
        self._show_result(image, source, finished)

    def _show_result(self, image: Any, source: ImageSource, finished: Finished) -> None:
        """The result as layers, with the classes of the model that made it: another may be chosen by now."""
        classes, counts = finished.labels.classes, finished.result.class_pixels
        self._areas[image] = classes, [counts[info.name] for info in classes], source.pixel_size
        if not self.live.on:  # which fills the table itself
            self._show_areas()
        self._result_of = image
        self.result_layer = layers.add_labels(
            self.viewer, image, layers.store_pyramid(finished.labels), classes, self.controller.colors(classes),
            f"{source.name} segmentation",
            origin=finished.labels.origin, opacity=self.opacity.value() / 100, store=finished.labels,
        )  # fmt: skip
        if finished.uncertainty is not None:
            self.uncertainty_layer = layers.add_uncertainty(
                self.viewer, image, finished.uncertainty, f"{source.name} uncertainty"
            )
