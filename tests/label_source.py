"""A class map in memory as an image source, for tests of what reads one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_isdnet.io.source import GeoReference, PixelSize, check_window
from napari_isdnet.window import Window


class LabelSource:
    """One level, one channel; keeps the largest window that was asked for."""

    alpha = None

    def __init__(
        self, labels: npt.NDArray[Any], georeference: GeoReference | None = None, nodata: float | None = None
    ) -> None:
        self.labels = labels
        self.name = "map"
        self.shape = (labels.shape[0], labels.shape[1])
        self.levels = (self.shape,)
        self.channels = 1
        self.dtype = labels.dtype
        self.pixel_size: PixelSize | None = None
        self.georeference = georeference
        self.nodata = nodata
        self.largest = 0

    def read(self, window: Window, level: int = 0) -> npt.NDArray[Any]:
        check_window(self, window, level)
        self.largest = max(self.largest, window.area)
        return self.labels[window.slices][..., np.newaxis].copy()

    def identity(self) -> Mapping[str, Any]:
        return {"shape": list(self.shape)}

    def close(self) -> None:
        pass
