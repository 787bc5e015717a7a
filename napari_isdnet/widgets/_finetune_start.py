"""The part of the Fine-tune dock that is about the start: image, project, model, what is painted, how long it takes."""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import Any

from napari_isdnet_training.presets import preset_of

from napari_isdnet.annotation.layout import JOURNAL
from napari_isdnet.exceptions import InputError
from napari_isdnet.progress import Progress
from napari_isdnet.widgets import _finetune_tables as tables
from napari_isdnet.widgets import _finetune_words as words
from napari_isdnet.widgets import _segment_layers as layers
from napari_isdnet.widgets import _settings
from napari_isdnet.widgets._controls import list_images
from napari_isdnet.widgets._finetune_controller import Annotated
from napari_isdnet.widgets._finetune_job import TuneSettings
from napari_isdnet.widgets._finetune_models import ChoosingModel
from napari_isdnet.widgets._job import JobBar, timer
from napari_isdnet.widgets._projects import folder_of, tell_models
from napari_isdnet.widgets._segment_controller import Engine
from napari_isdnet.widgets._worker import one_step

LOOK_MS, SOON_MS = 1000, 300
NOTHING = "Nothing is annotated yet: choose the image in the Annotate dock and paint a few strokes of two classes."


class Starting(ChoosingModel):
    """Keeps what can be chosen up to date, without holding the main thread."""

    def __init__(self, viewer: Any, engine: Engine | None) -> None:
        super().__init__(engine)
        self.viewer = viewer
        self.busy = False
        """True while a run goes on."""
        self._folder: Path | None = None
        self._look, self._find, self._count = (
            JobBar(self, f"finetune_{name}", unseen=True) for name in ("look", "find", "count")
        )
        self._soon = timer(self, SOON_MS, self._refresh, once=True)
        self._often = timer(self, LOOK_MS, self._watch_project)

    def settings(self) -> TuneSettings:
        """What is chosen now."""
        raise NotImplementedError

    def image_changed(self) -> None:
        """Another image was chosen."""
        raise NotImplementedError

    def project_opened(self) -> None:
        """A project was opened."""
        raise NotImplementedError

    # -- wiring --------------------------------------------------------------------------------------------------
    def _connect_start(self) -> None:
        self.image.currentIndexChanged.connect(lambda _: self._choose_image())
        self.model.activated.connect(lambda _: self._model_chosen())
        self.model_button.clicked.connect(self._choose_model_file)
        self.preset.currentIndexChanged.connect(lambda _: self._preset_changed())
        self.steps.valueChanged.connect(lambda _: self.refresh_later())
        self.held_out.valueChanged.connect(lambda _: self._share_changed())
        self.spread.currentIndexChanged.connect(lambda _: self.refresh_later())
        self.device.currentIndexChanged.connect(lambda _: self.refresh_later())
        self.allow_worse.toggled.connect(lambda _: self.refresh_later())

    def _begin(self) -> None:
        """Models and devices need torch: not on the main thread."""
        engine = self.engine

        def show(found: Any) -> None:
            self._names, devices = found
            self.device.clear()
            for key, text in devices:
                self.device.addItem(text, key)
            self.device.setCurrentIndex(max(0, self.device.findData(_settings.device())))
            self.fill_models()

        self.fill_models()
        self._list_images()
        self.project_opened()
        look = one_step("Looking for models and devices", lambda: (list(engine.models()), list(engine.devices())))
        self._look.run(look, on_result=show)
        self._often.start()
        self.refresh_later()

    # -- image and project ---------------------------------------------------------------------------------------
    def _list_images(self, event: Any = None) -> None:  # noqa: ARG002
        if list_images(self.image, self.viewer):
            self._choose_image()

    def _choose_image(self) -> None:
        """Find where the project of the image lies; a hash of an array's pixels may take a moment."""
        self._folder = None
        if not self.busy:
            self.controller.close()
        self._count.abandon()  # what it finds is about the image before
        self._show_count(None)
        layer = self.image.currentData()
        self.image_changed()
        self.project_opened()
        self.refresh_later()
        if layer is None:
            return
        find = one_step("Looking for the project", lambda: folder_of(layers.opened(layer)[0]))
        self._find.run(find, on_result=partial(self._found, layer), on_error=lambda error: self.say(str(error)))

    def _found(self, layer: Any, folder: Path) -> None:
        if self.image.currentData() is layer:
            self._folder = folder
            self._watch_project()

    def _watch_project(self) -> None:
        """Once a second: open a project that has come to be, and count anew when more was painted."""
        project, layer = self.controller.project, self.image.currentData()
        if project is None and self._folder is not None and layer is not None:
            if not (self._folder / JOURNAL).is_file():
                return
            try:
                self.controller.open(layers.opened(layer)[0], self._folder)
            except InputError as error:
                self._folder = None  # said once; choosing the image again tries again
                self.say(str(error))
                return
            tell_models()  # a run may have been taken in that ended while nobody was there
            self.fill_models(select=self.in_use())
            self.project_opened()
            self.refresh_later()
        elif project is not None and (self.annotated is None or self.annotated.position != project.store.position):
            self._refresh()

    # -- what is painted, and how long it takes ------------------------------------------------------------------
    def _preset_changed(self) -> None:
        self.steps.setValue(preset_of(str(self.preset.currentData()), str(self.model.currentData() or "")).steps)
        self.refresh_later()

    def _share_changed(self) -> None:
        """Which places teach is another question now: no run before it is answered."""
        self._count.abandon()
        self.train_button.setEnabled(False)
        self.refresh_later()

    def refresh_later(self) -> None:
        """Count and estimate soon (several changes at once are one)."""
        self._soon.start()

    def _refresh(self) -> None:
        try:
            settings = self.settings()
        except InputError:
            settings = None
        self.guards.setText("" if settings is None else words.guards(settings))
        if self.controller.project is None or settings is None:
            self._show_count(None)
            self.places.setText(NOTHING if self.image.currentData() is not None else "")
            return
        if self._count.running:
            self.refresh_later()
            return
        controller = self.controller

        def count() -> Generator[Any, None, Any]:
            yield Progress(0, 1, "Counting")
            found = controller.annotated(settings.held_out)
            yield found  # at once: a forecast takes seconds, the first time
            try:
                return None if found.missing else controller.forecast(settings, found.regions[1])
            except InputError:  # a model or device that cannot be used is said when the run begins
                return None

        self._count.run(
            count, on_result=self._show_forecast, on_items=self._counted, on_error=lambda error: self.say(str(error))
        )

    def _counted(self, items: list[Any]) -> None:
        for found in items:
            if isinstance(found, Annotated):
                self._show_count(found)

    def _show_count(self, found: Annotated | None) -> None:
        """Show what is painted; None: not known (yet), so that no run can begin."""
        self.annotated = found
        ready = self.ready
        self.places.setText(tables.show_counts(self.counts, found))
        self.show_facts()
        if not ready:
            self.estimate.setText("")
        self.train_button.setEnabled(ready and not self.busy)
        self.copy_button.setEnabled(ready)

    @property
    def ready(self) -> bool:
        """True where what is painted has been counted and is enough for a run."""
        return self.annotated is not None and not self.annotated.missing

    def _show_forecast(self, forecast: Any) -> None:
        if forecast is None:
            self.estimate.setText("")
            return
        how = "as measured in the last run" if forecast.measured else "a first guess for this machine"
        self.estimate.setText(f"{words.duration(forecast.seconds).capitalize()}, {how}.")

    def say(self, text: str) -> None:
        """Show a sentence about the run."""
        self.status.setText(text)
        self.status.setVisible(bool(text))

    def lock(self, on: bool) -> None:
        """While a run goes on, what it began with stays."""
        self.busy = on
        for control in (self.image, self.model, self.model_button, self.preset, self.steps, self.held_out, self.spread,
                        self.seed, self.device, self.allow_worse, self.resume_button):  # fmt: skip
            control.setEnabled(not on)
        self.train_button.setEnabled(self.ready and not on)
