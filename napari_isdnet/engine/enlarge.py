"""Classes of every pixel from coarse logits: enlarged only where the answer is not known without.

Bilinear enlargement mixes the logits of the four cells around a pixel with weights that are positive and sum to one. A
class that is the best of all four is the best of every mixture of them, so only pixels between cells of different
classes need their logits. Elsewhere the class is copied.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from napari_isdnet.model.layers import Place, axis_weights

BETWEEN_BYTES = 8 * 2**20
"""Of logits between cells that are computed at once: what fits into a processor's cache is several times faster."""


@dataclass(frozen=True)
class _Axis:
    """One axis of an output: its pixels in runs, each between the same two cells of the input."""

    low: Tensor  # (runs,) cells of the patch
    high: Tensor
    start: Tensor  # (runs,) first pixel
    count: Tensor
    run: Tensor  # (pixels,) which run
    weight: Tensor  # (pixels,) of the higher cell

    @classmethod
    def of(cls, axis: int, place: Place, out: Place) -> _Axis:
        low, high, weight = axis_weights(axis, place, out, torch.device("cpu"))
        changes = torch.ones(len(low), dtype=torch.bool)
        changes[1:] = (low[1:] != low[:-1]) | (high[1:] != high[:-1])
        start = changes.nonzero()[:, 0]
        count = torch.diff(start, append=torch.tensor([len(low)]))
        return cls(low[start], high[start], start, count, changes.cumsum(0) - 1, weight)

    def pixels(self, runs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels (most, n) of n runs, their weights, and which of them belong to the run."""
        step = torch.arange(int(self.count.max()))[:, None]
        index = self.start[runs] + step
        inside = step < self.count[runs]
        index = index.clamp_(max=len(self.weight) - 1)
        return index, self.weight[index], inside


def best_of(logits: Tensor) -> Tensor:
    """Index (...) uint8 of the largest of (K, ...), the first of equals: ``argmax`` over the first axis, without NaN.

    On a processor ``argmax`` goes through it pixel by pixel; comparing whole planes takes a fifth of the time.
    """
    if logits.device.type != "cpu":
        return logits.argmax(0).to(torch.uint8)
    most = logits[0].clone(memory_format=torch.contiguous_format)
    best = torch.zeros(most.shape, dtype=torch.uint8)
    for index in range(1, len(logits)):
        best.masked_fill_(logits[index] > most, index)
        torch.maximum(most, logits[index], out=most)
    return best


def classes_of(coarse: Tensor, place: Place, out: Place) -> Tensor:
    """Best class (h, w) uint8 of coarse logits (1, K, h', w') that lie at ``place``, for the pixels ``out``.

    As the best class of :func:`~napari_isdnet.model.layers.resize_bilinear`; for a processor.
    """
    x = coarse[0].float()
    best = best_of(x)
    rows, columns = _Axis.of(0, place, out), _Axis.of(1, place, out)
    above, below = best[rows.low], best[rows.high]
    cells = above[:, columns.low]
    mixed = (above[:, columns.high] != cells) | (below[:, columns.low] != cells) | (below[:, columns.high] != cells)
    height, width = len(rows.run), len(columns.run)
    flat = torch.empty(height * width + 1, dtype=torch.uint8)  # the last one takes what lies beyond a run's end
    flat[:-1].view(height, width)[:] = cells[:, columns.run][rows.run]
    most = int(rows.count.max()) * int(columns.count.max())
    for part in mixed.nonzero().split(max(1, BETWEEN_BYTES // (4 * len(x) * most))):
        _between(x, rows, columns, part, flat)
    return flat[:-1].view(height, width)


def _between(x: Tensor, rows: _Axis, columns: _Axis, part: Tensor, flat: Tensor) -> None:
    """The classes of all pixels between the cells ``part`` (n, 2) of runs of rows and columns."""
    row, column = part.unbind(1)
    at_row, row_weight, row_inside = rows.pixels(row)
    at_column, column_weight, column_inside = columns.pixels(column)
    sides = []
    for cell in (rows.low[row], rows.high[row]):
        left, right = x[:, cell, columns.low[column]], x[:, cell, columns.high[column]]
        sides.append(torch.lerp(left[:, None], right[:, None], column_weight))  # (K, columns, n)
    logits = torch.lerp(sides[0][:, None], sides[1][:, None], row_weight[:, None])  # (K, rows, columns, n)
    pixel = (at_row * len(columns.weight))[:, None] + at_column
    pixel.masked_fill_(~(row_inside[:, None] & column_inside), len(flat) - 1)
    flat[pixel] = best_of(logits)
