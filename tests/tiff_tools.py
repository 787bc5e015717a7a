"""Pictures for TIFFs, and the comparison of a source with another decode."""

from __future__ import annotations

import numpy as np
import rasterio

from napari_isdnet.io.source import ImageSource
from napari_isdnet.window import Window

RNG = np.random.default_rng(7)


def from_origin(west, north, column, row):
    return rasterio.Affine(column, 0, west, 0, -row, north)


def picture(rows=150, columns=201, channels=3, dtype=np.uint8):
    """Smooth structure plus noise, all values of the type in use."""
    y, x = np.mgrid[:rows, :columns]
    base = np.stack([np.sin(x / (9 + c)) + np.cos(y / (7 + c)) for c in range(channels)], axis=-1)
    scaled = (base + 2) / 4 + RNG.normal(0, 0.01, base.shape)
    if np.dtype(dtype).kind == "f":
        return scaled.astype(dtype)
    return (np.clip(scaled, 0, 1) * np.iinfo(dtype).max).astype(dtype)


def windows_of(shape, count=12, seed=3):
    rng = np.random.default_rng(seed)
    yield Window(0, 0, *shape)
    yield Window(shape[0] - 1, shape[1] - 1, 1, 1)
    for _ in range(count):
        top, left = rng.integers(0, shape[0]), rng.integers(0, shape[1])
        yield Window(
            int(top), int(left), int(rng.integers(1, shape[0] - top + 1)), int(rng.integers(1, shape[1] - left + 1))
        )


def check(source: ImageSource, truth: list[np.ndarray]):
    """Random windows of every level equal the crop of an independent full decode."""
    assert isinstance(source, ImageSource)
    assert [tuple(level) for level in source.levels] == [t.shape[:2] for t in truth]
    for level, full in enumerate(truth):
        full = full if full.ndim == 3 else full[..., np.newaxis]
        assert source.channels == full.shape[2]
        for window in windows_of(full.shape[:2]):
            crop = source.read(window, level)
            assert crop.dtype == source.dtype == full.dtype
            np.testing.assert_array_equal(crop, full[window.slices])


def half(image):
    return np.ascontiguousarray(image[::2, ::2])
