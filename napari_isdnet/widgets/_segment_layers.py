"""Layers of the Segment dock: where they lie, how they are coloured, which part of an image is meant."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
from qtpy.QtCore import QObject

from napari_isdnet.classes import IGNORE_INDEX, ClassInfo
from napari_isdnet.engine.tiles import LivePyramid
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.array import ArraySource
from napari_isdnet.io.disk import file_stem
from napari_isdnet.io.intensity import IntensityPolicy
from napari_isdnet.io.open import layer_pixel_size, open_source
from napari_isdnet.io.source import ImageSource
from napari_isdnet.io.store import LabelStore
from napari_isdnet.widgets._image import METADATA, levels_to_show, source_of
from napari_isdnet.widgets._job import timer
from napari_isdnet.widgets._lazy import LazyLevel, ReadLevel, layer_data, watch
from napari_isdnet.widgets._places import in_pixels, in_world
from napari_isdnet.widgets._stored import StoredPyramid, remade
from napari_isdnet.window import Window

#: Key in a result layer's metadata that says which classes it shows.
CLASSES = "napari-isdnet-classes"
#: Key in the metadata of every layer that this dock adds: it is no image to segment.
RESULT = "napari-isdnet-result"
#: Key in the metadata of a layer that shows a finished result (classes or uncertainty): where that lies.
STORE = "napari-isdnet-store"
#: Key in the metadata of a layer that this package makes of an image layer: the id of that.
IMAGE = "napari-isdnet-image"
#: Key in the metadata of the Shapes layer that was handed out to draw a region into.
REGION = "napari-isdnet-region"
_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".jp2")
_files: WeakKeyDictionary[Any, tuple[Any, Any]] = WeakKeyDictionary()
"""By layer: the file that it was read from, opened by us, and under which name and with which pixel size."""
Colors = Mapping[int | None, tuple[float, float, float, float]]


def opened(layer: Any) -> tuple[ImageSource, IntensityPolicy | None, str | None]:
    """(source, policy, path) of any image layer; the policy is None where it has still to be found (slow)."""
    source = source_of(layer)
    if source is not None:
        known = layer.metadata[METADATA]
        return source, known["policy"], known["path"]
    if layer.ndim != 2:
        raise InputError(
            f"'{layer.name}' has {layer.ndim} axes; a segmentation needs a picture of two: take one plane of it."
        )
    levels = list(layer.data) if layer.multiscale else [layer.data]
    levels = [ReadLevel(level) if isinstance(level, LazyLevel) else level for level in levels]
    size = layer_pixel_size(layer)
    array = ArraySource(levels, stem_of(layer), rgb=layer.rgb, pixel_size=size)
    return _in_file(layer, array) or array, None, layer.source.path


def _in_file(layer: Any, array: ArraySource) -> ImageSource | None:
    """The file that napari's own reader has opened, read by us, where it holds just what the layer shows.

    It knows its place on the earth and its pixel size, and is the image that a command or the Load dock would open,
    with the same annotation. None for a picture, which would have to be decoded once more.
    """
    path = path_of(layer)
    if path is None or path.lower().endswith(_PICTURES):
        return None
    facts = (path, array.name, array.pixel_size)
    source: Any
    known, source = _files.get(layer, (None, None))
    try:
        if known != facts:  # docks ask often: its tiles are decoded once
            source = open_source(path, name=array.name)
            if source.pixel_size is None:
                source.info = replace(source.info, pixel_size=array.pixel_size)
            _files[layer] = facts, source
        return source if _alike(source, array) else None  # what the layer shows may have been changed since
    except InputError:  # the file was damaged since, what the layer shows is there
        return None


def _alike(source: ImageSource, array: ArraySource) -> bool:
    """True where two images are of one kind, and a few windows all over them hold the same."""
    if (source.shape, source.dtype, source.channels) != (array.shape, array.dtype, array.channels):
        return False
    height, width = (min(64, side) for side in array.shape)
    tops, lefts = (np.linspace(0, whole - part, 5) for whole, part in zip(array.shape, (height, width)))
    windows = [Window(int(top), int(left), height, width) for top in tops for left in lefts]
    return all(np.array_equal(source.read(w), array.read(w), equal_nan=source.dtype.kind == "f") for w in windows)


def path_of(layer: Any) -> str | None:
    """The file that holds just what an image layer shows; None where there is none.

    Other readers make several layers of one file, a channel each, and open addresses: a command would read another
    image from what they name.
    """
    if METADATA in layer.metadata:
        # A layer that was made of one of ours keeps what that said of itself, and shows something else.
        path: str | None = layer.metadata[METADATA]["path"] if source_of(layer) is not None else None
        return path
    file = layer.source.path
    if file is None or not os.path.exists(file):
        return None
    return file if _is_whole(os.path.abspath(file), shape_of(layer), bool(layer.rgb)) else None


def colors_of(source: ImageSource, policy: IntensityPolicy | None) -> dict[str, Any]:
    """``contrast`` and ``channels`` of a layer, as the engine and the commands take them; None: as any reader would."""
    if policy is None:
        return {"contrast": "auto", "channels": None}
    return {"contrast": policy.contrast, "channels": policy.chosen_channels(source)}


def file_for_command(layer: Any) -> tuple[str, dict[str, Any]]:
    """The file of an image layer and its :func:`colors_of`; :class:`InputError` where it has no file."""
    path = path_of(layer)
    if path is None:
        raise InputError(f"'{layer.name}' has no file that a command could read; save it to a file first.")
    return path, colors_of(*opened(layer)[:2])


@lru_cache(maxsize=64)
def _is_whole(file: str, shape: tuple[int, int], rgb: bool) -> bool:
    """True where an image file has the rows, columns and channels of a layer. Pictures are one layer, whoever reads."""
    if file.lower().endswith(_PICTURES):
        return True
    try:
        with closing(open_source(file)) as source:
            return source.shape == shape and (source.channels > 1) == rgb
    except InputError:
        return False


def sample_of(layer: Any) -> str | None:
    """The name of the sample that an image layer shows; None where it is none."""
    return None if source_of(layer) is None else layer.metadata[METADATA].get("sample")


def stem_of(layer: Any) -> str:
    """The name that results of an image layer get; always a safe name of a file."""
    source = source_of(layer)
    return source.name if source is not None else file_stem(str(layer.name))


def canvas_size(viewer: Any) -> tuple[int, int]:
    """Height and width of the canvas in screen pixels."""
    size = getattr(getattr(viewer, "canvas", None), "size", None) or (600, 800)
    return int(size[0]), int(size[1])


def displayed_center(viewer: Any, world: Any) -> tuple[float, float]:
    """A point of the world as the centre of the camera, which counts the axes in the order they are displayed in."""
    axes = np.array(viewer.dims.displayed[-2:]) - viewer.dims.ndim
    down, across = (float(world[axis]) for axis in axes)
    return down, across


def visible_window(viewer: Any, layer: Any) -> Window:
    """What of an image layer is on the screen, in level-0 pixels; empty where the view is off the image.

    From camera and canvas: a multiscale layer's own ``corner_pixels`` are rounded to napari's tiles and stay as they
    are while one zooms within a level, many times what is seen.
    """
    canvas, camera = viewer.canvas, viewer.scene.camera
    half = np.array(canvas.size, float) / 2 / camera.zoom
    if canvas.grid.enabled or viewer.dims.ndisplay != 2:
        return _sliced_window(layer)
    middle, displayed = np.array(camera.center[-2:]), list(viewer.dims.displayed)
    corners = []
    for rows, columns in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
        point = np.array(viewer.dims.point, float)
        point[displayed] = middle + half * (rows, columns)
        corners.append(in_pixels(viewer, layer, point))
    top, left = np.floor(np.min(corners, axis=0) + 0.5).astype(int)
    bottom, right = np.ceil(np.max(corners, axis=0) + 0.5).astype(int)
    return Window.from_bounds(int(top), int(left), int(bottom), int(right)).clipped(shape_of(layer))


def _sliced_window(layer: Any) -> Window:
    """What napari reads of a layer, which covers what is seen."""
    factor = layer.downsample_factors[layer.data_level][:2] if layer.multiscale else np.ones(2)
    corners = layer.corner_pixels[:, :2] * factor
    top, left = np.floor(corners[0]).astype(int)
    bottom, right = np.ceil(corners[1]).astype(int) + 1
    return Window.from_bounds(int(top), int(left), int(bottom), int(right)).clipped(shape_of(layer))


def shape_of(layer: Any) -> tuple[int, int]:
    """Rows and columns of an image layer at level 0."""
    data = layer.data[0] if layer.multiscale else layer.data
    return int(data.shape[0]), int(data.shape[1])


def drawn_window(viewer: Any, layer: Any) -> Window | None:
    """The bounding box, in pixels of ``layer``, of the shape that is selected or was drawn last; None without one."""
    from napari.layers import Shapes

    shapes = [item for item in viewer.layers if isinstance(item, Shapes) and item.nshapes]
    active = viewer.layers.selection.active
    shapes.sort(key=lambda item: (item is active, bool(item.metadata.get(REGION))))
    if not shapes:
        return None
    chosen = shapes[-1]
    index = max(chosen.selected_data, default=chosen.nshapes - 1)
    world = [in_world(viewer, chosen, vertex) for vertex in chosen.data[index]]
    pixels = np.array([in_pixels(viewer, layer, point) for point in world])
    top, left = np.floor(pixels.min(axis=0) + 0.5).astype(int)
    bottom, right = np.ceil(pixels.max(axis=0) + 0.5).astype(int)
    return Window.from_bounds(int(top), int(left), int(bottom), int(right))


def placement(layer: Any, origin: tuple[int, int] = (0, 0)) -> dict[str, Any]:
    """Keywords that put pixel (0, 0) of a new layer on pixel ``origin`` of an image layer."""
    corner = layer.affine.inverse(layer.data_to_world(origin))
    return {
        "scale": layer.scale,
        "translate": corner,
        "rotate": layer.rotate,
        "shear": layer.shear,
        "affine": layer.affine,
        "units": layer.units,
    }


def is_of_another(viewer: Any, layer: Any, image: Any) -> bool:
    """True for a layer that was made of another image layer than ``image``, which is still there and another file."""
    made = layer.metadata.get(IMAGE)
    if made is None or made == str(image.unique_id):
        return False
    other = next((item for item in viewer.layers if str(item.unique_id) == made), None)
    return other is not None and (path_of(other) is None or path_of(other) != path_of(image))


def colormap(colors: Colors) -> Any:
    """napari's direct colour map: class 0 is a class like any other, 255 and unknown values are clear."""
    from napari.utils.colormaps import DirectLabelColormap

    return DirectLabelColormap(color_dict={key: np.array(value) for key, value in colors.items()})


