from pathlib import Path

import numpy as np
from PIL import Image

from napari_isdnet.classes import classes_from
from napari_isdnet.io.array import ArraySource
from napari_isdnet.io.overlay import blend, write_overlay
from napari_isdnet.io.sampling import sampled
from napari_isdnet.window import Window, pyramid_shapes

CLASSES = classes_from([("a", "#ff0000"), ("b", "#0000ff")])


def test_blend_colours_classes_and_leaves_nodata() -> None:
    grey = np.full((1, 3, 3), 100, np.uint8)
    picture = blend(grey, np.array([[0, 1, 255]], np.uint8), CLASSES, opacity=0.5)
    assert picture.tolist() == [[[178, 50, 50], [50, 50, 178], [100, 100, 100]]]


def test_samples_are_of_the_level_that_fits_and_evenly_spaced() -> None:
    full = np.arange(64 * 48, dtype=np.uint16).reshape(64, 48, 1)
    source = ArraySource([full, full[::2, ::2]], "x", "yxc")
    assert (sampled(source, Window.whole((64, 48)), 16) == full[2::4, 2::4]).all()
    assert (sampled(source, Window(32, 16, 16, 16), 16) == full[32:48, 16:32]).all()


def test_a_long_image_whose_short_side_stopped_halving(tmp_path: Path) -> None:
    """Its rows say nothing of the scale of its columns: 5 of 20000 are a picture in 1 of 157."""
    shapes = pyramid_shapes((5, 20000))
    columns = [np.arange(w) * 20000 // w // 100 for _, w in shapes]
    levels = [np.tile(c.astype(np.uint8)[:, None], (h, 1, 3)) for (h, _), c in zip(shapes, columns, strict=True)]
    labels = np.zeros((5, 2000, 1), np.uint8)
    labels[:, 1000:] = 255
    path = write_overlay(
        ArraySource(levels, "image", "yxc"),
        lambda raw: raw.astype(np.float32),
        ArraySource([labels], "labels", "yxc"),
        tmp_path / "overlay.png",
        CLASSES,
        Window(0, 15000, 5, 2000),
        side=100,
    )
    with Image.open(path) as picture:
        pixels = np.asarray(picture)
    assert pixels.shape == (1, 100, 3)
    assert np.abs(pixels[0, 50:, 0] - (150.1 + np.arange(50, 100) / 5)).max() <= 1.1  # a sample is up to a cell off
    assert (pixels[0, :50, 0] > pixels[0, :50, 1]).all()


def test_overlay_of_a_region(tmp_path: Path) -> None:
    image = np.full((40, 50, 3), 200, np.uint8)
    labels = np.zeros((20, 10, 1), np.uint8)
    labels[10:] = 255
    path = write_overlay(
        ArraySource([image], "image", "yxc"),
        lambda raw: raw.astype(np.float32),
        ArraySource([labels], "labels", "yxc"),
        tmp_path / "overlay.png",
        CLASSES,
        Window(5, 5, 20, 10),
    )
    with Image.open(path) as picture:
        pixels = np.asarray(picture)
    assert pixels.shape == (20, 10, 3)
    assert (pixels[:10] == [225, 110, 110]).all()
    assert (pixels[10:] == 200).all()
