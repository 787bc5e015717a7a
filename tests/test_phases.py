"""Dilated depthwise convolutions by phases: the values, gradients and names of torch's own."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from napari_isdnet.model.phases import CHUNK, PhasedConv2d, by_phases, can_be_phased


def depthwise(channels: int, kernel: int, dilation: int, bias: bool = True) -> nn.Conv2d:
    padding = dilation * (kernel // 2)
    return nn.Conv2d(channels, channels, kernel, padding=padding, dilation=dilation, groups=channels, bias=bias)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 7),
    st.sampled_from([1, 3, 5]),
    st.integers(1, 6),
    st.tuples(st.integers(1, 23), st.integers(1, 23)),
    st.booleans(),
)
def test_phases_give_the_dilated_convolution(
    batch: int, channels: int, kernel: int, dilation: int, size: tuple[int, int], bias: bool
) -> None:
    conv = depthwise(channels, kernel, dilation, bias)
    x = torch.randn(batch, channels, *size)
    with torch.no_grad():
        assert torch.allclose(PhasedConv2d.of(conv)(x), conv(x), atol=1e-5)


def test_more_channels_than_are_rearranged_at_once() -> None:
    conv = depthwise(2 * CHUNK + 3, 3, 3)
    x = torch.randn(1, 2 * CHUNK + 3, 10, 11).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        found = PhasedConv2d.of(conv)(x)
        assert torch.allclose(found, conv(x), atol=1e-5)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_gradients_are_those_of_the_dilated_convolution() -> None:
    conv = depthwise(5, 5, 4)
    phased = PhasedConv2d.of(copy.deepcopy(conv))
    x = torch.randn(2, 5, 17, 14)
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    upstream = torch.randn(2, 5, 17, 14)
    for module, value in zip((conv, phased), inputs, strict=True):
        module(value).backward(upstream)
    assert torch.allclose(inputs[0].grad, inputs[1].grad, atol=1e-5)
    assert torch.allclose(conv.weight.grad, phased.weight.grad, atol=1e-4)
    assert torch.allclose(conv.bias.grad, phased.bias.grad, atol=1e-4)


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(8, 8, 3, padding=4, dilation=4),  # not depthwise
        nn.Conv2d(8, 16, 3, padding=4, dilation=4, groups=8),  # more outputs than inputs
        nn.Conv2d(8, 8, 3, padding=0, dilation=4, groups=8),  # another output size
        nn.Conv2d(8, 8, 3, padding=4, dilation=4, groups=8, stride=2),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),  # not dilated
        nn.Conv2d(8, 8, 3, padding=4, dilation=4, groups=8, padding_mode="reflect"),
        nn.Conv2d(8, 8, 3, padding="same", dilation=4, groups=8),
        nn.ReLU(),
    ],
)
def test_only_what_is_the_same_is_replaced(module: nn.Module) -> None:
    assert not can_be_phased(module, 2)
    holder = nn.Sequential(module)
    assert by_phases(holder) == 0
    assert holder[0] is module


def test_a_network_keeps_its_names_and_answers() -> None:
    import timm

    net = timm.create_model("tf_efficientnet_lite0", features_only=True, output_stride=8).eval()
    keys = list(net.state_dict())
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        before = net(x)[-1]
        assert by_phases(net, 3) > 0
        after = net(x)[-1]
    assert list(net.state_dict()) == keys
    assert torch.allclose(before, after, atol=1e-4 * float(before.std()))
    assert by_phases(net, 3) == 0
