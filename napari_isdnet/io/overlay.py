"""A small picture to look at: the image with its classes in colour over it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_isdnet.classes import IGNORE_INDEX, ClassInfo
from napari_isdnet.io.disk import replacing
from napari_isdnet.io.source import ImageSource, read_channels
from napari_isdnet.window import Grid, Window

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

SIDE = 1600
STRIP = 2048
STRIP_BYTES = 64 * 2**20


def thumbnail(
    source: ImageSource, window: Window, side: int, channels: Sequence[int] | None = None
) -> npt.NDArray[Any]:
    """``window`` (level 0) of a source at no more than ``side`` pixels a side, every n-th pixel of the level that fits.

    Of some ``channels``, or of all. Read in strips, so that an image without a pyramid costs time but no memory.
    """
    import numpy as np

    channels = range(source.channels) if channels is None else channels
    level, factor = 0, 1.0
    for index, (rows, _) in enumerate(source.levels):
        scale = source.shape[0] / rows
        if max(window.shape) / scale >= side or index == 0:
            level, factor = index, scale
    shape = source.levels[level]
    inside = Window.from_bounds(
        int(window.row / factor),
        int(window.column / factor),
        -int(-window.bottom // factor),
        -int(-window.right // factor),
    ).clipped(shape)
    step = max(1, -(-max(inside.shape) // side))
    strips = []
    rows = max(1, min(STRIP, STRIP_BYTES // (inside.width * source.channels * source.dtype.itemsize)))
    # Strips start at multiples of the step, so that the picked rows are evenly spaced; where not even a step's rows
    # may be held, only the row that is picked is read.
    for strip in Grid(inside.shape, (max(1, rows // step) * step, inside.width)):
        part = strip.shifted(inside.row, inside.column)
        if rows < step:
            part = Window(part.row, part.column, min(rows, part.height), part.width)
        strip_pixels = read_channels(source, part, channels, level)
        strips.append(strip_pixels[::step, ::step].copy())  # a view would keep all that was read
    return np.concatenate(strips)


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
    import numpy as np
    from PIL import Image

    window = window or Window.whole(image.shape)
    rgb = to_rgb(thumbnail(image, window, side, channels))
    below = thumbnail(labels, Window.whole(labels.shape), side)[..., 0]
    # Levels of image and labels may differ: the labels are brought to the picture's size by nearest neighbour.
    rows = (np.arange(rgb.shape[0]) + 0.5) * below.shape[0] / rgb.shape[0]
    columns = (np.arange(rgb.shape[1]) + 0.5) * below.shape[1] / rgb.shape[1]
    picture = blend(rgb, below[rows.astype(int)][:, columns.astype(int)], classes)
    with replacing(path, overwrite=True) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG", compress_level=3)
    return path
