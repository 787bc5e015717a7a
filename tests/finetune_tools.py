"""A small picture of two textures, strokes on it and a network that trains in moments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from napari_isdnet.annotation.store import AnnotationStore
from napari_isdnet.annotation.strokes import Brush
from napari_isdnet.classes import classes_from
from napari_isdnet.model.checkpoint import save_model
from napari_isdnet.model.config import ISDNetConfig
from napari_isdnet.model.header import ModelHeader
from napari_isdnet.model.isdnet import ISDNet

CLASSES = ("red", "green", "blue")
SIDE, CELL = 1100, 183
TINY: dict[str, Any] = {"window": 96, "batch": 1}


def truth() -> np.ndarray[Any, Any]:
    """0 on red squares, 1 on green ones."""
    cells = np.arange(SIDE) // CELL
    return (np.add.outer(cells, cells) % 2).astype(np.uint8)


def scene(path: Path) -> Path:
    """Smooth red and rough green squares."""
    rng = np.random.default_rng(0)
    colors = np.array([[190, 50, 40], [50, 170, 60]])[truth()]
    noise = rng.integers(-50, 51, (SIDE, SIDE, 3)) * truth()[..., None]
    Image.fromarray((colors + noise).clip(0, 255).astype(np.uint8)).save(path)
    return path


def network(path: Path, sees: int = 2) -> Path:
    """A model file that sees one class (blue) everywhere, by so little that a few steps of training better it."""
    torch.manual_seed(0)
    config = ISDNetConfig.lite(3, channels=16, distillation="sampled", distillation_points=64)
    header = ModelHeader.default(config, classes=classes_from(CLASSES), name="bare", window=128)
    net = ISDNet(config)
    with torch.no_grad():
        for name, value in net.named_parameters():
            if name.startswith("classifier.out"):
                value.zero_()
                if name.endswith("bias"):
                    value[sees] = 1e-3
    return save_model(net, path, header, half=False)


def paint(store: AnnotationStore) -> None:
    """A stroke in the middle of every square."""
    labels = truth()
    for row in range(CELL // 2, SIDE - CELL // 4, CELL):
        for column in range(CELL // 2, SIDE - CELL // 4, CELL):
            store.paint(Brush([(row, column - 40.0), (row, column + 40.0)], 8), int(labels[row, column]))
