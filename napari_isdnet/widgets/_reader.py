"""What napari calls to open files and samples: pyramids that it reads badly, opened lazily by us."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from napari_isdnet.classes import IGNORE_INDEX
from napari_isdnet.exceptions import InputError

LayerData = tuple[Any, dict[str, Any], str]
_SLIDES = (".svs", ".ndpi", ".scn", ".mrxs", ".bif", ".vms", ".vmu", ".svslide")
_TIFFS = (".tif", ".tiff", ".btf", ".tf8")


def get_reader(path: str | Sequence[str]) -> Callable[[Any], list[LayerData]] | None:
    """A reader for ``path``, or None for what is not ours: many files, stacks, folders that hold no OME-Zarr image."""
    if not isinstance(path, str | os.PathLike):
        return None
    file = Path(path)
    if file.suffix.lower() in _SLIDES and file.is_file():
        return read
    if file.suffix.lower() in _TIFFS and file.is_file():
        notes = _notes(file)  # stacks, of which one plane would be shown, stay with napari
        return None if notes is None or any("planes" in note for note in notes) else read
    if file.is_dir() and any((file / name).is_file() for name in ("zarr.json", ".zattrs")):
        return None if _notes(file) is None else read
    return None


def _notes(file: Path) -> tuple[str, ...] | None:
    """What is said of an image that can be opened."""
    from napari_isdnet.io.open import open_source

    try:
        with closing(open_source(file)) as source:
            return tuple(getattr(source, "notes", ()))
    except InputError:
        return None


def read(path: Any) -> list[LayerData]:
    """Open ``path`` as a lazy multiscale image; a class map that this package wrote as labels with its classes."""
    from napari_isdnet.io.open import open_source
    from napari_isdnet.io.overviews import with_overviews
    from napari_isdnet.widgets._image import image_layer
    from napari_isdnet.widgets._settings import pyramid_folder

    _watch_current()
    store = _class_map(path)
    if store is not None:
        return [result_layer(store)]
    written = _tiff_class_map(path)
    if written is not None:
        return [_file_layer(written[0], written[1], str(path))]
    source = with_overviews(open_source(path), pyramid_folder())
    return [image_layer(source, None, path=str(path))]


def _class_map(path: Any) -> Any:
    """The store of a finished class map; None for anything else."""
    from napari_isdnet.io.store import LabelStore

    if not os.path.isdir(path):
        return None
    try:
        store = LabelStore.open(path)
    except InputError:
        return None
    return store if store.kind == "labels" else None


def _tiff_class_map(path: Any) -> Any:
    """Source and classes of an OME-TIFF or GeoTIFF that holds class indices and names them; None for anything else."""
    from napari_isdnet.engine.labels import open_labels

    if Path(path).suffix.lower() not in _TIFFS:
        return None
    try:
        source, classes = open_labels(path)
    except InputError:  # a picture, or what opening it as one will say in words
        return None
    if not classes:
        source.close()
        return None
    return source, classes


def _file_layer(source: Any, classes: Any, path: str) -> LayerData:
    """The layer data tuple of a class map in a file of another format than the engine's own."""
    from napari_isdnet.engine.labels import read_labels
    from napari_isdnet.io.source import written_meanwhile
    from napari_isdnet.widgets import _segment_layers as layers
    from napari_isdnet.widgets._image import METADATA, layer_settings, levels_to_show
    from napari_isdnet.widgets._stored import StoredPyramid

    pyramid = StoredPyramid(
        levels_to_show(source.levels),
        lambda level, window: read_labels(source, window, level),
        lambda: written_meanwhile(source),
        Path(path).name,
        fill=IGNORE_INDEX,
    )
    metadata = {layers.CLASSES: classes, layers.RESULT: True, METADATA: {"path": path}}
    return _labels_layer(pyramid, source.name, classes, {"metadata": metadata, **layer_settings(source)})


def result_layer(store: Any) -> LayerData:
    """The layer data tuple of a finished class map, where it lies in its image."""
    from napari_isdnet.widgets import _segment_layers as layers
    from napari_isdnet.widgets._image import layer_settings

    metadata = {layers.CLASSES: store.classes, layers.RESULT: True, layers.STORE: str(store.path)}
    settings = {"metadata": metadata, **layer_settings(store)}
    return _labels_layer(layers.store_pyramid(store), store.name, store.classes, settings)


def _labels_layer(pyramid: Any, name: str, classes: Any, more: dict[str, Any]) -> LayerData:
    from napari_isdnet.widgets import _segment_layers as layers
    from napari_isdnet.widgets._lazy import layer_data
    from napari_isdnet.widgets._segment_controller import color_table

    data, multiscale = layer_data(pyramid)
    keywords = {
        "name": name,
        "multiscale": multiscale,
        "colormap": layers.colormap(color_table(classes, frozenset())),
        "features": layers.class_features(classes),
        "opacity": 0.6,
        **more,
    }
    return data, keywords, "labels"


def _watch_current() -> None:
    import napari

    from napari_isdnet.widgets._lazy import watch

    viewer = napari.current_viewer()
    if viewer is not None:
        watch(viewer)


def read_sample(name: str) -> list[LayerData]:
    """A sample of the package as lazy layers."""
    from napari_isdnet.io.samples import open_sample
    from napari_isdnet.widgets._image import image_layer

    source = open_sample(name)
    _watch_current()
    return [image_layer(source, None, sample=name)]


def sample_aerial_4k() -> list[LayerData]:
    """The aerial world of 4096 x 4096 pixels."""
    return read_sample("aerial-4k")


def sample_aerial_100k() -> list[LayerData]:
    """The aerial world of 100,000 x 100,000 pixels, made as it is looked at."""
    return read_sample("aerial-100k")


def sample_photograph() -> list[LayerData]:
    """A photograph to annotate."""
    return read_sample("photograph")
