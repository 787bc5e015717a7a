from pathlib import Path

import numpy as np
from PIL import Image

from napari_isdnet.classes import classes_from
from napari_isdnet.io.array import ArraySource
from napari_isdnet.io.overlay import blend, thumbnail, write_overlay
from napari_isdnet.window import Window

CLASSES = classes_from([("a", "#ff0000"), ("b", "#0000ff")])


def test_blend_colours_classes_and_leaves_nodata() -> None:
    grey = np.full((1, 3, 3), 100, np.uint8)
    picture = blend(grey, np.array([[0, 1, 255]], np.uint8), CLASSES, opacity=0.5)
    assert picture.tolist() == [[[178, 50, 50], [50, 50, 178], [100, 100, 100]]]


def test_thumbnail_takes_the_level_that_fits_and_even_steps() -> None:
    full = np.arange(64 * 48, dtype=np.uint16).reshape(64, 48, 1)
    source = ArraySource([full, full[::2, ::2]], "x", "yxc")
    assert (thumbnail(source, Window.whole((64, 48)), 16) == full[::4, ::4]).all()
    assert (thumbnail(source, Window(32, 16, 16, 16), 16) == full[32:48, 16:32]).all()


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
