"""From an image source to a napari image layer that never blocks: :func:`image_layer`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from napari_isdnet.engine.tiles import TilePyramid
from napari_isdnet.io.intensity import IntensityPolicy
from napari_isdnet.io.overviews import OverviewSource
from napari_isdnet.io.source import ImageSource
from napari_isdnet.io.units import metres_of
from napari_isdnet.widgets._lazy import LazyLevel, layer_data
from napari_isdnet.window import Window

#: Key of a layer's metadata under which the widgets find its source and how it was opened.
METADATA = "napari-isdnet"
#: Pixels from this size on (m) are of land.
SMALL = 1e-3
#: Key among those of a layer that shows an annotation: the folder of that.
ANNOTATION = "annotation"
#: Key among those of a layer that holds a part of an annotation, to be edited with napari's own tools.
EDITED = "edit window"
#: Key among those of a layer that shows where a class map is wrong.
ERRORS = "errors"


class ImagePyramid(TilePyramid):
    """``source`` as uint8 RGB tiles on 0..255, the way the network sees it; ``options`` go to the pyramid.

    Where ``policy`` is None, that of the image is found when a tile is read first: it may take a second.
    """

    def __init__(self, source: ImageSource, policy: IntensityPolicy | None, **options: Any) -> None:
        def read(level: int, window: Window) -> npt.NDArray[np.uint8]:
            nonlocal policy
            known = policy = policy or IntensityPolicy.from_source(source)
            rgb, _ = known.apply(look(window, level))
            return np.rint(rgb).astype(np.uint8)

        look, ready = (source.known, source.ready) if isinstance(source, OverviewSource) else (source.read, None)
        super().__init__(levels_to_show(source.levels), read, channels=3, ready=ready, **options)
        self.source = source


def levels_to_show(levels: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    """The levels napari can tell apart: each smaller than the one before."""
    shown = [levels[0]]
    for rows, columns in levels[1:]:
        if rows * columns < shown[-1][0] * shown[-1][1]:
            shown.append((rows, columns))
        else:
            break
    return tuple(shown)


def layer_settings(source: ImageSource) -> dict[str, Any]:
    """Scale and units for napari where the pixel size is a length, so that its scale bar and our layers agree; and the
    translation of an image that begins beside the origin, or of a result that begins inside its image (``origin``).

    Slides are in micrometres and land in metres, whatever unit their files count in: napari draws layers of several
    units in one of them.
    """
    origin = getattr(source, "origin", None) or (0, 0)
    size = source.pixel_size
    metres = metres_of(size.unit) if size is not None else None
    if size is None or metres is None:
        return {"translate": origin} if any(origin) else {}
    small = size.row * metres < SMALL
    factor, unit = (metres / 1e-6, "micrometer") if small else (metres, "meter")
    scale = size.row * factor, size.column * factor
    corner = tuple(o * s + start * factor for o, s, start in zip(origin, scale, size.start))
    return {"scale": scale, "units": (unit, unit)} | ({"translate": corner} if any(corner) else {})


def image_layer(
    source: ImageSource,
    policy: IntensityPolicy | None,
    path: str | None = None,
    sample: str | None = None,
    **options: Any,
) -> tuple[Any, dict[str, Any], str]:
    """The layer data tuple of ``source``; its metadata holds the source for the other widgets.

    ``policy``: None for what any reader finds, in the background.
    """
    data, multiscale = layer_data(ImagePyramid(source, policy, **options))
    metadata = {"source": source, "policy": policy, "path": path, "sample": sample}
    keywords = {
        "name": source.name,
        "rgb": True,
        "multiscale": multiscale,
        "metadata": {METADATA: metadata},
        **layer_settings(source),
    }
    return data, keywords, "image"


def source_of(layer: Any) -> ImageSource | None:
    """The source a layer was loaded from by this plugin, or None; None too for a layer that was made of such a one.

    napari copies the metadata of a layer to what it makes of it: a level, a channel, a part.
    """
    source = getattr(layer, "metadata", {}).get(METADATA, {}).get("source")
    if not isinstance(source, ImageSource):
        return None
    data: Any = layer.data[0] if layer.multiscale else layer.data
    whole = isinstance(data, LazyLevel) and data.level == 0 and layer.rgb and data.shape[:2] == source.shape
    return source if whole else None
