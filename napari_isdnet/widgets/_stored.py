"""Layers over files that other programs may replace while they are shown."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from napari_isdnet.engine.tiles import Array, TilePyramid
from napari_isdnet.exceptions import InputError
from napari_isdnet.window import Window


class StoredPyramid(TilePyramid):
    """Tiles of a file or folder, read where one looks; once it is another one, no more of it.

    What was read before stays as it is; what was not is left out, for it would be of other data. ``changed`` is asked
    after every tile, and says whether that is so. ``notice`` is to be told once it is, by who takes it away (on the
    main thread, see :class:`~napari_isdnet.widgets._lazy.Painter`). Other parameters are those of :class:`TilePyramid`.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, int]],
        read: Callable[[int, Window], Array],
        changed: Callable[[], bool],
        name: str,
        **options: Any,
    ) -> None:
        self._source, self._changed, self.name = read, changed, name
        self._replaced = False
        self.notice = ""
        super().__init__(shapes, self._checked, **options)

    def _checked(self, level: int, window: Window) -> Array:
        failure: Exception | None = None
        try:
            if not self._replaced:
                pixels = self._source(level, window)
        except Exception as error:  # of a file that is being replaced, or is gone
            failure = error
        if self._replaced or self._changed():
            text = (
                f"{self.name} was replaced or removed by another program since it was opened: its layer shows what was"
                " read before; remove the layer and open the result again to see the new one."
            )
            if not self._replaced:
                self._replaced, self.notice = True, text
                self._tell()
            raise InputError(text) from failure
        if failure is not None:
            raise failure
        return pixels


def remade(folder: Path) -> Callable[[], bool]:
    """Whether the result in ``folder`` is another one by then than at this call.

    By the metadata of its finest level, which are written once, when it is made: where it lies may be written anew.
    """
    file = folder / "0" / "zarr.json"

    def look() -> tuple[int, int, int] | None:
        try:
            found = os.stat(file)
        except OSError:
            return None
        return found.st_dev, found.st_ino, found.st_mtime_ns

    before = look()
    return lambda: look() != before
