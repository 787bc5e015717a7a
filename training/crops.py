"""Training crops read straight from level 0 of images of any size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from napari_isdnet_training.augment import augment, move
from napari_isdnet_training.colors import draw_colors
from napari_isdnet_training.config import AugmentConfig, CropConfig, DataConfig
from napari_isdnet_training.datasets import Sample
from napari_isdnet_training.device_crops import RawCrop
from napari_isdnet_training.sampling import CropSampler, Draw
from napari_isdnet_training.sources import MaskCode, SourceCache, colors_of, open_mask, policy_of, read_image, read_mask
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import default_collate

from napari_isdnet.classes import IGNORE_INDEX
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.intensity import IntensityPolicy
from napari_isdnet.io.open import open_source
from napari_isdnet.window import Window

Image = npt.NDArray[Any]
Mask = npt.NDArray[np.uint8]
TRIES = 10


@dataclass(frozen=True)
class Failure:
    """Why a crop could not be made, on its way from a worker process."""

    reason: str


def collate(items: Sequence[Any]) -> Any:
    """Crops as a batch; a :class:`Failure` among them in their place."""
    return next((item for item in items if isinstance(item, Failure)), None) or default_collate(list(items))


class CropDataset(TorchDataset[tuple[torch.Tensor, ...] | Failure]):
    """Item ``n`` is the n-th augmented crop of a run: ``(3, H, W)`` normalised float32 and ``(H, W)`` int64.

    The same n gives the same crop in any process, worker or order. Pixels outside of an image (crops larger than it)
    and what it has as nodata or alpha 0 are the mean colour, before colours are changed, and ignored. With ``raw`` an
    item is a :data:`RawCrop` instead, which :class:`DeviceCrops` finishes.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        sampler: CropSampler,
        data: DataConfig,
        crop: CropConfig,
        augmentation: AugmentConfig,
        code: MaskCode,
        raw: bool = False,
    ) -> None:
        self.raw = raw
        self.samples, self.sampler = list(samples), sampler
        self.data, self.crop, self.augmentation, self.code = data, crop, augmentation, code
        self._images, self._masks = SourceCache(_open_image), SourceCache(partial(open_mask, code=code))
        self._policies: dict[str, IntensityPolicy] = {}
        self._mean = np.asarray(data.mean, np.float32)
        self._scale = 1 / np.asarray(data.std, np.float32)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, ...] | Failure:
        try:
            return self._item(number)
        except InputError as error:  # a worker process would wrap it in its traceback
            return Failure(str(error))

    def _item(self, number: int) -> tuple[torch.Tensor, ...]:
        if self.raw:
            return self.unfinished(number)
        image, mask = self.pixels(number)
        image -= self._mean
        image *= self._scale
        planes = np.ascontiguousarray(image.transpose(2, 0, 1))
        return torch.from_numpy(planes), torch.from_numpy(mask.astype(np.int64))

    def pixels(self, number: int) -> tuple[Image, Mask]:
        """Crop ``number`` before normalisation: ``(H, W, 3)`` float32 0..255 and ``(H, W)`` uint8 class indices."""
        rng = self.sampler.rng(number)
        image, mask = self._cut(number, rng)
        if mask.shape != self.crop.size:
            image, mask = resize(image, mask, self.crop.size)
        return augment(image, mask, self.augmentation, rng, self._fill)

    def unfinished(self, number: int) -> RawCrop:
        """Crop ``number`` flipped and turned, at the size at which it was cut and in its own colours."""
        rng = self.sampler.rng(number)
        image, mask = self._cut(number, rng)
        if self.augmentation.rotate_probability > 0 and mask.shape != self.crop.size:
            # Turned by any angle before, it would be another crop.
            image, mask = resize(image.astype(np.float32, copy=False), mask, self.crop.size)
        image, mask = move(image, mask, self.augmentation, rng, self._fill)
        colors = torch.tensor(draw_colors(self.augmentation, rng), dtype=torch.float32)
        return torch.from_numpy(np.ascontiguousarray(image)), torch.from_numpy(np.ascontiguousarray(mask)), colors

    @property
    def _fill(self) -> tuple[float, float, float]:
        return self.data.mean if self.augmentation.fill == "mean" else (0.0, 0.0, 0.0)

    def _cut(self, number: int, rng: np.random.Generator) -> tuple[Image, Mask]:
        """The pixels of crop ``number``, larger or smaller than the crop by its factor of scale."""
        draw = self.sampler.draw(number, rng)
        sample = self.samples[draw.sample]
        factor = float(rng.uniform(*self.crop.scale)) if self.crop.scale[0] < self.crop.scale[1] else self.crop.scale[0]
        size = tuple(max(1, round(s / factor)) for s in self.crop.size)
        window, mask = self._place(sample, draw, (size[0], size[1]), rng)
        return self._read_image(sample, window, mask), mask

    def _place(
        self, sample: Sample, draw: Draw, size: tuple[int, int], rng: np.random.Generator
    ) -> tuple[Window, Mask]:
        """A window whose labelled pixels are not nearly all of one class, within ten tries; the last one else."""
        shape = self._masks.get(sample.mask).shape
        for _ in range(TRIES):
            window = random_window(shape, size, rng, draw.center)
            mask = self._read_mask(sample, window)
            if self.crop.cat_max_ratio >= 1 or draw.center is not None or mixed(mask, self.crop.cat_max_ratio):
                break
        return window, mask

    def _read_mask(self, sample: Sample, window: Window) -> Mask:
        """Class indices of a window, as an array of its own."""
        source = self._masks.get(sample.mask)
        inside = window.clipped(source.shape)
        labels = read_mask(source, inside, self.code, sample.mask.name)
        if inside == window:
            return labels.copy()
        padded = np.full(window.shape, IGNORE_INDEX, np.uint8)
        padded[inside.relative_to(window).slices] = labels
        return padded

    def _read_image(self, sample: Sample, window: Window, mask: Mask) -> Image:
        """Pixels of a window; what is no image there (nodata, alpha 0) is ignored in its ``mask`` from now on."""
        source = self._images.get(sample.image)
        inside = window.clipped(source.shape)
        if sample.name not in self._policies:  # percentiles of a 16-bit image cost a look at its coarse level
            self._policies[sample.name] = policy_of(source, self.data)
        read = read_image(source, inside)
        if self.raw and inside == window and self._policies[sample.name].keeps(read):
            return read  # a quarter of the bytes on their way to the device
        pixels, valid = colors_of(self._policies[sample.name], read, self.data.mean)
        if valid is not None:
            mask[inside.relative_to(window).slices][~valid] = IGNORE_INDEX
        if inside == window:
            return pixels
        padded = np.empty((*window.shape, 3), np.float32)
        padded[:] = self._mean
        padded[inside.relative_to(window).slices] = pixels
        return padded


