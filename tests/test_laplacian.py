"""The pyramid's fast form against its definition: the full 25-tap kernel on the reflected (and zero-spread) image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from napari_isdnet.model.laplacian import LaplacianPyramid


def convolved(x: Tensor, gain: float) -> Tensor:
    row = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], dtype=x.dtype)
    kernel = (torch.outer(row, row) / 256 * gain).expand(x.shape[1], 1, 5, 5)
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, groups=x.shape[1])


def spread(x: Tensor) -> Tensor:
    zeros = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    zeros[:, :, ::2, ::2] = x
    return zeros


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 41), st.integers(3, 41), st.integers(1, 2))
def test_both_steps_are_the_convolution_of_the_definition(height: int, width: int, batch: int) -> None:
    x = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(height), dtype=torch.float64)
    pyramid = LaplacianPyramid()
    small = pyramid.down(x)
    torch.testing.assert_close(small, convolved(x, 1.0)[:, :, ::2, ::2])
    torch.testing.assert_close(pyramid.up(small, (height, width)), convolved(spread(small), 4.0)[..., :height, :width])


def test_a_constant_image_has_no_residuals_and_the_bands_add_up() -> None:
    pyramid = LaplacianPyramid(3)
    assert pyramid.residuals(torch.full((1, 3, 40, 56), 7.0)).abs().max() < 1e-5
    x = torch.randn(2, 3, 41, 56, generator=torch.Generator().manual_seed(1))
    bands, rest = pyramid.decompose(x)
    for band in reversed(bands):
        rest = band + pyramid.up(rest, (band.shape[2], band.shape[3]))
    torch.testing.assert_close(rest, x, atol=1e-5, rtol=1e-5)


def test_gradients_reach_the_image() -> None:
    x = torch.randn(1, 3, 32, 32, requires_grad=True)
    LaplacianPyramid().residuals(x).square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
