"""Reading what is saved of an annotation while the program that has it open goes on painting."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from napari_isdnet.annotation.chunks import REPAIR
from napari_isdnet.annotation.saving import read_state
from napari_isdnet.exceptions import InputError

T = TypeVar("T")
TRIES, _PAUSE = 20, 0.2  # seconds; a project that is being painted is saved twice a second at most


class NeverStill(InputError):
    """An annotation was saved, time and again, while it was read."""


def at_one_moment(folder: Path, read: Callable[[], T], tries: int = TRIES) -> T:
    """What ``read`` makes of the annotation in ``folder``, all of it as it was at one moment.

    ``read`` opens it (``read_only``) and is called again where something was saved from before it until after: the
    names of chunks, their contents, counts and journal are read one after another. An error of it counts only where
    nothing was saved. Raises :class:`NeverStill` after so many ``tries``.
    """
    for _ in range(tries):
        before = read_state(folder)
        try:
            found = read()
            if read_state(folder) == before:
                return found
        except FileNotFoundError as error:
            if read_state(folder) == before:
                raise InputError(f"{error.filename} is missing; {REPAIR}") from None
        except InputError:
            if read_state(folder) == before:
                raise
        time.sleep(_PAUSE)
    raise NeverStill(
        f"{folder} is saved faster by another process than it can be read; stop painting for a moment and start again."
    )
