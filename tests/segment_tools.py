"""A small network, a segmentation run to its end, and the labels that it wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from napari_isdnet.engine.segment import SegmentResult, segment
from napari_isdnet.io.store import LabelStore
from napari_isdnet.model.isdnet import ISDNet
from napari_isdnet.progress import result_of
from napari_isdnet.window import Window
from tests.network_tools import lively, small

PLAIN: dict[str, Any] = {"device": "cpu", "precision": "float32", "window": 128}


def four_classes() -> ISDNet:
    return lively(small(fusion="raf", channels=16, classes=4, auxiliary=False, super_resolution=False))


def run(source: Any, model: Any, output: Path, **options: Any) -> SegmentResult:
    return result_of(segment(source, model, output=output, **{**PLAIN, **options}))


def labels(result: SegmentResult) -> np.ndarray:
    store = LabelStore.open(result.outputs["labels"])
    return store.read_labels(Window.whole(store.shape))
