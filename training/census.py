"""One look at every mask before training: is each pair usable, what does it hold, and where are the rare classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from napari_isdnet_training.datasets import Dataset, Sample, Split
from napari_isdnet_training.sources import open_mask, read_mask, said_here

from napari_isdnet.classes import IGNORE_INDEX
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.intensity import IntensityPolicy
from napari_isdnet.io.open import open_source
from napari_isdnet.io.source import ImageSource
from napari_isdnet.window import Grid, Window

BLOCK = 2048
POINTS_PER_CLASS = 512


@dataclass(frozen=True)
class MaskCensus:
    """What one mask holds: its shape, pixels per class (K,), and up to 512 places (row, column) of every class.

    ``metres``: the side of a pixel of its image, None where the image does not say it.
    """

    name: str
    shape: tuple[int, int]
    counts: npt.NDArray[np.int64]
    places: tuple[npt.NDArray[np.int64], ...]
    metres: float | None = None

    @property
    def ignored(self) -> int:
        """Pixels that are of no class."""
        return self.shape[0] * self.shape[1] - int(self.counts.sum())


def take_census(sample: Sample, dataset: Dataset) -> MaskCensus:
    """Look at a sample, block by block.

    Raises :class:`InputError`, with the file named, for a mask of another size than its image, an image that has not
    the channels that were chosen, an index that is no class, and a mask without one labelled pixel.
    """
    classes, code = len(dataset.classes), dataset.code
    counts = np.zeros(classes, np.int64)
    places: list[list[npt.NDArray[np.int64]]] = [[] for _ in range(classes)]
    with closing(open_mask(sample.mask, code)) as mask:
        with closing(open_source(sample.image)) as image:
            check_shapes(sample, image, mask)
            IntensityPolicy.from_source(image, "none", dataset.channels)
            size = image.pixel_size
        grid = Grid(mask.shape, (BLOCK, BLOCK))
        per_block = max(8, 2 * POINTS_PER_CLASS // len(grid))
        rng = np.random.default_rng([0, len(sample.name), *mask.shape])
        for window in grid:
            labels = read_mask(mask, window, code, sample.mask.name)
            found = np.bincount(labels.ravel(), minlength=256)
            wrong = np.flatnonzero(found[classes:IGNORE_INDEX])
            if wrong.size:
                raise InputError(
                    f"Mask {sample.mask.name} holds class index {wrong[0] + classes}; the recipe has classes 0 to"
                    f" {classes - 1}, and 255 is ignored: correct the mask or data.classes."
                )
            counts += found[:classes]
            for index in np.flatnonzero(found[:classes]):
                places[index].append(_some_places(labels == index, per_block, rng, window))
    if counts.sum() == 0:
        raise InputError(f"Mask {sample.mask.name} has no labelled pixel (all are 255); label some or leave it out.")
    metres = None if size is None else size.metres
    return MaskCensus(sample.name, grid.shape, counts, tuple(_thin(p, rng) for p in places), metres)


def common_metres(census: Sequence[MaskCensus]) -> float | None:
    """The median side of a pixel in metres; None where an image does not say it, or they differ by more than 1.5."""
    known = [one.metres for one in census if one.metres]
    return float(np.median(known)) if len(known) == len(census) and max(known) <= 1.5 * min(known) else None


def check_shapes(sample: Sample, image: ImageSource, mask: ImageSource) -> None:
    """Raise :class:`InputError` where the opened image and mask of a sample are of different size."""
    if image.shape != mask.shape:
        raise InputError(
            f"Mask {sample.mask.name} is {mask.shape[0]} x {mask.shape[1]} pixels but its image {sample.image.name}"
            f" {image.shape[0]} x {image.shape[1]}; both must have the same size."
        )


def _some_places(
    hit: npt.NDArray[np.bool_], count: int, rng: np.random.Generator, window: Window
) -> npt.NDArray[np.int64]:
    flat = np.flatnonzero(hit)
    if len(flat) > count:
        flat = flat[np.sort(rng.choice(len(flat), count, replace=False))]
    return np.stack([flat // window.width + window.row, flat % window.width + window.column], axis=1)


def _thin(parts: list[npt.NDArray[np.int64]], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    if not parts:
        return np.empty((0, 2), np.int64)
    places = np.concatenate(parts)
    if len(places) > POINTS_PER_CLASS:
        places = places[np.sort(rng.choice(len(places), POINTS_PER_CLASS, replace=False))]
    return places


def check_dataset(dataset: Dataset, *, allow_empty_classes: bool = False) -> dict[Split, list[MaskCensus]]:
    """Census of what trains and validates, and a refusal of classes that no training mask holds."""
    dataset.split("train")  # or say that there is none
    result = {
        split: [take_census(sample, dataset) for sample in dataset.samples[split]]
        for split in ("train", "validation")
        if split in dataset.samples
    }
    if not allow_empty_classes:
        for sentence in _missing_classes(dataset, result["train"]):
            raise InputError(sentence)
    return result


def _missing_classes(dataset: Dataset, train: Sequence[MaskCensus]) -> Iterator[str]:
    """A sentence for each class that no training mask holds."""
    total = np.sum([c.counts for c in train], axis=0)
    plain = dataset.code.values is None and dataset.code.colors is None and any(c.ignored for c in train)
    advice = " (255 is ignored; where it means a class, list what each class holds: data.values=[0, 255])"
    for index in np.flatnonzero(total == 0):
        yield (
            f"Class '{dataset.classes[index].name}' (index {index}) is in none of the {len(train)} training masks of"
            f" {dataset.name}{advice if plain else ''}; remove it from data.classes, label some, or set"
            " data.allow_empty_classes=true."
        )


def _read_all(sample: Sample) -> None:
    """Decode all of an image once: what cannot be read would stop a training much later."""
    image = open_source(sample.image)
    try:
        for window in Grid(image.shape, (BLOCK, BLOCK)):
            image.read(window)
    finally:
        image.close()


@dataclass(frozen=True)
class Examination:
    """What ``isdnet-train check`` finds: faults, one sentence each, and pixels per class (K,) of every split."""

    problems: tuple[str, ...]
    counts: dict[str, npt.NDArray[np.int64]]


def examine(dataset: Dataset, *, allow_empty_classes: bool = False) -> Examination:
    """Look at every sample of every split; a sample with a fault is named and counts nowhere."""
    found: list[str] = []
    counts: dict[str, npt.NDArray[np.int64]] = {}
    if not dataset.samples.get("train"):
        found.append(f"{dataset.name} has no train samples, so nothing can be trained; check data.root and data.train.")
    for split, samples in ((k, v) for k, v in dataset.samples.items() if v):
        good: list[MaskCensus] = []
        for sample in samples:
            try:
                census = take_census(sample, dataset)
                _read_all(sample)
                good.append(census)
            except InputError as error:
                found.append(f"{split}: {said_here(error)}")
        counts[split] = np.sum([c.counts for c in good], axis=0) if good else np.zeros(len(dataset.classes), np.int64)
        if split == "train" and len(good) == len(samples) and not allow_empty_classes:
            found.extend(_missing_classes(dataset, good))
    return Examination(tuple(found), counts)
