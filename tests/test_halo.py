"""Receptive fields found by probing: against those known by hand, and against what the network does with its input."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from napari_isdnet.engine import local
from napari_isdnet.engine.halo import NotLocalError, check_halo, padded_window, probe_halo
from napari_isdnet.engine.local import LocalNetwork
from napari_isdnet.model.config import ISDNetConfig
from napari_isdnet.model.isdnet import ISDNet
from napari_isdnet.window import Grid, Window
from tests.network_tools import lively, small


def halo_of(module: nn.Module, channels: int = 2) -> int:
    return probe_halo([module], lambda x, m: m(x), channels, "The piece")


def conv(kernel: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(2, 2, kernel, stride, dilation * (kernel // 2), dilation)


@pytest.mark.parametrize(
    ("module", "halo"),
    [
        (conv(1), 1),  # a stride more than it reaches, for padding that depends on parity
        (conv(3), 2),
        (conv(5), 3),
        (conv(3, dilation=12), 13),
        (nn.Sequential(conv(3), nn.BatchNorm2d(2), nn.ReLU6(), conv(3)), 3),
        (nn.Sequential(conv(3, 2), conv(3, 2)), 3 + 4),
        (nn.Sequential(conv(3, 2), nn.MaxPool2d(3, 2, 1), conv(3)), 3 + 4 + 4),
        (nn.Conv2d(2, 2, (1, 9), 1, (0, 4)), 5),  # the longer axis counts
    ],
    ids=["1x1", "3x3", "5x5", "dilated", "two", "strides", "pool", "oblong"],
)
def test_known_receptive_fields(module: nn.Module, halo: int) -> None:
    assert halo_of(module) == halo


class Pooled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.mean((2, 3), keepdim=True)


def test_what_looks_everywhere_is_named() -> None:
    with pytest.raises(NotLocalError, match=r"The piece looks at its whole input.*--context window") as caught:
        halo_of(Pooled())
    assert caught.value.cause.startswith("The piece looks at its whole input")
    assert "\n" not in str(caught.value)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_any_stack_of_convolutions_is_exact_within_its_halo(data: st.DataObject) -> None:
    """Weights of both signs: a window with its halo gives the crop of the whole, at borders and inside."""
    torch.manual_seed(data.draw(st.integers(0, 99)))
    layers: list[nn.Module] = []
    stride = 1
    for _ in range(data.draw(st.integers(1, 4))):
        kernel, dilation = data.draw(st.sampled_from([1, 3, 5])), data.draw(st.sampled_from([1, 2, 3]))
        step = data.draw(st.sampled_from([1, 2])) if stride < 8 else 1
        layers += [conv(kernel, step, dilation), nn.ReLU()]
        stride *= step
    module = nn.Sequential(*layers).double()
    halo = halo_of(module)
    shape = data.draw(st.tuples(st.integers(64, 150), st.integers(64, 150)))
    x = torch.randn(1, 2, *shape, dtype=torch.float64)
    with torch.no_grad():
        whole = module(x)
        for core in list(Grid(shape, (64, 64)))[-2:]:
            patch = padded_window(core, halo, shape)
            out = core.divided(stride).clipped((whole.shape[2], whole.shape[3]))
            rows, columns = out.shifted(-patch.row // stride, -patch.column // stride).slices
            got = module(x[(..., *patch.slices)])[:, :, rows, columns]
            torch.testing.assert_close(got, whole[(..., *out.slices)], atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("shape", [(1000, 1001), (333, 97), (64, 64)])
def test_padded_windows_keep_parity_and_hold_the_halo(shape: tuple[int, int]) -> None:
    for core in Grid(shape, (96, 96)):
        patch = padded_window(core, 40, shape)
        assert Window.whole(shape).contains(patch)
        assert patch.contains(core.expanded(40).clipped(shape))
        assert patch.row % 32 == 0
        assert patch.column % 32 == 0
        assert (patch.bottom - shape[0]) % 32 == 0
        assert (patch.right - shape[1]) % 32 == 0


def test_the_published_network_reaches_as_far_as_its_layers_say() -> None:
    """By hand from the layers, in pixels of each piece's own input; the probe adds a stride, the residuals their own.

    Backbone: stem 1+1+1 at strides 1, 2, 2 -> 1 + 2 + 2; pool 2; eight dilated blocks -> 155 in all.
    """
    found = LocalNetwork(ISDNet(ISDNetConfig.of("reference", 7)).eval())
    assert found.backbone_halo == 155 + 8
    assert found.head_halo == 36 + 1 + 1 + 1  # dilation 36, the bottleneck, the fusion's convolution; one stride
    assert 170 < found.shallow_halo <= 192 + 6 * 4


def test_an_architecture_is_probed_once_whatever_its_weights_and_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    first = LocalNetwork(lively(small(channels=16)))
    monkeypatch.setattr(local, "probe_halo", lambda *_: pytest.fail("probed again"))
    again = LocalNetwork(lively(small(channels=16, classes=9, distillation=None), seed=3))
    assert (again.shallow_halo, again.backbone_halo) == (first.shallow_halo, first.backbone_halo)


def test_backbones_that_pool_are_named_every_time() -> None:
    model = lively(small(deep="mobilenetv3_small_050", channels=16, deep_stride=16))
    for _ in range(2):
        with pytest.raises(NotLocalError, match="The backbone 'mobilenetv3_small_050' looks at its whole input"):
            LocalNetwork(model)


@pytest.mark.parametrize(
    ("module", "halo", "said"),
    [
        (nn.Sequential(conv(3), conv(3)), 2, None),
        (nn.Sequential(conv(3), conv(3)), 1, "looks farther than the 1 pixels"),
        (nn.Sequential(conv(3), nn.MaxPool2d(2)), 4, "maps that are not 1/2 of its input, rounded up"),
        (nn.Sequential(conv(3), nn.MaxPool2d(2, ceil_mode=True)), 4, None),
        (nn.Conv2d(2, 2, (3, 100)), 4, "does not take an input of 228 x 13 pixels"),
    ],
    ids=["enough", "too little", "rounds down", "rounds up", "too small"],
)
def test_a_halo_is_tried_on_noise(module: nn.Module, halo: int, said: str | None) -> None:
    stride = 2 if len(list(module.children())) > 1 and isinstance(module[1], nn.MaxPool2d) else 1  # type: ignore[index]
    if said is None:
        check_halo(module, 2, stride, halo, "The piece")
        return
    with pytest.raises(NotLocalError, match=f"The piece .*{said}"):
        check_halo(module, 2, stride, halo, "The piece")


@pytest.mark.parametrize("deep_stride", [8, 16])
@pytest.mark.parametrize(
    ("deep", "shallow"),
    [("resnet18", "narrow"), ("tf_efficientnet_lite0",) * 2]
    + [pytest.param("resnet50", name, marks=pytest.mark.long) for name in ("stdc1", "stdc2")],
)
def test_the_branches_that_are_not_tried_at_every_start_pass(
    deep: str, shallow: str, deep_stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {deep, shallow} <= local.PROVEN
    monkeypatch.setattr(local, "PROVEN", frozenset())
    monkeypatch.setattr(local, "_probed", {})
    LocalNetwork(ISDNet(small(deep=deep, shallow=shallow, deep_stride=deep_stride, channels=16)).eval())


def test_backbones_that_a_probe_does_not_understand_are_named() -> None:
    with pytest.raises(NotLocalError, match=r"'convnext_atto' does not show how far it looks.*--context window"):
        LocalNetwork(lively(small(deep="convnext_atto", channels=16)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_network_on_a_card_is_probed_as_on_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    model = lively(small(channels=16))
    expected = LocalNetwork(model)
    monkeypatch.setattr(local, "_probed", {})
    found = LocalNetwork(model.to("cuda"))
    assert (found.shallow_halo, found.backbone_halo) == (expected.shallow_halo, expected.backbone_halo)
