"""The Fine-tune dock: from strokes to a better model, seen on the image at once; a thin view over the controller."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from napari_isdnet.engine.viewqueue import spare_core_threads
from napari_isdnet.exceptions import InputError
from napari_isdnet.widgets import _finetune_job as jobs
from napari_isdnet.widgets import _finetune_tables as tables
from napari_isdnet.widgets import _finetune_words as words
from napari_isdnet.widgets import _segment_layers as layers
from napari_isdnet.widgets._clipboard import copy_text
from napari_isdnet.widgets._finetune_compare import AFTER, BEFORE, ender
from napari_isdnet.widgets._finetune_controller import Outcome
from napari_isdnet.widgets._finetune_form import FLIP_KEY
from napari_isdnet.widgets._finetune_history import Keeping
from napari_isdnet.widgets._finetune_job import TuneSettings
from napari_isdnet.widgets._job import end_with_dock, stop_with, timer
from napari_isdnet.widgets._lazy import real_viewer, watch
from napari_isdnet.widgets._notify import notify_error, notify_info
from napari_isdnet.widgets._projects import hand_over, tell_models
from napari_isdnet.widgets._segment_controller import Engine


class FineTuneWidget(Keeping):
    """Start, run, compare, history. Training runs in a process of its own, loading and computing in threads."""

    def __init__(self, napari_viewer: Any, engine: Engine | None = None) -> None:  # napari passes the viewer like this
        super().__init__(real_viewer(napari_viewer), engine)
        self.outcome: Outcome | None = None
        self._running_on: Any = None
        self.small: dict[str, Any] = {}
        """Other values of settings that have no control (``window``, ``batch``)."""
        watch(self.viewer)
        self._connect()
        self._begin()

    # -- wiring --------------------------------------------------------------------------------------------------
    def _connect(self) -> None:
        self._connect_start()
        self.train_button.clicked.connect(lambda: self.train())
        self.resume_button.clicked.connect(lambda: self.resume())
        self.copy_button.clicked.connect(self.copy_command)
        self.bar.cancel_button.clicked.disconnect(self.bar.cancel)
        self.bar.cancel_button.clicked.connect(self.stop)
        self.bar.pause_button.toggled.connect(self._pause)
        self.flip_button.clicked.connect(lambda: self.compare.flip())
        self._connect_history()
        self.compare.told.connect(self._show_changes)
        self.compare.flipped.connect(self._show_changes)
        self.compare.renewed.connect(self._pixels_replaced)
        viewer, controller, end = self.viewer, self.controller, ender(self.compare)
        events, camera = viewer.layers.events, viewer.camera.events
        removed, listed, moved = self._layer_removed, self._list_images, self._moved
        # Later, since another image takes the maps of this one away: napari would still draw what is removed while it
        # is told of a removal.
        self._listing = timer(self, 0, self._list_images, once=True)
        events.removed.connect(removed)
        events.inserted.connect(listed)
        for event in (camera.zoom, camera.center):
            event.connect(moved)
        viewer.bind_key(FLIP_KEY, lambda _: self.compare.flip(), overwrite=True)

        def gone() -> None:
            events.removed.disconnect(removed)
            events.inserted.disconnect(listed)
            for event in (camera.zoom, camera.center):
                event.disconnect(moved)
            viewer.bind_key(FLIP_KEY, None, overwrite=True)
            end()
            controller.close()

        end_with_dock(self)
        stop_with(self, gone)

    def _layer_removed(self, event: Any) -> None:
        self.compare.layer_removed(event.value)
        self._listing.start()

    def _moved(self, _: Any = None) -> None:
        self.compare.moved()

    def image_changed(self) -> None:
        """Another image: its maps are others."""
        self.compare.look_at(self.image.currentData())
        self._show_changes()

    def _pixels_replaced(self) -> None:
        """The image has other pixels now, and as a rule another annotation."""
        rest = "the run goes on with those before" if self.busy else "curves and figures are of those before"
        if not self.busy:
            self._choose_image()
        self.say(f"'{self.compare.image.name}' has other pixels now: its maps are computed anew, {rest}.")

    def project_opened(self) -> None:
        """A project was opened, or its history has grown."""
        self._show_history()
        self._show_left_over()

    # -- settings ------------------------------------------------------------------------------------------------
    def settings(self) -> TuneSettings:
        """What is chosen now; raises :class:`InputError` where something is missing."""
        layer, model = self.image.currentData(), str(self.model.currentData() or "")
        if layer is None:
            raise InputError("There is no image; load one, and paint some strokes in the Annotate dock.")
        if not model:
            raise InputError("No model is chosen to start from; choose one, or the pretrained backbone.")
        return TuneSettings(
            model=model, parent=self.parents.get(model), preset=str(self.preset.currentData()),
            steps=self.steps.value(), held_out=self.held_out.value() / 100, seed=self.seed.value(),
            spread=int(self.spread.currentData()), device=str(self.device.currentData() or "auto"),
            threads=spare_core_threads(most=1024), allow_worse=self.allow_worse.isChecked(),
            **layers.colors_of(*layers.opened(layer)[:2]), **self.small,
        )  # fmt: skip

    def copy_command(self) -> None:
        """Put the command line that trains the same weights on the clipboard."""
        try:
            layer, settings, project = self.image.currentData(), self.settings(), self.controller.opened()
            path, _ = layers.file_for_command(layer)
            output = project.folder.with_name(f"{layers.stem_of(layer)}_tuned.safetensors")
            text = jobs.command(path, project.folder, output, settings)
        except InputError as error:
            notify_error(error)
            return
        copy_text(self.copy_button, text)

    # -- a run ---------------------------------------------------------------------------------------------------
    def train(self) -> None:
        """Begin with the annotation of this moment."""
        try:
            layer, settings, project = self.image.currentData(), self.settings(), self.controller.opened()
            if self.annotated is not None and self.annotated.missing:  # the process would find out in half a minute
                raise InputError(self.annotated.missing)
            image, pixels = _image_of(layer)
            wait = hand_over(project)
        except InputError as error:
            notify_error(error)
            return
        self._show_before(settings.model)
        self._run(lambda: self.controller.train(settings, image, pixels, wait), settings.steps)

    def resume(self) -> None:
        """Go on with the run that was cut off."""
        project = self.controller.project
        found = None if project is None else jobs.unfinished_job(project)
        if found is not None:
            job, state = found
            self._show_before(job["model"])
            self._run(self.controller.resume, job["options"]["steps"] if state is None else state.steps)

    def _show_before(self, model: str) -> None:
        project = self.controller.opened()
        if jobs.is_backbone(model) and project.current is None:
            return  # a bare backbone says nothing
        if jobs.is_backbone(model):
            model = str(project.model_path(str(project.current)))
        self.compare.device = str(self.device.currentData() or "auto")
        self.compare.scores = ({}, {})
        self.compare.show(BEFORE, model, self.parents.get(model) or Path(model).stem)

    def _run(self, work: Callable[[], Generator[Any, Any, Outcome]], steps: int) -> None:
        self._steps, self._running_on = steps, self.image.currentData()
        self.outcome = None
        self.lock(True)
        self.left_over.hide()
        self.status.hide()
        self.bar.run(
            work, on_result=self._finished, on_items=self._told, on_error=self._failed, on_cancel=self._cancelled,
            title="Fine-tuning",
        )  # fmt: skip

    def _told(self, items: list[Any]) -> None:
        grown = [self.controller.take(item) for item in items]  # all of them, not up to the first
        if any(grown):
            self._draw()
        better = [item for item in items if isinstance(item, dict) and item.get("kind") == "improved"]
        if better:
            step = int(self.controller.curves.scores[-1][0]) if self.controller.curves.scores else 0
            self.compare.scores = (self.controller.curves.before, better[-1]["figures"])
            self.compare.show(AFTER, better[-1]["model"], f"step {step}", fresh=True)

    def _draw(self) -> None:
        curves, project = self.controller.curves, self.controller.project
        classes = () if project is None else project.store.classes
        self.curves.show_curves(curves.losses, curves.scores, classes, self._steps)
        self.curves.show()
        self.say(self.controller.said)

    def _pause(self, on: bool) -> None:
        process = self.controller.process
        if process is not None:
            (process.pause if on else process.resume)()

    def stop(self) -> None:
        """Stop the run after the step at hand, and keep the weights taken last."""
        if self.controller.process is None:
            self.bar.cancel()
            return
        self.bar.pause_button.setChecked(False)
        self.bar.label.setText("Stopping after the step at hand…")
        self.controller.stop()

    def _failed(self, error: BaseException) -> None:
        self._idle()
        notify_error(error)

    def _cancelled(self) -> None:
        self._idle()
        self.say("Cancelled before the first step; nothing was trained.")

    def _idle(self) -> None:
        self.lock(False)
        self.project_opened()
        if self.image.currentData() is not self._running_on:  # it was closed in the middle
            self._choose_image()

    def _finished(self, outcome: Outcome) -> None:
        self.outcome = outcome
        tell_models()
        notify_info(outcome.text)
        self._idle()
        self.say(outcome.text)
        self.fill_models(select=None if outcome.entry is None else self.in_use())
        self.refresh_later()
        project = self.controller.project
        if outcome.entry is not None and project is not None:
            figures = outcome.entry.figures
            self.compare.scores = (figures.get("before") or {}, figures.get("after") or {})
            self.compare.settle(str(project.model_path(outcome.entry.id)), outcome.entry.id)

    def _show_left_over(self) -> None:
        state = None if self.busy else self.controller.unfinished()
        self.resume_button.setVisible(state is not None)
        self.left_over.setVisible(state is not None)
        if state is not None:
            self.left_over.setText(words.left_over(state))

    # -- before and after ----------------------------------------------------------------------------------------
    def _show_changes(self) -> None:
        source = self.compare.source
        if self.annotated is not None:
            self.compare.naming = self.annotated.naming
        tables.show_changes(self.changes, self.compare.changes(), None if source is None else source.pixel_size)
        self.flip_button.setEnabled(self.compare.both)
        text = self.compare.words()
        self.compared.setText(text)
        self.compared.setVisible(bool(text))


def _image_of(layer: Any) -> tuple[dict[str, str], Any]:
    """How the training process finds the image: a file, a sample, or pixels that are handed over."""
    layers.opened(layer)
    path, sample = layers.path_of(layer), layers.sample_of(layer)
    if path is not None:
        return {"image": str(Path(path).absolute())}, None
    if sample is not None:
        return {"sample": sample}, None
    return {}, layer.data[0] if layer.multiscale else layer.data
