"""Files in and out of an annotation, as jobs. No Qt."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from napari_isdnet.annotation.store import AnnotationStore
from napari_isdnet.io.source import GeoReference
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
    store: AnnotationStore,
    path: Path,
    values: str,
    default_class: str | None,
    georeference: GeoReference | None = None,
) -> Generator[Progress, None, str]:
    """Paint a file over the annotation as one step; returns what is to be said about it ('' for nothing).

    ``values`` says what a label image holds, ``'annotation'`` or ``'mask'``; ``georeference`` is the image's, for
    outlines in map coordinates.
    """
    if path.suffix.lower() in OUTLINES:
        from napari_isdnet.annotation.geojson import import_geojson

        yield Progress(0, 1, "Importing")
        said: list[str] = []
        import_geojson(store, path, default_class=default_class, georeference=georeference, note=said.append)
        return " ".join(said)
    from napari_isdnet.annotation.exchange import import_labels

    yield from import_labels(store, path, values)
    return ""


def write_out(store: AnnotationStore, path: Path, kind: str, image: Any) -> Generator[Progress, None, str]:
    """Write the annotation as ``kind`` (a key of ``EXPORTS``); an existing file is replaced once the new is whole.

    Returns what is to be said about it.
    """
    if kind == "geojson":
        from napari_isdnet.annotation.geojson import export_geojson

        yield Progress(0, 1, "Exporting")
        return f"Written to {export_geojson(store, path, overwrite=True)}."
    from napari_isdnet.annotation.exchange import export_labels

    found = yield from export_labels(store, path, format=kind, image=image, overwrite=True)
    return f"Written to {found}."


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
