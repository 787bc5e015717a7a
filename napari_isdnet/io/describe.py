"""What there is to know about an image before anything is computed from it."""

from __future__ import annotations

import math
from typing import Any

from napari_isdnet.io.intensity import IntensityPolicy
from napari_isdnet.io.source import ImageSource


def describe(source: ImageSource) -> dict[str, Any]:
    """JSON-ready facts: size, sample type, levels, pixel size, position, nodata, intensity choice, decoded bytes.

    Reads a coarse level (at most about 4 million pixels) where percentiles are needed.
    """
    size, place, nodata = source.pixel_size, source.georeference, source.nodata
    policy = IntensityPolicy.from_source(source)
    return {
        "name": source.name,
        "format": getattr(source, "format", type(source).__name__),
        "rows": source.shape[0],
        "columns": source.shape[1],
        "megapixels": round(source.shape[0] * source.shape[1] / 1e6, 3),
        "channels": source.channels,
        "alpha": source.alpha,
        "dtype": str(source.dtype),
        "levels": [list(level) for level in source.levels],
        "pixel_size": size and {"row": size.row, "column": size.column, "unit": size.unit, "metres": size.metres},
        "translation": list(size.start) if size and any(size.start) else None,
        "crs": place.crs if place else None,
        "transform": list(place.transform) if place else None,
        "nodata": nodata if nodata is None or math.isfinite(nodata) else str(nodata),
        "intensity": policy.to_dict(),
        "decoded_bytes": source.shape[0] * source.shape[1] * source.channels * source.dtype.itemsize,
        "notes": [*getattr(source, "notes", ()), *_left_out(source, policy)],
    }


def _left_out(source: ImageSource, policy: IntensityPolicy) -> list[str]:
    """A note where a file has more channels than the network sees."""
    count = source.channels - (source.alpha is not None)
    if count <= len(policy.channels):
        return []
    chosen = policy.channels
    which = f"only channel {chosen[0]} is used, as grey"
    if len(chosen) == 3:
        which = f"numbers {chosen[0]}, {chosen[1]} and {chosen[2]} are used as red, green and blue"
    return [f"of {count} channels {which}; choose others with --channels"]
