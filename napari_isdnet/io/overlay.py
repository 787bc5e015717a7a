"""A small picture to look at: the image with its classes in colour over it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_isdnet.classes import IGNORE_INDEX, ClassInfo
from napari_isdnet.io.disk import replacing
from napari_isdnet.io.sampling import sampled
from napari_isdnet.io.source import ImageSource, read_channels
from napari_isdnet.window import Window

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

SIDE = 1600


def blend(
    rgb: npt.NDArray[Any], labels: npt.NDArray[np.uint8], classes: Sequence[ClassInfo], opacity: float = 0.45
) -> npt.NDArray[np.uint8]:
    """uint8 (h, w, 3): ``rgb`` (0..255) with the colours of ``labels`` (h, w) over it; 255 stays uncoloured."""
    import numpy as np

    table = np.zeros((256, 4), np.float32)
    for index, info in enumerate(classes):
        table[index] = (*info.color, opacity)
    table[IGNORE_INDEX] = 0
    paint = table[labels]
    share = paint[..., 3:]
    return np.clip(rgb * (1 - share) + paint[..., :3] * share + 0.5, 0, 255).astype(np.uint8)


def write_overlay(
    image: ImageSource,
    to_rgb: Callable[[npt.NDArray[Any]], npt.NDArray[Any]],
    labels: ImageSource,
    path: Path,
    classes: Sequence[ClassInfo],
    window: Window | None = None,
    side: int = SIDE,
    channels: Sequence[int] | None = None,
) -> Path:
    """Write a PNG of ``window`` of ``image`` (all of it by default), which ``labels`` covers, with the classes over it.

    ``to_rgb`` turns raw samples (h, w, C), of all ``channels`` or of those, into RGB on the 0..255 scale (the intensity
    policy).
    """
    from PIL import Image

    window = window or Window.whole(image.shape)
    wanted = range(image.channels) if channels is None else channels
    rgb = to_rgb(sampled(image, window, side, lambda part, level: read_channels(image, part, wanted, level)))
    # Of one size, so the samples lie at the same places.
    picture = blend(rgb, sampled(labels, Window.whole(labels.shape), side)[..., 0], classes)
    with replacing(path, overwrite=True) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG", compress_level=3)
    return path
