"""DeepGlobe Land Cover Classification (Demir et al., CVPR Workshops 2018): 803 images of 2448 x 2448, 0.5 m a pixel."""

from __future__ import annotations

from pathlib import Path

from napari_isdnet_training.config import DataConfig
from napari_isdnet_training.layouts.base import (
    Dataset,
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
from napari_isdnet_training.layouts.lists import DEEPGLOBE
from napari_isdnet_training.sources import MaskCode

from napari_isdnet.classes import IGNORE_INDEX, ClassInfo
from napari_isdnet.exceptions import InputError

# In the order of the published ISDNet implementation; each colour is that of the masks.
CLASSES = (
    ClassInfo("unknown", (0, 0, 0)),
    ClassInfo("urban", (0, 255, 255)),
    ClassInfo("agriculture", (255, 255, 0)),
    ClassInfo("rangeland", (255, 0, 255)),
    ClassInfo("forest", (0, 255, 0)),
    ClassInfo("water", (0, 0, 255)),
    ClassInfo("barren", (255, 255, 255)),
)
FOLDERS = (".", "land-train", "train", "land_train")


def deepglobe(root: Path, config: DataConfig) -> Dataset:
    """``ID_sat.jpg`` and ``ID_mask.png`` in one folder, as downloaded, or sorted into splits as the ISDNet authors do.

    As downloaded (in ``root`` or its ``land-train`` or ``train``): masks are RGB, split 454 / 207 / 142 by the lists
    that the paper uses (those of GLNet, Chen et al., CVPR 2019). Sorted: ``img_dir/train|val|test`` and
    ``rgb2id/train|val|test``, masks hold 0..6. Pixels of a class that ``data.classes`` leaves out are ignored.
    """
    classes = known_classes(config, CLASSES)
    if (root / "img_dir").is_dir():
        return _prepared(root, config, classes)
    images: dict[str, Path] = {}
    for folder in (root / name for name in FOLDERS):
        images = by_stem(folder, "_sat")
        if images:
            break
    else:
        raise InputError(f"{root} holds no DeepGlobe image (ID_sat.jpg), nor do its folders land-train and train.")
    samples = pairs(images, by_stem(folder, "_mask"), "ID_mask.png beside it")
    names = [c.name for c in classes]
    # The masks are not free of compression: the data set says to cut each channel at 128.
    colors = tuple((c.color, names.index(c.name) if c.name in names else IGNORE_INDEX) for c in CLASSES)
    splits = select(samples, config, root) if selects(config) else published(samples, DEEPGLOBE, root)
    return make_dataset(root, config, splits, classes, MaskCode(colors=colors, pure_colors=True))


def _prepared(root: Path, config: DataConfig, classes: tuple[ClassInfo, ...]) -> Dataset:
    found = sorted_by_authors(root / "img_dir", root / "rgb2id", config, root)
    code = value_code({**{index: c.name for index, c in enumerate(CLASSES)}, IGNORE_INDEX: ""}, classes)
    return make_dataset(root, config, found, classes, code)
