"""An annotation in and out of the files of other programs, as jobs."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from napari_isdnet.annotation.store import AnnotationStore
from napari_isdnet.classes import ClassInfo
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.source import GeoReference, quick_identity
from napari_isdnet.io.vectors import WRITTEN, is_vector, layers_of
from napari_isdnet.progress import Clock, Progress

_OUTLINES = (".geojson", ".json", ".gz", ".zip")
"""How the names of files with outlines end; QuPath packs them where it is asked to."""
_LOOKED_AT = 2**26
KINDS = {
    ".geojson": "geojson", ".json": "geojson", ".gpkg": "gpkg", ".ome.zarr": "ome-zarr", ".zarr": "ome-zarr",
    ".ome.tif": "ome-tiff", ".ome.tiff": "ome-tiff", ".tif": "geotiff", ".tiff": "geotiff", ".png": "png",
}  # fmt: skip
"""What a file is written as, by how its name ends; the longer ending counts."""


def kind_of(path: Path) -> str:
    """What a file of this name is written as; :class:`InputError` names the endings that are known."""
    kind = next((k for ending, k in KINDS.items() if path.name.lower().endswith(ending)), None)
    if kind is None:
        raise InputError(f"'{path.name}' must end with one of {', '.join(KINDS)}.")
    return kind


def holds_outlines(path: Path) -> bool:
    """True for GeoJSON and the formats of geographic programs, False for a label image, by the name."""
    return is_vector(path) or path.name.lower().endswith(_OUTLINES)


def check_meant(path: Path, layer: str | None, attribute: str | None) -> None:
    """Raise :class:`InputError` for a layer or attribute of what has neither: a label image, or an annotation."""
    if (layer is not None or attribute is not None) and not holds_outlines(path):
        raise InputError(f"{path} holds no outlines, so that it has neither layers nor attributes; leave those out.")


def look(path: Path) -> Generator[Progress, None, dict[str, tuple[str, ...]]]:
    """What a file of outlines leaves open: its layers, and for each the attributes of which one may be the class.

    There are none where an attribute is called so that it is the class (:data:`CLASS_KEYS`), or where QuPath made it.
    GeoJSON beyond :data:`_LOOKED_AT` bytes, which would be parsed twice, is not asked about.
    """
    from napari_isdnet.annotation.drawn import CLASS_KEYS
    from napari_isdnet.io.geojson import read_json

    yield Clock(1).step(0, "read")
    if is_vector(path):
        layers = layers_of(path)
    elif path.stat().st_size > _LOOKED_AT:
        layers = {"": []}
    else:
        found = [item.get("properties") for item in read_json(path)[0] if isinstance(item, dict)]
        tables = [properties for properties in found if isinstance(properties, dict)]
        layers = {"": list(dict.fromkeys(key for properties in tables for key in properties))}
    known = {*CLASS_KEYS, "objecttype", "class_index"}
    return {name: () if known & {a.lower() for a in own} else tuple(own) for name, own in layers.items()}


def bring_in(
    store: AnnotationStore,
    path: Path,
    values: str,
    default_class: str | None,
    georeference: GeoReference | None = None,
    names: Sequence[ClassInfo] | None = None,
    layer: str | None = None,
    attribute: str | None = None,
) -> Generator[Progress, None, str]:
    """Paint a file over the annotation as one step; returns what is to be said about it ('' for nothing).

    ``values`` says what a label image holds, ``'annotation'``, ``'mask'`` or ``'auto'``, and ``names`` which classes
    it counts (default: those that it carries, else the annotation's); ``georeference`` is the image's: outlines may be
    in map coordinates, and a label image that lies elsewhere is refused. Of outlines, ``layer`` and ``attribute`` say
    which of several layers is meant and what holds the class.
    """
    said: list[str] = []
    if holds_outlines(path):
        from napari_isdnet.annotation.outlines import import_outlines

        yield from import_outlines(
            store, path, default_class=default_class, georeference=georeference, note=said.append, layer=layer,
            attribute=attribute,
        )  # fmt: skip
    else:
        from napari_isdnet.annotation.exchange import import_labels

        yield from import_labels(store, path, values, names, said.append, georeference)
    return " ".join(said)


def check_target(store: AnnotationStore, path: Path, image: Any) -> None:
    """Refuse a file that the annotation is of, or is kept in, whatever may be overwritten."""
    target, project = path.resolve(), store.folder.resolve()
    if target == project or project in target.parents:
        raise InputError(f"{path} belongs to the annotation itself; choose another name.")
    own = None if image is None else quick_identity(image).get("path")
    if own is not None and target == Path(str(own)).resolve():
        raise InputError(f"{path} is the image that is annotated; choose another name.")


def write_out(
    store: AnnotationStore,
    path: Path,
    kind: str,
    image: Any,
    *,
    values: str = "mask",
    georeference: GeoReference | None = None,
    overwrite: bool = True,
) -> Generator[Progress, None, str]:
    """Write the annotation as ``kind`` (a value of :data:`KINDS`); a file there is replaced once the new one is whole.

    ``image`` gives label files their position; ``georeference`` puts outlines into map coordinates. Returns what is to
    be said about it. Raises :class:`InputError` for the image itself and for what is inside of the project.
    """
    check_target(store, path, image)
    if kind in WRITTEN:
        from napari_isdnet.annotation.outlines import export_outlines

        if kind == "gpkg" and georeference is None:  # what reads it knows maps, and no pixels
            place = getattr(image, "georeference", None)
            georeference = place if place is not None and place.crs else None
        found = yield from export_outlines(store, path, georeference=georeference, overwrite=overwrite)
    else:
        from napari_isdnet.annotation.exchange import export_labels

        found = yield from export_labels(store, path, format=kind, values=values, image=image, overwrite=overwrite)
    return f"Written to {found}."
