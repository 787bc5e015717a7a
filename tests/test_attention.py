"""SegFormer's fused attention against the library's own: values, gradients, and what is never held."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from napari_isdnet_training.attention import fuse_attention
from napari_isdnet_training.benchmark.inference import multiply_adds
from napari_isdnet_training.registry import Network, build
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Largest(TorchDispatchMode):
    """The most elements of any tensor that an operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = [t.numel() for t in tree_leaves(result) if isinstance(t, Tensor)]
        self.elements = max([self.elements, *made])
        return result


@pytest.fixture
def both() -> tuple[nn.Module, nn.Module]:
    """The library's network and the same with fused attention."""
    torch.manual_seed(0)
    plain = smp.Segformer(encoder_name="mit_b0", encoder_weights=None, classes=3).eval()
    return plain, fuse_attention(copy.deepcopy(plain))


def test_values_and_gradients_are_those_of_the_library(both: tuple[nn.Module, nn.Module]) -> None:
    plain, fused = both
    x = torch.randn(2, 3, 96, 128)
    wanted, found = plain(x), fused(x)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    for net, result in ((plain, wanted), (fused, found)):
        result.square().mean().backward()
        assert all(p.grad is not None for p in net.encoder.parameters())
    own = dict(fused.named_parameters())
    assert own.keys() == dict(plain.named_parameters()).keys()
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(own[name].grad, parameter.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_the_weights_of_the_attention_are_never_held_at_once(both: tuple[nn.Module, nn.Module]) -> None:
    height, width = 128, 192
    tokens, keys = height * width, height * width // 64
    x = torch.randn(1, tokens, 32)
    most = []
    for net in both:
        with torch.inference_mode(), Largest() as largest:
            net.encoder.block1[0].attn(x, height, width)
        most.append(largest.elements)
    assert most == [tokens * keys, tokens * 32]


def test_its_multiply_adds_are_counted_as_before(both: tuple[nn.Module, nn.Module]) -> None:
    counts = [multiply_adds(Network("s", net, None, 32), (64, 96), "whole", 64, 0) for net in both]
    assert counts[0] == counts[1] > 0


def test_the_registrys_segformer_has_it() -> None:
    names = {type(m).__name__ for m in build("segformer-b0", 3, pretrained=False).modules()}
    assert "FusedAttention" in names
    assert "Attention" not in names
