"""Backbones of timm that take sides of multiples of 32 only, or one size only, for images of any size."""

from __future__ import annotations

import pytest
import torch

from napari_isdnet.engine.device import prepare
from napari_isdnet.exceptions import InputError
from napari_isdnet.model import timm_maps
from napari_isdnet.model.deep import TimmBackbone
from napari_isdnet.model.isdnet import ISDNet, Unfilled
from napari_isdnet.model.shallow import TimmShallow
from tests.network_tools import lively, picture, small
from tests.test_streaming import CPU, all_logits, assert_is_the_forward, one_shot, streamed


@pytest.mark.parametrize("name", ["dla34", "convnext_atto", "vgg11", "hrnet_w18_small"])
def test_maps_of_any_sides_are_rounded_up(name: str) -> None:
    """timm's own words are 'The size of tensor a (38) must match the size of tensor b (37) ...', or a map too small."""
    x = torch.randn(2, 3, 75, 101)
    with Unfilled():
        backbone, shallow = TimmBackbone(name, 8).eval(), TimmShallow(name, 3)
    before, last = backbone(x)
    assert last.shape[2:] == (10, 13)
    assert before.shape[2:] in ((10, 13), (19, 26))
    x8, x16 = shallow.train()(x)
    assert (x8.shape[2:], x16.shape[2:]) == ((10, 13), (5, 7))


@pytest.mark.parametrize("size", [(96, 64), (75, 101)])
def test_a_network_that_takes_any_sides_gets_the_image_as_it_is(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timm_maps, "_padding", {})
    monkeypatch.setattr(timm_maps, "ANY_SIDES", frozenset())
    x = torch.randn(1, 3, *size)
    for net in (TimmBackbone("tf_efficientnet_lite0", 8), TimmBackbone("resnet10t", 16)):
        assert torch.equal(net.eval()(x)[1], net.body(x)[-1])
    shallow = TimmShallow("tf_efficientnet_lite0", 3).eval()
    assert torch.equal(shallow(x)[0], shallow.body(x)[0])


def test_channels_that_come_last_are_told_from_as_many_rows() -> None:
    with Unfilled():
        net = TimmBackbone("mambaout_femto", 8).eval()
    channels = net.out_channels[1]
    assert net(torch.zeros(1, 3, 8 * channels, 64))[1].shape == (1, channels, channels, 8)


def test_a_network_of_one_size_is_refused_when_it_is_made() -> None:
    with pytest.raises(InputError, match=r"'test_vit_relpos' takes pictures of its own size only.*such as") as caught:
        ISDNet(small(deep="test_vit_relpos", deep_stride=16))
    assert "\n" not in str(caught.value)


def test_what_is_tried_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm_maps, "_padding", {})
    torch.manual_seed(0)
    tried = TimmBackbone("dla34", 8)
    then = torch.rand(1)
    torch.manual_seed(0)
    known = TimmBackbone("dla34", 8)
    assert torch.equal(torch.rand(1), then)
    assert tried.training
    assert all(torch.equal(a, b) for a, b in zip(tried.state_dict().values(), known.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("deep", "shallow", "shape"),
    [
        ("dla34", "narrow", (421, 69)),
        pytest.param("dla34", "narrow", (517, 389), marks=pytest.mark.long),
        pytest.param("resnet18", "dla34", (517, 389), marks=pytest.mark.long),
        pytest.param("hrnet_w18_small", "hrnet_w18_small", (1157, 139), marks=pytest.mark.long),
    ],
)
def test_windows_of_a_padded_backbone_are_one_forward(deep: str, shallow: str, shape: tuple[int, int]) -> None:
    """At full scale, so that the deep branch goes over several windows, too."""
    model = lively(small(deep=deep, shallow=shallow, downscale=1, channels=16, classes=3))
    image = picture(shape)
    whole = streamed(model, image, core=128, exact=True)
    assert len((whole.shallow8 if shallow == "dla34" else whole.backbone).grid) > 1
    assert_is_the_forward(all_logits(whole, 200), one_shot(model, image))


def test_such_a_network_is_made_ready_for_inference() -> None:
    """Its batch norm is folded against an image whose quarter 32 does not divide."""
    ready = prepare(lively(small(deep="dla34", channels=16)), CPU)
    assert ready(torch.randn(1, 3, 45, 70)).logits.shape == (1, 5, 45, 70)
