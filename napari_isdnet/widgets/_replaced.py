"""What a dock has computed is of a layer's pixels as they were: :class:`Replaced` tells when a layer got others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qtpy.QtCore import QObject, QTimer

from napari_isdnet.widgets._job import stop_with


class Replaced(QObject):
    """Calls ``then`` soon after the pixels of a layer that is followed were replaced (``layer.data = ...``).

    With ``painted`` also after strokes of napari's own tools in a Labels layer, and after those were taken back.
    ``last`` is the layer. Not at once: napari still tells its own parts of the new pixels then, and must not lose a
    layer meanwhile. What a program writes into an array is not noticed: no event tells of it.
    """

    def __init__(self, owner: QObject, then: Callable[[], None], painted: bool = False) -> None:
        super().__init__(owner)
        self.last: Any = None
        self._painted = painted
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.timeout.connect(then)
        self._followed: list[tuple[Any, Callable[..., None]]] = []  # outlives the C++ side of this
        followed = self._followed
        stop_with(self, lambda: _part(followed))

    def follow(self, *layers: Any) -> None:
        """From now on these layers alone; None is no layer."""
        self._timer.stop()
        _part(self._followed)
        self.last = None
        for layer in layers:
            if layer is not None:
                self._follow(layer)

    def _follow(self, layer: Any) -> None:
        steps = _steps(layer)

        def noticed(_event: Any = None) -> None:
            self.last = layer
            self._timer.start(0)

        def shown(_event: Any = None) -> None:  # also where nothing was painted: napari draws the layer for any reason
            if _steps(layer) != steps:
                noticed()

        layer.events.data.connect(noticed)
        self._followed.append((layer.events.data, noticed))
        if self._painted and hasattr(layer.events, "paint"):
            for event, callback in ((layer.events.paint, noticed), (layer.events.set_data, shown)):
                event.connect(callback)
                self._followed.append((event, callback))


def _steps(layer: Any) -> tuple[int, int]:
    """How many strokes of a Labels layer can be taken back and done again: napari tells of neither by an event."""
    return len(getattr(layer, "_undo_history", ())), len(getattr(layer, "_redo_history", ()))


def _part(followed: list[tuple[Any, Callable[..., None]]]) -> None:
    for event, callback in followed:
        event.disconnect(callback)
    followed.clear()
