"""The part of the Annotate dock that flies to the next place to annotate."""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import Any

from qtpy.QtCore import QVariantAnimation

from napari_isdnet.annotation.suggest import Suggestion
from napari_isdnet.progress import Progress
from napari_isdnet.widgets._annotate_controller import AnnotateController
from napari_isdnet.widgets._annotate_form import AnnotateForm
from napari_isdnet.widgets._annotate_layer import AnnotationLayer
from napari_isdnet.widgets._next_region import Guide, find_guide, ranked, why
from napari_isdnet.widgets._notify import notify_info
from napari_isdnet.widgets._places import in_world, pixel_sides
from napari_isdnet.widgets._segment_layers import canvas_size, displayed_center
from napari_isdnet.window import Window

FLIGHT_MS = 350


class Flying(AnnotateForm):
    """Ranks places on a worker thread, remembers which were visited, and moves the camera."""

    viewer: Any
    controller: AnnotateController
    canvas: AnnotationLayer | None
    image_layer: Any

    def __init__(self) -> None:
        super().__init__()
        self._places: tuple[int, Guide, list[Suggestion]] | None = None
        self._visited: list[Window] = []
        self._flight = QVariantAnimation(self)
        self._flight.setDuration(FLIGHT_MS)
        self._flight.setStartValue(0.0)
        self._flight.setEndValue(1.0)
        self._flight.valueChanged.connect(self._step_of_flight)
        self._way: list[tuple[float, float]] = []

    def next_region(self) -> None:
        """Fly to the best place to annotate that was not visited yet; ranked anew once more is painted."""
        if self.canvas is None or self.bar.running:
            return
        store, guide = self.controller.store, find_guide(self.viewer, self.image_layer)
        known = self._places
        if known is not None and known[:2] == (store.position, guide) and self._unvisited(known[2]):
            self._go(guide, known[2])
            return

        def work() -> Generator[Progress, None, list[Suggestion]]:
            yield Progress(0, 1, "Ranking places")
            return ranked(store, guide)

        def show(found: list[Suggestion]) -> None:
            self._places = store.position, guide, found
            if not self._unvisited(found):
                self._visited.clear()
            self._go(guide, found)

        self.bar.run(work, on_result=show, title="Ranking places")

    def _unvisited(self, places: list[Suggestion]) -> list[Suggestion]:
        return [place for place in places if place.window not in self._visited]

    def _go(self, guide: Guide, places: list[Suggestion]) -> None:
        left = self._unvisited(places)
        if not left or self.canvas is None:
            notify_info("There is no place left to suggest: everything is painted.")
            return
        self._visited.append(left[0].window)
        self.reason.setText(why(left[0], guide))
        self.reason.show()
        self._fly(left[0].window)

    def _fly(self, window: Window) -> None:
        """Move the camera so that ``window`` fills most of the canvas."""
        assert self.canvas is not None
        layer, camera = self.canvas.layer, self.viewer.camera
        down, across = displayed_center(self.viewer, in_world(self.viewer, layer, window.center))
        scale = float(pixel_sides(self.viewer, layer).min())
        goal = (down, across, math.log(0.85 * min(canvas_size(self.viewer)) / (max(window.shape) * scale)))
        start = (*map(float, camera.center[-2:]), math.log(camera.zoom))
        self._flight.stop()
        self._way = list(zip(start, goal, strict=True))
        self._flight.start()

    def _step_of_flight(self, share: float) -> None:
        down, across, zoom = (a + (b - a) * share for a, b in self._way)
        self.viewer.camera.center = (down, across)
        self.viewer.camera.zoom = math.exp(zoom)