def class_features(classes: Sequence[ClassInfo]) -> Any:
    """What napari's status bar says of a value."""
    import pandas as pd

    indices = [*range(len(classes)), IGNORE_INDEX]
    return pd.DataFrame({"index": indices, "class": [*(item.name for item in classes), "no data"]})


def add_labels(
    viewer: Any, image: Any, pyramid: LivePyramid, classes: Sequence[ClassInfo], colors: Colors, name: str, **more: Any
) -> Any:
    """A lazy class map over ``image``; ``more``: ``origin`` in pixels, ``opacity``, ``store`` of a finished result."""
    watch(viewer)
    data, multiscale = layer_data(pyramid)
    origin, store = more.pop("origin", (0, 0)), more.pop("store", None)
    saved = {} if store is None else {STORE: str(store.path)}
    active = viewer.layers.selection.active
    layer = viewer.add_labels(
        data,
        multiscale=multiscale,
        name=name,
        colormap=colormap(colors),
        features=class_features(classes),
        metadata={CLASSES: tuple(classes), RESULT: True, IMAGE: str(image.unique_id), **saved},
        **placement(image, origin),
        **more,
    )
    if active is not None and active in viewer.layers:  # the image stays what one works on
        viewer.layers.selection.active = active
    return layer


def add_uncertainty(viewer: Any, image: Any, store: LabelStore, name: str) -> Any:
    """Where the network is unsure: a white veil over the class map, the denser the less sure."""
    from napari.utils.colormaps import Colormap

    watch(viewer)
    active = viewer.layers.selection.active
    data, multiscale = layer_data(store_pyramid(store, fill=0))
    layer = viewer.add_image(
        data,
        multiscale=multiscale,
        name=name,
        colormap=Colormap([[1, 1, 1, 0], [1, 1, 1, 1]], name="veil"),
        contrast_limits=(0, 254),
        blending="translucent",
        metadata={RESULT: True, IMAGE: str(image.unique_id), STORE: str(store.path)},
        **placement(image, store.origin),
    )
    if active is not None and active in viewer.layers:
        viewer.layers.selection.active = active
    return layer


