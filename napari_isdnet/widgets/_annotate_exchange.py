"""Files in and out of an annotation, as jobs. No Qt."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

from napari_isdnet.annotation.store import AnnotationStore
from napari_isdnet.progress import Progress

EXPORTS = {
    "geojson": ("Polygons for QGIS and QuPath (GeoJSON)…", "Outlines with holes, class names and colours", ".geojson"),
    "geotiff": ("Label TIFF (GeoTIFF)…", "Class indices, 255 where nothing is painted; keeps the map position", ".tif"),
    "ome-tiff": ("Label OME-TIFF…", "Class indices as a pyramid, 255 where nothing is painted", ".ome.tif"),
    "ome-zarr": ("Label OME-Zarr…", "Class indices as a pyramid, 255 where nothing is painted", ".ome.zarr"),
}
IMPORT_FILTER = (
    "Annotations (*.geojson *.json *.tif *.tiff *.png *.zarr);;GeoJSON, QuPath (*.geojson *.json);;"
    "Label images (*.tif *.tiff *.png *.zarr);;All files (*)"
)
OUTLINES = (".geojson", ".json")


def bring_in(
    store: AnnotationStore, path: Path, values: str, default_class: str | None
) -> Generator[Progress, None, int]:
    """Paint a file over the annotation as one step; returns the number of 512-pixel pieces that changed.

    ``values`` says what a label image holds, ``'annotation'`` or ``'mask'``.
    """
    if path.suffix.lower() in OUTLINES:
        from napari_isdnet.annotation.geojson import import_geojson

        yield Progress(0, 1, "Importing")
        return len(import_geojson(store, path, default_class=default_class))
    from napari_isdnet.annotation.exchange import import_labels

    return len((yield from import_labels(store, path, values)))


def write_out(store: AnnotationStore, path: Path, kind: str, image: Any) -> Generator[Progress, None, Path]:
    """Write the annotation as ``kind`` (a key of ``EXPORTS``); an existing file is replaced once the new is whole."""
    if kind == "geojson":
        from napari_isdnet.annotation.geojson import export_geojson

        yield Progress(0, 1, "Exporting")
        return export_geojson(store, path, overwrite=True)
    from napari_isdnet.annotation.exchange import export_labels

    return (yield from export_labels(store, path, format=kind, image=image, overwrite=True))