def _open_image(path: Any) -> Any:
    # One decoding thread: a crop is a handful of tiles, and the cores belong to the network.
    return open_source(path, threads=1)


def random_window(
    shape: tuple[int, int], size: tuple[int, int], rng: np.random.Generator, center: tuple[int, int] | None = None
) -> Window:
    """A window of ``size`` anywhere inside ``shape``; around ``center``, jittered by a quarter of it, where given.

    Along an axis that is shorter than the window it starts at 0 and reaches outside.
    """
    start = []
    for axis in range(2):
        room = max(0, shape[axis] - size[axis])
        if center is None:
            start.append(int(rng.integers(room + 1)))
        else:
            jitter = int(rng.integers(-(size[axis] // 4), size[axis] // 4 + 1))
            start.append(min(max(0, center[axis] - size[axis] // 2 + jitter), room))
    return Window(start[0], start[1], *size)


def mixed(mask: Mask, ratio: float) -> bool:
    """True when more than one class is labelled and none covers more than ``ratio`` of the labelled pixels."""
    counts = np.bincount(mask.ravel(), minlength=256)[:IGNORE_INDEX]
    return bool(np.count_nonzero(counts) > 1 and counts.max() < ratio * counts.sum())


def resize(image: Image, mask: Mask, size: tuple[int, int]) -> tuple[Image, Mask]:
    """Bilinear for the image, nearest for the mask, both with pixel centres aligned (half-pixel convention)."""
    # A view, channels last: neither way costs a copy.
    planes = torch.from_numpy(image).permute(2, 0, 1)[None]
    small = size[0] < mask.shape[0]
    resized = torch.nn.functional.interpolate(planes, size=size, mode="bilinear", antialias=small)[0]
    labels = torch.from_numpy(mask)[None, None]
    nearest = torch.nn.functional.interpolate(labels, size=size, mode="nearest-exact")[0, 0]
    return np.ascontiguousarray(resized.permute(1, 2, 0).numpy()), nearest.numpy()
