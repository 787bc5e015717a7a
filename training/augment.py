"""Augmentation of crops: one random generator per crop, image and mask always moved together.

The operations and their strengths are those of the published training configuration (random crop that avoids one
class covering over 75 %, flip, rotation by 90 to 270 degrees, photometric distortion).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from napari_isdnet_training.colors import Colors, change_colors, draw_colors
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
        planes = torch.from_numpy(np.ascontiguousarray(image, np.float32)).permute(2, 0, 1)[None]
        image = change_colors(planes, torch.tensor([colors]))[0].permute(1, 2, 0).numpy()
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
