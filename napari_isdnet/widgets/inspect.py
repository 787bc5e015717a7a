"""The Inspect dock: what a network sees of an image, branch by branch; a thin view over the controller."""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from typing import Any

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QFileDialog

from napari_isdnet.engine.rendering import KINDS, Basis, Rendering, kinds_for
from napari_isdnet.exceptions import InputError
from napari_isdnet.progress import Progress
from napari_isdnet.widgets import _inspect_controller as control
from napari_isdnet.widgets import _segment_layers as layers
from napari_isdnet.widgets import _settings
from napari_isdnet.widgets._clipboard import copy_text
from napari_isdnet.widgets._controls import list_images
from napari_isdnet.widgets._engine import keep_triton_out, look_for_models
from napari_isdnet.widgets._inspect_form import InspectForm
from napari_isdnet.widgets._inspect_pick import Picker
from napari_isdnet.widgets._job import end_with_dock, stop_with
from napari_isdnet.widgets._lazy import layer_data, real_viewer, watch
from napari_isdnet.widgets._notify import notify_error
from napari_isdnet.widgets._places import in_pixels
from napari_isdnet.widgets._project_models import ProjectModels, of_layer
from napari_isdnet.widgets._replaced import Replaced
from napari_isdnet.widgets._segment_controller import region_window
from napari_isdnet.widgets._worker import Job
from napari_isdnet.window import Window

OWN = "napari-isdnet-features"
"""Key in a layer's metadata that says which map it shows."""


