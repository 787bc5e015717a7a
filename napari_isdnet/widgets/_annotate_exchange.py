"""Files in and out of an annotation, as jobs. No Qt."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from napari_isdnet.annotation import files
from napari_isdnet.annotation.files import holds_outlines, look, write_out
from napari_isdnet.annotation.store import AnnotationStore
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.source import GeoReference
from napari_isdnet.io.vectors import ENDINGS
from napari_isdnet.progress import Progress

__all__ = ["EXPORTS", "IMPORT_FILTER", "VALUES", "Watched", "bring_in", "holds_outlines", "look", "write_out"]

VALUES = {
    "As the file says (class names or 255)": "auto",
    "0 = unlabelled, 1 = first class": "annotation",
    "0 = first class, 255 = unlabelled": "mask",
}

EXPORTS = {
    "gpkg": (
        "Polygons for QGIS and ArcGIS (GeoPackage)…",
        "In map coordinates where the image has them, with class colours",
        ".gpkg",
    ),
    "geojson": ("Polygons for QGIS and QuPath (GeoJSON)…", "Outlines with holes, class names and colours", ".geojson"),
    "geotiff": ("Label TIFF (GeoTIFF)…", "Class indices, 255 where nothing is painted; keeps the map position", ".tif"),
    "ome-tiff": ("Label OME-TIFF…", "Class indices as a pyramid, 255 where nothing is painted", ".ome.tif"),
    "ome-zarr": ("Label OME-Zarr…", "Class indices as a pyramid, 255 where nothing is painted", ".ome.zarr"),
}
_VECTORS = " ".join(f"*{ending}" for ending in ENDINGS)
IMPORT_FILTER = (
    f"Annotations (*.geojson *.json *.gz *.zip {_VECTORS} *.tif *.tiff *.png *.zarr);;"
    "GeoJSON, QuPath (*.geojson *.json *.gz *.zip);;"
    f"GeoPackage, Shapefile, ... ({_VECTORS} *.zip);;"
    "Label images (*.tif *.tiff *.png *.zarr);;All files (*)"
)


def bring_in(
    store: AnnotationStore,
    path: Path,
    values: str,
    default_class: str | None,
    georeference: GeoReference | None,
    layer: str | None = None,
    attribute: str | None = None,
) -> Generator[Progress, None, str]:
    """:func:`napari_isdnet.annotation.files.bring_in`; an error says what to choose here, not which option to add."""
    try:
        return (
            yield from files.bring_in(
                store, path, values, default_class, georeference, layer=layer, attribute=attribute
            )
        )
    except InputError as error:
        said = re.sub(r"add --values mask \(.*\)\.$", "import it again and choose what its values mean.", str(error))
        raise InputError(said) from error


class Watched(Generator[Progress, None, str]):
    """Work that says how it ended, also where nobody waits for its result any more: it is cancelled when it is closed.

    ``say`` is called on the thread that does the work, with what it returned or, when cut off, with ``cut``; never
    after an error, which whoever drives it tells.
    """

    def __init__(self, work: Generator[Progress, None, str], say: Callable[[str], None], cut: str) -> None:
        self._work, self._say, self._cut = work, say, cut
        self._over = False

    def send(self, value: None) -> Progress:
        """One step."""
        try:
            return self._work.send(value)
        except StopIteration as end:
            self._over = True
            if end.value:
                self._say(end.value)
            raise
        except BaseException:
            self._over = True
            raise

    def throw(self, *error: Any) -> Progress:
        """An error inside."""
        return self._work.throw(*error)

    def close(self) -> None:
        """No further step."""
        self._work.close()
        if not self._over:
            self._over = True
            self._say(self._cut)
