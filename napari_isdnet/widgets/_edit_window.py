"""A part of the annotation as an ordinary labels layer, with all of napari's tools, saved by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from qtpy.QtCore import QObject

from napari_isdnet.exceptions import InputError
from napari_isdnet.widgets._annotate_controller import AnnotateController
from napari_isdnet.widgets._annotate_layer import annotation_colors
from napari_isdnet.widgets._job import timer
from napari_isdnet.widgets._notify import notify_error
from napari_isdnet.widgets._segment_layers import placement
from napari_isdnet.window import Window

SIDE = 4096
SAVE_MS = 400


def window_to_edit(visible: Window, shape: tuple[int, int]) -> Window:
    """What is visible, at most 4096 x 4096 pixels around its middle, inside an image of ``shape``."""
    visible = visible.clipped(shape)
    if visible.empty:
        raise InputError("The view lies outside the image; move it to the place that is to be edited.")
    height, width = min(SIDE, visible.height), min(SIDE, visible.width)
    row, column = visible.row + (visible.height - height) // 2, visible.column + (visible.width - width) // 2
    return Window(row, column, height, width)


class EditWindow(QObject):
    """An editable labels layer over ``window`` (level 0). What changed is handed to the controller after a moment."""

    def __init__(self, viewer: Any, controller: AnnotateController, window: Window, base: Any) -> None:
        super().__init__()
        self.viewer, self.controller, self.window = viewer, controller, window
        self._store = controller.store
        with self._store.still():
            values, self._names = self._store.read_labels(window), self._now()
        self._saved = values.copy()
        self.layer = viewer.add_labels(
            values,
            name="edit window",
            opacity=0.6,
            colormap=annotation_colors(self._store.classes),
            **placement(base, (window.row, window.column)),
        )
        self.layer.selected_label = controller.class_index + 1
        self.layer.mode = "paint"
        viewer.layers.selection.active = self.layer
        self._timer = timer(self, SAVE_MS, self.flush, once=True)
        self._refused: set[int] = set()
        self._stale: list[Window] = []
        self._later = timer(self, SAVE_MS, self._take_over, once=True)
        for event in ("paint", "set_data", "data"):
            getattr(self.layer.events, event).connect(self._touched)

    def _touched(self, *_: Any) -> None:
        if not self._timer.isActive():
            self._timer.start()

    def _now(self) -> list[str]:
        return [c.name for c in self._store.classes]

    def flush(self) -> None:
        """Hand over what changed since the last time."""
        if self.layer.data.shape != self._saved.shape:
            given, held = self.layer.data.shape, self._saved.shape
            self.layer.data = self._saved.copy()
            sizes = [" x ".join(map(str, shape)) for shape in (given, held)]
            notify_error(InputError(f"An edit window keeps its size: got {sizes[0]} pixels instead of {sizes[1]}."))
            return
        now = self._now()
        if now[: len(self._names)] == self._names:  # a class was added: the others keep their values
            self._names = now
        changed = self.layer.data != self._saved
        changed &= ~self._refuse(changed)
        if not changed.any():
            return
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        box = Window.from_bounds(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)
        values = self.layer.data[box.slices].astype(np.uint8)
        self._saved[box.slices] = self.layer.data[box.slices]
        place = box.shifted(self.window.row, self.window.column)
        self.controller.patch(place, values, changed[box.slices], self._names)

    def _refuse(self, changed: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Take back what was painted with a label that is no class (napari's own 'new label' gives such); where."""
        wrong: npt.NDArray[np.bool_] = changed & ((self.layer.data > len(self._names)) | (self.layer.data < 0))
        if wrong.any():
            fresh = sorted(set(np.unique(self.layer.data[wrong]).tolist()) - self._refused)
            self.layer.data[wrong] = self._saved[wrong]
            self.layer.refresh(extent=False, thumbnail=False, highlight=False)
            self._refused.update(fresh)
            if fresh:  # said once: every stroke with it would say it again
                which = f"Label {fresh[0]} is" if len(fresh) == 1 else f"Labels {', '.join(map(str, fresh))} are"
                notify_error(InputError(f"{which} no class; add a class first."))
        return wrong

    def changed(self, dirty: list[Window], idle: bool) -> None:
        """Take over what was painted, or taken back, elsewhere."""
        inside = [w.intersect(self.window) for w in dirty]
        self._stale += [w for w in inside if not w.empty]
        if idle:
            self._take_over()

    def _take_over(self) -> None:
        """Show what the store holds where it changed, once nothing of this window is on its way into the store.

        Until then the values here count the classes as they were (``_names``), whatever the store has made of them.
        """
        if not self._stale and self._names == self._now():
            return
        if self._timer.isActive() or self.controller.pending:
            self._later.start()  # what changed meanwhile must not be forgotten
            return
        stale, self._stale = self._stale, []
        with self._store.still():
            self._names = self._now()
            found = [(part, self._store.read_labels(part)) for part in stale]
        for part, now in found:
            at = part.relative_to(self.window).slices
            self.layer.data[at] = np.where(now != self._saved[at], now, self.layer.data[at])
            self._saved[at] = now
        self.layer.refresh(extent=False, thumbnail=False, highlight=False)

    def recolor(self) -> None:
        """Take the class list's colours."""
        self.layer.colormap = annotation_colors(self._store.classes)
        if self.layer.selected_label > len(self._store.classes):  # the last class is gone
            self.layer.selected_label = self.controller.class_index + 1

    def end(self) -> None:
        """Hand over the rest; the layer, whose window may be gone, stays as it is."""
        self._timer.stop()
        self._later.stop()
        self.flush()

    def close(self) -> None:
        """Hand over the rest; the layer goes."""
        self.end()
        for event in ("paint", "set_data", "data"):
            getattr(self.layer.events, event).disconnect(self._touched)
        if self.layer in self.viewer.layers:
            self.viewer.layers.remove(self.layer)
