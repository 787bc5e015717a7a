"""Figures of one setting are never given for another: rows of other settings, data, models and options."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from napari_isdnet_training.benchmark import ablation as ablation_module
from napari_isdnet_training.benchmark import features as features_module
from napari_isdnet_training.benchmark import loop as loop_module
from napari_isdnet_training.benchmark import table as table_module
from napari_isdnet_training.benchmark.ablation import ablation
from napari_isdnet_training.benchmark.features import features
from napari_isdnet_training.benchmark.loop import LoopOptions, Scene, loop
from napari_isdnet_training.benchmark.output import read_csv
from napari_isdnet_training.benchmark.runs import Trained, setting
from napari_isdnet_training.benchmark.table import table
from napari_isdnet_training.config import Recipe, recipe_from
from napari_isdnet_training.presets import BACKBONE

from napari_isdnet.classes import classes_from
from napari_isdnet.io.store import LabelStore
from napari_isdnet.model.header import IMAGENET_MEAN
from tests.benchmark_tools import CLASSES, drain, scene, tiny_recipe


def changed(recipe: Recipe, *settings: str) -> Recipe:
    return recipe_from(recipe.to_dict(), settings)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    """Recipes that were trained; the n-th gives a mIoU of n hundredths."""
    taken: list[Recipe] = []

    def train(recipe: Recipe, *_: Any) -> Generator[Any, None, Trained]:
        taken.append(recipe)
        yield from ()
        return Trained({"miou": len(taken) / 100, "accuracy": 0.5}, 1.0)

    monkeypatch.setattr(ablation_module, "train", train)
    monkeypatch.setattr(table_module, "train", train)
    return taken


def test_a_setting_is_all_but_steps_and_seed(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    same = changed(recipe, "seed=7", "run.steps=9", "run.validate_every=9")
    assert setting(recipe) == setting(same)
    others = [
        changed(recipe, "optimizer.lr=0.5"),
        changed(recipe, "data.root=elsewhere"),
        changed(recipe, "crop.size=[96,96]"),
    ]
    assert len({setting(r) for r in (recipe, *others)} | {setting(recipe, pretrained=False)}) == 5


@pytest.mark.parametrize("benchmark", ["ablation", "table"])
def test_another_setting_is_trained_anew(benchmark: str, trained: list[Recipe], tmp_path: Path) -> None:
    output, recipe = tmp_path / "r.csv", tiny_recipe(tmp_path)

    def run(one: Recipe) -> list[dict[str, Any]]:
        if benchmark == "ablation":
            return drain(ablation(one, output, [6], 1, 1, None, []))  # type: ignore[no-any-return]
        return drain(table(one, output, ["isdnet-lite0"], 1, 1, None, [], speed=False))  # type: ignore[no-any-return]

    first = run(recipe)
    count = len(trained)
    assert run(recipe) == first
    assert len(trained) == count
    second = run(changed(recipe, "optimizer.lr=0.5"))
    assert len(trained) == 2 * count
    assert len(second) == len(first)
    assert second[-1]["miou"] != first[-1]["miou"]
    assert run(recipe) == first
    assert read_csv(output) == [*first, *second]


def test_features_of_another_setting_are_other_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    def stages(*_: Any) -> Iterator[dict[str, Any]]:
        taken.append(1)
        yield {"stage": "all", "miou": len(taken) / 100}

    monkeypatch.setattr(features_module, "_stages", stages)
    output, recipe = tmp_path / "f.csv", tiny_recipe(tmp_path)

    def run(one: Recipe) -> list[str]:
        steps = features(one, "tf_efficientnet_lite0", output, [4], 3, 1, [], pretrained=False)
        return [row["miou"] for row in drain(steps)]

    assert run(recipe) == run(recipe) == ["0.01"]
    assert run(changed(recipe, "crop.size=[96,96]")) == ["0.02"]
    assert len(read_csv(output)) == 2


def test_the_loop_of_another_scene_or_share_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Path] = []

    def tune(run: Any, annotations: Any, output: Path, *_: Any, **__: Any) -> Generator[Any, None, str]:
        taken.append(output)
        yield from ()
        return BACKBONE

    monkeypatch.setattr(loop_module._Loop, "_tune", tune)
    monkeypatch.setattr(Scene, "score", lambda *_: 0.5)
    image, mask = scene(tmp_path, "s", (128, 256), 2)
    other, other_mask = scene(tmp_path, "t", (128, 256), 4)
    output = tmp_path / "loop.csv"

    def run(image: Path, mask: Path, **options: Any) -> list[dict[str, Any]]:
        chosen = LoopOptions(**{"rounds": 1, "share": 0.02, "seeds": 1, "window": 64, "device": "cpu", **options})
        named = classes_from(CLASSES)
        return drain(loop(image, mask, output, BACKBONE, chosen, None, [], named))  # type: ignore[no-any-return]

    first = run(image, mask)
    assert len(first) == len(taken) == 3
    assert run(image, mask) == first
    assert len(taken) == 3
    for number, found in enumerate(
        (run(image, mask, share=0.04), run(other, other_mask), run(image, mask, steps=3)), 2
    ):
        assert len(found) == 3, number
    assert len(taken) == len(set(taken)) == 12  # nothing that was painted counts twice
    assert int(first[1]["painted"]) < int(read_csv(output)[4]["painted"])
    assert len(run(image, mask, spread=0)) == 3
    assert len(taken) == 14  # the whole mask is not spread


def test_the_models_weights_are_part_of_a_loops_setting(tmp_path: Path) -> None:
    from napari_isdnet.model.checkpoint import save_model
    from napari_isdnet.model.config import ISDNetConfig
    from napari_isdnet.model.header import ModelHeader
    from napari_isdnet.model.isdnet import ISDNet

    image, mask = scene(tmp_path, "s", (64, 64), 2)
    path, found = tmp_path / "m.safetensors", set()
    for seed in (0, 1):
        torch.manual_seed(seed)
        net = ISDNet(ISDNetConfig.lite(2, channels=16, auxiliary=False, super_resolution=False, distillation=None))
        save_model(net, path, ModelHeader(config=net.config, classes=classes_from(CLASSES), name="m"))
        found.add(Scene(image, mask, str(path), "cpu").setting(str(path), LoopOptions()))
    assert len(found) == 2


def test_a_scene_is_read_as_training_reads_it(tmp_path: Path) -> None:
    pixels = np.full((40, 60, 3), 90, np.uint8)
    pixels[:10] = 7
    tifffile.imwrite(tmp_path / "s.tif", pixels, extratags=[(42113, "s", 2, "7", True)])  # GDAL's nodata
    values = np.zeros((40, 60), np.uint8)
    values[20:] = 1
    classes = classes_from(CLASSES)
    export = LabelStore.create(tmp_path / "m.ome.zarr", (40, 60), classes[::-1])  # in another order than the recipe's
    export.write_shard(0, values)
    for _ in export.finish_pyramid():
        pass
    found = Scene(tmp_path / "s.tif", tmp_path / "m.ome.zarr", BACKBONE, "cpu", classes)
    np.testing.assert_allclose(found.pixels[5, 5], IMAGENET_MEAN)
    assert found.pixels[30, 5].tolist() == [90, 90, 90]
    assert (found.truth[:10] == 255).all()
    assert (found.truth[10:20] == 1).all()
    assert (found.truth[20:] == 0).all()
