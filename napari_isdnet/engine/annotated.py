"""Label maps that hold annotation values (0 = unlabelled, k + 1 = class k), read as class indices like all others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_isdnet.classes import ANNOTATION, IGNORE_INDEX, ClassInfo, classes_marked, from_annotation
from napari_isdnet.io.base import SourceBase, SourceInfo
from napari_isdnet.io.source import ImageSource
from napari_isdnet.io.tiff_meta import tiff_texts
from napari_isdnet.window import Window

_METADATA_LIMIT = 64 << 20


def indices_of(source: ImageSource, **changes: Any) -> SourceInfo:
    """The facts of a map of class indices (one channel of uint8, 255 = nothing known) on the grid of ``source``."""
    return SourceInfo.of(
        source,
        **{"channels": 1, "dtype": np.dtype(np.uint8), "nodata": float(IGNORE_INDEX), "alpha": None, "rgb": None},
        **changes,
    )


class AnnotationIndices(SourceBase):
    """A source of annotation values as class indices with 255 where nothing is painted; it closes that source."""

    painted = True

    def __init__(self, source: ImageSource) -> None:
        super().__init__(indices_of(source))
        self._source = source

    def _read(self, window: Window, level: int) -> npt.NDArray[np.uint8]:
        return from_annotation(self._source.read(window, level).astype(np.uint8, copy=False))

    def identity(self) -> Mapping[str, Any]:
        """That of the file, and that it is read so."""
        return {**self._source.identity(), "values": "annotation"}

    def _release(self) -> None:
        self._source.close()


def annotation_classes(path: Path) -> tuple[ClassInfo, ...] | None:
    """Classes of a file that holds annotation values by its own account; () where it names none, None for others.

    Such are the pyramid of a project (``annotations.zarr``) and what ``annotation export --values annotation`` writes.
    """
    if path.is_dir():
        return _in_zarr(path)
    if path.suffix.lower() in (".tif", ".tiff"):
        return _in_tiff(path)
    return None


def _in_zarr(path: Path) -> tuple[ClassInfo, ...] | None:
    file = path / "zarr.json"
    try:
        if file.stat().st_size > _METADATA_LIMIT:
            return None
        attributes = json.loads(file.read_bytes()).get("attributes", {})
        if ANNOTATION in attributes:
            return classes_marked(attributes[ANNOTATION])
        if not (path.parent / "journal.jsonl").is_file():
            return None
        # A project that was saved last before there was a mark; its classes are in the metadata of OME-Zarr labels.
        label = attributes["ome"]["image-label"]
        colors = {item["label-value"]: item["rgba"][:3] for item in label["colors"]}
        named = [[item["name"], colors[item["label-value"]]] for item in label["properties"]]
        return classes_marked({"classes": named})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _in_tiff(path: Path) -> tuple[ClassInfo, ...] | None:
    texts = tiff_texts(path)
    if texts is None or ANNOTATION not in texts.description:
        return None
    try:
        return classes_marked(json.loads(texts.description).get(ANNOTATION))
    except (ValueError, AttributeError):
        return None
