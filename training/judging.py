"""What held-out places say of a model, and whether they say it surely: a few strokes judge with a large error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from napari_isdnet.classes import IGNORE_INDEX
from napari_isdnet.engine.metrics import ConfusionMatrix, ratio
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.disk import write_atomic

BLOCK = 64
"""Side of the blocks of pixels that are taken to be right or wrong together."""
RESAMPLES, SURE = 400, 0.9
Counts = npt.NDArray[np.int64]


class Tally:
    """Hits, misses and false alarms of every class on every held-out block that holds a labelled pixel."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self._blocks: list[Counts] = []

    def add(self, labels: npt.NDArray[np.uint8], target: npt.NDArray[np.uint8]) -> None:
        """Class indices of one window, (height, width), and the truth of the same shape with 255 ignored."""
        for row in range(0, target.shape[0], BLOCK):
            for column in range(0, target.shape[1], BLOCK):
                place = np.s_[row : row + BLOCK, column : column + BLOCK]
                if (target[place] != IGNORE_INDEX).any():
                    matrix = ConfusionMatrix(self.classes)
                    matrix.update(labels[place], target[place])
                    hits, own, said = matrix.intersection, matrix.counts.sum(axis=1), matrix.counts.sum(axis=0)
                    self._blocks.append(np.stack([hits, own - hits, said - hits]))

    @property
    def counts(self) -> Counts:
        """(blocks, 3, K): hits, misses and false alarms."""
        return np.stack(self._blocks) if self._blocks else np.zeros((0, 3, self.classes), np.int64)


def class_iou(counts: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    """(..., 3, K) to the IoU (..., K) of the classes that the truth holds, NaN for others.

    One more class in the mean for every stray pixel of it would make judgements of different steps means of different
    classes. Stray pixels count where they are missed.
    """
    hits, misses, alarms = (counts[..., n, :].astype(np.float64) for n in range(3))
    return np.where(hits + misses > 0, ratio(hits, hits + misses + alarms), np.nan)


def mean_iou(counts: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    """(..., 3, K) to the mean IoU (...) of the classes that the truth holds; 0 where it holds none."""
    each = class_iou(counts)
    known = ~np.isnan(each)
    return np.where(known, each, 0).sum(axis=-1) / np.maximum(known.sum(axis=-1), 1)


def surely_worse(before: Counts, after: Counts) -> bool:
    """True when the mean IoU fell on the same blocks by more than which blocks were painted explains.

    The blocks are drawn anew :data:`RESAMPLES` times (bootstrap, the same draws for both); it is sure when the mean IoU
    is lower after than before in at least :data:`SURE` of them.
    """
    if len(before) != len(after) or not len(before):
        return bool(mean_iou(after.sum(axis=0)) < mean_iou(before.sum(axis=0)))
    draws = np.random.default_rng(0).multinomial(len(before), np.full(len(before), 1 / len(before)), RESAMPLES)
    old, new = (mean_iou(np.tensordot(draws, counts, axes=1)) for counts in (before, after))
    return bool(np.mean(new < old) >= SURE)


class Guard:
    """Which weights of a run are kept: the latest, unless the held-out places say that they are surely worse.

    Worse than before the first step, or than where the mean IoU was highest. The highest itself is no ground to keep
    older weights: a few strokes rank two states by chance, and training is better where it ends than on the way.
    Measured on an aerial scene with 34 strokes: judged by the highest, three of six runs of 80 steps kept the weights
    of step 20; those of step 80 were better by about a point on the half that nobody painted.
    """

    def __init__(self, before: Counts, best: Counts | None = None) -> None:
        self.before, self.best = before, before if best is None else best

    def takes(self, counts: Counts) -> bool:
        """True when weights with these counts are to be kept; remembers them where they are the best so far."""
        taken = not surely_worse(self.before, counts) and not surely_worse(self.best, counts)
        if mean_iou(counts.sum(axis=0)) > mean_iou(self.best.sum(axis=0)):
            self.best = counts
        return taken

    def save(self, path: Path) -> None:
        """Write what was counted, whole or not at all, so that a run that is resumed judges by the same."""
        write_atomic(path, save({"before": self.before, "best": self.best}))

    @classmethod
    def load(cls, path: Path, classes: int) -> Guard:
        """Read it; :class:`InputError` where it is absent or damaged, since a guard without it refuses nothing."""
        try:
            found = load_file(path)
            before, best = found["before"], found["best"]
            if any(c.ndim != 3 or c.shape[1:] != (3, classes) for c in (before, best)):
                raise ValueError
        except (OSError, SafetensorError, KeyError, ValueError):
            raise InputError(
                f"{path}, by which the run is judged, is missing or damaged; start over with --no-resume."
            ) from None
        return cls(before, best)
