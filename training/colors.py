"""Photometric distortion of crops: brightness, contrast, saturation and hue, as in the published configuration.

One at a time in a worker, or a whole batch on the device that trains: the same arithmetic.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from napari_isdnet_training.config import AugmentConfig
from torch import Tensor


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


def change_colors(image: Tensor, colors: Tensor) -> Tensor:
    """``(B, 3, H, W)`` float32 on 0..255 changed by ``(B, 5)`` numbers, the fields of :class:`Colors`."""
    brightness, before, saturation, hue, after = (c.view(-1, 1, 1, 1) for c in colors.float().unbind(1))
    image = ((image + brightness).clamp(0, 255) * before).clamp(0, 255)
    keep = (saturation == 1) & (hue == 0)
    # To ask a GPU whether any image needs it would wait for the GPU.
    if image.is_cuda or not bool(keep.all()):
        image = torch.where(keep, image, shift_hsv(image, saturation, hue))
    return (image * after).clamp(0, 255)


def shift_hsv(image: Tensor, saturation: Tensor, hue: Tensor) -> Tensor:
    """Multiply the saturation and turn the hue (degrees), ``(B, 1, 1, 1)`` each, of ``(B, 3, H, W)`` on 0..255."""
    red, green, blue = image.split(1, dim=1)
    value = image.amax(1, keepdim=True)
    chroma = value - image.amin(1, keepdim=True)
    scale = 1 / chroma.clamp(min=1e-6)
    sector = torch.where(value == green, (blue - red) * scale + 2, (red - green) * scale + 4)
    sector = torch.where(value == red, (green - blue) * scale, sector) + hue / 60
    chroma = torch.minimum(chroma * saturation, value)
    away = (sector - torch.tensor([0.0, 2.0, 4.0], device=image.device).view(1, 3, 1, 1)).abs()
    away = torch.minimum(away, (6 - away).abs())
    return value - chroma * (away - 1).clamp(0, 1)
