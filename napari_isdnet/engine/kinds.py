"""What a map holds, by what this package wrote into it: classes, probabilities, uncertainty or an annotation."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from napari_isdnet.engine.annotated import annotation_classes
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.intensity import sample_windows
from napari_isdnet.io.ome_zarr import own_facts
from napari_isdnet.io.source import ImageSource
from napari_isdnet.io.tiff_meta import tiff_texts

_IN_OME = re.compile(r'<M K="kind">(\w+)</M>')
_BAND_IN_GDAL = re.compile(r'role="description">([^<]*)<')
_CLASS_IN_GDAL = re.compile(r'<Item name="CLASS_\d+"')
_MANY = 64
"""Whole numbers all below this are taken for classes: of 254, an uncertainty map has larger ones somewhere."""


def result_kind(path: Path) -> str | None:
    """'labels', 'probabilities', 'uncertainty' or 'annotation'; None for a file that does not say."""
    if annotation_classes(path) is not None:
        return "annotation"
    if path.is_dir():
        own = own_facts(path)
        return None if own is None else str(own.get("kind"))
    return _of_tiff(path) if path.suffix.lower() in (".tif", ".tiff") else None


def _of_tiff(path: Path) -> str | None:
    texts = tiff_texts(path)
    if texts is None:
        return None
    found, gdal = _IN_OME.search(texts.ome), texts.gdal
    if found:
        return found[1]
    band = _BAND_IN_GDAL.search(gdal)
    if band and '<Item name="CLASS_0"' in gdal:  # one band of uncertainty, or one for each class
        return "uncertainty" if band[1] == "uncertainty" else "probabilities"
    return "labels" if _CLASS_IN_GDAL.search(gdal) else None


def check_uncertainty(path: Path, source: ImageSource) -> None:
    """Refuse a map that is none of uncertainty: another result, a picture of several bands, or a class map.

    ``source`` is the open file. A map of another program that does not say what it is has one band, of fractions or
    of whole numbers that are more than classes would be.
    """
    kind = result_kind(path)
    if kind == "uncertainty":
        return
    if kind is None and source.channels == 1 and not _like_classes(source):
        return
    what = {"labels": "a class map", "probabilities": "a map of probabilities", "annotation": "an annotation"}.get(
        kind or "", f"a picture of {source.channels} bands" if source.channels > 1 else "a class map, by its values"
    )
    raise InputError(f"{path.name} is {what}, not of uncertainty; give the map that 'segment --uncertainty' wrote.")


def _like_classes(source: ImageSource) -> bool:
    """True where a sample of the pixels holds only few whole numbers from 0 on, as classes are."""
    if source.dtype.kind not in "bui":
        return False
    level, windows = sample_windows(source)
    seen = np.unique(np.concatenate([np.unique(source.read(window, level)) for window in windows]))
    seen = seen[(seen != 255) & (seen != source.nodata)] if source.nodata is not None else seen[seen != 255]
    return bool(seen.size > 1 and seen[0] >= 0 and seen[-1] < _MANY)