def showing(viewer: Any, output: Path, stem: str, exported: bool) -> list[Any]:
    """Layers that read the results of the image ``stem`` in ``output``: in its job's folder, where they are always
    made, and with ``exported`` those beside it, which an OME-Zarr result replaces too."""
    names = {f"{stem}.ome.zarr", f"{stem}_uncertainty.ome.zarr"}
    folders = {os.path.abspath(output / f"{stem}.job"), *([os.path.abspath(output)] if exported else [])}
    found = [(layer, layer.metadata.get(STORE)) for layer in viewer.layers]
    return [
        layer
        for layer, store in found
        if store and os.path.basename(store) in names and os.path.dirname(os.path.abspath(store)) in folders
    ]


class Leaving:
    """Takes layers away once napari is through with what it is doing, which may be removing the same ones."""

    def __init__(self, viewer: Any, parent: QObject) -> None:
        self._viewer = viewer
        self._layers: list[Any] = []
        self._timer = timer(parent, 0, self._remove, once=True)

    def take(self, layer: Any) -> None:
        """Take ``layer`` away soon; None is no layer."""
        if layer is not None:
            self._layers.append(layer)
            self._timer.start()

    def _remove(self) -> None:
        remove_all(self._viewer, self._layers)
        self._layers.clear()


def remove_all(viewer: Any, gone: Iterable[Any]) -> None:
    """Remove the layers of ``gone`` that are still there."""
    for layer in gone:
        if layer in viewer.layers:
            viewer.layers.remove(layer)