class InspectWidget(InspectForm):
    """Model, map, rendering, attention, opinions. Everything slow runs in worker threads."""

    _pyramid_failed = Signal(object)

    def __init__(
        self, napari_viewer: Any, folder: Callable[[], Path] | None = None
    ) -> None:  # napari passes the viewer by this name
        super().__init__()
        viewer = real_viewer(napari_viewer)
        self.viewer = viewer
        self._folder = folder or (lambda: _settings.cache_folder() / "inspect")
        self.shared: list[control.SharedView] = []  # at most one; a list, since it outlives the widget's C++ side
        self.looked_at: Any = None  # the image layer of the open view
        self.settings: control.InspectSettings | None = None
        self.layer: Any = None
        self._said = self.status.text()  # of the open view
        self.picked: control.Picked | None = None
        self.picker = Picker(viewer, self._clicked, self)
        self._jobs: list[Job] = []
        self._latest: Job | None = None
        self.project_models = ProjectModels(self, self.model, lambda: of_layer(self.image.currentData()))
        self._replaced = Replaced(self, self._pixels_replaced)
        keep_triton_out()
        watch(viewer)
        self._connect()
        self._list_images()
        self._list_models()

    # -- wiring --------------------------------------------------------------------------------------------------
    def _connect(self) -> None:
        self.open_button.clicked.connect(lambda: self.look_inside())
        self.model_button.clicked.connect(self._choose_model_file)
        self.map.activated.connect(lambda _: self._map_chosen())
        self.rendering.activated.connect(lambda _: self._rendering_chosen())
        self.channel.valueChanged.connect(lambda _: self._channel_chosen())
        self.channel.sliderMoved.connect(self._name_channel)
        self.show_button.clicked.connect(lambda: self.show_map())
        self.keep_button.clicked.connect(self._keep)
        self.draw_button.clicked.connect(self._draw)
        self.pick_button.toggled.connect(self.picker.listen)
        self.copy_button.clicked.connect(self.copy_command)
        self.fusion.activated.connect(lambda _: self._show_attention())
        self.image.currentIndexChanged.connect(lambda _: self.project_models.look())
        for box in (self.image, self.model, self.context):
            box.currentIndexChanged.connect(lambda _: self._follow_choice())
        self._pyramid_failed.connect(notify_error)
        self.bar.ended.connect(lambda: self.open_button.setEnabled(True))
        events = self.viewer.layers.events
        events.inserted.connect(self._list_images)
        events.removed.connect(self._removed)
        jobs, shared, picker = self._jobs, self.shared, self.picker

        def gone() -> None:
            events.inserted.disconnect(self._list_images)
            events.removed.disconnect(self._removed)
            picker.listen(False)
            for job in list(jobs):
                job.stop()
            for view in shared:
                view.release()
            shared.clear()

        end_with_dock(self)
        stop_with(self, gone)

    def _start(self, work: Callable[[], Generator[Any, Any, Any]], on_result: Callable[[Any], None]) -> Job:
        """A short job without a bar; it ends with the dock."""
        self._jobs[:] = [job for job in self._jobs if job.alive or job.running]  # abandoned ones say no end
        job = Job(work)
        self._jobs.append(job)
        job.returned.connect(on_result)
        job.failed.connect(notify_error)
        job.ended.connect(lambda: self._jobs.remove(job) if job in self._jobs else None)
        return job.start()

    def _run(self, work: Callable[[], Generator[Any, Any, Any]], on_result: Callable[[Any], None]) -> None:
        """A short job; only the latest one's answer is wanted, and nothing waits for an older one to end."""
        if self._latest is not None:
            self._latest.abandon()
        job = self._latest = self._start(work, lambda value: on_result(value) if job is self._latest else None)
        job.failed.connect(lambda _: self._say("That failed; try again.") if job is self._latest else None)

    def _list_images(self, *_: Any) -> None:
        if list_images(self.image, self.viewer):
            self.project_models.look()
        self._follow_choice()

    def _removed(self, event: Any) -> None:
        if event.value is self.layer:
            self.layer = None
        if event.value is self.looked_at:
            self._forget()
        self._list_images()

    def _list_models(self) -> None:
        """Looking for models needs torch, which takes seconds to import: not on the main thread."""

        def show(names: list[str]) -> None:
            for name in names:
                if self.model.findData(name) < 0:
                    self.model.addItem(name, name)
            if names and self.model.currentIndex() < 0:  # nothing was chosen meanwhile
                self.model.setCurrentIndex(self.model.findData(names[0]))

        self._start(look_for_models, show)

    def _choose_model_file(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self, "Choose a model", "", "Models (*.safetensors);;All files (*)")
        if path:
            self.choose_model(path)

    def choose_model(self, model: str) -> None:
        """Take a model by name or path."""
        if self.model.findData(model) < 0:
            self.model.addItem(Path(model).name, model)
        self.model.setCurrentIndex(self.model.findData(model))

    # -- opening -------------------------------------------------------------------------------------------------
    def look_inside(self) -> None:
        """Open a view of the chosen image through the chosen network."""
        try:
            layer = self.image.currentData()
            if layer is None:
                raise InputError("There is no image to look at; load one first.")
            settings = control.InspectSettings(
                str(self.model.currentData() or ""), self.context.currentData(), _settings.device(),
                _settings.memory_gib(),
            )  # fmt: skip
            source, policy, _ = layers.opened(layer)
        except InputError as error:
            notify_error(error)
            return
        folder = self._folder()
        self.bar.run(
            lambda: control.open_view(source, policy, settings, folder),
            on_result=partial(self._opened, layer, settings), title="Looking inside",
            drop=lambda shared: shared.release(),
        )  # fmt: skip
        self.open_button.setEnabled(False)

    def _opened(self, layer: Any, settings: control.InspectSettings, shared: control.SharedView) -> None:
        self._forget()
        if layer not in self.viewer.layers:  # it was removed meanwhile
            shared.release()
            return
        self.shared.append(shared)
        self.looked_at, self.settings = layer, settings
        self._replaced.follow(layer)
        self.map.clear()
        for name in shared.view.names:
            self.map.addItem(shared.view.info(name).title, name)
        usual = next((name for name in ("fused8", "deep") if name in shared.view.names), shared.view.names[0])
        self.map.setCurrentIndex(self.map.findData(usual))
        self.shown.show()
        self.attention_box.setVisible(shared.view.model.config.fuses)
        self._map_chosen()

    def _forget(self) -> None:
        if self._latest is not None:  # it asks a view that is being closed
            self._latest.abandon()
            self._latest = None
        self._say("")
        for view in self.shared:
            view.release()
        self.shared.clear()
        self.looked_at, self.picked = None, None
        self._replaced.follow(None)
        self.pick_button.setChecked(False)
        self.picker.unmark()
        self.hide_opinions()
        self.shown.hide()

    def _pixels_replaced(self) -> None:
        name = self.looked_at.name
        self._forget()
        self._say(f"'{name}' has other pixels now: look inside again to see them.")

    # -- what is chosen and what is looked at ----------------------------------------------------------------------
    def _other_choice(self) -> str:
        """A sentence where the boxes name another image, network or context than the open view is of; else empty."""
        seen, image = self.settings, self.image.currentData()
        if not self.shared or seen is None or image is None:
            return ""
        if (self.looked_at, seen.model, seen.context) == (image, self.model.currentData(), self.context.currentData()):
            return ""
        how = self.context.itemText(self.context.findData(seen.context)).lower()
        what = f"'{self.looked_at.name}' through {Path(seen.model).stem} ({how})"
        return f"What was looked into is {what}: look inside to see what is chosen now."

    def _follow_choice(self) -> None:
        """Maps of another image or network than the chosen one are not to be had until those are chosen again."""
        other = self._other_choice()
        if other:
            self.pick_button.setChecked(False)
        self.shown.setEnabled(not other)
        self.status.setText(other or self._said)

    def _say(self, text: str) -> None:
        self._said = text
        self._follow_choice()

    # -- map and rendering ---------------------------------------------------------------------------------------
    def _name(self) -> str:
        return str(self.map.currentData())

    def _map_chosen(self) -> None:
        """Offer the renderings of the map, and show it once its colours are found."""
        if not self.shared:
            return
        view, kind = self.shared[0].view, self.rendering.currentData()
        self.rendering.clear()
        for item in kinds_for(view.info(self._name()).channels):
            self.rendering.addItem(KINDS[item], item)
        # A picture of all channels stays one: three channels are shown as they are, more as principal components.
        self.rendering.setCurrentIndex(0 if kind in ("pca", "color") else max(0, self.rendering.findData(kind)))
        self._rendering_chosen()

    def _rendering_chosen(self) -> None:
        kind = self.rendering.currentData()
        self.maps.setRowVisible(self.channel_row, kind == "channel")
        if kind == "similarity":
            if self.picked is None:
                self.pick_button.setChecked(True)
                self._say("Click on a pixel of the image.")
            else:
                self.ask(*self.picked.pixel)
            return
        self.show_map()

    def _channel_chosen(self) -> None:
        if self.rendering.currentData() == "channel":
            self.show_map()

    def _name_channel(self, rank: int, basis: Basis | None = None) -> None:
        number = "" if basis is None else f" (number {basis.order[rank]})"
        self.channel_text.setText(f"{rank + 1} of {self.channel.maximum() + 1}{number}")

    def show_map(self) -> None:
        """Show the chosen map of the chosen region in the chosen rendering."""
        if not self.shared or self._other_choice():
            return
        shared, name = self.shared[0], self._name()

        def colours() -> Generator[Progress, None, tuple[Basis, Any]]:
            basis = yield from control.fit(shared, name)
            return basis, shared.view.attention(*self._middle)

        try:
            self._middle = self.roi().center
        except InputError as error:
            self._no_map(error)
            return
        self._say("Finding the colours of the map…")
        self._run(colours, partial(self._show, shared, name))

    def _no_map(self, error: InputError) -> None:
        self._say("No map of this region is shown.")
        notify_error(error)

    def roi(self) -> Window:
        """The chosen region in level-0 pixels."""
        layer = self.looked_at
        view, drawn = layers.visible_window(self.viewer, layer), layers.drawn_window(self.viewer, layer)
        return region_window(str(self.region.currentData()), layers.shape_of(layer), view, drawn)

    def _show(self, shared: control.SharedView, name: str, found: tuple[Basis, Any]) -> None:
        basis, self.attention = found
        kind = self.rendering.currentData()
        if not self.shared or self.shared[0] is not shared or (kind == "similarity" and self.picked is None):
            return
        channels = len(basis.order)
        self.channel.blockSignals(True)
        self.channel.setRange(0, channels - 1)
        self.channel.blockSignals(False)
        self._name_channel(self.channel.value(), basis)
        rendering = Rendering(kind, channel=int(basis.order[self.channel.value()]))
        if kind == "similarity" and self.picked is not None:
            rendering = self.picked.similarity
        try:
            region = self.roi()
        except InputError as error:
            self._no_map(error)
            return
        self._add(shared, name, basis, rendering, region)
        self._show_attention()
        self._say(control.caption(rendering, basis))

    def _add(self, shared: control.SharedView, name: str, basis: Basis, rendering: Rendering, region: Window) -> None:
        made, scale, corner = control.pyramid(shared, name, basis, rendering, region, self._pyramid_failed.emit)
        image, old = self.looked_at, self.layer
        place = layers.placement(image, corner)  # type: ignore[arg-type]
        place["scale"] = [float(a) * b for a, b in zip(image.scale, scale, strict=True)]
        looks = {} if old is None else {"opacity": old.opacity, "visible": old.visible, "blending": old.blending}
        title = shared.view.info(name).title
        data, multiscale = layer_data(made)
        if old is not None and old in self.viewer.layers:
            self.layer = None
            self.viewer.layers.remove(old)
        self.layer = self.viewer.add_image(
            data, multiscale=multiscale, rgb=True, name=f"{image.name} · {title} · {KINDS[rendering.kind]}",
            interpolation2d="nearest", **place, **looks,
            metadata={OWN: {"map": name, "kind": rendering.kind}, layers.RESULT: True},
        )  # fmt: skip
        self.picker.uncover()

    def _keep(self) -> None:
        self.layer = None
        self._say("The layer stays; the next map gets a new one.")

    def _draw(self) -> None:
        if self.looked_at is not None:
            self.region.setCurrentIndex(self.region.findData("drawn"))
            layers.region_layer(self.viewer, self.looked_at)

    def _show_attention(self) -> None:
        self.charts.show_attention(self.attention, int(self.fusion.currentData()))

    # -- a pixel -------------------------------------------------------------------------------------------------
    def _clicked(self, position: Any) -> None:
        if self.looked_at is not None:
            row, column = (round(float(v)) for v in in_pixels(self.viewer, self.looked_at, position))
            self.ask(row, column)

    def ask(self, row: int, column: int) -> None:
        """Ask what each branch says at a pixel of level 0, and show how similar all others are to it."""
        if not self.shared or self._other_choice():
            return
        shared, name = self.shared[0], self._name()
        rows, columns = layers.shape_of(self.looked_at)
        if not (0 <= row < rows and 0 <= column < columns):
            self._say("That pixel lies outside the image.")
            return
        self._say(f"Asking about row {row}, column {column}…")
        self._run(lambda: control.pick(shared, name, row, column), partial(self._answered, shared))

    def _answered(self, shared: control.SharedView, picked: control.Picked) -> None:
        if not self.shared or self.shared[0] is not shared:
            return
        self.picked = picked
        self.picker.mark(self.looked_at, *picked.pixel)
        self.show_opinions(control.opinion_rows(picked.opinions, shared.classes), *picked.pixel)
        self.rendering.setCurrentIndex(self.rendering.findData("similarity"))
        self.maps.setRowVisible(self.channel_row, False)
        self.show_map()

    # -- command -------------------------------------------------------------------------------------------------
    def copy_command(self) -> None:
        """Put the command line that writes this map to files on the clipboard."""
        try:
            if self.looked_at is None or self.settings is None:
                raise InputError("There is no map to write yet; look inside first.")
            if other := self._other_choice():
                raise InputError(other)
            path, colors = layers.file_for_command(self.looked_at)
            roi = self.roi()
            whole = roi == Window.whole(layers.shape_of(self.looked_at))
            text = control.command(path, self.settings, self._name(), None if whole else roi, **colors)
        except InputError as error:
            notify_error(error)
            return
        copy_text(self.copy_button, text)
