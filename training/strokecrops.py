"""Training windows where annotations are, with earlier strokes replayed, and held-out windows to judge by."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt
import torch
from napari_isdnet_training.augment import augment
from napari_isdnet_training.config import AugmentConfig
from napari_isdnet_training.presets import MAX_HELD_OUT, REPLAY
from napari_isdnet_training.snapshot import Snapshot
from napari_isdnet_training.sources import colors_of, normalised
from napari_isdnet_training.spread import SpreadLabels

from napari_isdnet.annotation.regions import TRAINING, VALIDATION, region_hash, sample_windows
from napari_isdnet.classes import IGNORE_INDEX, from_annotation
from napari_isdnet.exceptions import InputError, NothingToLearn
from napari_isdnet.io.intensity import IntensityPolicy
from napari_isdnet.io.source import ImageSource
from napari_isdnet.model.isdnet import MIN_SIDE
from napari_isdnet.window import Window

if TYPE_CHECKING:
    from napari_isdnet.annotation.store import AnnotationStore

AUGMENTATION = AugmentConfig(
    flip_horizontal=0.5,
    flip_vertical=0.5,
    quarter_turns=0.75,
    brightness=16.0,
    contrast=(0.8, 1.25),
    saturation=(0.8, 1.25),
    hue=6.0,
)

Batch = tuple[torch.Tensor, torch.Tensor]


class Normaliser:
    """Pixels of an image as the network takes them: ``(3, H, W)`` normalised float32."""

    def __init__(
        self, image: ImageSource, policy: IntensityPolicy, mean: tuple[float, float, float], std: tuple[float, ...]
    ) -> None:
        self.image, self.policy, self.fill, self.std = image, policy, mean, std

    def pixels(self, window: Window) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_] | None]:
        """(H, W, 3) on 0..255, and which pixels are image (None: all); the others have the mean colour."""
        return colors_of(self.policy, self.image.read(window), self.fill)

    def tensor(self, pixels: npt.NDArray[np.float32]) -> torch.Tensor:
        """Normalised and channels first."""
        return normalised(pixels, self.fill, self.std)


def check_taught(snapshot: Snapshot, new_classes: Collection[str]) -> None:
    """Raise :class:`NothingToLearn` for a class of ``new_classes`` that is painted only where it is judged.

    Training would run and end with fine figures of the classes that it knows, and never say the other one.
    """
    counts = zip(snapshot.classes, snapshot.class_counts(), snapshot.class_counts(TRAINING), strict=True)
    for info, painted, teaches in counts:
        if painted and not teaches and info.name in new_classes:
            raise NothingToLearn(
                f"Class '{info.name}' is painted only in places that are held out, so nothing would teach it; paint it"
                " in one more place, or hold nothing out (--held-out 0)."
            )


class StrokeCrops:
    """Item ``n`` is the n-th window of a run, a function of the snapshot, the seed and ``n`` alone.

    Every second window or so (:data:`REPLAY`) is drawn by stroke, each of any age as likely as the others; the
    others by class, each class as likely (:func:`~napari_isdnet.annotation.regions.sample_windows`). Pixels of
    held-out regions are ignored by the target, as are those without annotation. ``spread``: side of the superpixels
    that thin strokes are taken to (:class:`SpreadLabels`), 0 for none.
    """

    def __init__(
        self, snapshot: Snapshot, pixels: Normaliser, size: int, seed: int, count: int, spread: int = 0
    ) -> None:
        if min(snapshot.shape) < MIN_SIDE:
            raise InputError(f"The image is {snapshot.shape} pixels; fine-tuning needs at least {MIN_SIDE} a side.")
        self.snapshot, self.source, self.seed = snapshot, pixels, seed
        self.labels: Snapshot | SpreadLabels = SpreadLabels(snapshot, pixels, spread) if spread else snapshot
        self.size = (min(size, snapshot.shape[0]), min(size, snapshot.shape[1]))
        store = cast("AnnotationStore", snapshot)  # reads like one
        self.by_class = sample_windows(store, count, size, seed, snapshot.split)
        if not self.by_class:
            raise NothingToLearn("No annotation is in a training region; annotate one more place.")
        self.strokes = _teaching_strokes(snapshot)

    def window(self, number: int, rng: np.random.Generator) -> Window:
        """Where item ``number`` lies."""
        if not self.strokes or rng.random() >= REPLAY:
            return self.by_class[number % len(self.by_class)]
        points = self.strokes[int(rng.integers(len(self.strokes)))]
        point = points[int(rng.integers(len(points)))]
        start = []
        for axis in range(2):
            first = int(point[axis]) - int(rng.integers(self.size[axis]))
            start.append(min(max(first, 0), self.snapshot.shape[axis] - self.size[axis]))
        return Window(start[0], start[1], *self.size)

    def __getitem__(self, number: int) -> Batch:
        rng = np.random.default_rng([self.seed, 5, number])
        window = self.window(number, rng)
        pixels, valid = self.source.pixels(window)
        target = from_annotation(self.labels.read_labels(window))
        target[~self.snapshot.split.mask(window)] = IGNORE_INDEX
        if valid is not None:
            target[~valid] = IGNORE_INDEX
        pixels, target = augment(pixels, target, AUGMENTATION, rng, self.source.fill)
        return self.source.tensor(pixels), torch.from_numpy(target.astype(np.int64))

    def batch(self, step: int, size: int) -> Batch:
        """The batch of a step: images (B, 3, H, W) and targets (B, H, W)."""
        images, targets = zip(*(self[step * size + n] for n in range(size)), strict=True)
        return torch.stack(images), torch.stack(targets)


def _teaching_strokes(snapshot: Snapshot) -> list[npt.NDArray[np.int64]]:
    """Points (row, column) of every stroke that lie in training regions, by the strokes' age."""
    split = snapshot.split
    points = np.asarray(snapshot.points, np.int64).reshape(-1, 3)
    places, of = np.unique(points[:, 1:] // split.size, axis=0, return_inverse=True)
    teaches = np.array([split.side((int(row), int(column))) == TRAINING for row, column in places], np.bool_)
    points = points[teaches[of.ravel()]]
    points = points[np.argsort(points[:, 0], kind="stable")]
    starts = np.flatnonzero(np.diff(points[:, 0])) + 1
    return [part[:, 1:] for part in np.split(points, starts) if len(part)]


def held_out(snapshot: Snapshot, pixels: Normaliser, size: int) -> Iterator[tuple[Window, Batch]]:
    """Windows around held-out regions, one at a time: image (1, 3, H, W) and class indices (1, H, W), 255 ignored.

    At most :data:`MAX_HELD_OUT` regions, chosen by the same hash as the split, so that each stays chosen.
    """
    split = snapshot.split
    places = sorted(split.validation, key=lambda place: region_hash(split.size, place))[:MAX_HELD_OUT]
    for place in places:
        region = split.window(place).clipped(snapshot.shape)
        window = _around(region, size, snapshot.shape)
        labels = snapshot.read_labels(region)
        labels[~split.mask(region, VALIDATION)] = 0
        target = np.full(window.shape, IGNORE_INDEX, np.uint8)
        target[region.relative_to(window).slices] = from_annotation(labels)
        image, valid = pixels.pixels(window)
        if valid is not None:
            target[~valid] = IGNORE_INDEX
        yield region, (pixels.tensor(image)[None], torch.from_numpy(target)[None])


def _around(region: Window, size: int, shape: tuple[int, int]) -> Window:
    """The region with context up to ``size`` pixels a side, inside the image."""
    bounds = []
    for start, length, full in ((region.row, region.height, shape[0]), (region.column, region.width, shape[1])):
        side = min(max(size, length), full)
        bounds.append((min(max(0, start + length // 2 - side // 2), full - side), side))
    return Window(bounds[0][0], bounds[1][0], bounds[0][1], bounds[1][1])
