"""Test-time augmentation: the answer averaged over flips and quarter turns of the whole image.

A convolutional network says something else of a picture on its side. Its logits of several orientations, turned back,
are averaged before the best class is taken. Every orientation is inferred as the image itself would be, with passes,
maps and means of its own, so that the mean stays exact and bounded in memory, and costs as many times as much.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from napari_isdnet.engine.patches import Patches
from napari_isdnet.engine.pieces import Enlarging, labels_by_strips
from napari_isdnet.exceptions import InputError
from napari_isdnet.progress import Clock, Progress
from napari_isdnet.window import Window

COUNTS = (1, 2, 4, 8)
"""How many orientations may be averaged: the image; that and a quarter turn; all turns; all turns and their mirrors."""
STRIP_BYTES = 16 * 2**20
"""Of full-resolution logits that are averaged at once."""


@dataclass(frozen=True)
class Orientation:
    """The image mirrored left to right where ``mirrored``, then turned counter-clockwise by ``quarters`` of a turn."""

    quarters: int = 0
    mirrored: bool = False

    @property
    def number(self) -> int:
        """0 to 7; 0 is the image as it is."""
        return self.quarters + 4 * self.mirrored

    def shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the turned image."""
        return (shape[1], shape[0]) if self.quarters % 2 else shape

    def window(self, window: Window, shape: tuple[int, int]) -> Window:
        """Where a window of an image of ``shape`` lies in the turned image."""
        if self.mirrored:
            window = _mirrored(window, shape)
        for _ in range(self.quarters):
            window, shape = _turned(window, shape), (shape[1], shape[0])
        return window

    def source_window(self, window: Window, shape: tuple[int, int]) -> Window:
        """Inverse of :meth:`window`; ``shape`` is that of the image."""
        turned = self.shape(shape)
        for _ in range(-self.quarters % 4):
            window, turned = _turned(window, turned), (turned[1], turned[0])
        return _mirrored(window, shape) if self.mirrored else window

    def turn(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """(h, w, ...) of the image as it lies in the turned image; a view."""
        return np.rot90(values[:, ::-1] if self.mirrored else values, self.quarters)

    def back(self, values: Tensor) -> Tensor:
        """(..., h, w) of the turned image as it lies in the image."""
        values = torch.rot90(values, -self.quarters, (-2, -1))
        return values.flip(-1) if self.mirrored else values


def _mirrored(window: Window, shape: tuple[int, int]) -> Window:
    return Window(window.row, shape[1] - window.right, window.height, window.width)


def _turned(window: Window, shape: tuple[int, int]) -> Window:
    return Window(shape[1] - window.right, window.row, window.width, window.height)


def orientations(count: int) -> tuple[Orientation, ...]:
    """The first ``count`` orientations, the image as it is first; raises :class:`InputError` for another number."""
    if count not in COUNTS:
        allowed = ", ".join(map(str, COUNTS[:-1]))
        raise InputError(f"The number of orientations must be {allowed} or {COUNTS[-1]}, got {count}.")
    return tuple(Orientation(n % 4, n >= 4) for n in range(count))


class TurnedReader:
    """Patches of the image in another orientation; what cannot be read is noted with the image's own reader."""

    def __init__(self, reader: Patches, orientation: Orientation) -> None:
        self.reader, self.orientation = reader, orientation
        self.shape = orientation.shape(reader.shape)

    def read(self, window: Window) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_] | None]:
        """As :meth:`~napari_isdnet.engine.patches.PatchReader.read`, of a window of the turned image."""
        patch, valid = self.reader.read(self.orientation.source_window(window, self.reader.shape))
        turned = np.ascontiguousarray(self.orientation.turn(patch))
        return turned, None if valid is None else self.orientation.turn(valid)

    @property
    def normal(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """That of the image's own reader."""
        return self.reader.normal

    def stored(self, window: Window) -> npt.NDArray[Any]:
        """As :meth:`~napari_isdnet.engine.patches.PatchReader.stored`, of a window of the turned image."""
        patch = self.reader.stored(self.orientation.source_window(window, self.reader.shape))
        return np.ascontiguousarray(self.orientation.turn(patch))

    def mask(self, labels: npt.NDArray[np.uint8], window: Window) -> npt.NDArray[np.uint8]:
        """As it is: only the mean of all orientations is masked, by the image's own reader."""
        del window
        return labels


def turned(reader: Patches, orientation: Orientation) -> Patches:
    """What a predictor of that orientation reads through; the image's own reader for the image as it is."""
    return TurnedReader(reader, orientation) if orientation.number else reader


@dataclass(frozen=True)
class Part:
    """An orientation and what predicts it (a :class:`~napari_isdnet.engine.job.Predictor`)."""

    orientation: Orientation
    predictor: Any

    def fine(self, window: Window, shape: tuple[int, int]) -> Callable[[Window], Tensor]:
        """Logits (1, K, h, w) of parts of a window of the image, as they lie in the image."""
        turn = self.orientation
        enlarge = self.predictor.fine(turn.window(window, shape))
        return lambda part: turn.back(enlarge(turn.window(part, shape)))


class Oriented(Enlarging):
    """The mean of several orientations, with the interface of the predictors it is made of. Not thread-safe.

    ``parts`` are predictors that read through a :class:`TurnedReader`; ``reader`` is the image's own.
    """

    def __init__(self, parts: Sequence[Part], reader: Patches, classes: int) -> None:
        self.parts, self.reader, self.classes = tuple(parts), reader, classes

    @property
    def prepared(self) -> bool:
        """True when every orientation is."""
        return all(part.predictor.prepared for part in self.parts)

    def prepare(self) -> Generator[Progress, None, None]:
        """Prepare one orientation after the other."""
        clock = Clock(float(len(self.parts)))
        for number, part in enumerate(self.parts):
            if part.predictor.prepared:
                clock.reach(number + 1.0, "", resumed=True)
                continue
            reached = float(number)
            for step in part.predictor.prepare():
                at, window = number + step.fraction, step.window
                place = None if window is None else part.orientation.source_window(window, self.reader.shape)
                which = f", orientation {number + 1} of {len(self.parts)}" if len(self.parts) > 1 else ""
                yield clock.step(max(0.0, at - reached), step.stage + which, place)
                reached = max(reached, at)
            clock.done = number + 1.0

    @torch.inference_mode()
    def _mean(self, fine: Sequence[Callable[[Window], Tensor]], window: Window) -> Tensor:
        total = fine[0](window)
        for other in fine[1:]:
            total = total + other(window).to(total.device)
        return total / len(fine)

    def _fine(self, window: Window) -> list[Callable[[Window], Tensor]]:
        return [part.fine(window, self.reader.shape) for part in self.parts]

    def fine(self, window: Window) -> Callable[[Window], Tensor]:
        """Mean logits (1, K, h, w) of parts of a level-0 window."""
        found = self._fine(window)
        return lambda part: self._mean(found, part)

    def labels_and_fine(self, window: Window) -> tuple[npt.NDArray[np.uint8], Callable[[Window], Tensor]]:
        """What ``labels`` and ``fine`` give, of the same coarse logits of every orientation."""
        rows = max(8, min(256, STRIP_BYTES // (4 * self.classes * max(1, window.width))))
        fine = self.fine(window)
        return self.reader.mask(labels_by_strips(fine, window, rows), window), fine

    def close(self) -> None:
        """Release memory and files of every orientation."""
        with ExitStack() as stack:  # all of them, whatever one of them says
            for part in self.parts:
                stack.callback(part.predictor.close)
