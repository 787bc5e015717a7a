"""A tiny data set and its recipe, for the benchmarks that train."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from napari_isdnet_training.config import Recipe, recipe_from

from napari_isdnet.progress import result_of

CLASSES = ["dark", "light"]


def drain(steps: Generator[Any, None, Any], shown: list[Any] | None = None) -> Any:
    """Run a generator to its end; what it returned. What it yielded is added to ``shown``."""
    return result_of(steps, None if shown is None else shown.append)


def scene(folder: Path, name: str, shape: tuple[int, int], share: int) -> tuple[Path, Path]:
    """An image and its mask, light in the upper part."""
    truth = np.zeros(shape, np.uint8)
    truth[: shape[0] // share] = 1
    noise = np.random.default_rng(0).integers(0, 40, (*shape, 3))
    image = np.where(truth[..., None] > 0, 180, 40) + noise
    tifffile.imwrite(folder / f"{name}.tif", image.astype(np.uint8), photometric="rgb")
    tifffile.imwrite(folder / f"{name}_classes.tif", truth)
    return folder / f"{name}.tif", folder / f"{name}_classes.tif"


def tiny_recipe(tmp_path: Path) -> Recipe:
    """Two scenes under ``tmp_path``, three steps of two crops of 64, on a CPU."""
    root = tmp_path / "data"
    root.mkdir()
    scene(root, "a", (96, 96), 4)
    scene(root, "b", (96, 64), 2)
    data = {"layout": "scenes", "root": str(root), "train": ["a"], "validation": ["b"], "classes": CLASSES}
    options = {"channels": 16, "distillation": "sampled", "distillation_points": 16}
    model = {"name": "isdnet-lite0", "pretrained": False, "options": options}
    run = {"steps": 3, "batch": 2, "accelerator": "cpu"}
    return recipe_from({"name": "tiny", "data": data, "crop": {"size": [64, 64]}, "model": model, "run": run})
