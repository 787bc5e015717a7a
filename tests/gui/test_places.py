"""Where layers lie: images in several units of length in one window, and files that napari's own reader has opened."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile

from napari_isdnet.io.array import ArraySource
from napari_isdnet.io.intensity import IntensityPolicy
from napari_isdnet.io.source import PixelSize
from napari_isdnet.widgets import _segment_layers as layers
from napari_isdnet.widgets._facts import position
from napari_isdnet.widgets._image import image_layer, layer_settings
from napari_isdnet.widgets._places import in_pixels, in_world
from napari_isdnet.window import Window
from tests.test_io_beginning import place
from tests.test_io_formats import write_ome_zarr

SHAPE = (300, 400)


def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*SHAPE, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("size", "settings"),
    [
        (PixelSize(0.0005, 0.00025, "mm"), {"scale": (0.5, 0.25), "units": ("micrometer", "micrometer")}),
        (PixelSize(0.5, 0.25, "µm"), {"scale": (0.5, 0.25), "units": ("micrometer", "micrometer")}),
        (PixelSize(30.0, 30.0, "cm"), {"scale": (0.3, 0.3), "units": ("meter", "meter")}),
        (PixelSize(1e-5, 1e-5, "degree"), {}),
        (
            PixelSize(0.0005, 0.00025, "mm", (2, -1)),
            {"scale": (0.5, 0.25), "units": ("micrometer", "micrometer"), "translate": (2000, -1000)},
        ),
    ],
)
def test_slides_are_in_micrometres_and_land_in_metres(size: PixelSize, settings: dict[str, Any]) -> None:
    settings = dict(settings)
    found = layer_settings(ArraySource([pixels()], "a", rgb=True, pixel_size=size))
    for name in {"scale", "translate"} & settings.keys():
        assert found.pop(name) == pytest.approx(settings.pop(name))
    assert found == settings


@pytest.mark.long
def test_the_pointer_counts_in_the_units_of_the_window(viewer: Any) -> None:
    source = ArraySource([pixels()], "slide", rgb=True, pixel_size=PixelSize(0.5, 0.5, "µm"))
    data, keywords, _ = image_layer(source, IntensityPolicy.from_source(source))
    slide = viewer.add_image(data, **keywords)
    other = viewer.add_image(pixels(), rgb=True, scale=(0.0005, 0.0005), units=("mm", "mm"))
    for layer in (slide, other):
        point = in_world(viewer, layer, (30, 40))
        np.testing.assert_allclose(in_pixels(viewer, layer, point), (30, 40))
    np.testing.assert_allclose(in_world(viewer, slide, (30, 40)), in_world(viewer, other, (30, 40)))
    viewer.reset_view()
    seen = [layers.visible_window(viewer, layer) for layer in (slide, other)]
    assert seen[0] == seen[1] == Window.whole(SHAPE)
    viewer.camera.zoom *= 4
    seen = [layers.visible_window(viewer, layer) for layer in (slide, other)]
    assert seen[0] == seen[1]
    assert 0 < seen[0].area < 300 * 400 / 4
    shapes = viewer.add_shapes(
        [[[9.7, 19.7], [9.7, 119.3], [59.3, 119.3], [59.3, 19.7]]],
        shape_type="rectangle",
        scale=(0.5, 0.5),
        units=("um", "um"),
    )
    assert shapes.nshapes == 1
    drawn = [layers.drawn_window(viewer, layer) for layer in (slide, other)]
    assert drawn[0] == drawn[1] == Window(10, 20, 50, 100)
    viewer.layers.units = ("mm", "mm")  # what the window counts in changes no pixel
    assert layers.drawn_window(viewer, slide) == Window(10, 20, 50, 100)


def test_a_file_that_napari_opened_keeps_its_place_and_its_annotation(viewer: Any, tmp_path: Any) -> None:
    from napari_isdnet.io.open import open_source
    from napari_isdnet.widgets._projects import folder_of

    path, transform = tmp_path / "town.tif", rasterio.Affine(0.5, 0, 400_000, 0, -0.5, 5_400_000)
    profile = {"width": SHAPE[1], "height": SHAPE[0], "count": 3, "dtype": "uint8", "photometric": "RGB"}
    with rasterio.open(path, "w", driver="GTiff", crs="EPSG:32633", transform=transform, **profile) as file:
        file.write(np.moveaxis(pixels(), 2, 0))
    layer = viewer.add_image(tifffile.imread(path), rgb=True, name="town")
    layer._source = layer.source.model_copy(update={"path": str(path)})
    source, _, _ = layers.opened(layer)
    assert source.georeference is not None
    assert source.georeference.transform == (0.5, 0.0, 400_000.0, 0.0, -0.5, 5_400_000.0)
    assert source.pixel_size == PixelSize(0.5, 0.5, "m")
    np.testing.assert_array_equal(source.read(Window.whole(SHAPE)), pixels())
    with closing(open_source(path)) as loaded:
        assert folder_of(source) == folder_of(loaded)
    layer.data = 255 - pixels()  # no longer what lies in the file
    changed, _, _ = layers.opened(layer)
    assert changed.georeference is None
    np.testing.assert_array_equal(changed.read(Window.whole(SHAPE)), 255 - pixels())


def test_only_maps_of_the_annotated_image_are_taken_for_its_own(viewer: Any) -> None:
    from napari_isdnet.classes import classes_from
    from napari_isdnet.engine.tiles import TilePyramid
    from napari_isdnet.widgets._next_region import find_guide

    one, other = (viewer.add_image(pixels(), rgb=True, name=name) for name in ("one", "other"))
    classes = classes_from(["a", "b"])
    pyramid = TilePyramid((SHAPE,), lambda level, window: np.zeros(window.shape, np.uint8))
    layers.add_labels(viewer, one, pyramid, classes, {None: (0, 0, 0, 0)}, "one live")
    assert find_guide(viewer, one).prediction.name == "one live"
    assert find_guide(viewer, other).prediction is None
    viewer.layers.remove(one)  # nobody knows any more whose it is
    assert find_guide(viewer, other).prediction.name == "one live"


def test_label_maps_in_other_units_lie_where_they_are_seen(viewer: Any) -> None:
    from napari_isdnet.widgets._annotate_regions import Placing
    from napari_isdnet.widgets._errors_controller import pair_layers

    image = viewer.add_image(pixels(), rgb=True, scale=(0.5, 0.5), units=("um", "um"))
    maps = [
        viewer.add_labels(np.ones(SHAPE, np.uint8), scale=(s, s), units=(unit, unit), translate=(20 * s, 30 * s))
        for s, unit in ((0.5, "um"), (0.0005, "mm"))
    ]
    for labels in maps:
        placing = Placing.between(labels, image)
        assert placing.offset == (20, 30)
        assert placing.scale == pytest.approx(1)
    ours, theirs, part = pair_layers(*maps)
    assert part is None
    assert ours.source.shape == theirs.source.shape


def test_an_image_that_begins_beside_the_origin_lies_there_with_its_results(viewer: Any, tmp_path: Path) -> None:
    from napari_isdnet.classes import classes_from
    from napari_isdnet.io.store import LabelStore

    path = tmp_path / "slide.ome.zarr"
    write_ome_zarr(path, [np.moveaxis(pixels(), 2, 0)], "cyx", "0.5")  # pixels of 0.5 x 0.25 µm
    place(path, "0.5", [{"type": "translation", "translation": [0, 100, -20]}])
    (image,) = viewer.open(str(path), plugin="napari-isdnet")
    np.testing.assert_allclose(image.translate, (100, -20))
    source, _, _ = layers.opened(image)
    assert "begins 100 µm down and -20 µm across" in position(source)
    store = LabelStore.create(
        tmp_path / "map.ome.zarr", (60, 80), classes_from(["a", "b"]), pixel_size=source.pixel_size, origin=(10, 20)
    )
    store.write_shard(0, np.ones((60, 80), np.uint8))
    list(store.finish_pyramid())
    colors = {None: (0.0,) * 4}
    over = layers.add_labels(
        viewer, image, layers.store_pyramid(store), store.classes, colors, "map", origin=store.origin
    )
    (opened,) = viewer.open(str(store.path), plugin="napari-isdnet")
    for layer in (over, opened):
        np.testing.assert_allclose(in_pixels(viewer, image, in_world(viewer, layer, (0, 0))), (10, 20))
    # Another reader's layer, of one channel, is all that there is of its image: its results begin where it does.
    other = viewer.add_image(
        pixels()[..., 0], scale=image.scale, units=image.units, translate=image.translate, name="red"
    )
    assert layers.opened(other)[0].pixel_size == source.pixel_size


def test_an_affine_sizes_pixels_too(viewer: Any) -> None:
    affine = np.array([[0.3, 0.4, 70], [-0.8, 0.6, 50], [0, 0, 1]])  # as a registration says it
    layer = viewer.add_image(pixels(), rgb=True, scale=(0.5, 0.25), units=("um", "um"), affine=affine)
    size = layers.opened(layer)[0].pixel_size
    assert (size.row, size.column) == pytest.approx((0.5 * np.hypot(0.3, 0.8), 0.25 * np.hypot(0.4, 0.6)))
    assert size.start == pytest.approx((70, 50))


def test_a_file_that_was_damaged_since_napari_opened_it_is_left_alone(viewer: Any, tmp_path: Any) -> None:
    path = tmp_path / "town.tif"
    tifffile.imwrite(path, pixels(), photometric="rgb")
    layer = viewer.add_image(tifffile.imread(path), rgb=True, name="town")
    layer._source = layer.source.model_copy(update={"path": str(path)})
    first = layers.opened(layer)[0]
    assert layers.opened(layer)[0] is first  # opened once
    assert first.identity()["path"] == str(path)
    layer.name = "village"
    path.write_bytes(path.read_bytes()[:2000])
    np.testing.assert_array_equal(layers.opened(layer)[0].read(Window.whole(SHAPE)), pixels())
