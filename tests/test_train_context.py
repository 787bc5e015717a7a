"""Pooled means mixed over a batch: only where it trains, only between a crop's own mean and the batch's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from napari_isdnet_training.config import recipe_from
from napari_isdnet_training.context import mix_context
from napari_isdnet_training.fit import fit
from safetensors.torch import load_file

from napari_isdnet.exceptions import InputError
from napari_isdnet.model.config import ISDNetConfig
from napari_isdnet.model.heads import PooledConv
from napari_isdnet.model.isdnet import ISDNet
from tests.test_train_fit import drain, make_data, tiny


def seen(layer: PooledConv, pooled: torch.Tensor) -> torch.Tensor:
    """What the layer's convolution is given."""
    found = []
    hook = layer.conv.register_forward_pre_hook(lambda _, args: found.append(args[0]))
    layer(pooled)
    hook.remove()
    return found[0]


def test_every_mean_lies_between_the_crops_and_the_batchs() -> None:
    torch.manual_seed(0)
    layer = PooledConv(8, 4)
    assert mix_context(layer) == 1
    pooled = torch.randn(6, 8, 1, 1)
    got = seen(layer, pooled)
    common = pooled.mean(0, keepdim=True)
    share = ((got - pooled) / (common - pooled)).flatten(1)
    assert torch.allclose(share, share[:, :1].expand_as(share), atol=1e-4)  # one share for all channels of a crop
    assert ((share[:, 0] >= 0) & (share[:, 0] <= 1)).all()
    assert share[:, 0].std() > 0.05


def test_nothing_is_mixed_where_it_does_not_train() -> None:
    layer = PooledConv(8, 4)
    mix_context(layer)
    pooled = torch.randn(6, 8, 1, 1)
    with torch.no_grad():
        assert torch.equal(seen(layer, pooled), pooled)
    assert torch.equal(seen(layer.eval(), pooled), pooled)
    assert torch.equal(seen(layer.train(), pooled[:1]), pooled[:1])


def test_every_mean_of_the_network_is_mixed() -> None:
    assert mix_context(ISDNet(ISDNetConfig.lite(3))) == 5  # the head's and both gates of both fusions
    assert mix_context(ISDNet(ISDNetConfig.lite(3, fusion="add", deep_head="segformer"))) == 0


def test_a_cut_run_with_mixing_goes_on_bit_for_bit(tmp_path: Path) -> None:
    recipe = tiny(make_data(tmp_path / "data"))
    recipe = recipe.model_copy(update={"augment": recipe.augment.model_copy(update={"mix_context": True})})
    drain(fit(recipe, tmp_path / "whole"))
    steps = fit(recipe, tmp_path / "cut")
    for _ in range(3):
        next(steps)
    steps.close()
    drain(fit(recipe, tmp_path / "cut"))
    plain = recipe.model_copy(update={"augment": recipe.augment.model_copy(update={"mix_context": False})})
    drain(fit(plain, tmp_path / "plain"))
    whole, cut, other = (load_file(tmp_path / n / "last.ckpt.safetensors") for n in ("whole", "cut", "plain"))
    assert all(torch.equal(whole[k], cut[k]) for k in whole)
    assert not all(torch.equal(whole[k], other[k]) for k in whole)


def test_a_network_that_pools_nothing_is_refused_in_one_sentence(tmp_path: Path) -> None:
    root = make_data(tmp_path / "data")
    recipe = tiny(root).to_dict()
    recipe["model"] = {"name": "unet", "pretrained": False, "options": {}}
    recipe["augment"]["mix_context"] = True
    with pytest.raises(InputError, match=r"mix_context is for networks that pool over the image, and unet does not"):
        drain(fit(recipe_from(recipe), tmp_path / "run"))
