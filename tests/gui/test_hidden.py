"""Images removed from under hidden class maps, in a process of its own: drawing them must not crash it.

napari 0.9.2 under software OpenGL has crashed so with the two maps of the Fine-tune dock.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def hide_all_and_remove_the_image(folder: str) -> None:
    """A live map, errors and an annotation, each hidden, over an image that goes; then shown again."""
    import napari
    from qtpy.QtTest import QTest

    from napari_isdnet.engine.live import PredictionPyramid
    from napari_isdnet.io.samples import open_sample
    from napari_isdnet.landcover import LANDCOVER_CLASSES
    from napari_isdnet.widgets import _segment_layers as layers
    from napari_isdnet.widgets._demo import _add_truth
    from napari_isdnet.widgets._reader import read_sample
    from napari_isdnet.widgets._segment_controller import color_table
    from napari_isdnet.widgets.annotate import AnnotateWidget
    from napari_isdnet.widgets.errors import ErrorsWidget

    viewer: Any = napari.Viewer(show=True)
    data, keywords, _ = read_sample("aerial-4k")[0]
    image = viewer.add_image(data, **keywords)
    live = PredictionPyramid(
        layers.shape_of(image), (512, 512), lambda w: np.full(w.shape, w.row // 512 % 3, np.uint8), everything=False
    )
    colors = color_table(LANDCOVER_CLASSES)
    shown = layers.add_labels(viewer, image, live, LANDCOVER_CLASSES, colors, "live", opacity=0.6)
    _add_truth(viewer, image, open_sample("aerial-4k").truth)  # type: ignore[attr-defined]
    errors, annotate = ErrorsWidget(viewer), AnnotateWidget(viewer)
    viewer.window.add_dock_widget(errors)
    viewer.window.add_dock_widget(annotate)
    viewer.camera.zoom = 1 / image.scale[0]
    errors.region.setCurrentIndex(errors.region.findData("visible"))
    errors.compare_button.click()
    annotate.start(Path(folder) / "a.isdnet")
    for _ in range(400):
        QTest.qWait(50)
        if errors.result is not None:
            break
    assert errors.error_layer is not None
    assert annotate.canvas is not None
    for layer in (annotate.canvas.layer, errors.error_layer, shown):
        layer.visible = False
        QTest.qWait(100)
    viewer.layers.remove(image)
    QTest.qWait(500)
    for layer in viewer.layers:
        layer.visible = True
        QTest.qWait(200)
    viewer.close()
    print("drawn")


@pytest.mark.slow
def test_an_image_is_removed_from_under_hidden_maps(tmp_path: Path) -> None:
    line = "import sys; from tests.gui.test_hidden import hide_all_and_remove_the_image as go; go(sys.argv[1])"
    call = [sys.executable, "-X", "faulthandler", "-c", line, str(tmp_path)]
    done = subprocess.run(call, capture_output=True, text=True, timeout=280, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, (done.returncode, done.stderr[-3000:])
    assert "drawn" in done.stdout
