"""Tiles of a LERC TIFF (GDAL's ``COMPRESS=LERC``), which keep missing samples and alpha as masks, not as samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

LERC = 34887


def lerc_tile(data: bytes, samples: int) -> npt.NDArray[Any]:
    """One tile or strip as (rows, columns, ``samples``).

    As GDAL writes them: a float that is not in the mask is NaN, an 8-bit sample that is missing is the alpha that the
    mask stands for, and samples of a pixel lie in planes where only some of them are missing.
    """
    import imagecodecs

    image, found = imagecodecs.lerc_decode(data, masks=True)
    tile, mask = np.atleast_3d(image), None if found is None else np.atleast_3d(found)
    if found is not None and found.ndim == 3:  # a mask for every plane
        tile, mask = np.moveaxis(image, 0, -1), np.moveaxis(found, 0, -1)
    if mask is not None and tile.dtype.kind == "f":
        tile = np.where(mask, tile, np.array(np.nan, tile.dtype))
    if tile.shape[2] == samples - 1:
        alpha = np.full((*tile.shape[:2], 1), np.iinfo(tile.dtype).max, tile.dtype)
        tile = np.concatenate([tile, alpha if mask is None else alpha * mask], axis=2)
    return tile
