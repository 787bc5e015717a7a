"""Depthwise convolutions that learn fast on a CPU: gradients in float32, dilations phase by phase.

oneDNN has no fast bfloat16 kernel for the gradients of depthwise convolutions. Measured on two cores for batches of 4
in channels-last order, bfloat16 against float32: weights of a 5 x 5 convolution on 672 channels of 32 x 32 pixels 60
and 14 ms, input of a strided 3 x 3 one on 96 channels of 257 x 257 pixels 140 and 32 ms. With dilation, the bfloat16
gradient was even seen to be wrong (1e31).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_isdnet.model.phases import PhasedConv2d, can_be_phased


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution without bias in the arithmetic of ``x``; both gradients are computed in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: list[int], padding: list[int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight.to(x.dtype), None, stride, padding, groups=x.shape[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], False]
        of_x, of_weight, _ = torch.ops.aten.convolution_backward(
            gradient.float(), x.float(), weight.float(), None, ctx.stride, ctx.padding, [1, 1], False, [0, 0],
            x.shape[1], wanted,
        )  # fmt: skip
        return (
            of_x.to(x.dtype) if wanted[0] else None,
            of_weight.to(weight.dtype) if wanted[1] else None,
            None,
            None,
        )


def _convolved(x: Tensor, weight: Tensor, stride: list[int], padding: list[int]) -> Tensor:
    if torch.is_autocast_enabled("cpu"):
        x = x.to(torch.get_autocast_dtype("cpu"))
    result: Tensor = _Depthwise.apply(x, weight, stride, padding)
    return result


class DepthwiseConv2d(nn.Conv2d):
    """An undilated depthwise convolution; ``same`` pads as TensorFlow does, as timm's ``Conv2dSame``."""

    same = False

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H', W')."""
        padding = [int(p) for p in self.padding]
        if self.same:
            from timm.layers import pad_same

            x, padding = pad_same(x, self.kernel_size, self.stride), [0, 0]  # type: ignore[arg-type]
        y = _convolved(x, self.weight, list(self.stride), padding)
        return y if self.bias is None else y + self.bias.to(y.dtype).view(1, -1, 1, 1)


class _Phased(PhasedConv2d):
    def _taps(self, x: Tensor, weight: Tensor, padding: int) -> Tensor:
        return _convolved(x, weight, [1, 1], [padding, padding])


def faster_on_cpu(model: nn.Module) -> int:
    """Replace the depthwise convolutions of ``model`` in place; names, parameters and values stay. Returns how many."""
    from timm.layers import Conv2dSame

    found = [(parent, name, child) for parent in model.modules() for name, child in parent.named_children()]
    count = 0
    for parent, name, child in found:
        if type(child) not in (nn.Conv2d, Conv2dSame) or not isinstance(child, nn.Conv2d):
            continue
        new: nn.Conv2d | None = None
        if can_be_phased(child, 2):
            new = _Phased.of(child)
        elif _plain(child):
            new = DepthwiseConv2d(
                child.in_channels, child.out_channels, child.kernel_size, child.stride, child.padding,  # type: ignore[arg-type]
                groups=child.groups, bias=child.bias is not None, device="meta",
            )  # fmt: skip
            new.weight, new.bias, new.same = child.weight, child.bias, type(child) is Conv2dSame
            new.train(child.training)
        if new is not None:
            setattr(parent, name, new)
            count += 1
    return count


def _plain(conv: nn.Conv2d) -> bool:
    depthwise = conv.groups == conv.in_channels == conv.out_channels and conv.groups > 1
    return depthwise and conv.dilation == (1, 1) and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
