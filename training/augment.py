"""Augmentation of crops: numpy only, one random generator per crop, image and mask always moved together.

The operations and their strengths are those of the published training configuration (random crop that avoids one
class covering over 75 %, flip, rotation by 90 to 270 degrees, photometric distortion).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from napari_isdnet_training.config import AugmentConfig

from napari_isdnet.classes import IGNORE_INDEX

Image = npt.NDArray[np.float32]
Mask = npt.NDArray[np.uint8]


def augment(
    image: Image, mask: Mask, config: AugmentConfig, rng: np.random.Generator, fill: tuple[float, float, float]
) -> tuple[Image, Mask]:
    """Geometry of both and colours of the image (``(H, W, 3)`` float32, 0..255); ``fill`` is the colour outside."""
    image, mask = move(image, mask, config, rng, fill)
    if config.photometric:
        image = distort_colors(image, config, rng)
    return np.ascontiguousarray(image), np.ascontiguousarray(mask)


def move(
    image: Image, mask: Mask, config: AugmentConfig, rng: np.random.Generator, fill: tuple[float, float, float]
) -> tuple[Image, Mask]:
    """Flips, quarter turns and rotation. Quarter turns that change the shape are left out of crops not square."""
    if rng.random() < config.flip_horizontal:
        image, mask = image[:, ::-1], mask[:, ::-1]
    if rng.random() < config.flip_vertical:
        image, mask = image[::-1], mask[::-1]
    if rng.random() < config.quarter_turns:
        turns = int(rng.integers(1, 4)) if mask.shape[0] == mask.shape[1] else 2
        image, mask = np.rot90(image, turns), np.rot90(mask, turns)
    if rng.random() < config.rotate_probability:
        image, mask = rotate(image, mask, float(rng.uniform(*config.rotate_degrees)), fill)
    return image, mask


def rotate(image: Image, mask: Mask, degrees: float, fill: tuple[float, float, float]) -> tuple[Image, Mask]:
    """Turn about the middle, same size: bilinear for the image, nearest for the mask; outside is fill / ignored."""
    from scipy.ndimage import affine_transform

    angle = np.deg2rad(degrees)
    matrix = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    middle = (np.array(mask.shape) - 1) / 2
    offset = middle - matrix @ middle
    turned = [
        affine_transform(image[..., c], matrix, offset, order=1, mode="constant", cval=fill[c], output=np.float32)
        for c in range(image.shape[2])
    ]
    moved = affine_transform(mask, matrix, offset, order=0, mode="constant", cval=IGNORE_INDEX)
    return np.stack(turned, axis=-1), moved


def distort_colors(image: Image, config: AugmentConfig, rng: np.random.Generator) -> Image:
    """Brightness, contrast (before or after the others by a coin), saturation and hue, each with probability 1/2."""
    image = image.astype(np.float32, copy=True)
    if rng.random() < 0.5:
        image += np.float32(rng.uniform(-config.brightness, config.brightness))
        np.clip(image, 0, 255, out=image)
    contrast = np.float32(rng.uniform(*config.contrast)) if rng.random() < 0.5 else None
    contrast_first = rng.random() < 0.5
    if contrast is not None and contrast_first:
        _scale(image, contrast)
    saturation = float(rng.uniform(*config.saturation)) if rng.random() < 0.5 else 1.0
    hue = float(rng.uniform(-config.hue, config.hue)) if rng.random() < 0.5 else 0.0
    if saturation != 1.0 or hue != 0.0:
        image = shift_hsv(image, saturation, hue)
    if contrast is not None and not contrast_first:
        _scale(image, contrast)
    return image


def _scale(image: Image, factor: np.float32) -> None:
    image *= factor
    np.clip(image, 0, 255, out=image)


def shift_hsv(image: Image, saturation: float, hue: float) -> Image:
    """Multiply the saturation and turn the hue (degrees) in HSV space; ``image`` is ``(H, W, 3)``, 0..255."""
    red, green, blue = (np.ascontiguousarray(image[..., c]) for c in range(3))
    value = np.maximum(np.maximum(red, green), blue)
    chroma = value - np.minimum(np.minimum(red, green), blue)
    if hue == 0.0:  # the hue stays: only the distance from the value changes, as far as saturation may grow
        safe = np.maximum(chroma, np.float32(1e-6))
        factor = np.minimum(np.float32(saturation), value / safe)
        return np.stack([value - (value - c) * factor for c in (red, green, blue)], axis=-1)
    sector = _sector(red, green, blue, value, chroma)
    sector += np.float32(hue / 60)
    np.minimum(chroma * np.float32(saturation), value, out=chroma)
    turned = np.empty(image.shape, np.float32)
    for channel, own in enumerate((0, 2, 4)):  # a colour is full up to one sixth from its own hue, gone from two on
        away = np.abs(sector - np.float32(own))
        np.minimum(away, np.abs(np.float32(6) - away), out=away)
        away -= np.float32(1)
        turned[..., channel] = value - chroma * np.clip(away, 0, 1, out=away)
    return turned


def _sector(red: Image, green: Image, blue: Image, value: Image, chroma: Image) -> Image:
    """Hue in sixths of a turn, -1..5 (0 red, 2 green, 4 blue); 0 where there is no colour."""
    scale: Image = np.reciprocal(np.maximum(chroma, np.float32(1e-6)))
    sector: Image = (red - green) * scale
    sector += np.float32(4)
    for mask, one, other, start in ((value == green, blue, red, 2), (value == red, green, blue, 0)):
        part = (one - other) * scale
        part += np.float32(start)
        np.copyto(sector, part, where=mask)
    return sector
