"""Cutting and joining pieces of whole maps, and the last enlargement to labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from napari_isdnet.engine.enlarge import best_of, classes_of
from napari_isdnet.model.layers import Place, resize_bilinear
from napari_isdnet.window import Grid, Window

STRIP_BYTES = 256 * 2**20
"""Of full-resolution logits that a graphics card holds at once."""


@dataclass
class Sizes:
    """Rows and columns of an image and of its maps."""

    image: tuple[int, int]
    deep_input: tuple[int, int] = (0, 0)
    deep: tuple[int, int] = (0, 0)
    s16: tuple[int, int] = (0, 0)
    s8: tuple[int, int] = (0, 0)


class Enlarging(ABC):
    """A predictor whose answers for a level-0 window are enlarged from coarse logits."""

    @abstractmethod
    def fine(self, window: Window) -> Callable[[Window], Tensor]:
        """Full-resolution logits (1, K, h, w), float32, of parts of a window."""

    @abstractmethod
    def labels_and_fine(self, window: Window) -> tuple[npt.NDArray[np.uint8], Callable[[Window], Tensor]]:
        """What :meth:`labels` and :meth:`fine` give, of the same coarse logits."""

    @torch.inference_mode()
    def logits(self, window: Window) -> Tensor:
        """Full-resolution logits (1, K, h, w), float32, of a window."""
        return self.fine(window)(window)

    def labels(self, window: Window) -> npt.NDArray[np.uint8]:
        """Class indices (h, w) of a window; 255 where the image has no valid pixel."""
        return self.labels_and_fine(window)[0]


@torch.inference_mode()
def labels_of(coarse: Tensor, place: Place, window: Window, full: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """The best class (h, w) of coarse logits (1, K, h', w') enlarged to ``window``, without a full-size logits tensor.

    On a processor only pixels between cells of different classes are enlarged, elsewhere all are, strip by strip.
    """
    if coarse.device.type == "cpu":
        return classes_of(coarse, place, Place(window, full)).numpy()
    # Few large pieces on CUDA: each is waited for.
    rows = max(1, STRIP_BYTES // (4 * coarse.shape[1] * max(1, window.width))) if coarse.is_cuda else 256
    return labels_by_strips(lambda part: resize_bilinear(coarse, place, Place(part, full)), window, rows)


def labels_by_strips(fine: Callable[[Window], Tensor], window: Window, rows: int) -> npt.NDArray[np.uint8]:
    """The best class (h, w) of the logits that ``fine`` gives of parts of ``window``, of which it holds ``rows``."""
    labels = np.empty(window.shape, np.uint8)
    for strip in Grid(window.shape, (rows, window.width)):
        logits = fine(strip.shifted(window.row, window.column))[0]
        labels[strip.slices] = best_of(logits).cpu().numpy()
    return labels


def cut(x: Tensor, window: Window, patch: Window) -> Tensor:
    """The part of a map that lies at ``patch`` which belongs to ``window`` (both in the map's own coordinates)."""
    rows, columns = window.relative_to(patch).slices
    return x[:, :, rows, columns]


def joined(items: list[tuple[Window, Tensor]]) -> tuple[Window, Tensor]:
    """Neighbouring pieces (window, values (h, w, C)) as one."""
    top, left = min(w.row for w, _ in items), min(w.column for w, _ in items)
    window = Window.from_bounds(top, left, max(w.bottom for w, _ in items), max(w.right for w, _ in items))
    whole = items[0][1].new_empty((*window.shape, items[0][1].shape[2]))
    for part, values in items:
        whole[part.relative_to(window).slices] = values
    return window, whole
