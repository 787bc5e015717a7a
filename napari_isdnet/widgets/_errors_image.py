"""The image that compared maps are of, among the images of the viewer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from napari_isdnet.engine.ledger import read_header
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.array import ArraySource
from napari_isdnet.io.open import stem_of
from napari_isdnet.widgets import _segment_layers as layers
from napari_isdnet.widgets._controls import images_of
from napari_isdnet.widgets._image import source_of
from napari_isdnet.widgets._places import in_units


def image_of(viewer: Any, chosen: tuple[Any, Any], errors: Any, shape: tuple[int, int]) -> Any:
    """The image layer that the maps ``chosen`` (layers or paths of files) are of; None where there is none.

    That is the one a layer was made of, or a result, where its job says so; else one of the same size at the place of
    the layer ``errors``, and of several there the nearest below the maps. Images of one size may be any number.
    """
    images = [layer for layer in images_of(viewer) if _size(layer) == shape]
    ids = {layer.metadata.get(layers.IMAGE) for layer in chosen if not isinstance(layer, str)}
    made = next((layer for layer in images if str(layer.unique_id) in ids), None)
    if made is not None:
        return made
    named = {file for file in map(_made_of, chosen) if file is not None}
    known = next((layer for layer in images if _file(layer) in named), None)
    if known is not None:
        return known
    here = [layer for layer in images if errors is not None and _same_place(layer, errors)]
    if named:  # the folder may have been moved since; another file's image is not what the map was made of
        names = {Path(file).name for file in named}
        here = [layer for layer in here if Path(_file(layer) or "").name in names]
    order = list(viewer.layers)
    tops = [order.index(item) for item in chosen if item in order]
    below = [layer for layer in here if not tops or order.index(layer) < max(tops)]
    return (below or here or [None])[-1]


def _size(layer: Any) -> tuple[int, int] | None:
    source = source_of(layer)
    return None if source is None else source.shape


def _file(layer: Any) -> str | None:
    source = source_of(layer)
    if source is None or isinstance(source, ArraySource):
        return None
    path = source.identity().get("path")
    return None if path is None else str(path)


def _made_of(chosen: Any) -> str | None:
    """The file of the image that a result was made of, from the job that lies there or beside it."""
    path = chosen if isinstance(chosen, str) else chosen.metadata.get(layers.STORE)
    if path is None:
        return None
    store = Path(path).absolute()
    try:
        header = read_header(store.parent) or read_header(store.parent / f"{stem_of(store)}.job")
    except InputError:
        return None
    image = (header or {}).get("image", {}).get("path")
    return None if image is None else str(image)


def _same_place(layer: Any, other: Any) -> bool:
    """True where the corners of both lie within half a pixel of each other in the world."""
    rows, columns = layers.shape_of(layer)
    ends = [
        np.array([in_units(item, corner, layer.units)[-2:] for corner in ((0, 0), (rows, columns), (0, columns))])
        for item in (layer, other)
    ]
    pixel = np.linalg.norm(np.subtract(layer.data_to_world((1, 0)), layer.data_to_world((0, 0))))
    return bool(np.abs(ends[0] - ends[1]).max() < 0.5 * pixel)
