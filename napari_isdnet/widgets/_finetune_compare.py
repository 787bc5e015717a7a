"""The old and the new model's maps of one image, over each other: what you see first, then the rest by distance."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qtpy.QtCore import QObject, Signal

from napari_isdnet.annotation.naming import Naming, renamed
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.intensity import IntensityPolicy
from napari_isdnet.io.source import ImageSource
from napari_isdnet.progress import Progress
from napari_isdnet.widgets import _segment_layers as layers
from napari_isdnet.widgets._engine import LiveWork, ModelAbout
from napari_isdnet.widgets._finetune_changes import Change, areas, changes
from napari_isdnet.widgets._job import timer
from napari_isdnet.widgets._notify import notify_error
from napari_isdnet.widgets._replaced import Replaced
from napari_isdnet.widgets._segment_controller import Engine, SegmentController
from napari_isdnet.widgets._worker import Job
from napari_isdnet.window import Window

POLL_MS = 400
OPACITY = 0.6
BEFORE, AFTER = "before", "after"

Scores = tuple[Mapping[str, float], Mapping[str, float]]
Loaded = tuple[ModelAbout, LiveWork, IntensityPolicy]


@dataclass
class Side:
    """One of the two maps: its layer, the model behind it and what computes it.

    ``asked`` counts what was asked for, ``loaded`` is the number of what the layer shows.
    """

    controller: SegmentController
    name: str = ""
    asked: int = 0
    loaded: int = 0
    model: str | None = None
    layer: Any = None
    jobs: list[Job] = field(default_factory=list)


class Comparison(QObject):
    """Lives on the main thread. ``told``: the table or the words may have changed; ``flipped``: another map is shown;
    ``renewed``: the image has got other pixels, of which both maps are made anew.

    The map of the new model is computed for all of the image, what is looked at first; the old one's only where one
    looks. Both work window by window, so that an answer comes at once.
    """

    told = Signal()
    flipped = Signal()
    renewed = Signal()
    _failed = Signal(object)

    def __init__(self, viewer: Any, engine: Engine, parent: QObject) -> None:
        super().__init__(parent)
        self.viewer = viewer
        self.image: Any = None
        self.source: ImageSource | None = None
        self.device = "auto"
        self.scores: Scores = ({}, {})
        self.naming = Naming()
        """What the annotation's classes were called before: the older model may know them so."""
        self.sides = {key: Side(SegmentController(engine, self._failed.emit)) for key in (BEFORE, AFTER)}
        self._policy: IntensityPolicy | None = None
        self._failed.connect(notify_error)
        self._replaced = Replaced(self, self._pixels_replaced)
        self._timer = timer(self, POLL_MS, self._tick)

    # -- models ---------------------------------------------------------------------------------------------------
    def look_at(self, image: Any) -> None:
        """Compare on another image layer (None: on none)."""
        if image is not self.image:
            self.close()
            self.image, self.source, self._policy = image, None, None
            self._replaced.follow(image)
            if image is not None:
                try:
                    self.source, self._policy, _ = layers.opened(image)
                except InputError:  # said when someone wants to train on it
                    self.image = None

    def _pixels_replaced(self) -> None:
        """Maps of the pixels before would lie over others."""
        image, scores = self.image, self.scores
        shown = [
            (key, side.model, side.name or Path(side.model).stem) for key, side in self.sides.items() if side.model
        ]
        self.look_at(None)
        self.look_at(image)
        self.scores = scores
        for key, model, name in shown:
            self.show(key, model, name)
        self.renewed.emit()

    def show(self, side: str, model: str, name: str, fresh: bool = False) -> None:
        """Show ``model`` (a name or file) as ``side``, under ``name``; what is known stays until it is computed anew.

        ``fresh``: the file was written again, so load it even though its name is the same.
        """
        this = self.sides[side]
        if self.image is None or self.source is None or (this.model == model and not fresh and this.layer is not None):
            return
        this.model = model
        this.asked += 1
        request = this.asked
        engine, source, policy, device = this.controller.engine, self.source, self._policy, self.device

        def load() -> Generator[Progress, None, Loaded]:
            yield Progress(0, 1, "Loading the model")
            known = policy or IntensityPolicy.from_source(source)
            return engine.about(model), engine.live(source, model, device, known), known

        job = Job(load, drop=lambda found: found[1].close())
        self._forget_ended(this)
        this.jobs.append(job)
        job.returned.connect(lambda found: self._loaded(side, request, model, name, found))
        job.failed.connect(lambda error: self._not_loaded(side, request, model, fresh, error))
        job.start()

    def _not_loaded(self, side: str, request: int, model: str, fresh: bool, error: BaseException) -> None:
        this = self.sides[side]
        if this.asked != request or this.model != model:  # another one was asked for meanwhile, or none
            return
        this.model = None
        if not fresh or Path(model).exists():  # weights of a run that is over have moved to the history: they follow
            notify_error(error)

    def _loaded(self, side: str, request: int, model: str, name: str, found: Loaded) -> None:
        about, work, policy = found
        this, image, source = self.sides[side], self.image, self.source
        # A file that is written again is asked for again, and what comes last need not be what was asked for last.
        late = this.model != model or request < this.loaded
        if late or image is None or source is None or image not in self.viewer.layers:
            work.close()
            return
        self._policy, this.name, this.loaded = policy, name, request
        controller = this.controller
        if this.layer is not None and controller.live is not None and controller.classes == about.classes:
            controller.replace(work)
            this.layer.name = self._title(side)
        else:
            self._remove(side)
            controller.choose_model(about)
            pyramid = controller.start_live(source, work, Window.whole(source.shape), everything=side == AFTER)
            this.layer = layers.add_labels(
                self.viewer, image, pyramid, controller.classes, controller.colors(), self._title(side),
                opacity=OPACITY, visible=side == AFTER,
            )  # fmt: skip
            self._order()
            if side == AFTER:
                self.flip(AFTER)
        self._timer.start()
        self._tick()

    def _order(self) -> None:
        """The new map above the old one, whichever was loaded first."""
        old, new = (self.sides[side].layer for side in (BEFORE, AFTER))
        shown = self.viewer.layers
        if old in shown and new in shown and shown.index(old) > shown.index(new):
            shown.move(shown.index(old), shown.index(new))

    def _title(self, side: str) -> str:
        name = "" if self.source is None else self.source.name
        return f"{name} {side} ({self.sides[side].name})"

    def settle(self, model: str, name: str) -> None:
        """The run is over: its best weights got a place in the history under ``name``; they may be shown already."""
        this = self.sides[AFTER]
        if this.layer is None or this.loaded != this.asked:
            self.show(AFTER, model, name, fresh=True)
            return
        this.model, this.name = model, name
        this.layer.name = self._title(AFTER)
        self.told.emit()

    # -- looking --------------------------------------------------------------------------------------------------
    @property
    def both(self) -> bool:
        """True when there is something to switch between."""
        return all(side.layer is not None for side in self.sides.values())

    @property
    def shown(self) -> str | None:
        """The side on the screen."""
        for key, side in self.sides.items():
            if side.layer is not None and side.layer.visible:
                return key
        return None

    def flip(self, to: str | None = None) -> None:
        """Show the other map (or ``to``) in place of the one that is shown."""
        to = to or (BEFORE if self.shown == AFTER and self.both else AFTER)
        order = (to, AFTER if to == BEFORE else BEFORE)  # the new one first, so that nothing blinks
        for key in order:
            layer = self.sides[key].layer
            if layer is not None:
                layer.visible = key == to
        self.flipped.emit()

    def words(self) -> str:
        """Which map is on the screen, and how far it is."""
        shown = self.shown
        if shown is None:
            return ""
        side = self.sides[shown]
        live = side.controller.live
        parts = [f"{shown.capitalize()}: {side.name}"]
        if live is not None:
            done, total = live.progress
            parts.append("all of the image" if done == total else f"{done:,} of {total:,} windows")
        return " · ".join(parts)

    def changes(self) -> list[Change]:
        """The table of what changed in what is visible now; empty while there is no new map."""
        after = self.sides[AFTER].controller
        if after.live is None or self.image is None or self.image not in self.viewer.layers:
            return []
        view = layers.visible_window(self.viewer, self.image)
        found = []
        for key in (BEFORE, AFTER):
            controller = self.sides[key].controller
            if controller.live is not None:
                called = self.naming.followed([info.name for info in controller.classes])
                known = renamed(controller.classes, called)
                found.append((known, areas(controller.live, view, len(known))[0]))
        return changes(found[0] if len(found) == 2 else None, found[-1], self.scores)

    def _tick(self) -> None:
        self.told.emit()
        lives = [side.controller.live for side in self.sides.values()]
        loading = any(job.running for side in self.sides.values() for job in side.jobs)
        if not loading and not any(live.pending for live in lives if live is not None):
            self._timer.stop()

    def moved(self) -> None:
        """The view has moved: the table follows."""
        if self.sides[AFTER].controller.live is not None and not self._timer.isActive():
            self._timer.start()

    # -- the end --------------------------------------------------------------------------------------------------
    def layer_removed(self, layer: Any) -> None:
        """Someone deleted a layer: one of the maps, or the image under them."""
        for key, side in self.sides.items():
            if layer is side.layer:
                side.layer = side.model = None
                self._stop(key)
        if layer is self.image:
            self.image = self.source = None
            self._replaced.follow()
            self.stop()
            for side in self.sides.values():
                if side.layer is not None:
                    # napari 0.9.2 crashes drawing a hidden Labels layer from under which an image was removed.
                    side.layer.visible = True
        self.told.emit()

    def _remove(self, side: str) -> None:
        this = self.sides[side]
        layer, this.layer = this.layer, None
        if layer is not None and layer in self.viewer.layers:
            self.viewer.layers.remove(layer)
        this.controller.stop_live()

    def _stop(self, side: str) -> None:
        this = self.sides[side]
        for job in this.jobs:
            job.abandon()
        self._forget_ended(this)
        this.controller.stop_live()

    @staticmethod
    def _forget_ended(side: Side) -> None:
        for job in [job for job in side.jobs if not job.running]:
            side.jobs.remove(job)
            job.deleteLater()

    def stop(self) -> None:
        """End what computes; what is known stays on the screen."""
        self._timer.stop()
        for key in self.sides:
            self._stop(key)

    def close(self) -> None:
        """End it and take the maps away."""
        self.stop()
        for key, side in self.sides.items():
            side.model = None
            self._remove(key)
        self.scores = ({}, {})


def ender(comparison: Comparison) -> Callable[[], None]:
    """What ends the comparison's threads when its dock is destroyed, without touching its C++ side."""
    sides = comparison.sides

    def end() -> None:
        for side in sides.values():
            for job in side.jobs:
                job.stop()
            side.controller.stop_live()

    return end
