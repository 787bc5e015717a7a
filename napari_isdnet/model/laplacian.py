"""Laplacian pyramid (Burt and Adelson 1983) and the inputs that ISDNet takes from it (Section 3.1, Eq. 1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_isdnet.model.layers import Place, resize_bilinear


class LaplacianPyramid(nn.Module):
    """5x5 binomial pyramid with reflected borders.

    ``residuals`` gives the input of the shallow branch: H_0 and the coarser H_i enlarged to the size of the image, as
    ``3 * levels`` channels. ``lowpass`` gives the Gaussian pyramid level itself.
    """

    def __init__(self, levels: int = 2, channels: int = 3) -> None:
        super().__init__()
        self.levels = levels
        row = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
        self.register_buffer("row", row, persistent=False)
        self.row: Tensor
        self.channels = channels

    def _separable(self, x: Tensor, gain: float) -> Tensor:
        # The 5x5 kernel is an outer product: two passes of 5 instead of one of 25 taps.
        row = self.row.to(x.dtype) * gain
        n = x.shape[1]
        x = F.conv2d(F.pad(x, (0, 0, 2, 2), mode="reflect"), row.view(1, 1, 5, 1).expand(n, 1, 5, 1), groups=n)
        return F.conv2d(F.pad(x, (2, 2, 0, 0), mode="reflect"), row.view(1, 1, 1, 5).expand(n, 1, 1, 5), groups=n)

    def down(self, x: Tensor) -> Tensor:
        """Low-pass, then every second pixel: (B, C, H, W) to (B, C, ceil(H/2), ceil(W/2))."""
        return self._separable(x, 1.0)[:, :, ::2, ::2]

    def up(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Zeros between the pixels, low-pass with gain 4, cut to ``size``."""
        b, c, h, w = x.shape
        spread = x.new_zeros(b, c, 2 * h, 2 * w)
        spread[:, :, ::2, ::2] = x
        return self._separable(spread, 2.0)[:, :, : size[0], : size[1]]

    def decompose(self, x: Tensor, levels: int | None = None) -> tuple[list[Tensor], Tensor]:
        """Residuals H_0 .. H_{n-1} (level i at ceil(size / 2^i)) and the low-passed rest."""
        residuals: list[Tensor] = []
        for _ in range(self.levels if levels is None else levels):
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
