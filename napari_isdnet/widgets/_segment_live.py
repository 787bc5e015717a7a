"""The live half of the Segment dock: a layer that fills where one looks, provisional first where that is quicker."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QObject, Signal

from napari_isdnet.exceptions import InputError
from napari_isdnet.io.intensity import IntensityPolicy
from napari_isdnet.io.source import ImageSource
from napari_isdnet.progress import Progress
from napari_isdnet.widgets import _segment_layers as layers
from napari_isdnet.widgets._job import describe_time, timer
from napari_isdnet.widgets._notify import notify_error
from napari_isdnet.widgets._segment_controller import Settings
from napari_isdnet.window import Window

if TYPE_CHECKING:
    from napari_isdnet.widgets._engine import LiveWork
    from napari_isdnet.widgets.segment import SegmentWidget

POLL_MS = 400


class LiveView(QObject):
    """Starts, improves, follows and ends the live layer of a dock. Lives on the main thread."""

    _failed = Signal(object)

    def __init__(self, dock: SegmentWidget) -> None:
        super().__init__(dock)
        self.dock = dock
        self.controller = dock.controller
        self.controller.on_error = self._failed.emit  # from a worker thread: Qt brings it here
        self.layer: Any = None
        self.image: Any = None
        self._source: ImageSource | None = None
        self._region, self._seen = Window(0, 0, 0, 0), Window(0, 0, 0, 0)
        self._settled = False
        self._began = 0.0
        self._failed.connect(notify_error)
        self._timer = timer(self, POLL_MS, self.tell)

    @property
    def on(self) -> bool:
        """True from the click until it is stopped, also while the network is being loaded."""
        return bool(self.dock.live_button.isChecked())

    def set_on(self, on: bool) -> None:
        """Start or stop."""
        if not on:
            self.stop()
            return
        try:
            settings, image = self.dock.settings(), self.dock.image.currentData()
            region = self.dock.roi(settings.region) if settings.region != "visible" else None
            source, known, _ = layers.opened(image)
        except InputError as error:
            self.dock.live_button.setChecked(False)
            notify_error(error)
            return
        controller = self.controller
        self.image = image  # from now on: it may be removed while the model is being loaded

        def load() -> Generator[Progress, None, Any]:
            yield Progress(0, 1, "Loading the model")
            policy = known or IntensityPolicy.from_source(source)
            work = yield from controller.prepare_live(source, settings, policy)
            return work, policy

        def start(found: tuple[LiveWork, IntensityPolicy]) -> None:
            self._start(image, source, settings, region or Window.whole(source.shape), *found)

        self._say("Loading the model…")
        self.dock.live_bar.run(
            load, on_result=start, on_error=self._broken, on_cancel=self.stop, drop=lambda found: found[0].close()
        )

    def _broken(self, error: BaseException) -> None:
        self.stop()
        notify_error(error)

    def _start(
        self, image: Any, source: ImageSource, settings: Settings, region: Window, work: LiveWork, policy: Any
    ) -> None:
        if image not in self.dock.viewer.layers:
            work.close()
            self.stop()
            return
        self._remove_layer()
        whole = settings.context == "whole"
        self.dock.list_classes(self.controller.classes)
        pyramid = self.controller.start_live(source, work, region, settings.region != "visible", provisional=whole)
        self.image, self._source, self._began = image, source, time.monotonic()
        self._region = self._seen = region
        self._settled = False
        self.layer = layers.add_labels(
            self.dock.viewer, image, pyramid, self.controller.classes, self.controller.colors(),
            self._name(), opacity=self.dock.opacity.value() / 100,
        )  # fmt: skip
        self._timer.start()
        self.tell()
        if whole:
            self.dock.live_bar.run(
                lambda: self.controller.prepare_exact(source, settings, policy),
                on_result=self._better, on_cancel=self._settle, on_error=self._not_exact,
                drop=lambda work: work.close(),
            )  # fmt: skip

    def _settle(self) -> None:
        """The whole image was not finished: the provisional answer is all there will be."""
        self._settled = True
        self._began = time.monotonic()
        self.controller.settle()
        self.tell()

    def _not_exact(self, error: BaseException) -> None:
        notify_error(error)
        self._settle()

    def _follow_region(self) -> bool:
        """Start anew where another rectangle was drawn, and the drawing is over; True where it did."""
        if self.dock.region.currentData() != "drawn" or self._source is None:
            return False
        try:
            now = self.dock.roi("drawn") or Window.whole(self._source.shape)
        except InputError:  # nothing is drawn yet
            return False
        before, self._seen = self._seen, now
        if now in (self._region, Window(0, 0, 0, 0)) or now != before:
            return False
        self.again()
        return True

    def _name(self) -> str:
        name = "" if self._source is None else self._source.name
        return f"{name} live (provisional)" if self.controller.provisional else f"{name} live"

    def _better(self, work: LiveWork) -> None:
        if self.controller.live is None:  # stopped meanwhile
            work.close()
            return
        self._began = time.monotonic()
        self.controller.better(work)
        if self.layer is not None:
            self.layer.name = self._name()
        self.tell()

    def again(self) -> None:
        """A choice has changed: start anew where it is on."""
        if self.on and self.controller.about is not None:
            self.stop(remove=True)
            self.dock.live_button.setChecked(True)
            self.set_on(True)

    def stop(self, remove: bool = False) -> None:
        """End it; what is known stays on the screen unless ``remove``."""
        self.dock.live_button.setChecked(False)
        self.dock.live_bar.abandon()
        self._timer.stop()
        self.controller.stop_live()
        self.dock.live_status.hide()
        if self.layer is not None and remove:
            self._remove_layer()

    def _remove_layer(self) -> None:
        layer, self.layer = self.layer, None
        if layer is not None and layer in self.dock.viewer.layers:
            self.dock.viewer.layers.remove(layer)

    def layer_removed(self, layer: Any) -> None:
        """Someone deleted a layer: the live one, or the image under it, ends the live view."""
        if layer is self.layer:
            self.layer = None
            self.stop()
        elif layer is self.image and (self.layer is not None or self.on):
            self.stop()

    def tell(self) -> None:
        """Bring status and areas up to date."""
        live = self.controller.live
        if live is None or self._source is None or self._follow_region():
            return
        self.dock.classes.set_areas(self.controller.areas.pixels(), self._source.pixel_size)
        done, total = live.progress
        if live.everything:
            left = (time.monotonic() - self._began) * (total - done) / done if done else None
            parts = [f"{done:,} of {total:,} windows", describe_time(left) if done < total else "done"]
        else:
            parts = [f"{live.pending} windows to go" if live.pending else "What you see is segmented"]
        if self.controller.provisional and self._settled:
            parts.append("each window by itself: the whole image was not finished")
        elif self.controller.provisional:
            parts.append("provisional: each window by itself until the whole image is known")
        self._say(" · ".join(part for part in parts if part))

    def _say(self, text: str) -> None:
        self.dock.live_status.setText(text)
        self.dock.live_status.show()
