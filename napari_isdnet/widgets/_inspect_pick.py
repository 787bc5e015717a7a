"""Clicks on the image that the Inspect dock looks into. No Qt."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any


class Picker:
    """Calls ``ask(position in the world)`` for clicks on the canvas while it listens; a pan is no click."""

    def __init__(self, viewer: Any, ask: Callable[[Any], None]) -> None:
        self._viewer, self._ask = viewer, ask

    def listen(self, on: bool) -> None:
        """Begin or end to listen."""
        callbacks = self._viewer.mouse_drag_callbacks
        if on and self._clicked not in callbacks:
            callbacks.append(self._clicked)
        elif not on and self._clicked in callbacks:
            callbacks.remove(self._clicked)

    def _clicked(self, viewer: Any, event: Any) -> Generator[None, None, None]:  # noqa: ARG002
        start = event.pos
        yield
        while event.type == "mouse_move":
            yield
        if sum((a - b) ** 2 for a, b in zip(event.pos, start, strict=True)) <= 9:
            self._ask(event.position)
