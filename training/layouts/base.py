"""What every layout gives, and the pieces they share: samples by split, pairing by name, selection by name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from napari_isdnet_training.config import DataConfig
from napari_isdnet_training.sources import NO_CLASS, MaskCode

from napari_isdnet.classes import IGNORE_INDEX, ClassInfo
from napari_isdnet.exceptions import InputError

Split = str
SPLITS = ("train", "validation", "test")
IMAGE_SUFFIXES = (
    ".ome.zarr", ".zarr", ".ome.tif", ".ome.tiff", ".tif", ".tiff", ".btf", ".svs", ".ndpi", ".jp2", ".png", ".jpg",
    ".jpeg", ".vrt",
)  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """One image and its mask."""

    name: str
    image: Path
    mask: Path


@dataclass(frozen=True)
class Dataset:
    """Samples of every split, the classes, the coding of the masks, and the channels that were chosen of the images."""

    name: str
    classes: tuple[ClassInfo, ...]
    samples: dict[Split, tuple[Sample, ...]]
    code: MaskCode = field(default_factory=MaskCode)
    ignored_in_mean: tuple[int, ...] = ()
    channels: tuple[int, ...] | None = None

    def split(self, name: Split) -> tuple[Sample, ...]:
        """Samples of ``train``, ``validation`` or ``test``; InputError where there is none."""
        if not self.samples.get(name):
            raise InputError(f"Data set '{self.name}' has no {name} samples; check data.root and data.{name}.")
        return self.samples[name]


def listing(folder: Path) -> list[Path]:
    """Image files (and zarr folders) of a folder by name, hidden ones left out."""
    return sorted(p for p in folder.iterdir() if not p.name.startswith(".") and p.name.lower().endswith(IMAGE_SUFFIXES))


def stem(path: Path) -> str:
    """The name without the suffix of an image, however many dots that has."""
    for suffix in IMAGE_SUFFIXES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.stem


def by_stem(folder: Path, ending: str = "") -> dict[str, Path]:
    """Image files of a folder whose stem ends with ``ending``, by the stem without it; empty without a folder.

    Raises :class:`InputError` for two files of one stem, of which only one could be meant.
    """
    found: dict[str, Path] = {}
    for path in listing(folder) if folder.is_dir() else ():
        if stem(path).endswith(ending):
            other = found.setdefault(stem(path).removesuffix(ending), path)
            if other is not path:
                raise InputError(f"{folder} holds {other.name} and {path.name} of one name; remove or rename one.")
    return found


def natural(text: str) -> list[tuple[int, str]]:
    """Sort key that puts scene2 before scene10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text)]


def pairs(images: Mapping[str, Path], masks: Mapping[str, Path], where: str) -> tuple[Sample, ...]:
    """Samples of images and masks of the same name; ``where`` says in words where masks are looked for."""
    bare = [images[name].name for name in sorted(images) if name not in masks]
    if bare:
        raise InputError(f"{_that_have('Image', bare)} no mask {where}; add the mask or remove the image.")
    alone = [masks[name].name for name in sorted(masks) if name not in images]
    if alone:
        raise InputError(f"{_that_have('Mask', alone)} no image of its name; add the image or remove the mask.")
    return tuple(Sample(name, images[name], masks[name]) for name in sorted(images, key=natural))


def _that_have(kind: str, files: Sequence[str]) -> str:
    """``Image a.png has``, ``Images a.png, b.png have``; of many the first five, and how many more there are."""
    more = f" and {len(files) - 5} more" if len(files) > 5 else ""
    return f"{kind}{'s' if len(files) > 1 else ''} {', '.join(files[:5])}{more} {'have' if len(files) > 1 else 'has'}"


def sorted_by_authors(images: Path, masks: Path, config: DataConfig, root: Path) -> dict[Split, tuple[Sample, ...]]:
    """Samples as the ISDNet authors sort them: ``NAME_sat`` and ``NAME_mask`` under ``train``, ``val`` and ``test``."""
    found: dict[Split, tuple[Sample, ...]] = {}
    for split in SPLITS:
        folder = "val" if split == "validation" else split
        where = f"in {masks.name}/{folder}"
        found[split] = pairs(by_stem(images / folder, "_sat"), by_stem(masks / folder, "_mask"), where)
    if selects(config):
        return select([s for samples in found.values() for s in samples], config, root)
    return found


def selects(config: DataConfig) -> bool:
    """True where the recipe itself names samples of a split."""
    return any(getattr(config, split) for split in SPLITS)


