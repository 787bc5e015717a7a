"""Where the results of a job go, and what they may replace: its own, and never the image."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from napari_isdnet.exceptions import AlreadyThere, InputError
from napari_isdnet.io.sink import result_path
from napari_isdnet.io.source import ImageSource, quick_identity

STAGE = "output"
"""Of the ledger: the names of the results that are this job's own, and are replaced when it runs again."""

Outputs = dict[str, tuple[str, str, Path]]
"""Key of a result -> (kind, format, path)."""


def job_outputs(
    folder: Path,
    stem: str,
    formats: Sequence[str],
    probabilities: bool,
    uncertainty: bool,
    polygons: bool,
    geopackage: bool = False,
) -> Outputs:
    """What a job writes: labels in every format, maps in the first that can hold them, polygons, a picture."""
    result: Outputs = {}
    for kind in ["labels", *(["probabilities"] if probabilities else []), *(["uncertainty"] if uncertainty else [])]:
        own = formats if kind == "labels" else (_for_maps(formats[0]),)
        for name in own:
            key = kind if len(own) == 1 else f"{kind} {name}"
            result[key] = (kind, name, result_path(folder, stem, name, kind))
    if polygons:
        result["polygons"] = ("polygons", "geojson", folder / f"{stem}.geojson")
    if geopackage:
        result["geopackage"] = ("geopackage", "gpkg", folder / f"{stem}.gpkg")
    result["overlay"] = ("overlay", "png", folder / f"{stem}_overlay.png")
    return result


def _for_maps(name: str) -> str:
    return "ome-zarr" if name == "png" else name  # a PNG holds class maps only


def check_outputs(outputs: Outputs, source: ImageSource, own: Collection[int | str], overwrite: bool) -> None:
    """Raise :class:`InputError` where a result would replace what is no result of this job.

    ``own`` are the names of earlier results of the job. The image itself is not even replaced with ``overwrite``.
    """
    file = quick_identity(source).get("path")
    image = None if file is None else Path(str(file)).resolve()
    for _, _, path in outputs.values():
        if not path.exists():
            continue
        if image is not None and (path.resolve() == image or path.resolve() in image.parents):
            raise InputError(f"The result {path} would replace the image itself; choose another --output folder.")
        if path.name not in own and not overwrite:
            raise AlreadyThere.at(path)
