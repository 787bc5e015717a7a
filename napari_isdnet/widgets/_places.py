"""Where the pixels of layers lie in a viewer, whose world may count in another unit than a layer does. No Qt."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def in_pixels(viewer: Any, layer: Any, point: Any) -> npt.NDArray[np.float64]:
    """Row and column in a layer of a point of the viewer's world, which may count in another unit than the layer."""
    own = np.asarray(point, float)[-layer.ndim :] * unit_ratio(viewer.layers.extent.units, layer.units)
    return np.asarray(layer.world_to_data(own), float)[-2:]


def in_world(viewer: Any, layer: Any, pixel: Any) -> npt.NDArray[np.float64]:
    """The point of the viewer's world where a pixel of a layer lies."""
    return in_units(layer, pixel, viewer.layers.extent.units)


def in_units(layer: Any, pixel: Any, units: Any) -> npt.NDArray[np.float64]:
    """Where a pixel of a layer lies, in ``units`` (the layer's own where None)."""
    return np.asarray(layer.data_to_world(pixel), float) * unit_ratio(layer.units, units)


def pixel_sides(viewer: Any, layer: Any) -> npt.NDArray[np.float64]:
    """Height and width of a layer's pixels in the viewer's world."""
    return np.abs(np.asarray(layer.scale[-2:], float)) * unit_ratio(layer.units, viewer.layers.extent.units)[-2:]


def unit_ratio(units: Any, others: Any) -> npt.NDArray[np.float64]:
    """How many of other units one of each unit is, by the last axes; 1 where they are not of one kind, or not known."""

    def ratio(one: Any, other: Any) -> float:
        import pint

        try:
            return float((1 * one).to(other).magnitude)
        except pint.DimensionalityError:
            return 1.0

    if units is None or others is None:
        return np.ones(len(units or others or (0, 0)))
    pairs = zip(units[-len(others) :], others[-len(units) :])
    return np.array([1.0 if one == other else ratio(one, other) for one, other in pairs])
