"""A piece of a real image as the network sees it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from napari_isdnet_training.sources import colors_of

from napari_isdnet.io.intensity import IntensityPolicy
from napari_isdnet.io.open import open_source
from napari_isdnet.model.header import ModelHeader
from napari_isdnet.window import Window


def read_normalised(path: Path, header: ModelHeader, size: tuple[int, int]) -> torch.Tensor:
    """The upper left ``size`` (rows, columns; less where the image is smaller) as (1, 3, h, w) float32, normalised."""
    source = open_source(path)
    try:
        window = Window(0, 0, *size).clipped(source.shape)
        pixels, _ = colors_of(IntensityPolicy.from_source(source), source.read(window), header.mean)
    finally:
        source.close()
    scaled = (pixels - np.asarray(header.mean, np.float32)) / np.asarray(header.std, np.float32)
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1)))[None]
