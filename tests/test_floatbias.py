"""A float32 bias beside bfloat16 weights: as the exact convolution rounded once, and plain where torch has it not."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import create_conv2d
from torch import Tensor, nn

from napari_isdnet.engine.device import Placement, prepare
from napari_isdnet.model import floatbias
from napari_isdnet.model.checkpoint import load_model
from napari_isdnet.model.floatbias import FloatBiasConv2d, can_keep_bias, keep_biases
from napari_isdnet.model.phases import PhasedConv2d

BFLOAT16 = Placement(torch.device("cpu"), torch.bfloat16)


def halved(layer: nn.Module) -> nn.Module:
    """The layer with bfloat16 weights and the bias as it is."""
    layer = copy.deepcopy(layer)
    layer.weight.data = layer.weight.data.bfloat16()
    return layer


def exact(layer: nn.Module, x: Tensor) -> Tensor:
    """What float32 makes of the same numbers."""
    whole = copy.deepcopy(layer).float()
    whole.weight.data = layer.weight.data.bfloat16().float()
    return whole(x.float())


CAN = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
needs_bfloat16 = pytest.mark.skipif(not CAN, reason="oneDNN has no bfloat16 on this processor (no AVX-512)")


def test_it_is_available_where_the_processor_can() -> None:
    """Should a torch to come refuse it, networks still run; but that ought to be known."""
    assert floatbias.available() == CAN


@needs_bfloat16
@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["plain", "same", "depthwise", "dilated", "pointwise"]), st.integers(9, 40), st.integers(9, 40),
    st.integers(0, 1000),
)  # fmt: skip
def test_it_is_the_exact_convolution_rounded_once(kind: str, height: int, width: int, seed: int) -> None:
    torch.manual_seed(seed)
    layer = {
        "plain": lambda: nn.Conv2d(8, 12, 3, stride=2, padding=1),
        "same": lambda: create_conv2d(8, 12, 3, stride=2, padding="same", bias=True),
        "depthwise": lambda: nn.Conv2d(8, 8, 5, padding=2, groups=8),
        "dilated": lambda: nn.Conv2d(8, 12, 3, padding=4, dilation=4),
        "pointwise": lambda: nn.Conv2d(8, 12, 1),
    }[kind]()
    layer.bias.data += 30  # where bfloat16 numbers are an eighth apart
    x = torch.randn(2, 8, height, width).bfloat16()
    with torch.inference_mode():
        got = FloatBiasConv2d.of(halved(layer))(x)
        wanted = exact(layer, x)
    assert got.dtype == torch.bfloat16
    assert got.shape == wanted.shape
    assert ((got.float() - wanted).abs() <= wanted.abs() * 2**-8 + 1e-5).all()


@needs_bfloat16
def test_phases_take_it_too() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(300, 300, 3, padding=3, dilation=3, groups=300)
    layer.bias.data += 30
    x = torch.randn(1, 300, 20, 25).bfloat16()
    with torch.inference_mode():
        got, wanted = PhasedConv2d.of(halved(layer))(x), exact(layer, x)
    assert ((got.float() - wanted).abs() <= wanted.abs() * 2**-8 + 1e-5).all()


def test_one_type_for_all_is_an_ordinary_convolution_with_gradients() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 3, padding=1)
    x = torch.randn(1, 4, 9, 9, requires_grad=True)
    assert torch.equal(FloatBiasConv2d.of(layer)(x), F.conv2d(x, layer.weight, layer.bias, padding=1))
    FloatBiasConv2d.of(layer)(x).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize(
    ("layer", "can"),
    [
        (nn.Conv2d(2, 2, 3), True),
        (create_conv2d(2, 2, 3, stride=2, padding="same", bias=True), True),
        (nn.Conv2d(2, 2, 3, bias=False), False),
        (nn.Conv2d(2, 2, 3, padding="same"), False),
        (nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), False),
        (nn.ConvTranspose2d(2, 2, 3), False),
        (nn.Linear(2, 2), False),
    ],
)
def test_what_it_stands_in_for(layer: nn.Module, can: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floatbias, "available", lambda: True)
    assert can_keep_bias(layer) is can
    found = keep_biases(nn.Sequential(layer))
    assert len(found) == can


@needs_bfloat16
@pytest.mark.long
def test_biases_of_a_prepared_network_are_not_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model("landcover-lite")
    ready = prepare(model, BFLOAT16)
    found = [m for m in ready.modules() if isinstance(m, FloatBiasConv2d)]
    assert all(m.bias.dtype == torch.float32 for m in found)
    assert sum(m.weight.dtype == torch.bfloat16 for m in found) > 80  # the others are gates
    # Where torch cannot, everything is bfloat16 as before, and the class map nearly the same.
    x = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        classes = ready(x).logits.argmax(1)
    monkeypatch.setattr(floatbias, "available", lambda: False)
    plain = prepare(model, BFLOAT16)
    assert not any(isinstance(m, FloatBiasConv2d) for m in plain.modules())
    with torch.inference_mode():
        assert (plain(x).logits.argmax(1) == classes).float().mean() > 0.95


def test_it_says_so_where_torch_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Tensor:
        raise RuntimeError("Input type and bias type should be the same")

    monkeypatch.setattr(floatbias, "convolved", refuse)
    floatbias.available.cache_clear()
    try:
        assert not floatbias.available()
    finally:
        monkeypatch.undo()
        floatbias.available.cache_clear()
