"""Small layers, and resampling that knows where a patch lies in its whole map."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_isdnet.window import Window


class ConvBNReLU(nn.Module):
    """Convolution without bias, batch norm, ReLU (optional); 'same' zero padding for odd kernels."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 3,
        stride: int = 1,
        dilation: int = 1,
        relu: bool = True,
    ) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, dilation, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True) if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H / stride, W / stride)."""
        return self.relu(self.bn(self.conv(x)))


class PooledBatchNorm2d(nn.BatchNorm2d):
    """Batch norm of a pooled (B, C, 1, 1) map.

    With a batch of one there is a single value per channel, whose variance is zero: batch statistics would erase it
    (and torch refuses). The running statistics are used then, so that a batch of one can train.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to the same shape."""
        if self.training and x.shape[0] * x.shape[2] * x.shape[3] == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)


class ClassifierHead(nn.Module):
    """3x3 convolution to half the width, then dropout-free 1x1 classifier (the published 'SegmentationHead')."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv = ConvBNReLU(channels, channels // 2)
        self.out = nn.Conv2d(channels // 2, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) features to (B, K, h, w) logits."""
        return self.out(self.conv(x))


@dataclass(frozen=True)
class Place:
    """Where a patch lies: its window on the map, and the shape of that whole map."""

    window: Window
    full: tuple[int, int]

    @classmethod
    def whole(cls, x: Tensor) -> Place:
        """The place of a map that is all there."""
        shape = (int(x.shape[-2]), int(x.shape[-1]))
        return cls(Window.whole(shape), shape)

    @property
    def is_whole(self) -> bool:
        """True when the patch is the whole map."""
        return self.window == Window.whole(self.full)

    def halved(self, times: int = 1) -> Place:
        """The place after ``times`` stride-2 steps (sizes round up; the origin must be a multiple)."""
        f = 2**times
        full = (-(-self.full[0] // f), -(-self.full[1] // f))
        return Place(self.window.divided(f).clipped(full), full)


def axis_weights(axis: int, place: Place, out: Place, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For every pixel of ``out`` along an axis: the two cells of the patch at ``place`` that it lies between, and the
    weight of the second."""
    w_in, w_out = place.window, out.window
    offset, available = ((w_in.row, w_in.height), (w_in.column, w_in.width))[axis]
    start, count = ((w_out.row, w_out.height), (w_out.column, w_out.width))[axis]
    n_in, n_out = place.full[axis], out.full[axis]
    position = (torch.arange(start, start + count, dtype=torch.float64) + 0.5) * (n_in / n_out) - 0.5
    position.clamp_(min=0)
    left = position.floor().clamp_(max=n_in - 1)
    weight = (position - left).to(torch.float32)
    right = (left + 1).clamp_(max=n_in - 1)
    low = (left - offset).long().clamp_(0, available - 1)
    high = (right - offset).long().clamp_(0, available - 1)
    return low.to(device), high.to(device), weight.to(device)


def needed_for_resize(out: Window, n_in: tuple[int, int], n_out: tuple[int, int]) -> Window:
    """The window of the input map that bilinear resizing to ``out`` reads (one pixel more on each side is allowed)."""
    top, left = (int(o * i / n) - 1 for o, i, n in zip((out.row, out.column), n_in, n_out))
    bottom, right = (-(-o * i // n) + 1 for o, i, n in zip((out.bottom, out.right), n_in, n_out))
    return Window.from_bounds(top, left, bottom, right).clipped(n_in)


def resize_bilinear(x: Tensor, place: Place, out: Place) -> Tensor:
    """Bilinear resize (``align_corners=False``) of a patch, as if its whole map were resized and ``out`` cut from it.

    ``x`` is (B, C, h, w) and lies at ``place``; the result has the shape of ``out.window``. Pixels of the input that
    would be needed but are not in the patch are replaced by the nearest ones there: halos make up for them.
    """
    if place.full == out.full and place.window == out.window:
        return x
    if place.is_whole and out.is_whole:
        return F.interpolate(x, size=out.full, mode="bilinear", align_corners=False)
    exact = _integer_upsampling(x, place, out)
    if exact is not None:
        return exact
    # Along the columns while there are few rows.
    for axis in (1, 0):
        x = _mixed(x, axis, place.full[axis], out.full[axis], *axis_weights(axis, place, out, x.device))
    return x


def _mixed(x: Tensor, axis: int, n_in: int, n_out: int, low: Tensor, high: Tensor, weight: Tensor) -> Tensor:
    """Linear interpolation of a patch along one axis: between cells ``low`` and ``high``, ``weight`` of the second."""
    dim, shape = 2 + axis, [1, 1, 1, 1]
    shape[dim] = -1
    if x.device.type != "cpu" or n_out < n_in or torch.is_grad_enabled():
        a, b = x.index_select(dim, low).float(), x.index_select(dim, high).float()
        return torch.lerp(a, b, weight.view(shape)).to(x.dtype)
    # Every n-th pixel, for an enlargement by about n, lies one cell after the one before, but for a few slips: slices
    # between them instead of gathering pixel by pixel, at a quarter of the time and to the same bits.
    x, step = x.contiguous(), max(1, round(n_out / n_in))
    result = x.new_empty((*x.shape[:dim], len(low), *x.shape[dim + 1 :]))
    for phase in range(min(step, len(low))):
        first, second, share = low[phase::step], high[phase::step], weight[phase::step]
        slips = ((first.diff() != 1) | (second.diff() != 1)).nonzero()[:, 0] + 1
        edges = [0, *slips.tolist(), len(first)]
        for start, stop in pairwise(edges):
            a, b = (x.narrow(dim, int(at[start]), stop - start).float() for at in (first, second))
            place = slice(phase + start * step, phase + (stop - 1) * step + 1, step)
            result[(slice(None),) * dim + (place,)] = torch.lerp(a, b, share[start:stop].view(shape))
    return result


def _integer_upsampling(x: Tensor, place: Place, out: Place) -> Tensor | None:
    """The same by torch's own kernel, where both axes grow by the same whole factor (the usual case, and faster)."""
    factor = out.full[0] // place.full[0]
    if factor < 1 or (place.full[0] * factor, place.full[1] * factor) != out.full:
        return None
    fine = place.window.multiplied(factor)
    if not fine.contains(out.window):
        return None
    # Only the rows and columns that the output reads are enlarged; torch clamps at the patch's edge, which is the
    # whole map's edge or lies in the halo of the caller.
    needed = out.window.divided(factor).expanded(1).intersect(place.window)
    rows, columns = needed.relative_to(place.window).slices
    large = F.interpolate(x[:, :, rows, columns], scale_factor=factor, mode="bilinear", align_corners=False)
    cut_rows, cut_columns = out.window.relative_to(needed.multiplied(factor)).slices
    return large[:, :, cut_rows, cut_columns]
