"""Depthwise convolutions for training: values and gradients of torch, in every form that timm has."""

from __future__ import annotations

import copy

import pytest
import torch
from napari_isdnet_training.depthwise import DepthwiseConv2d, faster_on_cpu
from timm.layers import Conv2dSame
from torch import Tensor, nn

FORMS = {
    "plain": lambda: nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False),
    "bias": lambda: nn.Conv2d(6, 6, 5, padding=2, groups=6),
    "strided": lambda: nn.Conv2d(6, 6, 3, stride=2, padding=1, groups=6),
    "same": lambda: Conv2dSame(6, 6, 5, stride=2, groups=6, bias=False),
    "dilated": lambda: nn.Conv2d(6, 6, 5, padding=8, dilation=4, groups=6),
}


def gradients(conv: nn.Module, x: Tensor, low: bool) -> tuple[Tensor, ...]:
    value = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        y = conv(value)
    (y.float() * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    return y.detach(), value.grad, *(p.grad for p in conv.parameters())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("low", [False, True])
def test_values_and_gradients_are_those_of_torch(form: str, low: bool) -> None:
    torch.manual_seed(0)
    holder = nn.Sequential(FORMS[form]())
    other = copy.deepcopy(holder)
    assert faster_on_cpu(other) == 1
    assert type(other[0]) is not type(holder[0])
    assert list(other.state_dict()) == list(holder.state_dict())
    x = torch.randn(2, 6, 21, 18)
    wanted, found = gradients(holder, x, False), gradients(other, x, low)
    for a, b in zip(wanted, found, strict=True):
        assert a.shape == b.shape
        assert (a - b.float()).abs().max() <= (0.02 if low else 1e-5) * a.abs().max()
    assert found[0].dtype == (torch.bfloat16 if low else torch.float32)


def test_a_gradient_that_nobody_asks_for_is_not_computed() -> None:
    holder = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False))
    faster_on_cpu(holder)
    x = torch.randn(1, 4, 8, 8)
    holder(x).sum().backward()
    assert holder[0].weight.grad is not None
    holder.requires_grad_(False)
    value = x.clone().requires_grad_()
    holder[0].weight.grad = None
    holder(value).sum().backward()
    assert value.grad is not None
    assert holder[0].weight.grad is None


def test_other_convolutions_stay() -> None:
    kept = [
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 8, 3, groups=4),
        nn.Conv2d(1, 1, 3),
        nn.Conv2d(4, 4, 3, padding=1, groups=4, padding_mode="reflect"),
        nn.Conv2d(4, 4, 3, padding="same", groups=4),
    ]
    holder = nn.Sequential(*kept)
    assert faster_on_cpu(holder) == 0
    assert list(holder) == kept
    assert not any(isinstance(m, DepthwiseConv2d) for m in holder)
