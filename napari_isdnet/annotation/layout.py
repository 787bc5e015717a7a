"""The folder of an annotation: names, and the zarr metadata that lets other programs read the labels.

``annotations.zarr`` is an OME-Zarr 0.5 label pyramid (uint8, 512 chunks, no shards, zstd); ``journal.jsonl`` the
strokes; ``pixels/`` masks too large for a line; ``undo/`` what was there before; ``index/`` how much of each class;
``state.json`` the journal position that the chunks on disk stand for.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from napari_isdnet.annotation.chunks import CHUNK
from napari_isdnet.annotation.classlist import Classes
from napari_isdnet.classes import ANNOTATION, ANNOTATIONS_ZARR, annotation_mark
from napari_isdnet.exceptions import InputError
from napari_isdnet.window import pyramid_shapes

JOURNAL = "journal.jsonl"
STATE = "state.json"
GROUP = f"{ANNOTATIONS_ZARR}/zarr.json"
LOCK = "lock"


def store_folder(path: str | Path) -> Path:
    """The folder of an annotation, given it, its ``annotations.zarr`` or its ``journal.jsonl``."""
    folder = Path(path)
    return folder.parent if folder.name in (ANNOTATIONS_ZARR, JOURNAL, "project.json") else folder


def level_shapes(shape: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Levels by factors of two down to a single chunk."""
    if min(shape) < 1:
        raise InputError(f"An annotation needs an image of at least 1 x 1 pixels, got {shape[0]} x {shape[1]}.")
    return tuple(pyramid_shapes((int(shape[0]), int(shape[1])), smallest=CHUNK))


def array_json(shape: tuple[int, int]) -> bytes:
    """``zarr.json`` of one level."""
    meta = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": "uint8",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [CHUNK, CHUNK]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [{"name": "bytes"}, {"name": "zstd", "configuration": {"level": 1, "checksum": False}}],
        "dimension_names": ["y", "x"],
        "attributes": {},
    }
    return json.dumps(meta, indent=1).encode()


def group_json(levels: Sequence[tuple[int, int]], classes: Classes) -> bytes:
    """``zarr.json`` of the pyramid: OME-Zarr 0.5 ``multiscales`` and ``image-label`` with names and colours."""
    datasets: list[dict[str, Any]] = []
    for level in range(len(levels)):
        scale, shift = float(2**level), (2**level - 1) / 2
        transforms = [
            {"type": "scale", "scale": [scale, scale]},
            {"type": "translation", "translation": [shift, shift]},
        ]
        datasets.append({"path": str(level), "coordinateTransformations": transforms})
    axes = [{"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    values = list(enumerate(classes, start=1))
    label = {
        "version": "0.5",
        "colors": [{"label-value": v, "rgba": [*c.info.color, 255]} for v, c in values],
        "properties": [{"label-value": v, "name": c.info.name} for v, c in values],
    }
    multiscales = [{"name": "annotations", "axes": axes, "datasets": datasets, "type": "mode"}]
    ome = {"version": "0.5", "multiscales": multiscales, "image-label": label}
    # What its values mean is not in OME-Zarr: without this the first class would be read as the second one.
    mark = annotation_mark([c.info for c in classes])
    meta = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": ome, ANNOTATION: mark}}
    return json.dumps(meta, indent=1).encode()


def zarr_files(levels: Sequence[tuple[int, int]], classes: Classes) -> dict[str, bytes | None]:
    """All metadata of a new, empty pyramid."""
    files: dict[str, bytes | None] = {GROUP: group_json(levels, classes)}
    for level, shape in enumerate(levels):
        files[f"{ANNOTATIONS_ZARR}/{level}/zarr.json"] = array_json(shape)
    return files
