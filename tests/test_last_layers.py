"""Quick fine-tuning computes once what both models share, and no loss that teaches nobody: the same gradients."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from napari_isdnet_training.keeping import Keeping
from napari_isdnet_training.presets import BACKBONE, preset_of
from napari_isdnet_training.registry import Network
from napari_isdnet_training.starting import Start, choose_what_learns, parameter_groups, set_mode, start_from

from napari_isdnet.classes import IGNORE_INDEX, classes_from
from napari_isdnet.model.isdnet import ISDNet
from tests.network_tools import lively, small

NAMES = ["a", "b", "c"]


def gradients(net: ISDNet, keeping: Keeping, shared: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Losses that reach what learns, and its gradients, of one step."""
    torch.manual_seed(1)
    image = torch.randn(2, 3, 96, 128)
    target = torch.full((2, 96, 128), IGNORE_INDEX)
    target[:, 20:40, 30:90] = torch.randint(0, 3, (2, 20, 60))
    torch.manual_seed(2)  # dropout
    trunk = None
    if shared:
        with torch.no_grad():
            trunk = net.trunk(image)
    said: list[torch.Tensor] = []
    losses = net.losses(image, target, said=said) if trunk is None else net.last_losses(trunk, target, said)
    losses = {k: v for k, v in losses.items() if k != "total"} | {"keep": keeping.loss(said[0], image, target, trunk)}
    net.zero_grad(set_to_none=True)
    torch.stack(list(losses.values())).sum().backward()
    return losses, {name: p.grad for name, p in net.named_parameters()}


@pytest.mark.parametrize("flavour", ["reference", "paper"])
@pytest.mark.parametrize("fusion", ["raf", "add"])
def test_the_gradients_are_those_of_the_whole_forward(flavour: str, fusion: str) -> None:
    before = lively(small(flavour, classes=3, fusion=fusion, distillation="sampled", distillation_points=32))
    net = copy.deepcopy(before)
    network = Network("small", net, None)
    still = choose_what_learns(network, "quick", Start(network, before.header, "", ()))
    with torch.no_grad():
        net.classifier.out.bias += torch.tensor([1.0, 0.0, -1.0])
    set_mode(network, still)
    keeping = Keeping(before, NAMES, NAMES)
    whole, expected = gradients(net, keeping, shared=False)
    last, found = gradients(net, keeping, shared=True)
    assert set(last) <= set(whole)
    for name, value in last.items():
        assert value.item() == pytest.approx(whole[name].item(), rel=1e-6), name
    learning = {name for name, value in expected.items() if value is not None}
    assert learning == {name for name, value in found.items() if value is not None}
    assert any(name.startswith("fuse8") for name in learning)
    assert all(name.startswith(("fuse8", "classifier")) for name in learning)
    for name in learning:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=1e-8)


def test_the_trunk_is_all_before_the_last_fusion() -> None:
    net = lively(small(classes=3))
    x = torch.randn(1, 3, 96, 128)
    logits, _ = net.from_trunk(net.trunk(x))
    assert torch.equal(logits, net.coarse_logits(x))


@pytest.mark.parametrize("preset", ["quick", "thorough"])
def test_of_a_bare_backbone_both_branches_are_pretrained_and_stay_or_learn_gently(preset: str) -> None:
    start = start_from(BACKBONE, classes_from(["a", "b"]), 0)
    net: Any = start.network.net
    assert start.network.pretrained
    assert net.config.shallow_input == "rgb"
    still = choose_what_learns(start.network, preset, start)
    branches = {id(p) for part in (net.backbone, net.shallow) for p in part.parameters()}
    for parameter in net.parameters():
        assert parameter.requires_grad is (preset == "thorough" or id(parameter) not in branches)
    assert {id(m) for m in still} == ({id(net.backbone), id(net.shallow)} if preset == "quick" else set())
    scales = {g["scale"]: {id(p) for p in g["params"]} for g in parameter_groups(start.network, start)}
    assert (branches == scales.get(0.1, set())) is (preset == "thorough")
    assert preset_of(preset, BACKBONE).lr > preset_of(preset, "landcover-lite").lr