def store_pyramid(store: LabelStore, fill: int = IGNORE_INDEX) -> StoredPyramid:
    """A result on disk, read where one looks, until another program replaces it; its nodata (255) becomes ``fill``."""

    def read(level: int, window: Window) -> npt.NDArray[np.uint8]:
        pixels = store.read_labels(window, level)
        return pixels if fill == IGNORE_INDEX else np.where(pixels == IGNORE_INDEX, np.uint8(fill), pixels)

    return StoredPyramid(levels_to_show(store.levels), read, remade(store.path), store.path.name, fill=fill)


def region_layer(viewer: Any, image: Any) -> Any:
    """A Shapes layer ready to draw a rectangle into, made where there is none."""
    from napari.layers import Shapes

    found = [item for item in viewer.layers if isinstance(item, Shapes)]
    layer = next((item for item in found if item.metadata.get(REGION)), found[0] if found else None)
    if layer is None:
        width = max(shape_of(image)) / 400
        layer = viewer.add_shapes(
            name="Region", edge_color="#ffb000", face_color=[1, 0.69, 0, 0.08], edge_width=width, **placement(image)
        )
        layer.current_edge_width = width
    for item in found:
        item.metadata.pop(REGION, None)
    layer.metadata[REGION] = True
    viewer.layers.selection.active = layer
    layer.mode = "add_rectangle"
    return layer
