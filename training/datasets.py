"""The data of a recipe: which files are which sample of which split, and how their masks say a class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from napari_isdnet_training.config import DataConfig
from napari_isdnet_training.layouts.base import SPLITS, Dataset, Sample, Split
from napari_isdnet_training.layouts.cityscapes import cityscapes
from napari_isdnet_training.layouts.deepglobe import deepglobe
from napari_isdnet_training.layouts.folder import folder, scenes
from napari_isdnet_training.layouts.inria import inria
from napari_isdnet_training.layouts.world import with_worlds

from napari_isdnet.exceptions import InputError

__all__ = ["LAYOUTS", "SPLITS", "Dataset", "Sample", "Split", "open_dataset"]

LAYOUTS: dict[str, Callable[[Path, DataConfig], Dataset]] = {
    "folder": folder,
    "scenes": scenes,
    "deepglobe": deepglobe,
    "inria": inria,
    "cityscapes": cityscapes,
}


def open_dataset(config: DataConfig) -> Dataset:
    """Find the samples of a recipe's data. Nothing is read but folder listings; ``worlds`` are made."""
    if config.root is None:
        raise InputError("The recipe does not say where the data is; add --set data.root=FOLDER.")
    root = config.root.expanduser()
    if not root.is_dir():
        raise InputError(f"data.root '{root}' is no folder; give the folder that holds the data set.")
    if config.split == "suggested" and config.layout != "inria":
        raise InputError(f"data.split=suggested is of layout 'inria' alone, got layout '{config.layout}'.")
    return replace(with_worlds(LAYOUTS[config.layout](root, config), config), channels=config.channels)
