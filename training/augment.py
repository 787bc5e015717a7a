"""Augmentation of crops: numpy only, one random generator per crop, image and mask always moved together.

The operations and their strengths are those of the published training configuration (random crop that avoids one
class covering over 75 %, flip, rotation by 90 to 270 degrees, photometric distortion).
"""

from __future__ import annotations

from typing import NamedTuple

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
    colors = draw_colors(config, rng)
    if colors != Colors():
        image = change_colors(image, colors)
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


class Colors(NamedTuple):
    """What one crop's colours go through, in this order; the defaults change nothing."""

    brightness: float = 0.0
    contrast_before: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    contrast_after: float = 1.0


def draw_colors(config: AugmentConfig, rng: np.random.Generator) -> Colors:
    """Brightness, contrast (before or after the others by a coin), saturation and hue, each with probability 1/2."""
    if not config.photometric:
        return Colors()
    brightness = float(rng.uniform(-config.brightness, config.brightness)) if rng.random() < 0.5 else 0.0
    contrast = float(rng.uniform(*config.contrast)) if rng.random() < 0.5 else 1.0
    before, after = (contrast, 1.0) if rng.random() < 0.5 else (1.0, contrast)
    saturation = float(rng.uniform(*config.saturation)) if rng.random() < 0.5 else 1.0
    hue = float(rng.uniform(-config.hue, config.hue)) if rng.random() < 0.5 else 0.0
    return Colors(brightness, before, saturation, hue, after)


def change_colors(image: Image, colors: Colors) -> Image:
    """``(H, W, 3)`` float32 on 0..255 with its colours changed; the given array stays as it is."""
    image = image.astype(np.float32, copy=True)
    if colors.brightness:
        image += np.float32(colors.brightness)
        np.clip(image, 0, 255, out=image)
    _scale(image, colors.contrast_before)
    if colors.saturation != 1.0 or colors.hue != 0.0:
        image = shift_hsv(image, colors.saturation, colors.hue)
    _scale(image, colors.contrast_after)
    return image


def _scale(image: Image, factor: float) -> None:
    if factor != 1.0:
        image *= np.float32(factor)
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
