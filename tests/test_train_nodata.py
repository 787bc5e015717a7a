"""Pixels that are no image (alpha 0, nodata) neither teach nor judge, whatever their mask says, and are never black."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from napari_isdnet_training import evaluate as evaluation
from napari_isdnet_training.census import check_dataset
from napari_isdnet_training.config import Recipe, recipe_from
from napari_isdnet_training.crops import CropDataset
from napari_isdnet_training.datasets import open_dataset
from napari_isdnet_training.device_crops import DeviceCrops
from napari_isdnet_training.registry import Network
from napari_isdnet_training.sampling import CropSampler
from napari_isdnet_training.sources import normalised
from napari_isdnet_training.strokecrops import Normaliser
from PIL import Image
from torch import nn

from napari_isdnet.engine.patches import PatchReader
from napari_isdnet.io.intensity import IntensityPolicy
from napari_isdnet.io.open import open_source
from napari_isdnet.progress import result_of
from napari_isdnet.window import Window

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
        # Between the image's 200 and the mean colour that fills the rest: nothing is black, nor becomes so by resizing.
        assert image.min() >= min(recipe.data.mean) - 1e-3
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


def test_what_is_no_image_is_what_segmenting_makes_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = holed(tmp_path, 1.0, SIDE)
    dataset, seen = open_dataset(recipe.data), []

    def predict(_: Any, image: np.ndarray[Any, Any], data: Any, __: int) -> np.ndarray[Any, Any]:
        seen.append(normalised(image, data.mean, data.std)[None])
        return np.zeros(image.shape[:2], np.uint8)

    monkeypatch.setattr(evaluation, "predict_whole", predict)
    network: Any = None
    result_of(evaluation.evaluate_samples(network, dataset.split("validation"), dataset, recipe.data))
    header: Any = SimpleNamespace(header=recipe.data)
    with closing(open_source(tmp_path / "images" / "b.png")) as source:
        policy, whole = IntensityPolicy.from_source(source), Window(0, 0, SIDE, SIDE)
        expected = torch.from_numpy(PatchReader(source, policy, header).read(whole)[0].transpose(2, 0, 1).copy())
        tuned = Normaliser(source, policy, recipe.data.mean, recipe.data.std)
        torch.testing.assert_close(tuned.tensor(tuned.pixels(whole)[0]), expected)
    torch.testing.assert_close(seen[0][0], expected)
    sampler = CropSampler(check_dataset(dataset)["train"], recipe.crop, 0)
    still = recipe.augment.model_copy(update={"flip_horizontal": 0.0})
    whole_crop, raw = (
        CropDataset(dataset.split("train"), sampler, recipe.data, recipe.crop, still, dataset.code, raw)[0]
        for raw in (False, True)
    )
    finished = DeviceCrops(recipe.data, recipe.crop.size, torch.device("cpu")).finish([raw])  # type: ignore[list-item]
    for image in (whole_crop[0], finished[0][0]):  # type: ignore[index]
        torch.testing.assert_close(image, expected, atol=1e-5, rtol=1e-5)
