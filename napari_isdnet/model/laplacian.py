"""Laplacian pyramid (Burt and Adelson 1983) and the inputs that ISDNet takes from it (Section 3.1, Eq. 1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_isdnet.model.layers import Place, resize_bilinear


def _reduced(x: Tensor, axis: int) -> Tensor:
    """Binomial low-pass along one axis, every second pixel of it: only what is kept is computed.

    Written as sums of strided slices: a depthwise convolution of five taps costs twenty times as much on a CPU.
    """
    half = (x.shape[axis] + 1) // 2
    x = F.pad(x, (0, 0, 2, 2) if axis == 2 else (2, 2, 0, 0), mode="reflect")

    def tap(k: int) -> Tensor:
        index = [slice(None)] * 4
        index[axis] = slice(k, k + 2 * half - 1, 2)
        return x[tuple(index)]

    total = torch.add(tap(0), tap(4))
    return total.add(tap(2), alpha=6.0).add(tap(1) + tap(3), alpha=4.0) / 16


def _enlarged(x: Tensor, axis: int) -> Tensor:
    """Zeros between the pixels and binomial low-pass with gain 2 along one axis, without the zeros.

    Of the taps 1 4 6 4 1 an even pixel meets three and an odd one two. Reflection of the spread line repeats the second
    pixel before the first, and the last one after itself.
    """
    n = x.shape[axis]
    line = torch.cat([x.narrow(axis, 1, 1), x, x.narrow(axis, n - 1, 1)], axis)
    before, after = line.narrow(axis, 0, n), line.narrow(axis, 2, n)
    even = (before + after).add(x, alpha=6.0) / 8
    odd = (x + after) / 2
    return torch.stack([even, odd], axis + 1).flatten(axis, axis + 1)


class LaplacianPyramid(nn.Module):
    """5x5 binomial pyramid with reflected borders.

    ``residuals`` gives the input of the shallow branch: H_0 and the coarser H_i enlarged to the size of the image, as
    ``3 * levels`` channels. ``lowpass`` gives the Gaussian pyramid level itself.
    """

    def __init__(self, levels: int = 2) -> None:
        super().__init__()
        self.levels = levels

    def down(self, x: Tensor) -> Tensor:
        """Low-pass, then every second pixel: (B, C, H, W) to (B, C, ceil(H/2), ceil(W/2))."""
        return _reduced(_reduced(x, 2), 3)

    def up(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Zeros between the pixels, low-pass with gain 4, cut to ``size``."""
        return _enlarged(_enlarged(x, 3), 2)[:, :, : size[0], : size[1]]

    def decompose(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Residuals H_0 .. H_{n-1} (level i at ceil(size / 2^i)) and the low-passed rest."""
        residuals: list[Tensor] = []
        for _ in range(self.levels):
            smaller = self.down(x)
            residuals.append(x - self.up(smaller, (x.shape[2], x.shape[3])))
            x = smaller
        return residuals, x

    def residuals(self, x: Tensor, place: Place | None = None) -> Tensor:
        """(B, 3, H, W) normalised image to (B, 3 * levels, H, W): H_0 and the enlarged H_i (Eq. 1).

        ``place`` says where ``x`` lies in the whole image (its origin a multiple of 2^levels), so that the enlargement
        uses the coordinates of the whole image.
        """
        place = place or Place.whole(x)
        bands, _ = self.decompose(x)
        enlarged = [resize_bilinear(band, place.halved(i), place) for i, band in enumerate(bands)]
        return torch.cat(enlarged, dim=1)

    def lowpass(self, x: Tensor, times: int) -> Tensor:
        """Gaussian pyramid level ``times``: (B, C, H, W) to (B, C, ceil(H / 2^times), ...)."""
        for _ in range(times):
            x = self.down(x)
        return x
