"""``model.init``: a recipe goes on from a model of its own network, its classes by name, and says what is new."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from napari_isdnet_training.config import Recipe, recipe_from
from napari_isdnet_training.setup import make_network

from napari_isdnet.classes import classes_from
from napari_isdnet.exceptions import InputError
from napari_isdnet.model.checkpoint import save_model
from napari_isdnet.model.config import ISDNetConfig
from tests.network_tools import lively


@pytest.fixture(scope="module")
def init(tmp_path_factory: pytest.TempPathFactory) -> Path:
    net = lively(ISDNetConfig.lite(2, channels=16))
    assert net.header is not None
    header = replace(net.header, classes=classes_from(["roof", "road"]), name="before")
    return save_model(net, tmp_path_factory.mktemp("init") / "m.safetensors", header, half=False)


def recipe(init: Path, name: str = "isdnet-lite0", **options: object) -> Recipe:
    return recipe_from(
        {"name": "next", "model": {"name": name, "init": str(init), "options": {"channels": 16} | options}}
    )


def test_rows_go_on_by_class_name_and_what_is_new_is_said(init: Path) -> None:
    same = make_network(recipe(init), classes_from(["roof", "road"]))
    assert same.pretrained == "model before"
    other = make_network(recipe(init), classes_from(["water", "Road", "roof"]))
    assert other.pretrained == "model before (new are class 'water')"
    one, two = same.net.state_dict(), other.net.state_dict()
    assert one.keys() == two.keys()
    for key, value in one.items():
        rows = two[key] if two[key].shape == value.shape else two[key][[2, 1]]
        assert torch.equal(rows, value), key
    assert not torch.equal(two["classifier.out.weight"][0], two["classifier.out.weight"][1])


def test_parts_that_do_not_fit_are_named(init: Path) -> None:
    network = make_network(recipe(init, channels=32), classes_from(["roof", "road"]))
    assert network.pretrained is not None
    assert network.pretrained.startswith("model before (new are ")
    assert {"head", "fuse8"} <= set(network.pretrained.removesuffix(")").split("are ")[1].split(", "))


@pytest.mark.parametrize(("name", "options"), [("isdnet-resnet18", {}), ("unet", None)])
def test_a_model_of_another_network_is_refused(init: Path, name: str, options: dict[str, object] | None) -> None:
    wanted = recipe(init, name)
    if options is None:
        wanted = wanted.model_copy(update={"model": wanted.model.model_copy(update={"options": {}})})
    with pytest.raises(InputError, match=f"is of another network than the recipe's '{name}'.*; choose model.name"):
        make_network(wanted, classes_from(["roof", "road"]))
