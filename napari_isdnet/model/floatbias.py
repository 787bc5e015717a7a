"""Convolutions in bfloat16 with a float32 bias, which oneDNN adds before it rounds: more exact at the same speed.

:func:`torch.nn.functional.conv2d` wants one type for both, oneDNN does not. Rounding a bias to 8 bits shifts a whole
feature map; with exact ones, what is left of the rounding of the weights can be taken out of them as well.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FloatBiasConv2d(nn.Conv2d):
    """A convolution whose bias may be float32 beside weights and inputs of bfloat16, for inference on a CPU.

    ``same``: padded as TensorFlow's 'same' (timm's ``Conv2dSame``), which depends on the size of the input.
    """

    same: bool = False
    takes_float_bias = True

    @classmethod
    def of(cls, conv: nn.Conv2d) -> FloatBiasConv2d:
        """The form of ``conv`` with its parameters; ask :func:`can_keep_bias` first."""
        made = cls(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation,  # type: ignore[arg-type]
            conv.groups, bias=True, device="meta",
        )  # fmt: skip
        made.weight, made.bias = conv.weight, conv.bias
        made.same = type(conv).__name__ == "Conv2dSame"
        return made.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, K, H', W') in the type of the weights."""
        padding = self.padding
        if self.same:
            from timm.layers import pad_same

            x, padding = pad_same(x, self.kernel_size, self.stride, self.dilation), (0, 0)  # type: ignore[arg-type]
        assert self.bias is not None
        if self.bias.dtype == self.weight.dtype:
            return F.conv2d(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)
        return convolved(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)


def convolved(
    x: Tensor, weight: Tensor, bias: Tensor, stride: tuple[int, ...], padding: object, dilation: tuple[int, ...],
    groups: int,
) -> Tensor:  # fmt: skip
    """oneDNN's convolution of bfloat16 ``x`` and ``weight`` with float32 ``bias``."""
    result: Tensor = torch.ops.aten.mkldnn_convolution(x, weight, bias, padding, stride, dilation, groups)
    return result


@lru_cache(maxsize=1)
def available() -> bool:
    """True where that convolution is there and right: no promise of torch's, so it is tried."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(shape, generator=generator).bfloat16() for shape in ((1, 16, 8, 8), (16, 16, 3, 3)))
    bias = 100 + torch.randn(16, generator=generator)  # bfloat16 has a step of 0.5 there
    try:
        got = convolved(x, weight, bias, (1, 1), (1, 1), (1, 1), 1)
    except (RuntimeError, AttributeError, TypeError):
        return False
    wanted = F.conv2d(x.float(), weight.float(), bias, padding=1).bfloat16()
    return got.dtype == torch.bfloat16 and bool(((got.float() - wanted.float()).abs() <= 0.5).all())


def can_keep_bias(module: nn.Module) -> bool:
    """True for a plain convolution with a bias, or timm's with padding 'same'."""
    plain = type(module) is nn.Conv2d or type(module).__name__ == "Conv2dSame"
    return plain and module.bias is not None and module.padding_mode == "zeros" and not isinstance(module.padding, str)


def keep_biases(model: nn.Module) -> list[nn.Conv2d]:
    """Replace those convolutions of ``model`` in place; returns all whose bias may stay float32.

    No convolution where :func:`available` says no.
    """
    if not available():
        return []
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if can_keep_bias(child)
    ]
    for parent, name, child in found:
        assert isinstance(child, nn.Conv2d)
        setattr(parent, name, FloatBiasConv2d.of(child))
    return [m for m in model.modules() if getattr(m, "takes_float_bias", False) and m.bias is not None]  # type: ignore[misc]
