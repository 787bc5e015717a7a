"""Parts of one batch, accumulated or in several processes, teach as the batch does, however they are labelled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from napari_isdnet_training.config import Recipe, recipe_from
from napari_isdnet_training.registry import Network
from PIL import Image
from torch import Tensor, nn

from napari_isdnet.classes import IGNORE_INDEX
from napari_isdnet.model.auxiliary import labelled_weight, segmentation_loss
from tests.network_tools import lively, small
from tests.test_train_runs import RECIPE, assert_parts_are_the_batch, losses, run_command, trained


@pytest.mark.parametrize("weight", [None, torch.tensor([0.2, 1.0, 3.0])])
def test_the_mean_over_parts_is_the_loss_of_the_batch(weight: Tensor | None) -> None:
    net = lively(small("paper", classes=3, super_resolution=False, distillation=None))  # in evaluation mode
    x = torch.randn(4, 3, 64, 64)
    target = torch.randint(0, 3, (4, 64, 64))
    target[:2, 3:] = IGNORE_INDEX
    target[0] = IGNORE_INDEX
    count = labelled_weight(target, weight) / 4
    with torch.no_grad():
        whole = net.losses(x, target, weight)
        parts = [net.losses(x[n : n + 1], target[n : n + 1], weight, count) for n in range(4)]
    assert {"seg", "aux_deep", "aux16", "aux8", "aux_stage"} <= whole.keys()
    for key, value in whole.items():
        assert float(torch.stack([part[key] for part in parts]).mean()) == pytest.approx(float(value), rel=1e-4), key


class OverLabelled(Network):
    """Without batch statistics: what a step does depends on nothing but the sum of its parts."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 2, 1))
        super().__init__("plain", layers, None)

    def losses(
        self, x: Tensor, target: Tensor, weight: Tensor | None = None, count: Tensor | None = None
    ) -> dict[str, Tensor]:
        seg = segmentation_loss(self.logits(x), target, weight, count=count)
        return {"seg": seg, "total": seg}


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Images of which one is labelled all over and the others in a few rows."""
    root = tmp_path_factory.mktemp("uneven")
    for folder in ("images", "masks"):
        (root / folder).mkdir()
    rng = np.random.default_rng(0)
    for number in range(4):
        mask = np.full((96, 96), IGNORE_INDEX, np.uint8)
        rows = slice(0, 96) if number == 0 else slice(40, 44)
        mask[rows] = rng.integers(0, 2, mask[rows].shape)
        Image.fromarray(rng.integers(0, 255, (96, 96, 3)).astype(np.uint8)).save(root / "images" / f"a{number}.png")
        Image.fromarray(mask).save(root / "masks" / f"a{number}.png")
    return {"root": str(root), "classes": ["red", "green"], "train": ["a*"], "validation": []}


def recipe(data: dict[str, Any], **run: object) -> Recipe:
    return recipe_from(
        {
            "name": "uneven",
            "data": data,
            "crop": {"size": [96, 96], "cat_max_ratio": 1.0},
            "loss": {"class_weights": [0.3, 2.0]},
            "optimizer": {"lr": 0.05},
            "run": {"steps": 2, "batch": 4, "log_every": 1, "validate_every": 0, "accelerator": "cpu", **run},
        }
    )


def test_accumulated_parts_train_as_the_batch_where_masks_are_uneven(uneven: dict[str, Any], tmp_path: Path) -> None:
    for parts in (1, 2, 4):
        trained(recipe(uneven, accumulate=parts), tmp_path / str(parts), OverLabelled())
    assert_parts_are_the_batch(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_processes_train_as_one_where_masks_are_uneven(uneven: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE.replace('"inria"', '"folder"').replace("validate_every = 3", "validate_every = 0"))
    own = [f"data.root={uneven['root']}", "data.classes=['red', 'green']", "data.train=['a*']"]
    own += ["model.name=isdnet-paper-resnet18", "model.options.shallow=narrow", "run.steps=1"]
    for name, devices in (("one", 1), ("two", 2)):
        done = run_command(path, tmp_path / name, *own, f"run.devices={devices}")
        assert done.returncode == 0, done.stderr[-2000:]
    assert losses(tmp_path / "two")[0] == pytest.approx(losses(tmp_path / "one")[0], rel=1e-5)
