"""Generated landscapes beside a data set's own images, as a supplement to train on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from napari_isdnet_training.config import DataConfig
from napari_isdnet_training.layouts.base import Dataset, Sample

from napari_isdnet.exceptions import InputError
from napari_isdnet.io.disk import replacing
from napari_isdnet.io.world import WORLD_VERSION, ProceduralWorld
from napari_isdnet.paths import cache_folder
from napari_isdnet.window import Window

FIRST_SEED = 1001
"""Far from the seeds of the samples, so that no sample was trained on."""


def with_worlds(dataset: Dataset, config: DataConfig) -> Dataset:
    """``dataset`` with ``config.worlds`` landscapes of ``config.world_size`` pixels a side among its training samples.

    They are written once, into the cache folder. Raises :class:`InputError` where the data set has not their classes.
    """
    if not config.worlds:
        return dataset
    names = [c.name for c in dataset.classes]
    lacking = [c.name for c in ProceduralWorld.classes if c.name not in names]
    if lacking:
        have = ", ".join(c.name for c in ProceduralWorld.classes)
        raise InputError(
            f"data.worlds adds landscapes with the classes {have}, but the data has no {lacking[0]}; set data.worlds=0."
        )
    order = np.array([names.index(c.name) for c in ProceduralWorld.classes], np.uint8)
    if config.values != "mask":  # they are decoded as the other masks
        order = order + 1 if config.values == "annotation" else np.array(config.values, np.uint8)[order]
    folder = cache_folder() / "training-worlds"
    added = tuple(_world(folder, FIRST_SEED + n, config.world_size, order) for n in range(config.worlds))
    return replace(dataset, samples={**dataset.samples, "train": (*dataset.split("train"), *added)})


def _world(folder: Path, seed: int, side: int, order: np.ndarray) -> Sample:
    import tifffile

    key = "-".join(str(v) for v in order)
    name = f"world-{seed}-{side}-{WORLD_VERSION}-{key}"
    image, mask = folder / f"{name}.tif", folder / f"{name}_classes.tif"
    if not (image.is_file() and mask.is_file()):
        folder.mkdir(parents=True, exist_ok=True)
        world, whole = ProceduralWorld((side, side), seed=seed), Window(0, 0, side, side)
        for path, pixels in ((mask, order[world.truth.read(whole)[..., 0]]), (image, world.read(whole))):
            with replacing(path, overwrite=True) as temporary:
                tifffile.imwrite(temporary, pixels, tile=(256, 256), compression="zlib", compressionargs={"level": 1})
    return Sample(name, image, mask)
