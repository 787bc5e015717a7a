"""Clicks on the image that the Inspect dock looks into, and the cross on the pixel that was asked about."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from qtpy.QtCore import QObject

from napari_isdnet.widgets import _segment_layers as layers

MARK = 19
"""Most screen pixels of the cross. It is a part of the image's size and cut down to this, so that it is as large at any
zoom: with a least size in screen pixels vispy draws the border over all of it."""


class Picker:
    """Calls ``ask(position in the world)`` for clicks on the canvas while it listens; a pan is no click.

    The cross is a layer, since one sees there what it is and can hide it.
    """

    def __init__(self, viewer: Any, ask: Callable[[Any], None], parent: QObject) -> None:
        self._viewer, self._ask = viewer, ask
        self.layer: Any = None  # the cross
        self._leaving = layers.Leaving(viewer, parent)

    def listen(self, on: bool) -> None:
        """Begin or end to listen."""
        callbacks = self._viewer.mouse_drag_callbacks
        if on and self._clicked not in callbacks:
            callbacks.append(self._clicked)
        elif not on and self._clicked in callbacks:
            callbacks.remove(self._clicked)

    def mark(self, image: Any, row: int, column: int) -> None:
        """Put the cross on a pixel of an image layer."""
        viewer = self._viewer
        if self.layer is not None and self.layer in viewer.layers:
            self.layer.data = [(row, column)]
            return
        active = viewer.layers.selection.active
        self.layer = viewer.add_points(
            [(row, column)], symbol="cross", size=max(layers.shape_of(image)) / 30, canvas_size_limits=(2, MARK),
            face_color="#ffd400", border_color="black", border_width=0.05, name=f"{image.name} · picked pixel",
            metadata={layers.RESULT: True}, **layers.placement(image),
        )  # fmt: skip
        self.layer.editable = False
        if active is not None and active in viewer.layers:  # the image stays what one works on
            viewer.layers.selection.active = active

    def uncover(self) -> None:
        """Bring the cross above a map that was added since."""
        if self.layer is not None and self.layer in self._viewer.layers:
            self._viewer.layers.move(self._viewer.layers.index(self.layer), len(self._viewer.layers))

    def unmark(self) -> None:
        """Take the cross away."""
        self._leaving.take(self.layer)
        self.layer = None

    def _clicked(self, viewer: Any, event: Any) -> Generator[None, None, None]:  # noqa: ARG002
        start = event.pos
        yield
        while event.type == "mouse_move":
            yield
        if sum((a - b) ** 2 for a, b in zip(event.pos, start, strict=True)) <= 9:
            self._ask(event.position)
