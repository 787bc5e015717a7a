"""Small pictures of large maps for reports: overviews from coarse levels, crops, colours, PNG."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from napari_isdnet.classes import IGNORE_INDEX, ClassInfo
from napari_isdnet.engine.labels import read_labels
from napari_isdnet.engine.metrics import Labels
from napari_isdnet.io.sampling import sampled
from napari_isdnet.io.source import ImageSource
from napari_isdnet.window import Window

Picture = npt.NDArray[np.uint8]


def overview(source: ImageSource, region: Window, longest: int, labels: bool) -> npt.NDArray[np.generic]:
    """:func:`~napari_isdnet.io.sampling.sampled` of an image, or of a map of class indices where ``labels``."""
    if not labels:
        return sampled(source, region, longest)
    return sampled(source, region, longest, lambda window, level: read_labels(source, window, level)[..., None])


def colored(labels: Labels, colors: Mapping[int, tuple[int, int, int]]) -> Picture:
    """``(h, w, 4)``: each value in its colour, everything else transparent."""
    table = np.zeros((256, 4), np.uint8)
    for value, color in colors.items():
        table[value] = (*color, 255)
    return table[labels]


def class_colors(classes: Sequence[ClassInfo]) -> dict[int, tuple[int, int, int]]:
    """Colours by class index."""
    return {k: info.color for k, info in enumerate(classes) if k != IGNORE_INDEX}


class Shades:
    """Image samples as 8-bit RGB: bytes as they are, anything else stretched between the overview's percentiles."""

    def __init__(self, source: ImageSource, sample: npt.NDArray[np.generic]) -> None:
        self._channels = [c for c in range(source.channels) if c != source.alpha][:3]
        if len(self._channels) == 2:
            self._channels = self._channels[:1]
        values = sample[..., self._channels].astype(np.float64)
        if source.nodata is not None:
            values = values[values != source.nodata]
        values = values[np.isfinite(values)]
        self._plain = source.dtype == np.uint8
        self._low, self._high = (float(v) for v in np.percentile(values, (1, 99))) if values.size else (0.0, 1.0)

    def __call__(self, sample: npt.NDArray[np.generic]) -> Picture:
        """``(h, w, channels)`` samples as ``(h, w, 3)``."""
        values = sample[..., self._channels]
        if not self._plain:
            scaled = (values.astype(np.float64) - self._low) / max(self._high - self._low, 1e-12) * 255
            values = np.nan_to_num(scaled).clip(0, 255)
        result: Picture = values.astype(np.uint8)
        return np.repeat(result, 3, axis=2) if result.shape[2] == 1 else result


def data_uri(picture: Picture, photo: bool = False) -> str:
    """A picture ``(h, w, 3 or 4)`` inside a ``data:`` address: PNG, or JPEG for a ``photo`` (3 channels)."""
    import imagecodecs

    picture = np.ascontiguousarray(picture)
    data = imagecodecs.jpeg_encode(picture, level=85) if photo else imagecodecs.png_encode(picture, level=6)
    return f"data:image/{'jpeg' if photo else 'png'};base64," + base64.b64encode(data).decode("ascii")
