"""OME-TIFF export: SubIFD pyramid, palette colours, class names in the OME-XML."""

from __future__ import annotations

import json
import uuid
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_isdnet.classes import IGNORE_INDEX
from napari_isdnet.io.disk import replacing
from napari_isdnet.io.pyramid import QUANTA
from napari_isdnet.io.tiff_pyramid import stepped, total_work, write_pyramid
from napari_isdnet.io.units import metres_of
from napari_isdnet.progress import Progress

if TYPE_CHECKING:
    from napari_isdnet.io.store import LabelStore


def ome_metadata(store: LabelStore) -> dict[str, Any]:
    """What goes into the OME-XML (OME 2016-06 model).

    The ``MapAnnotation`` holds ``class.K.name`` and ``class.K.color`` (``#rrggbb``) for every class index K,
    ``nodata`` = 255 and ``origin`` (row,column of the first pixel in the segmented image); for quantised maps also
    ``quanta`` = 254, the stored value of 1.0. Physical sizes are in micrometres.
    """
    notes: dict[str, Any] = {"kind": store.kind, "nodata": str(IGNORE_INDEX)}
    notes["origin"] = f"{store.origin[0]},{store.origin[1]}"
    for index, info in enumerate(store.classes):
        notes[f"class.{index}.name"] = info.name
        notes[f"class.{index}.color"] = info.hex
    if store.kind != "labels":
        notes["quanta"] = str(QUANTA)
    # A fixed id and no date: the same result gives the same bytes.
    facts = json.dumps([store.name, store.shape, notes], sort_keys=True)
    metadata: dict[str, Any] = {
        "axes": "CYX" if store.channels > 1 else "YX",
        "Name": store.name,
        "MapAnnotation": notes,
        "UUID": str(uuid.uuid5(uuid.NAMESPACE_URL, facts)),
        "Creator": "napari-isdnet",
    }
    if store.channels > 1:
        metadata["Channel"] = {"Name": [c.name for c in store.classes]}
    size = store.pixel_size
    metres = metres_of(size.unit) if size is not None else None
    if size is not None and metres is not None:
        scale = metres / 1e-6
        metadata |= {"PhysicalSizeX": size.column * scale, "PhysicalSizeXUnit": "µm"}
        metadata |= {"PhysicalSizeY": size.row * scale, "PhysicalSizeYUnit": "µm"}
    return metadata


def export_ome_tiff(store: LabelStore, path: Path, overwrite: bool) -> Generator[Progress, None, Path]:
    """Write a finished store as OME-TIFF; labels as class indices with a colour map, other maps as channels."""
    with replacing(path, overwrite) as temporary:
        first = {"metadata": ome_metadata(store)}

        def work(tick: Any) -> None:
            write_pyramid(store, temporary, tick, subifds=True, first=first, ome=True)

        yield from stepped(work, total_work(store), "export ome-tiff")
    return path
