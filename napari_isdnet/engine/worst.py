"""The windows with the most wrong pixels, counted while the maps stream by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from napari_isdnet.classes import IGNORE_INDEX
from napari_isdnet.engine.labels import LabelPair
from napari_isdnet.engine.metrics import Counts, Labels, pair_counts
from napari_isdnet.exceptions import InputError
from napari_isdnet.window import Grid, Window


@dataclass(frozen=True)
class Confusion:
    """``pixels`` of class ``truth`` that were called ``predicted``."""

    truth: int
    predicted: int
    pixels: int


@dataclass(frozen=True)
class WorstWindow:
    """A window (level 0 of the prediction), its wrong and evaluated pixels, and its commonest confusions."""

    window: Window
    wrong: int
    evaluated: int
    confusions: tuple[Confusion, ...] = ()

    @property
    def share(self) -> float:
        """Wrong pixels per evaluated pixel, 0 to 1."""
        return self.wrong / self.evaluated if self.evaluated else 0.0


class WindowErrors:
    """Wrong and evaluated pixels per window of a grid of ``size`` pixels, anchored at the image's origin.

    Blocks of any size may be counted, each pixel once; memory is 16 bytes per window.
    """

    def __init__(self, shape: tuple[int, int], size: int = 512) -> None:
        if size < 1:
            raise InputError(f"The worst windows need a size of at least 1 pixel, got {size}.")
        self.grid = Grid(shape, (size, size))
        self.wrong: Counts = np.zeros(self.grid.counts, np.int64)
        self.evaluated: Counts = np.zeros(self.grid.counts, np.int64)

    def block(self, prediction: Labels, truth: Labels, window: Window) -> tuple[tuple[slice, slice], Counts, Counts]:
        """Counts of a block that covers ``window``: where they go, wrong, evaluated. Changes nothing itself."""
        size = self.grid.core[0]
        known = (truth != IGNORE_INDEX) & (prediction != IGNORE_INDEX)
        wrong = (prediction != truth) & known
        first_row, first_column = window.row // size, window.column // size
        rows = np.maximum(np.arange(first_row, -(-window.bottom // size)) * size - window.row, 0)
        columns = np.maximum(np.arange(first_column, -(-window.right // size)) * size - window.column, 0)
        place = slice(first_row, first_row + len(rows)), slice(first_column, first_column + len(columns))
        return place, _sums(wrong, rows, columns), _sums(known, rows, columns)

    def add(self, place: tuple[slice, slice], wrong: Counts, evaluated: Counts) -> None:
        """Add what :meth:`block` returned."""
        self.wrong[place] += wrong
        self.evaluated[place] += evaluated

    def ranked(self, count: int) -> list[WorstWindow]:
        """At most ``count`` windows with errors: most wrong pixels first, then largest share, then position."""
        wrong, evaluated = self.wrong.ravel(), self.evaluated.ravel()
        share = wrong / np.maximum(evaluated, 1)
        order = np.lexsort((np.arange(wrong.size), -share, -wrong))[: max(0, count)]
        return [WorstWindow(self.grid[int(i)], int(wrong[i]), int(evaluated[i])) for i in order if wrong[i]]


def _sums(mask: npt.NDArray[np.bool_], rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]) -> Counts:
    """Sums of ``mask`` between consecutive starts in ``rows`` and ``columns``."""
    down = np.add.reduceat(mask, rows, axis=0, dtype=np.int32)
    return np.add.reduceat(down, columns, axis=1, dtype=np.int64)


def explained(pair: LabelPair, worst: WorstWindow, most: int = 3) -> WorstWindow:
    """``worst`` with its ``most`` commonest confusions, from reading it again."""
    prediction, truth = pair.read(worst.window.intersect(pair.window))
    pairs = pair_counts(prediction, truth)[:IGNORE_INDEX, :IGNORE_INDEX]
    np.fill_diagonal(pairs, 0)
    order = np.argsort(-pairs, axis=None, kind="stable")[:most]
    found = [Confusion(int(i // IGNORE_INDEX), int(i % IGNORE_INDEX), int(pairs.flat[i])) for i in order]
    return WorstWindow(worst.window, worst.wrong, worst.evaluated, tuple(c for c in found if c.pixels))