def select(samples: Sequence[Sample], config: DataConfig, root: Path) -> dict[Split, tuple[Sample, ...]]:
    """Samples by ``data.train``, ``data.validation`` and ``data.test``; without the first, all that the others leave.

    An entry is a name, a shell pattern, or ``@FILE``: a text file with one name a line, as split lists are published
    (suffixes of files and of the public data sets may stay on the names).
    """
    chosen: dict[Split, tuple[Sample, ...]] = {}
    for split in SPLITS:
        names = [n for entry in getattr(config, split) for n in _names(str(entry), root)]
        for name in names:
            if not any(_matches(s, name) for s in samples):
                known = ", ".join(s.name for s in samples[:8]) + ", ..." * (len(samples) > 8)
                raise InputError(f"data.{split} names '{name}', which matches no sample of {root.name} ({known}).")
        chosen[split] = tuple(s for s in samples if any(_matches(s, n) for n in names))
    if not config.train:
        chosen["train"] = tuple(s for s in samples if s not in chosen["validation"] + chosen["test"])
    for one, other in (("train", "validation"), ("train", "test")):
        twice = [s.name for s in chosen[one] if s in chosen[other]]
        if twice:
            raise InputError(
                f"data.{one} and data.{other} both select '{twice[0]}', whose figures would be of what was learnt; name"
                " it in one of them."
            )
    return chosen


def _matches(sample: Sample, name: str) -> bool:
    return sample.name == name or fnmatchcase(sample.name, name)  # names with brackets are no patterns


def _names(entry: str, root: Path) -> list[str]:
    if not entry.startswith("@"):
        return [entry]
    path = next((p for p in (root / entry[1:], Path(entry[1:]).expanduser()) if p.is_file()), None)
    if path is None:
        raise InputError(f"The list of samples {entry[1:]} is no file, neither in {root} nor here; correct its path.")
    lines = [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [plain_name(line) for line in lines]


def plain_name(text: str) -> str:
    """A sample's name in a published list: without folders, suffix, and what marks images and masks."""
    name = stem(Path(text))
    for ending in ("_sat", "_mask", "_leftImg8bit"):
        name = name.removesuffix(ending)
    return name


def published(
    samples: Sequence[Sample], lists: Mapping[Split, Iterable[str]], root: Path
) -> dict[Split, tuple[Sample, ...]]:
    """Samples by published lists of the validation and test names; all others are for training."""
    held = {split: frozenset(names) for split, names in lists.items()}
    found = {split: tuple(s for s in samples if s.name in names) for split, names in held.items()}
    if not found["validation"]:
        raise InputError(
            f"None of the {len(samples)} images of {root} is in the published validation list; name your own split with"
            " data.train and data.validation."
        )
    taken = frozenset().union(*held.values())
    return {"train": tuple(s for s in samples if s.name not in taken), **found}


def known_classes(config: DataConfig, known: Sequence[ClassInfo]) -> tuple[ClassInfo, ...]:
    """The classes of a public data set that the recipe names, all by default; the pixels of others are ignored."""
    if config.values != "mask":
        raise InputError(f"data.values is for own masks; the masks of '{config.layout}' say how they count.")
    names = [c.name for c in known]
    for info in config.classes:
        if info.name not in names:
            raise InputError(
                f"data.classes names '{info.name}', which is none of the classes of '{config.layout}':"
                f" {', '.join(names)}."
            )
    return tuple(config.classes) or tuple(known)


def value_code(values: Mapping[int, str], classes: Sequence[ClassInfo]) -> MaskCode:
    """A mask code from what a value means: a class name, or anything else for a value that is ignored.

    A value that stands for nothing is an error where it is met.
    """
    names = [c.name for c in classes]
    table = [NO_CLASS] * 256
    for value, name in values.items():
        table[value] = names.index(name) if name in names else IGNORE_INDEX
    return MaskCode(values=tuple(table))


def make_dataset(
    root: Path,
    config: DataConfig,
    samples: dict[Split, tuple[Sample, ...]],
    classes: Sequence[ClassInfo],
    code: MaskCode,
) -> Dataset:
    """The data set, with the classes left out of the mean looked up by name."""
    names = [c.name for c in classes]
    for name in config.ignored_in_mean:
        if name not in names:
            raise InputError(f"data.ignored_in_mean names '{name}', which is none of the classes {', '.join(names)}.")
    ignored = tuple(names.index(name) for name in config.ignored_in_mean)
    if len(set(ignored)) == len(names):
        raise InputError("data.ignored_in_mean names all classes, so there is no mean; leave one out.")
    return Dataset(root.absolute().name, tuple(classes), samples, code, ignored)
