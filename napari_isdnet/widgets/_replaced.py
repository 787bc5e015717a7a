"""What a dock has computed is of an image's pixels as they were: :class:`Replaced` tells when a layer got others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qtpy.QtCore import QObject, QTimer

from napari_isdnet.widgets._job import stop_with


class Replaced(QObject):
    """Calls ``then`` soon after the pixels of the layer that is followed were replaced (``layer.data = ...``).

    Not at once: napari still tells its own parts of the new pixels then, and must not lose a layer meanwhile.
    """

    def __init__(self, owner: QObject, then: Callable[[], None]) -> None:
        super().__init__(owner)
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.timeout.connect(then)
        self._followed: list[Any] = []  # at most one; a list, since it outlives the C++ side of this
        followed, noticed = self._followed, self._noticed
        stop_with(self, lambda: _part(followed, noticed))

    def follow(self, layer: Any) -> None:
        """From now on this layer alone; None is no layer."""
        self._timer.stop()
        _part(self._followed, self._noticed)
        if layer is not None:
            self._followed.append(layer)
            layer.events.data.connect(self._noticed)

    def _noticed(self, _event: Any = None) -> None:
        self._timer.start(0)


def _part(followed: list[Any], noticed: Callable[..., None]) -> None:
    for layer in followed:
        layer.events.data.disconnect(noticed)
    followed.clear()
