"""Own data: any folder of images and masks, and folders of scenes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from napari_isdnet_training.config import DataConfig
from napari_isdnet_training.layouts.base import (
    IMAGE_SUFFIXES,
    SPLITS,
    Dataset,
    Sample,
    Split,
    by_stem,
    make_dataset,
    pairs,
    select,
    selects,
    value_code,
)
from napari_isdnet_training.sources import MaskCode

from napari_isdnet.classes import IGNORE_INDEX
from napari_isdnet.exceptions import InputError


def folder(root: Path, config: DataConfig) -> Dataset:
    """``images/`` and ``masks/``, paired by stem.

    With sub-folders named like the splits (``images/train``, ``masks/train``, ...) those are the splits, and
    ``data.train`` etc. select among all of them; else
    ``data.train`` etc. select by name; else a sample's split follows from a hash of its name (80 % train, the rest
    validation), so that adding files moves none of the others; but of two or more, some train and some validate.
    """
    images, masks = root / config.images, root / config.masks
    for part in (images, masks):
        if not part.is_dir():
            raise InputError(
                f"{root} lacks the folder '{part.name}'; an images + masks data set has both"
                " (data.images and data.masks name them)."
            )
    if (images / "train").is_dir():
        return _own(root, config, _sorted(images, masks, config, root))
    samples = _paired(images, masks)
    return _own(root, config, select(samples, config, root) if selects(config) else _by_hash(samples))


def scenes(root: Path, config: DataConfig) -> Dataset:
    """One folder of ``sceneN.tif`` and ``sceneN_classes.png``; ``data.train`` etc. select by the full name."""
    images = {name: path for name, path in by_stem(root).items() if not name.endswith("_classes")}
    samples = pairs(images, by_stem(root, "_classes"), "NAME_classes.png beside it")
    if not samples:
        raise InputError(f"{root} holds no scene; it must hold NAME.tif files and their NAME_classes.png.")
    return _own(root, config, select(samples, config, root) if selects(config) else _by_hash(samples))


def _paired(images: Path, masks: Path) -> tuple[Sample, ...]:
    found = by_stem(images)
    if not found:
        raise InputError(f"{images} holds no image; allowed are {', '.join(IMAGE_SUFFIXES)}.")
    return pairs(found, by_stem(masks), f"of the same name in {masks}")


def _sorted(images: Path, masks: Path, config: DataConfig, root: Path) -> dict[Split, tuple[Sample, ...]]:
    """Samples of sub-folders named like the splits (or ``val``); ``data.train`` etc. select among all of them."""
    names = {p.name: "validation" if p.name == "val" else p.name for p in sorted(images.iterdir()) if p.is_dir()}
    unknown = [name for name, split in names.items() if split not in SPLITS]
    if unknown or len(set(names.values())) < len(names):
        raise InputError(
            f"{images} has the folders {', '.join(names)}; allowed are train, validation (or val) and test, each once:"
            " rename or move the others."
        )
    found = {split: _paired(images / name, masks / name) for name, split in names.items()}
    return select([s for samples in found.values() for s in samples], config, root) if selects(config) else found


def _by_hash(samples: Sequence[Sample]) -> dict[Split, tuple[Sample, ...]]:
    ranked = sorted(samples, key=lambda s: _hash_share(s.name))
    count = sum(_hash_share(s.name) < 0.8 for s in samples)
    train = ranked[: min(max(count, 1), max(1, len(samples) - 1))]
    return {
        "train": tuple(s for s in samples if s in train),
        "validation": tuple(s for s in samples if s not in train),
    }


def _hash_share(name: str) -> float:
    """A number in [0, 1) that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48


def _own(root: Path, config: DataConfig, samples: dict[Split, tuple[Sample, ...]]) -> Dataset:
    if not config.classes:
        raise InputError(
            "The recipe names no classes; list them as data.classes, e.g."
            ' --set \'data.classes=["background","building"]\'.'
        )
    names = tuple(c.name for c in config.classes)
    if config.values == "mask":
        code = MaskCode(names=names)
    elif config.values == "annotation":  # as a table, so that it is applied while reading
        code = MaskCode(values=(IGNORE_INDEX, *range(255)), names=names)
    else:
        code = value_code({IGNORE_INDEX: "", **dict(zip(config.values, names, strict=True))}, config.classes)
    return make_dataset(root, config, samples, config.classes, code)
