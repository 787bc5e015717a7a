"""The Errors dock: where a class map is wrong, by how much, and what to look at first."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QComboBox, QFileDialog

from napari_isdnet.engine.evaluation import Evaluation
from napari_isdnet.engine.viewqueue import close_later
from napari_isdnet.exceptions import InputError
from napari_isdnet.progress import Progress
from napari_isdnet.widgets import _errors_controller as facts
from napari_isdnet.widgets import _segment_layers as layers
from napari_isdnet.widgets._controls import follow_names
from napari_isdnet.widgets._errors_controller import LabelMap, Question
from napari_isdnet.widgets._errors_form import CHANGED, ErrorsForm
from napari_isdnet.widgets._errors_image import image_of
from napari_isdnet.widgets._errors_painted import in_one_order, strokes_of
from napari_isdnet.widgets._image import EDITED, ERRORS, METADATA, source_of
from napari_isdnet.widgets._job import end_with_dock, stop_with
from napari_isdnet.widgets._lazy import layer_data, real_viewer, watch
from napari_isdnet.widgets._notify import notify_error, notify_info
from napari_isdnet.widgets._places import in_world, pixel_sides
from napari_isdnet.widgets._replaced import Replaced
from napari_isdnet.widgets._segment_controller import region_window
from napari_isdnet.window import Window

LOOK_MS = 500
"""How often it is looked whether an annotation that was compared is still what it was."""
OUT_OF_DATE = " (out of date)"
FILTER = "Class maps (*.tif *.tiff *.png *.npy *.zarr zarr.json);;All files (*)"


class ErrorsWidget(ErrorsForm):
    """Prediction and truth -> lazy error layer, figures, worst windows, report. Reading runs in worker threads."""

    def __init__(self, napari_viewer: Any) -> None:  # napari passes the viewer by this name
        super().__init__()
        viewer = real_viewer(napari_viewer)
        self._viewer = viewer
        self._maps: list[tuple[LabelMap, LabelMap]] = []  # at most one pair: what the figures are of
        self._layers: list[Any] = []  # that are compared
        self._chosen: tuple[Any, Any] = (None, None)  # layers or files that were compared last
        self._gone = False  # one of them was removed while the report was being written
        self._place: dict[str, Any] | None = None  # of the prediction when it was compared
        self.result: Evaluation | None = None
        self.error_layer: Any = None
        self._shown: Question | None = None  # by the error layer
        self._reporting = False
        self._leaving = layers.Leaving(viewer, self)
        self._strokes: list[tuple[int, int]] = []  # of the annotations among the maps, when they were compared
        self._other_pixels = ""  # which of the layers that are compared has been painted or replaced since
        self._replaced = Replaced(self, self._pixels_changed, painted=True)
        self._following = QTimer(self)
        self._following.setInterval(LOOK_MS)
        self._following.timeout.connect(self._follow_strokes)
        self.bar.ended.connect(self._ended)
        watch(viewer)
        self.compare_button.clicked.connect(lambda: self.compare())
        self.summary.linkActivated.connect(lambda _: self.compare())
        self.prediction_button.clicked.connect(lambda: self._choose_file(self.prediction))
        self.truth_button.clicked.connect(lambda: self._choose_file(self.truth))
        self.report_button.clicked.connect(lambda: self._choose_report())
        self.draw_button.clicked.connect(self._draw)
        self.classes.activated.connect(lambda _: self._restyle())
        self.tolerance.editingFinished.connect(self._restyle)
        self.worst.cellClicked.connect(lambda row, _: self.fly(row))
        self._list_layers()
        events = viewer.layers.events
        events.inserted.connect(self._list_layers)
        events.removed.connect(self._removed)
        maps = self._maps

        def gone() -> None:
            events.inserted.disconnect(self._list_layers)
            events.removed.disconnect(self._removed)
            _release(maps)

        end_with_dock(self)
        stop_with(self, gone)

    # -- choosing ------------------------------------------------------------------------------------------------
    def _list_layers(self, *_: Any) -> None:
        """Labels layers in both lists, without error layers and edit windows; files that were chosen stay."""
        from napari.layers import Labels

        found = [
            layer for layer in self._viewer.layers
            if isinstance(layer, Labels) and not {ERRORS, EDITED} & set(layer.metadata.get(METADATA, {}))
        ]  # fmt: skip
        for number, box in enumerate((self.prediction, self.truth)):
            chosen = box.currentData()
            files = [(box.itemText(i), box.itemData(i)) for i in range(box.count()) if isinstance(box.itemData(i), str)]
            box.clear()
            for layer in found:
                box.addItem(layer.name, layer)
            for text, path in files:
                box.addItem(text, path)
            kept = next((i for i in range(box.count()) if box.itemData(i) is chosen), None)
            default = min(number, box.count() - 1)
            box.setCurrentIndex(kept if kept is not None else default)
        box, taken = self.truth, self.prediction.currentData()
        other = next((i for i in range(box.count()) if box.itemData(i) is not taken), None)
        if box.currentData() is taken and other is not None:  # a map is never its own truth
            box.setCurrentIndex(other)
        for box in (self.prediction, self.truth):
            follow_names(box, found)

    def _removed(self, event: Any) -> None:
        """Figures of a map that is gone could not be told from those of the ones that are listed."""
        self._list_layers()
        if not any(layer is event.value for layer in self._layers):
            return
        if self._reporting:
            self._gone = True
            return
        self.bar.abandon()
        self.looking.abandon()
        self._retire_errors()
        self._forget()
        self.summary.setText(f"'{event.value.name}', which was compared, was removed.")

    def _choose_file(self, box: QComboBox) -> None:
        path, _ = QFileDialog.getOpenFileName(self, "A class map", "", FILTER)
        if path:  # an OME-Zarr folder is chosen by the zarr.json in it
            self.choose_file(box, str(Path(path).parent) if Path(path).name == "zarr.json" else path)

    def choose_file(self, box: QComboBox, path: str) -> None:
        """Take a file as prediction or truth."""
        box.addItem(Path(path).name, path)
        box.setCurrentIndex(box.count() - 1)
        box.setItemData(box.count() - 1, path, 3)  # Qt.ToolTipRole

    def _draw(self) -> None:
        layer = self._reference()
        if layer is None:
            notify_error(InputError("There is no layer to draw on; load an image or a class map first."))
            return
        layers.region_layer(self._viewer, layer)
        self.region.setCurrentIndex(self.region.findData("drawn"))

    def _reference(self) -> Any:
        """The layer that says where the maps lie: the prediction's, truth's, or an image's of the same size."""
        from napari.layers import Image

        for box in (self.prediction, self.truth):
            if box.currentData() is not None and not isinstance(box.currentData(), str):
                return box.currentData()
        shape = self._maps[0][0].source.shape if self._maps else None
        if shape is not None and (known := image_of(self._viewer, self._chosen, None, shape)) is not None:
            return known
        images = [layer for layer in self._viewer.layers if isinstance(layer, Image)]
        return next((layer for layer in images if shape is None or layers.shape_of(layer) == shape), None)

    def _region(self) -> Window | None:
        kind, layer = str(self.region.currentData()), self._reference()
        if kind == "whole" or layer is None:
            return None
        shape = layers.shape_of(layer)
        drawn = layers.drawn_window(self._viewer, layer) if kind == "drawn" else None
        return region_window(kind, shape, layers.visible_window(self._viewer, layer), drawn)

    def _question(self, region: Window | None = None, part: Window | None = None) -> Question:
        return Question(self.classes.currentData(), self.tolerance.value(), region, part)

    # -- comparing -----------------------------------------------------------------------------------------------
    def compare(self) -> None:
        """Open both maps, show the error layer, then find the figures."""
        chosen = self.prediction.currentData(), self.truth.currentData()
        names = self.prediction.currentText(), self.truth.currentText()
        if self._reporting:
            notify_info("The report is being written; compare again once it is done, or cancel it.")
            return
        self.bar.abandon()
        self.looking.abandon()
        self._forget()
        try:
            if None in chosen or chosen[0] is chosen[1]:
                raise InputError("Errors need two class maps: choose a prediction and another one as truth.")
            if _file_of(chosen[0]) is not None and _file_of(chosen[0]) == _file_of(chosen[1]):
                raise InputError("Prediction and truth are one and the same file; choose another one as truth.")
            chosen_layers = [item for item in chosen if not isinstance(item, str)]
            ready: list[Any] = [item if isinstance(item, str) else facts.from_layer(item) for item in chosen]
            part = None
            if len(chosen_layers) == 2:
                *ready, part = facts.pair_layers(*chosen)
            # Where two files lie is known once they are open.
            question = self._question(self._region(), part) if chosen_layers else None
        except InputError as error:
            notify_error(error)
            return
        # Two layers lie where the viewer shows them; beside a file, a result's own place in its image is all there is.
        alone = len(chosen_layers) == 1
        stores = [item.metadata.get(layers.STORE) if alone and not isinstance(item, str) else None for item in chosen]
        self._place = layers.placement(chosen_layers[0]) if chosen_layers else None
        self._layers, self._chosen = chosen_layers, chosen
        self._replaced.follow(*chosen_layers)

        def look() -> Generator[Progress, None, tuple[LabelMap, LabelMap]]:
            yield Progress(0, 1, "Opening")
            prediction, truth = (
                facts.from_file(item) if isinstance(item, str) else facts.with_origin(item, store)
                for item, store in zip(ready, stores, strict=True)
            )
            return in_one_order(prediction, truth)

        self.looking.run(
            look, on_result=lambda maps: self._opened(maps, question, names), drop=lambda maps: _release([maps])
        )

    def _opened(self, maps: tuple[LabelMap, LabelMap], known: Question | None, names: tuple[str, str]) -> None:
        self._maps[:] = [maps]
        self._strokes = strokes_of(maps)
        if self._strokes:
            self._following.start()
        self._list_classes(maps)
        try:
            question = known or self._question(self._region())
            self._show_errors()
        except InputError as error:
            self._failed(error)
            return
        self.bar.run(
            lambda: facts.compare(*maps, question),
            on_result=lambda found: self._compared(facts.named(found[0], *names)),
            on_error=self._failed,
            title="Comparing",
        )

    def _forget(self) -> None:
        """Nothing is compared: what was shown of the last comparison goes."""
        self.result = None
        self._layers, self._gone = [], False
        self._other_pixels = ""
        self._replaced.follow()
        self._following.stop()
        self.clear_figures()
        self._drop_errors()
        if self._maps:
            # A step at hand may still read them, and waiting for it would hold the window.
            threads, retired = [*self.bar.threads(), *self.looking.threads()], list(self._maps)
            self._maps.clear()
            close_later(*(thread.join for thread in threads), lambda: _release(retired))

    def _failed(self, error: BaseException) -> None:
        self._forget()
        notify_error(error)

    def _list_classes(self, maps: tuple[LabelMap, LabelMap]) -> None:
        infos = maps[0].classes or maps[1].classes or (self.result.classes if self.result is not None else ())
        chosen = self.classes.currentData()
        self.classes.clear()
        self.classes.addItem("Any class", None)
        for index, info in enumerate(infos):
            self.classes.addItem(info.name, index)
        self.classes.setCurrentIndex(max(0, self.classes.findData(chosen) if chosen is not None else 0))

    def _compared(self, result: Evaluation) -> None:
        self.result = result
        self.show_figures(result)
        if self.classes.count() == 1:
            self._list_classes(self._maps[0])
        self.report_button.setEnabled(True)
        self._follow_strokes()

    def _follow_strokes(self) -> None:
        """Figures and colours are of the maps there were: mark them while there are others."""
        if self._maps and self.result is not None and not self._reporting:
            painted = CHANGED if strokes_of(self._maps[0]) != self._strokes else ""
            changed = self.mark_stale(self._other_pixels or painted, self.result)
            if changed and self.error_layer is not None:
                self.error_layer.name = self.error_layer.name.removesuffix(OUT_OF_DATE) + self._suffix()

    def _pixels_changed(self) -> None:
        """A layer among the maps was painted or got other pixels, which figures that are being found may be half of."""
        self._other_pixels = f"'{self._replaced.last.name}' was painted or replaced since"
        self._follow_strokes()

    # -- the layer -----------------------------------------------------------------------------------------------
    def _show_errors(self, visible: bool = True, opacity: float = 0.85) -> None:
        prediction, truth = self._maps[0]
        self._shown = self._question()
        pyramid = facts.error_pyramid(prediction, truth, self._shown)
        self.show_legend(one_class=self.classes.currentData() is not None)
        data, multiscale = layer_data(pyramid)
        place, reference = self._place, self._reference()
        if place is None:
            place = layers.placement(reference) if reference is not None else {}
        active = self._viewer.layers.selection.active
        self.error_layer = self._viewer.add_labels(
            data, multiscale=multiscale, name=self._errors_name(), colormap=layers.colormap(facts.error_colors()),
            features=facts.error_features(), metadata={METADATA: {ERRORS: True}}, visible=visible,
            opacity=opacity, **place,
        )  # fmt: skip
        self.error_layer.editable = False
        if active is not None and active in self._viewer.layers:
            self._viewer.layers.selection.active = active

    def _errors_name(self) -> str:
        return f"errors: {self.classes.currentText().lower()}{self._suffix()}"

    def _suffix(self) -> str:
        return OUT_OF_DATE if self.stale else ""

    def _drop_errors(self) -> None:
        if self.error_layer is not None and self.error_layer in self._viewer.layers:
            self._viewer.layers.remove(self.error_layer)
        self.error_layer = None

    def _retire_errors(self) -> None:
        """Let the error layer go once napari is through with what it is doing."""
        self._leaving.take(self.error_layer)
        self.error_layer = None

    def _restyle(self) -> None:
        """Another class or tolerance: layer and worst windows change at once, the figures are those of all classes."""
        if self.result is not None:
            self.show_worst(self.result)
        old = self.error_layer
        if not self._maps or old is None or old not in self._viewer.layers or self._question() == self._shown:
            return
        looks = {"visible": old.visible, "opacity": old.opacity}
        self._drop_errors()
        self._show_errors(**looks)

    # -- going there, writing ------------------------------------------------------------------------------------
    def fly(self, row: int) -> None:
        """Show the worst window of that row."""
        layer = self.error_layer if self.error_layer in self._viewer.layers else self._reference()
        if self.result is None or layer is None:
            return
        window = self.worst_windows[row]
        center = layers.displayed_center(self._viewer, in_world(self._viewer, layer, window.center))
        canvas = layers.canvas_size(self._viewer)
        if list(self._viewer.dims.displayed) != sorted(self._viewer.dims.displayed):
            canvas = canvas[::-1]  # rows run across the screen
        self._viewer.camera.center = center
        self._viewer.camera.zoom = facts.zoom_for(window, pixel_sides(self._viewer, layer).tolist(), canvas)

    def _choose_report(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "Folder of the report", "")
        if folder:
            self.report(Path(folder))

    def report(self, folder: Path) -> None:
        """Write the report into ``folder``."""
        if self.result is None or not self._maps:
            return
        result, (prediction, truth) = self.result, self._maps[0]
        layer = image_of(self._viewer, self._chosen, self.error_layer, prediction.source.shape)
        image = None if layer is None else source_of(layer)
        self.bar.run(
            lambda: facts.report(result, prediction, truth, image, folder),
            on_result=lambda page: notify_info(f"The report is {page}"),
            title="Writing the report",
        )
        self._reporting = True

    def _ended(self) -> None:
        self._reporting = False
        if self._gone:
            self._forget()
        self._follow_strokes()


def _file_of(chosen: Any) -> str | None:
    """The file that a map was chosen as, or that its layer shows."""
    path = chosen if isinstance(chosen, str) else chosen.metadata.get(layers.STORE) or chosen.source.path
    return None if path is None else os.path.realpath(path)


def _release(maps: list[tuple[LabelMap, LabelMap]]) -> None:
    for pair in maps:
        for item in pair:
            item.close()
    maps.clear()
