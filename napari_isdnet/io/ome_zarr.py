"""OME-Zarr 0.5 metadata of a result (https://ngff.openmicroscopy.org/0.5), and its plain export."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_isdnet.classes import IGNORE_INDEX, ClassInfo, classes_from
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.disk import PARTIAL, link_or_copy, replacing
from napari_isdnet.io.pyramid import QUANTA
from napari_isdnet.io.source import GeoReference, PixelSize
from napari_isdnet.io.units import name_of
from napari_isdnet.progress import Clock, Progress

if TYPE_CHECKING:
    from napari_isdnet.io.store import LabelStore

OWN_KEY = "napari_isdnet"
MARKERS = ".done"


def attributes(
    name: str,
    levels: int,
    classes: Sequence[ClassInfo],
    *,
    kind: str,
    channels: int | None,
    pixel_size: PixelSize | None,
    georeference: GeoReference | None,
    origin: tuple[int, int],
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    """Attributes of the group: ``ome`` (multiscales, image-label or omero) and our own ``napari_isdnet``.

    Level ``n`` has scale ``2^n`` and is moved by ``(2^n - 1) / 2`` pixels, since NGFF positions are pixel centres.
    """
    size = pixel_size or PixelSize(1.0, 1.0, "")
    axes: list[dict[str, str]] = [{"name": axis, "type": "space"} for axis in "yx"]
    unit = name_of(size.unit)  # any other unit is left out rather than written wrong
    for axis in axes if unit else []:
        axis["unit"] = unit or ""
    lead = [] if channels is None else [1.0]
    if channels is not None:
        axes.insert(0, {"name": "c", "type": "channel"})
    datasets = []
    for level in range(levels):
        factor = 2**level
        sides = (size.row, size.column)
        offset = [size.start[i] + (origin[i] + (factor - 1) / 2) * s for i, s in enumerate(sides)]
        transforms: list[dict[str, Any]] = [
            {"type": "scale", "scale": [*lead, size.row * factor, size.column * factor]}
        ]
        transforms.append({"type": "translation", "translation": [0.0 for _ in lead] + offset})
        datasets.append({"path": str(level), "coordinateTransformations": transforms})
    method = "2x2 mode, ties to the smallest class, nodata loses" if kind == "labels" else "2x2 mean of valid pixels"
    ome: dict[str, Any] = {
        "version": "0.5",
        "multiscales": [
            {"name": name, "axes": axes, "datasets": datasets, "type": "mode" if kind == "labels" else "mean",
             "metadata": {"method": method}}
        ],
    }  # fmt: skip
    if kind == "labels":
        ome["image-label"] = _image_label(classes)
    elif channels is not None:
        ome["omero"] = _omero(kind, classes, channels)
    own: dict[str, Any] = {"kind": kind, "nodata": IGNORE_INDEX, "classes": [_class(c) for c in classes]}
    if kind != "labels":
        own["quanta"] = QUANTA
    own["origin"] = list(origin)
    start = size.start if any(size.start) else ()
    own["pixel_size"] = None if pixel_size is None else [size.row, size.column, size.unit, *start]
    own["georeference"] = None
    if georeference is not None:
        own["georeference"] = {"crs": georeference.crs, "transform": list(georeference.transform)}
    return {"ome": ome, OWN_KEY: own | {"extra": dict(extra)}}


def _class(info: ClassInfo) -> dict[str, Any]:
    return {"name": info.name, "color": list(info.color)}


def _image_label(classes: Sequence[ClassInfo]) -> dict[str, Any]:
    colors: list[dict[str, Any]] = [{"label-value": k, "rgba": [*c.color, 255]} for k, c in enumerate(classes)]
    colors.append({"label-value": IGNORE_INDEX, "rgba": [0, 0, 0, 0]})
    properties = [{"label-value": k, "name": c.name} for k, c in enumerate(classes)]
    properties.append({"label-value": IGNORE_INDEX, "name": "nodata"})
    return {"colors": colors, "properties": properties}


def _omero(kind: str, classes: Sequence[ClassInfo], channels: int) -> dict[str, Any]:
    known = kind == "probabilities" and channels == len(classes)
    return {
        "channels": [
            {
                "label": classes[k].name if known else kind,
                "color": classes[k].hex[1:].upper() if known else "FFFFFF",
                "window": {"min": 0, "max": QUANTA, "start": 0, "end": QUANTA},
                "active": True,
            }
            for k in range(channels)
        ]
    }


def read_own(attrs: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Our own part of the attributes with ``classes``, ``pixel_size`` and ``georeference`` as objects.

    Raises :class:`InputError` where ``path`` was not written by this package.
    """
    own = attrs.get(OWN_KEY)
    try:
        if own is None:
            raise KeyError(OWN_KEY)
        result = dict(own)
        result["classes"] = classes_from(own["classes"])
        size, geo = own["pixel_size"], own["georeference"]
        result["pixel_size"] = None if size is None else _pixel_size(*size)
        result["georeference"] = None
        if geo is not None:
            a, b, c, d, e, f = (float(v) for v in geo["transform"])
            result["georeference"] = GeoReference(geo["crs"], (a, b, c, d, e, f))
        result["origin"] = (int(own["origin"][0]), int(own["origin"][1]))
        result["levels"] = [str(d["path"]) for d in attrs["ome"]["multiscales"][0]["datasets"]]
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise InputError(
            f"{path} is no result store of this package (its metadata lacks or garbles {error});"
            " give an .ome.zarr that was written by 'napari-isdnet segment'."
        ) from None
    return result


def _pixel_size(row: Any, column: Any, unit: Any, down: Any = 0.0, across: Any = 0.0) -> PixelSize:
    return PixelSize(float(row), float(column), str(unit), (float(down), float(across)))


def own_facts(path: Path) -> dict[str, Any] | None:
    """:func:`read_own` of a folder that this package wrote; None for any other."""
    try:
        return read_own(json.loads((path / "zarr.json").read_bytes())["attributes"], path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, InputError):
        return None


def usable_place(own: dict[str, Any]) -> GeoReference | None:
    """Position on the earth of what this package wrote; None where it has none that can be used."""
    place = own["georeference"]
    if place is None or not isinstance(place.crs, str | None) or not all(map(math.isfinite, place.transform)):
        return None
    return GeoReference(place.crs, place.transform)


def export_ome_zarr(store: LabelStore, path: Path, overwrite: bool) -> Generator[Progress, None, Path]:
    """A plain copy of a finished store without the markers: hard links where the disk allows, so it costs no room."""
    files = [
        Path(folder) / name
        for folder, _, names in os.walk(store.path)
        for name in sorted(names)
        if MARKERS not in Path(folder).relative_to(store.path).parts and PARTIAL not in name
    ]
    clock = Clock(len(files))
    with replacing(path, overwrite) as temporary:
        for file in files:
            target = temporary / file.relative_to(store.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(file, target)
            step = clock.step(1, "export ome-zarr")
            if clock.done % 256 == 0:
                yield step
        yield clock.step(0, "export ome-zarr")
    return path
