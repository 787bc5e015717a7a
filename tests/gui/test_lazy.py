"""Lazy layers in a real window: at once, then sharp, and gone with their layer."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from napari_isdnet.engine.live import PredictionPyramid
from napari_isdnet.engine.tiles import TilePyramid
from napari_isdnet.exceptions import InputError
from napari_isdnet.widgets._lazy import LazyLevel, canvases, layer_data, lazy_levels, main_window, pyramid_of, watch
from napari_isdnet.window import Window, pyramid_shapes
from tests.gui.canvas_tools import drawn


def picture(shape=(100_000, 100_000), delay: threading.Event | None = None):
    reads: list[tuple[int, Window]] = []

    def read(level: int, window: Window) -> np.ndarray:
        if delay is not None:
            delay.wait(10)
        reads.append((level, window))
        rows = np.arange(window.row, window.bottom)[:, None] % 256
        columns = np.arange(window.column, window.right)[None] % 256
        return np.stack(np.broadcast_arrays(rows, columns, np.full((1, 1), level * 20 + 1)), axis=-1).astype(np.uint8)

    return TilePyramid(pyramid_shapes(shape), read, channels=3), reads, read


def test_duck_array_indexing() -> None:
    pyramid, _, read = picture((600, 900))
    level = lazy_levels(pyramid)[0]
    assert (level.shape, level.ndim, level.dtype, level.chunks) == ((600, 900, 3), 3, np.uint8, (512, 512, 3))
    level[...]
    assert pyramid.wait(10)
    truth = read(0, Window(0, 0, 600, 900))
    for key in (
        np.s_[10:20, 30:50], np.s_[5], np.s_[5, 7], np.s_[-1, -1, 0], np.s_[..., 2],
        np.s_[::3, 4:80:5, :], np.s_[700:, :],
    ):  # fmt: skip
        np.testing.assert_array_equal(level[key], truth[key])
    with pytest.raises(IndexError):
        level[600]
    np.testing.assert_array_equal(np.asarray(level), truth)
    coarse = lazy_levels(pyramid)[-1]
    assert np.asarray(coarse) is pyramid.overview()
    pyramid.close()


def test_too_large_a_level_is_not_materialised() -> None:
    pyramid, _, _ = picture()
    with pytest.raises(InputError, match="too many to hold"):
        np.asarray(lazy_levels(pyramid)[0])
    pyramid.close()


def test_a_slow_source_does_not_hold_the_window_and_sharpens_later(viewer, qtbot) -> None:
    gate = threading.Event()
    pyramid, reads, read = picture(delay=gate)
    watch(viewer)
    data, multiscale = layer_data(pyramid)
    layer = viewer.add_image(data, multiscale=multiscale, rgb=True)  # would hang here if it read
    assert pyramid_of(layer) is pyramid
    viewer.camera.center = (50_000, 50_000)
    viewer.camera.zoom = 1
    qtbot.wait(100)
    assert not reads
    assert not layer._slice.image.raw.any()
    gate.set()
    qtbot.waitUntil(lambda: layer.data_level == 0 and layer._slice.image.raw[..., 2].max() == 1, timeout=10_000)
    qtbot.waitUntil(lambda: (layer._slice.image.raw[..., 2] == 1).all(), timeout=10_000)
    (top, left), (bottom, right) = layer.corner_pixels[:, :2]
    view = Window.from_bounds(int(top), int(left), int(bottom) + 1, int(right) + 1)
    np.testing.assert_array_equal(layer._slice.image.raw, read(0, view))
    last = len(pyramid.shapes) - 1
    assert {level for level, _ in reads} <= {0, 1, 2, last, last - 1, last - 2}
    assert len(reads) < 60
    viewer.layers.remove(layer)
    qtbot.waitUntil(lambda: not [t for t in threading.enumerate() if t.name == "isdnet-view-tiles"], timeout=5000)


def test_live_labels_appear_and_closing_the_window_in_the_middle_is_clean(viewer, qtbot) -> None:
    def compute(window: Window) -> np.ndarray:
        threading.Event().wait(0.01)
        return np.full(window.shape, (window.row // 512 + window.column // 512) % 3, np.uint8)

    pyramid = PredictionPyramid((100_000, 100_000), (512, 512), compute)
    watch(viewer)
    layer = viewer.add_labels(lazy_levels(pyramid), multiscale=True)
    viewer.camera.center = (20_000, 20_000)
    viewer.camera.zoom = 1
    qtbot.waitUntil(lambda: (layer._slice.image.raw != 255).any(), timeout=10_000)
    viewer.camera.zoom = 0.05  # thousands of windows wait now
    qtbot.waitUntil(lambda: pyramid.pending > 1000, timeout=10_000)


def test_single_level_image_is_no_multiscale(viewer, qtbot) -> None:
    pyramid, _, read = picture((200, 100))
    watch(viewer)
    data, multiscale = layer_data(pyramid)
    assert isinstance(data, LazyLevel)
    assert not multiscale
    layer = viewer.add_image(data, rgb=True)
    qtbot.waitUntil(lambda: bool((layer._slice.image.raw == read(0, Window(0, 0, 200, 100))).all()), timeout=5000)


@pytest.mark.parametrize("others", [True, pytest.param(False, marks=pytest.mark.long)])
def test_a_removed_layer_is_deleted_in_the_context_of_the_canvas(viewer, qtbot, monkeypatch, others) -> None:
    """Deleted in another one, Mesa draws the layers that stay with a shader that is gone, and the process ends."""
    from qtpy.QtGui import QOpenGLContext
    from vispy.gloo.glir import GlirProgram

    watch(viewer)
    (canvas,) = canvases(main_window(viewer))
    if others:
        viewer.add_labels(np.ones((64, 64), np.uint8))
    image = viewer.add_image(np.zeros((64, 64), np.uint8))
    drawn(qtbot, viewer)
    contexts = []
    delete = GlirProgram.delete
    monkeypatch.setattr(
        GlirProgram, "delete", lambda program: (contexts.append(QOpenGLContext.currentContext()), delete(program))
    )
    viewer.layers.remove(image)
    assert contexts
    assert all(context is not None and context == canvas.context() for context in contexts)
