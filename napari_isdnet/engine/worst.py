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


@dataclass(frozen=True)
class ClassWindow:
    """A window with the pixels of one class that were missed there, and those that were called it and are not."""

    window: Window
    missed: int
    false_alarm: int
    evaluated: int

    @property
    def wrong(self) -> int:
        """Wrong pixels that concern the class."""
        return self.missed + self.false_alarm

    @property
    def share(self) -> float:
        """Wrong pixels per evaluated pixel, 0 to 1."""
        return self.wrong / self.evaluated if self.evaluated else 0.0


@dataclass(frozen=True)
class BlockErrors:
    """What one block adds: where, and per window the wrong and evaluated pixels, missed and false alarm per class."""

    place: tuple[slice, slice]
    wrong: Counts
    evaluated: Counts
    missed: npt.NDArray[np.uint32]
    false_alarm: npt.NDArray[np.uint32]


class WindowErrors:
    """Wrong and evaluated pixels per window of a grid of ``size`` pixels, anchored at the image's origin.

    Blocks of any size may be counted, each pixel once; memory is 16 bytes per window, and 8 per window and class.
    """

    def __init__(self, shape: tuple[int, int], size: int = 512, classes: int = 1) -> None:
        if size < 1:
            raise InputError(f"The worst windows need a size of at least 1 pixel, got {size}.")
        self.grid = Grid(shape, (size, size))
        self.wrong: Counts = np.zeros(self.grid.counts, np.int64)
        self.evaluated: Counts = np.zeros(self.grid.counts, np.int64)
        self.missed = np.zeros((*self.grid.counts, classes), np.uint32)
        self.false_alarm = np.zeros((*self.grid.counts, classes), np.uint32)

    def block(self, prediction: Labels, truth: Labels, window: Window) -> BlockErrors:
        """Counts of a block that covers ``window``. Changes nothing itself."""
        size = self.grid.core[0]
        known = (truth != IGNORE_INDEX) & (prediction != IGNORE_INDEX)
        wrong = (prediction != truth) & known
        first_row, first_column = window.row // size, window.column // size
        rows = np.maximum(np.arange(first_row, -(-window.bottom // size)) * size - window.row, 0)
        columns = np.maximum(np.arange(first_column, -(-window.right // size)) * size - window.column, 0)
        place = slice(first_row, first_row + len(rows)), slice(first_column, first_column + len(columns))
        at = _windows_of(wrong, rows, columns)
        shape = len(rows), len(columns), self.missed.shape[2]
        missed, false_alarm = (_per_class(at, values[wrong], shape) for values in (truth, prediction))
        return BlockErrors(place, _sums(wrong, rows, columns), _sums(known, rows, columns), missed, false_alarm)

    def add(self, block: BlockErrors) -> None:
        """Add what :meth:`block` returned."""
        self.wrong[block.place] += block.wrong
        self.evaluated[block.place] += block.evaluated
        self.missed[block.place] += block.missed
        self.false_alarm[block.place] += block.false_alarm

    def ranked(self, count: int) -> list[WorstWindow]:
        """At most ``count`` windows with errors: most wrong pixels first, then largest share, then position."""
        wrong, evaluated = self.wrong.ravel(), self.evaluated.ravel()
        order = _most_wrong(wrong, evaluated, count)
        return [WorstWindow(self.grid[i], int(wrong[i]), int(evaluated[i])) for i in order]

    def ranked_of(self, index: int, count: int) -> list[ClassWindow]:
        """The same for the errors of one class alone."""
        missed, false_alarm = (v[..., index].ravel().astype(np.int64) for v in (self.missed, self.false_alarm))
        evaluated = self.evaluated.ravel()
        order = _most_wrong(missed + false_alarm, evaluated, count)
        return [ClassWindow(self.grid[i], int(missed[i]), int(false_alarm[i]), int(evaluated[i])) for i in order]


def _most_wrong(wrong: Counts, evaluated: Counts, count: int) -> list[int]:
    share = wrong / np.maximum(evaluated, 1)
    order = np.lexsort((np.arange(wrong.size), -share, -wrong))[: max(0, count)]
    return [int(i) for i in order if wrong[i]]


def _windows_of(
    mask: npt.NDArray[np.bool_], rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Number of the window, row by row, that each pixel of ``mask`` lies in."""
    down, across = (
        np.searchsorted(starts, np.arange(n), "right") - 1 for starts, n in zip((rows, columns), mask.shape)
    )
    at_row, at_column = np.nonzero(mask)
    return down[at_row] * len(columns) + across[at_column]


def _per_class(at: npt.NDArray[np.int64], values: Labels, shape: tuple[int, int, int]) -> npt.NDArray[np.uint32]:
    counts = np.bincount(at * shape[2] + values, minlength=shape[0] * shape[1] * shape[2])
    return counts.reshape(shape).astype(np.uint32)


def _sums(mask: npt.NDArray[np.bool_], rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]) -> Counts:
    """Sums of ``mask`` between consecutive starts in ``rows`` and ``columns``."""
    down = np.add.reduceat(mask, rows, axis=0, dtype=np.int32)
    return np.add.reduceat(down, columns, axis=1, dtype=np.int64)


def explained(pair: LabelPair, worst: WorstWindow, region: Window) -> WorstWindow:
    """``worst`` with its three commonest confusions in ``region``, from reading it again."""
    prediction, truth = pair.read(worst.window.intersect(region))
    pairs = pair_counts(prediction, truth)[:IGNORE_INDEX, :IGNORE_INDEX]
    np.fill_diagonal(pairs, 0)
    order = np.argsort(-pairs, axis=None, kind="stable")[:3]
    found = [Confusion(int(i // IGNORE_INDEX), int(i % IGNORE_INDEX), int(pairs.flat[i])) for i in order]
    return WorstWindow(worst.window, worst.wrong, worst.evaluated, tuple(c for c in found if c.pixels))
