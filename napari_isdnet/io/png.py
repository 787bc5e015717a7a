"""Palette PNG export, for what fits in memory."""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

from napari_isdnet.classes import IGNORE_INDEX
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.disk import replacing
from napari_isdnet.progress import Clock, Progress
from napari_isdnet.window import Window

if TYPE_CHECKING:
    from napari_isdnet.io.store import LabelStore

MAX_PNG_PIXELS = 2**28
"""Largest PNG that is written (16384 x 16384 or the like): it has no tiles, so readers hold it whole."""


def check_png(shape: tuple[int, int]) -> None:
    """Raise :class:`InputError` where an image of ``shape`` is too large for a PNG; for asking before the work."""
    if shape[0] * shape[1] > MAX_PNG_PIXELS:
        raise InputError(
            f"A PNG of {shape[0]} x {shape[1]} pixels is too large (at most {MAX_PNG_PIXELS:,} pixels);"
            " use --format ome-tiff or geotiff, or a smaller --roi."
        )


def export_png(store: LabelStore, path: Path, overwrite: bool) -> Generator[Progress, None, Path]:
    """Write level 0 as an 8-bit palette PNG: pixel values are class indices, 255 is transparent.

    A ``classes`` text chunk holds names and colours as JSON. At most :data:`MAX_PNG_PIXELS` pixels.
    """
    import numpy as np
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    if store.kind != "labels":
        raise InputError(
            f"A PNG holds class labels only, got {store.kind}; export those as ome-zarr, ome-tiff or geotiff."
        )
    check_png(store.shape)
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(store.classes)] = [c.color for c in store.classes]
    info = PngInfo()
    info.add_itxt("classes", json.dumps([{"name": c.name, "color": c.hex} for c in store.classes], ensure_ascii=False))
    labels = np.empty(store.shape, np.uint8)
    clock = Clock(labels.size)
    with replacing(path, overwrite) as temporary:
        for top in range(0, store.shape[0], 512):
            strip = Window(top, 0, min(512, store.shape[0] - top), store.shape[1])
            labels[top : strip.bottom] = store.read_labels(strip)
            yield clock.step(strip.area, "export png", strip)
        image = Image.fromarray(labels)
        image.putpalette(palette.tobytes(), "RGB")
        image.save(temporary, format="PNG", pnginfo=info, transparency=IGNORE_INDEX, compress_level=6)
    return path
