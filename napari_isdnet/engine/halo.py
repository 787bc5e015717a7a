"""How far a piece of the network looks: receptive fields found by a gradient probe, never from a table.

A copy of the piece gets positive averaging weights, identity batch norm and average instead of maximum pooling, so that
no product on any path cancels or is switched off; the gradient of one output pixel is then non-zero exactly on its
receptive field. The probe is a thin strip, since all operations look equally far along it however narrow it is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from napari_isdnet.exceptions import InputError
from napari_isdnet.window import Window

MAX_PROBE = 4096
ALIGN = 32
STRIP = 8
GAIN = 2.0**100
"""Of the probe's gradient: at the rim it falls by a factor of the kernel's size with every layer, far below float32."""


class NotLocalError(InputError):
    """Part of a network looks at its whole input, so that it cannot be streamed exactly; ``cause`` says which."""

    def __init__(self, cause: str) -> None:
        super().__init__(
            f"{cause}, so a large image cannot be inferred exactly in parts; use --context window, or a convolutional"
            " network with both branches."
        )
        self.cause = cause


def plain_copy(module: nn.Module) -> nn.Module:
    """A copy for inference in float32 on the CPU, where the strips of a probe lie."""
    return copy.deepcopy(module).float().cpu().eval()


def _transparent(module: nn.Module) -> nn.Module:
    """A copy through which gradients show the receptive field (see the module's text)."""
    module = plain_copy(module)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.MaxPool2d):
                setattr(parent, name, nn.AvgPool2d(child.kernel_size, child.stride, child.padding))
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            child.weight.fill_(1.0 / child.weight[0].numel())
            if child.bias is not None:
                child.bias.zero_()
        elif isinstance(child, nn.BatchNorm2d):
            child.running_mean.zero_()  # type: ignore[union-attr]
            child.running_var.fill_(1.0)  # type: ignore[union-attr]
            if child.affine:
                child.weight.fill_(1.0)
                child.bias.zero_()
    return module


def _extent(run: Callable[[Tensor], Tensor], channels: int, length: int, axis: int, what: str) -> tuple[int, int, int]:
    """(pixels before, pixels after, stride) that the middle output looks beyond its own cell along one axis."""
    shape = [1, channels, STRIP, STRIP]
    shape[2 + axis] = length
    # Small values: sums over residual connections must not reach the flat part of a ReLU6.
    x = torch.full(shape, 1e-3, requires_grad=True)
    with torch.enable_grad():
        y = _maps(run, x, what)
        stride = round(length / y.shape[2 + axis])
        middle = y.shape[2 + axis] // 2
        y.select(2 + axis, middle).sum().mul(GAIN).backward()
    assert x.grad is not None
    line = x.grad.abs().sum(dim=(0, 1, 3 - axis))
    touched = torch.nonzero(line > 0).flatten()
    if not len(touched):
        raise NotLocalError(f"{what} does not show how far it looks (normalisation over channels or the like)")
    first, last = int(touched[0]), int(touched[-1])
    return middle * stride - first, last - (middle * stride + stride - 1), stride


def probe_halo(pieces: Sequence[nn.Module], run: Callable[..., Tensor], channels: int, what: str) -> int:
    """Halo in input pixels of ``run(x, *pieces)``, a multiple of nothing in particular.

    ``run`` gets a strip (1, channels, ...) of one small value and transparent copies of ``pieces``. Raises
    :class:`NotLocalError` (naming ``what``) where the receptive field does not end within ``MAX_PROBE`` pixels.
    """
    copies = [_transparent(piece) for piece in pieces]
    halo = 0
    for axis in (0, 1):
        length = 512
        while True:
            before, after, stride = _extent(lambda x: run(x, *copies), channels, length, axis, what)
            reach = max(before, after)
            if reach + 2 * stride < length // 2 - stride:
                break
            length *= 2
            if length > MAX_PROBE:
                raise NotLocalError(
                    f"{what} looks at its whole input (global attention, squeeze-and-excite or the like)"
                )
        # Padding that depends on the parity of the size ('same' of TensorFlow) may shift the field by up to a stride.
        halo = max(halo, reach + stride)
    return halo


def _maps(run: Callable[[Tensor], Tensor], x: Tensor, what: str) -> Tensor:
    try:
        return run(x)
    except RuntimeError:  # layers that do not fit together at every size
        raise NotLocalError(f"{what} does not take an input of {x.shape[2]} x {x.shape[3]} pixels") from None


@torch.inference_mode()
def check_halo(run: Callable[[Tensor], Tensor], channels: int, stride: int, halo: int, what: str) -> None:
    """Try on noise that windows with their ``halo`` give the crop of the whole, in maps whose sizes round up.

    A probe sees too little where gradients cancel (normalisation over channels), and knows nothing of sizes. Raises
    :class:`NotLocalError` (naming ``what``) where they do not.
    """
    start = -(-halo // ALIGN) * ALIGN + ALIGN
    length = 2 * start + 3 * ALIGN + halo % ALIGN  # of which a window beside its halo has not one pixel more
    for axis in (0, 1):
        size, corner, side = [STRIP + 5] * 2, [0, 0], [STRIP + 5] * 2
        size[axis], corner[axis], side[axis] = length, start, ALIGN
        core = Window(*corner, *side)
        x = torch.randn(1, channels, *size, generator=torch.Generator().manual_seed(0))
        whole = _maps(run, x, what)
        if whole.shape[2:] != tuple(-(-n // stride) for n in size):
            raise NotLocalError(f"{what} gives maps that are not 1/{stride} of its input, rounded up")
        patch = padded_window(core, halo, (size[0], size[1]))
        part = _maps(run, x[(..., *patch.slices)], what)
        wanted = whole[(..., *core.divided(stride).slices)]
        got = part[(..., *core.relative_to(patch).divided(stride).slices)]
        if (got - wanted).abs().max() > 1e-3 * wanted.std():
            raise NotLocalError(f"{what} looks farther than the {halo} pixels that its gradients show")


def padded_window(core: Window, halo: int, shape: tuple[int, int]) -> Window:
    """``core`` with at least ``halo`` pixels around it, cut at the image's true border.

    The origin is a multiple of ``ALIGN`` and the size agrees with that of the image modulo ``ALIGN``: every layer of
    the network then sees the parity that it sees in the whole image, which is what padding 'same' depends on.
    """
    top, left = (max(0, start - halo) // ALIGN * ALIGN for start in (core.row, core.column))
    ends = []
    for end, size in zip((core.bottom, core.right), shape):
        wanted = end + halo
        ends.append(min(size, wanted + (size - wanted) % ALIGN))
    return Window.from_bounds(top, left, ends[0], ends[1])
