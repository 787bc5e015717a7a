"""Pixels that are no image (alpha 0, nodata) neither teach nor judge, whatever their mask says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from napari_isdnet_training import evaluate as evaluation
from napari_isdnet_training.census import check_dataset
from napari_isdnet_training.config import Recipe, recipe_from
from napari_isdnet_training.crops import CropDataset
from napari_isdnet_training.datasets import open_dataset
from napari_isdnet_training.registry import Network
from napari_isdnet_training.sampling import CropSampler
from PIL import Image
from torch import nn

from napari_isdnet.progress import result_of

SIDE = 128


def holed(root: Path, scale: float, size: int) -> Recipe:
    """Bright images whose left part is transparent; their masks are labelled everywhere, class 1 on the left."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    pixels = np.full((SIDE, SIDE, 4), 200, np.uint8)
    pixels[:, : SIDE // 2, 3] = 0
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[:, : SIDE // 2] = 1
    for name in "ab":
        Image.fromarray(pixels).save(root / "images" / f"{name}.png")
        Image.fromarray(mask).save(root / "masks" / f"{name}.png")
    data = {"root": str(root), "classes": ["seen", "hidden"], "train": ["a"], "validation": ["b"]}
    crop = {"size": [size, size], "scale": [scale, scale], "cat_max_ratio": 1.0}
    return recipe_from({"name": "holed", "data": data, "crop": crop, "augment": {"photometric": False}})


@pytest.mark.parametrize(("scale", "size"), [(1.0, 96), (0.5, 64), (2.0, 160)])
@pytest.mark.parametrize("raw", [False, True])
def test_what_is_no_image_teaches_nothing(tmp_path: Path, scale: float, size: int, raw: bool) -> None:
    recipe = holed(tmp_path, scale, size)
    dataset = open_dataset(recipe.data)
    sampler = CropSampler(check_dataset(dataset)["train"], recipe.crop, 0)
    crops = CropDataset(dataset.split("train"), sampler, recipe.data, recipe.crop, recipe.augment, dataset.code, raw)
    labelled = 0
    for number in range(6):
        image, mask = crops.unfinished(number)[:2] if raw else crops.pixels(number)
        image, mask = np.asarray(image), np.asarray(mask)
        assert set(np.unique(mask)) <= {0, 255}
        assert (image[mask == 0] > 0).all()
        labelled += int((mask == 0).sum())
    assert labelled


def test_what_is_no_image_judges_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = holed(tmp_path, 1.0, 64)
    dataset = open_dataset(recipe.data)
    monkeypatch.setattr(evaluation, "WHOLE_PIXELS", 1000)
    monkeypatch.setattr(evaluation, "LARGE_WINDOW", 50)
    samples: Any = dataset.split("validation")
    network = Network("one", nn.Conv2d(3, 2, 1), None)
    torch.nn.init.zeros_(network.net.weight)  # type: ignore[arg-type]
    with torch.no_grad():
        network.net.bias.copy_(torch.tensor([1.0, 0.0]))  # type: ignore[operator]
    matrix = result_of(evaluation.evaluate_samples(network, samples, dataset, recipe.data))
    assert matrix.counts.tolist() == [[SIDE * SIDE // 2, 0], [0, 0]]
