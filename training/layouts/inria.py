"""Inria Aerial Image Labeling (Maggiori et al., IGARSS 2017): 180 labelled images of 5000 x 5000, 0.3 m a pixel."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from napari_isdnet_training.config import DataConfig
from napari_isdnet_training.layouts.base import (
    Dataset,
    Sample,
    Split,
    by_stem,
    known_classes,
    make_dataset,
    pairs,
    published,
    select,
    selects,
    sorted_by_authors,
    value_code,
)
from napari_isdnet_training.layouts.lists import INRIA

from napari_isdnet.classes import ClassInfo
from napari_isdnet.exceptions import InputError

CLASSES = (ClassInfo("background", (0, 0, 0)), ClassInfo("building", (255, 255, 255)))
SUGGESTED = 5


def inria(root: Path, config: DataConfig) -> Dataset:
    """``train/images/CITYn.tif`` and ``train/gt/CITYn.tif`` as downloaded, or sorted as the ISDNet authors do.

    As downloaded (in ``root`` or its ``AerialImageDataset``): masks hold 0 and 255. ``data.split="paper"`` is the split
    126 / 27 / 27 that the paper takes over from FCtL (Li et al., ICCV 2021); ``"suggested"`` that of the data set's
    authors: the first five images of each city validate, the others train. Sorted: ``imgs/train|val|test``
    (``CITYn_sat.tif``) and ``labels/train|val|test`` (``CITYn_mask.png``, which hold 0 and 1). The images of ``test/``
    have no public masks and are left alone.
    """
    classes = known_classes(config, CLASSES)
    if (root / "imgs").is_dir():
        return _prepared(root, config, classes)
    folder = root / "AerialImageDataset" if (root / "AerialImageDataset").is_dir() else root
    images = by_stem(folder / "train" / "images")
    if not images:
        raise InputError(f"{root} holds no Inria image; they lie in train/images/CITYn.tif, their masks in train/gt.")
    samples = pairs(images, by_stem(folder / "train" / "gt"), "of its name in train/gt")
    if selects(config):
        splits = select(samples, config, root)
    elif config.split == "suggested":
        splits = _first_of_each_city(samples)
    else:
        splits = published(samples, INRIA, root)
    return make_dataset(root, config, splits, classes, value_code({0: "background", 255: "building"}, classes))


def _first_of_each_city(samples: Sequence[Sample]) -> dict[Split, tuple[Sample, ...]]:
    held = []
    for sample in samples:
        number = re.search(r"(\d+)$", sample.name)
        if number is None:
            raise InputError(f"Image {sample.image.name} has no number after its city; name it like austin1.tif.")
        if int(number.group()) <= SUGGESTED:
            held.append(sample)
    return {"train": tuple(s for s in samples if s not in held), "validation": tuple(held)}


def _prepared(root: Path, config: DataConfig, classes: tuple[ClassInfo, ...]) -> Dataset:
    found = sorted_by_authors(root / "imgs", root / "labels", config, root)
    return make_dataset(root, config, found, classes, value_code({0: "background", 1: "building"}, classes))
