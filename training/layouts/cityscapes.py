"""Cityscapes (Cordts et al., CVPR 2016), fine annotations: 2975 / 500 images of 1024 x 2048, 19 classes."""

from __future__ import annotations

from pathlib import Path

from napari_isdnet_training.config import DataConfig
from napari_isdnet_training.layouts.base import (
    Dataset,
    Sample,
    by_stem,
    known_classes,
    make_dataset,
    pairs,
    select,
    selects,
    value_code,
)

from napari_isdnet.classes import IGNORE_INDEX, ClassInfo
from napari_isdnet.exceptions import InputError

# (id in *_labelIds.png, name, colour), in the order of the train ids 0..18; every other id is ignored.
TABLE: tuple[tuple[int, str, tuple[int, int, int]], ...] = (
    (7, "road", (128, 64, 128)),
    (8, "sidewalk", (244, 35, 232)),
    (11, "building", (70, 70, 70)),
    (12, "wall", (102, 102, 156)),
    (13, "fence", (190, 153, 153)),
    (17, "pole", (153, 153, 153)),
    (19, "traffic light", (250, 170, 30)),
    (20, "traffic sign", (220, 220, 0)),
    (21, "vegetation", (107, 142, 35)),
    (22, "terrain", (152, 251, 152)),
    (23, "sky", (70, 130, 180)),
    (24, "person", (220, 20, 60)),
    (25, "rider", (255, 0, 0)),
    (26, "car", (0, 0, 142)),
    (27, "truck", (0, 0, 70)),
    (28, "bus", (0, 60, 100)),
    (31, "train", (0, 80, 100)),
    (32, "motorcycle", (0, 0, 230)),
    (33, "bicycle", (119, 11, 32)),
)
CLASSES = tuple(ClassInfo(name, color) for _, name, color in TABLE)
IDS = 34
FOLDERS = {"train": "train", "validation": "val"}
IMAGE_ENDING = "_leftImg8bit"
TRAIN_IDS, LABEL_IDS = "_gtFine_labelTrainIds", "_gtFine_labelIds"


def cityscapes(root: Path, config: DataConfig) -> Dataset:
    """``leftImg8bit/train|val/CITY/*_leftImg8bit.png`` and ``gtFine/train|val/CITY/*_gtFine_*.png``.

    Masks are ``labelTrainIds`` where every image has one, else ``labelIds``, which the download holds. The test split
    has no public masks; like the published configuration, nothing is made of it. Classes that ``data.classes`` leaves
    out are ignored.
    """
    classes = known_classes(config, CLASSES)
    images = {split: _of_cities(root / "leftImg8bit" / name, IMAGE_ENDING) for split, name in FOLDERS.items()}
    if not any(images.values()):
        raise InputError(f"{root} holds no Cityscapes image; they lie in leftImg8bit/train/CITY, masks in gtFine.")
    drawn = {s: _of_cities(root / "gtFine" / name, TRAIN_IDS) for s, name in FOLDERS.items()}
    converted = all(set(images[s]) <= set(drawn[s]) for s in FOLDERS)
    ending = TRAIN_IDS if converted else LABEL_IDS
    if not converted:
        drawn = {s: _of_cities(root / "gtFine" / name, ending) for s, name in FOLDERS.items()}
    found: dict[str, tuple[Sample, ...]] = {
        s: pairs(images[s], drawn[s], f"*{ending}.png in gtFine/{FOLDERS[s]}") for s in FOLDERS
    }
    if selects(config):
        found = select([s for samples in found.values() for s in samples], config, root)
    values = {index: c.name for index, c in enumerate(CLASSES)} | {IGNORE_INDEX: ""}
    if not converted:
        values = dict.fromkeys(range(IDS), "") | {IGNORE_INDEX: ""} | {number: name for number, name, _ in TABLE}
    return make_dataset(root, config, found, classes, value_code(values, classes))


def _of_cities(folder: Path, ending: str) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    cities = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    return {name: path for city in cities for name, path in by_stem(city, ending).items()}
