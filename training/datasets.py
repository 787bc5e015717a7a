"""Public folder layouts: which files are which sample of which split, and how their masks say a class."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from napari_isdnet_training.config import DataConfig
from napari_isdnet_training.sources import MaskCode

from napari_isdnet.classes import IGNORE_INDEX, ClassInfo
from napari_isdnet.exceptions import InputError

Split = str
SPLITS = ("train", "validation", "test")
IMAGE_SUFFIXES: tuple[str, ...] = (
    ".ome.zarr",
    ".zarr",
    ".ome.tif",
    ".ome.tiff",
    ".tif",
    ".tiff",
    ".btf",
    ".svs",
    ".ndpi",
    ".jp2",
)
IMAGE_SUFFIXES += (".png", ".jpg", ".jpeg", ".vrt")


@dataclass(frozen=True)
class Sample:
    """One image and its mask."""

    name: str
    image: Path
    mask: Path


@dataclass(frozen=True)
class Dataset:
    """Samples of every split, the classes, and the coding of the masks."""

    name: str
    classes: tuple[ClassInfo, ...]
    samples: dict[Split, tuple[Sample, ...]]
    code: MaskCode = field(default_factory=MaskCode)
    ignored_in_mean: tuple[int, ...] = ()

    def split(self, name: Split) -> tuple[Sample, ...]:
        """Samples of ``train``, ``validation`` or ``test``; InputError where there is none."""
        if not self.samples.get(name):
            raise InputError(f"Data set '{self.name}' has no {name} samples; check data.root and data.{name}.")
        return self.samples[name]


def open_dataset(config: DataConfig) -> Dataset:
    """Find the samples of a recipe's data. Nothing is read but folder listings."""
    root = config.root.expanduser()
    if config.root == Path():
        raise InputError("The recipe does not say where the data is; add --set data.root=FOLDER.")
    if not root.is_dir():
        raise InputError(f"data.root '{root}' is no folder; give the folder that holds the data set.")
    if config.layout not in LAYOUTS:
        raise InputError(f"data.layout '{config.layout}' cannot be read yet; use one of {', '.join(LAYOUTS)}.")
    return LAYOUTS[config.layout](root, config)


# --- any folder of images and masks ---------------------------------------------------------------------------------


def _folder(root: Path, config: DataConfig) -> Dataset:
    """``images/`` and ``masks/``, paired by stem.

    With sub-folders named like the splits (``images/train``, ``masks/train``, ...) those are the splits; else
    ``data.train`` etc. select by name; else a sample's split follows from a hash of its name (80 % train, the rest
    validation), so that adding files moves none of the others.
    """
    images, masks = root / config.images, root / config.masks
    for folder in (images, masks):
        if not folder.is_dir():
            raise InputError(
                f"{root} lacks the folder '{folder.name}'; an images + masks data set has both"
                " (data.images and data.masks name them)."
            )
    if (images / "train").is_dir():
        found = {s: _pairs(images / s, masks / s) for s in SPLITS if (images / s).is_dir()}
        return _dataset(root, config, found)
    return _dataset(root, config, _select(_pairs(images, masks), config, root.name))


def _pairs(images: Path, masks: Path) -> tuple[Sample, ...]:
    found = {_stem(p): p for p in _listing(images)}
    drawn = {_stem(p): p for p in _listing(masks)} if masks.is_dir() else {}
    if not found:
        raise InputError(f"{images} holds no image; allowed are {', '.join(IMAGE_SUFFIXES)}.")
    for stem in sorted(found):
        if stem not in drawn:
            raise InputError(
                f"Image {found[stem].name} has no mask of the same name in {masks}; add the mask or remove the image."
            )
    for stem in sorted(drawn):
        if stem not in found:
            raise InputError(
                f"Mask {drawn[stem].name} has no image of the same name in {images}; add the image or remove the mask."
            )
    return tuple(Sample(stem, found[stem], drawn[stem]) for stem in sorted(found, key=_natural))


def _listing(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not p.name.startswith(".") and p.name.lower().endswith(IMAGE_SUFFIXES))


def _stem(path: Path) -> str:
    for suffix in IMAGE_SUFFIXES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.stem


def _natural(text: str) -> list[tuple[int, str]]:
    """Sort key that puts scene2 before scene10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text)]


def _select(samples: Sequence[Sample], config: DataConfig, label: str) -> dict[Split, tuple[Sample, ...]]:
    patterns = {split: getattr(config, split) for split in SPLITS}
    if not any(patterns.values()):
        train = tuple(s for s in samples if _hash_share(s.name) < 0.8)
        return {"train": train, "validation": tuple(s for s in samples if s not in train)}
    chosen = {split: tuple(s for s in samples if _matches(s.name, names)) for split, names in patterns.items()}
    for split, names in patterns.items():
        for name in names:
            if not any(_matches(s.name, (name,)) for s in samples):
                known = ", ".join(s.name for s in samples[:8])
                raise InputError(f"data.{split} names '{name}', which matches no sample of {label} ({known}, ...).")
    return chosen


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, str(p)) for p in patterns)


def _hash_share(name: str) -> float:
    """A number in [0, 1) that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48


def _dataset(
    root: Path,
    config: DataConfig,
    samples: dict[Split, tuple[Sample, ...]],
    code: MaskCode | None = None,
    classes: tuple[ClassInfo, ...] = (),
) -> Dataset:
    classes = config.classes or classes
    if not classes:
        raise InputError(
            "The recipe names no classes; list them as data.classes, e.g."
            ' --set \'data.classes=["background","building"]\'.'
        )
    if code is None:
        # Annotation value 0 is unlabelled and k + 1 is class k; as a table, so that it is applied while reading.
        shifted = (IGNORE_INDEX, *range(255))
        code = MaskCode(values=shifted) if config.values == "annotation" else MaskCode()
    names = [c.name for c in classes]
    ignored = tuple(names.index(name) for name in config.ignored_in_mean)
    return Dataset(root.name, classes, samples, code, ignored)


# --- scenes: NAME.tif beside NAME_classes.png -----------------------------------------------------------------------


def _scenes(root: Path, config: DataConfig) -> Dataset:
    """One folder of ``sceneN.tif`` and ``sceneN_classes.png``; ``data.train`` etc. select by the full name."""
    files = {_stem(p): p for p in _listing(root)}
    images = {stem: path for stem, path in files.items() if not stem.endswith("_classes")}
    samples = []
    for stem in sorted(images, key=_natural):
        if f"{stem}_classes" not in files:
            raise InputError(f"Scene {images[stem].name} has no mask {stem}_classes.png beside it; add it.")
        samples.append(Sample(stem, images[stem], files[f"{stem}_classes"]))
    for stem in files:
        if stem.endswith("_classes") and stem.removesuffix("_classes") not in images:
            raise InputError(f"Mask {files[stem].name} has no scene {stem.removesuffix('_classes')} beside it; add it.")
    if not samples:
        raise InputError(f"{root} holds no scene; it must hold NAME.tif files and their NAME_classes.png.")
    return _dataset(root, config, _select(samples, config, root.name))


LAYOUTS: dict[str, Callable[[Path, DataConfig], Dataset]] = {"folder": _folder, "scenes": _scenes}
