"""What napari makes of a layer of ours (a duplicate, a level, a channel), and what its writers get of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pytest
import tifffile
from napari.layers import _layer_actions as actions

from napari_isdnet.classes import classes_from
from napari_isdnet.engine.live import PredictionPyramid
from napari_isdnet.io.store import LabelStore
from napari_isdnet.widgets import _saving
from napari_isdnet.widgets import _segment_layers as layers
from napari_isdnet.widgets._image import source_of
from napari_isdnet.widgets._lazy import LazyLevel, Painter, layer_data, lazy_levels, pyramid_of, watch
from napari_isdnet.widgets._reader import read
from napari_isdnet.widgets.annotate import AnnotateWidget
from napari_isdnet.window import Window
from tests.gui.test_lazy import picture

pytestmark = pytest.mark.long  # what a dock survives: a window each

CLASSES = classes_from(["land", "water"])


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (1024, 768, 3)).astype(np.uint8)


@pytest.fixture
def image(viewer: Any, tmp_path: Path, pixels: np.ndarray) -> Any:
    with tifffile.TiffWriter(tmp_path / "field.tif") as tiff:
        tiff.write(pixels, photometric="rgb", tile=(256, 256), subifds=1)
        tiff.write(pixels[::2, ::2], photometric="rgb", tile=(256, 256), subfiletype=1)
    watch(viewer)
    data, keywords, _ = read(tmp_path / "field.tif")[0]
    layer = viewer.add_image(data, **keywords)
    assert layer.multiscale
    return layer


def duplicate(viewer: Any, layer: Any) -> Any:
    viewer.layers.selection = {layer}
    actions._duplicate_layer(viewer.layers)
    return viewer.layers[viewer.layers.index(layer) + 1]


def test_a_duplicate_shows_the_same_and_outlives_its_original(viewer, qtbot) -> None:
    pyramid, _, read_picture = picture((3000, 2000))
    watch(viewer)
    data, multiscale = layer_data(pyramid)
    first = viewer.add_image(data, multiscale=multiscale, rgb=True)
    copy = duplicate(viewer, first)
    assert pyramid_of(copy) is pyramid
    viewer.layers.remove(first)
    viewer.camera.center, viewer.camera.zoom = (1500, 1000), 2.0

    def sharp() -> bool:
        (top, left), (bottom, right) = copy.corner_pixels[:, :2]
        view = Window.from_bounds(int(top), int(left), int(bottom) + 1, int(right) + 1)
        return copy.data_level == 0 and np.array_equal(copy._slice.image.raw, read_picture(0, view))

    qtbot.waitUntil(sharp, timeout=10_000)


def test_both_layers_of_one_pyramid_are_painted(viewer, qtbot) -> None:
    pyramid, _, _ = picture((600, 500))
    watch(viewer)
    data, multiscale = layer_data(pyramid)
    first = viewer.add_image(data, multiscale=multiscale, rgb=True)
    copy = duplicate(viewer, first)
    painted: list[Any] = []
    for layer in (first, copy):
        layer.events.set_data.connect(lambda event: painted.append(event.source))
    pyramid.renew(Window.whole((600, 500)))
    qtbot.waitUntil(lambda: first in painted and copy in painted, timeout=5000)


def test_an_annotation_and_a_class_map_are_duplicated_but_not_to_paint_in(viewer, qtbot, image, tmp_path) -> None:
    live = layers.add_labels(
        viewer, image, PredictionPyramid((1024, 768), (256, 256), lambda w: np.zeros(w.shape, np.uint8)), CLASSES,
        {None: (0, 0, 0, 0)}, "live",
    )  # fmt: skip
    dock = AnnotateWidget(viewer)
    viewer.window.add_dock_widget(dock)
    dock.start(tmp_path / "field.isdnet")
    for layer in (live, dock.canvas.layer):
        copy = duplicate(viewer, layer)
        assert copy.name == f"{layer.name} copy"
        assert not copy.editable
    dock.stop()
    qtbot.wait(50)


def test_what_is_made_of_an_image_is_an_image_of_its_own(viewer, qtbot, image, pixels, tmp_path) -> None:
    assert source_of(image) is not None
    assert layers.path_of(image) == str(tmp_path / "field.tif")
    (level,) = actions._extract_multiscale_level([image], 1)
    viewer.layers.append(level)
    viewer.layers.selection.active = image
    actions._split_stack(viewer.layers)  # the image goes
    red = next(layer for layer in viewer.layers if layer is not level)
    part = viewer.add_image(pixels[:100, :200], name="part", metadata=dict(image.metadata))
    for made, shape, channels in ((level, (512, 384), 3), (part, (100, 200), 3), (red, (1024, 768), 1)):
        source, policy, path = layers.opened(made)
        assert (source.shape, source.channels, policy, path) == (shape, channels, None, None)
        assert (layers.path_of(made), layers.sample_of(made), source_of(made)) == (None, None, None)
    np.testing.assert_array_equal(layers.opened(red)[0].read(Window(0, 0, 1024, 768))[..., 0], pixels[..., 0])
    source, _, _ = layers.opened(level)
    assert isinstance(level.data, LazyLevel)
    np.testing.assert_array_equal(source.read(Window(10, 20, 30, 40)), pixels[::2, ::2][10:40, 20:60])
    assert source.name == "field-level_1_"


def test_napari_saves_all_pixels_of_an_image(viewer, image, pixels, tmp_path, monkeypatch) -> None:
    image.save(str(tmp_path / "a.tif"))
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.tif"), pixels)
    duplicate(viewer, image).save(str(tmp_path / "a.png"))
    np.testing.assert_array_equal(imageio.imread(tmp_path / "a.png"), pixels)
    monkeypatch.setattr(_saving, "MOST_WHOLE", 1000)
    with pytest.raises(RuntimeError, match="too many pixels for one array; what it shows lies in the file"):
        image.save(str(tmp_path / "b.png"))


def test_napari_saves_all_of_an_uncertainty_and_an_annotation_and_says_what_else_to_do(
    viewer, qtbot, image, tmp_path, monkeypatch
) -> None:
    values = np.random.default_rng(1).integers(0, 200, (1024, 768)).astype(np.uint8)
    store = LabelStore.create(tmp_path / "u.ome.zarr", values.shape, CLASSES)
    for index, window in enumerate(store.shards):
        store.write_shard(index, values[window.slices])
    list(store.finish_pyramid())
    unsure = layers.add_uncertainty(viewer, image, store, "field uncertainty")
    assert unsure.multiscale
    unsure.save(str(tmp_path / "u.png"))
    np.testing.assert_array_equal(imageio.imread(tmp_path / "u.png"), values)
    dock = AnnotateWidget(viewer)
    viewer.window.add_dock_widget(dock)
    dock.start(tmp_path / "field.isdnet")
    dock.canvas.layer.save(str(tmp_path / "painted.tif"))
    assert tifffile.imread(tmp_path / "painted.tif").shape == (1024, 768)
    monkeypatch.setattr(_saving, "MOST_WHOLE", 1000)
    with pytest.raises(RuntimeError, match="use Export of the Annotate dock"):
        dock.canvas.layer.save(str(tmp_path / "more.tif"))
    dock.stop()
    qtbot.wait(50)
    pyramid, _, _ = picture((600, 500))
    computed = viewer.add_image(lazy_levels(pyramid), multiscale=True, rgb=True)
    with pytest.raises(RuntimeError, match="computed where one looks and cannot be saved"):
        computed.save(str(tmp_path / "c.png"))


def test_a_timer_that_qt_has_taken_is_no_error_at_the_end(viewer, qapp) -> None:
    pyramid, _, _ = picture((300, 200))
    data, _ = layer_data(pyramid)
    layer = viewer.add_image(data, rgb=True)
    painter = Painter(layer, pyramid)
    painter._timer.deleteLater()
    qapp.sendPostedEvents(None, 52)  # QEvent::DeferredDelete
    painter.close()  # an error here ends the process with 134, as Qt calls it
    assert pyramid.on_change is None


def test_a_layer_that_goes_as_it_is_told_keeps_no_tile_from_the_others(viewer, qapp) -> None:
    pyramid, _, _ = picture((300, 200))
    data, _ = layer_data(pyramid)
    gone, stays = (Painter(viewer.add_image(data, rgb=True), pyramid) for _ in range(2))
    gone.paint()
    gone.deleteLater()
    qapp.sendPostedEvents(None, 52)  # QEvent::DeferredDelete
    stays.paint()
    pyramid.on_change()
    assert stays._waiting
    for painter in (gone, stays):
        painter.close()
