"""How soon a stroke is shown, at every zoom of the 100,000 x 100,000 world; not a test.

``xvfb-run -a python tests/gui/measure_painting.py`` prints a table. *Shown*: from the pointer's event to the displayed
pixels handed to the graphics library, which draws them at the next frame (software OpenGL's drawing is left out);
*stored*: from letting go of the button to the store having the stroke and the screen showing the store's own pixels.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from qtpy.QtCore import QEvent
from qtpy.QtTest import QTest

sys.path.insert(0, str(Path(__file__).parents[1]))
from gui.canvas_tools import canvas_of, mouse, on_screen

ZOOMS = (4.0, 1.0, 0.25, 0.05, 0.0125, 0.006)
STROKES, MOVES, SIZE = 6, 15, 24


def stroke(viewer: Any, dock: Any, zoom: float, rng: Any) -> tuple[list[float], float]:
    """Milliseconds of every pointer event, and from release to stored and shown."""
    layer, canvas = dock.canvas.layer, canvas_of(viewer)
    path = 50_000 + np.cumsum(rng.normal(0, 9 / zoom, (MOVES, 2)), axis=0)
    points = [on_screen(viewer, layer, tuple(p)) for p in path]
    shown = []
    for number, point in enumerate(points):
        start = time.perf_counter()
        mouse(canvas, QEvent.Type.MouseMove if number else QEvent.Type.MouseButtonPress, point)
        shown.append(1000 * (time.perf_counter() - start))
        QTest.qWait(20)
    start = time.perf_counter()
    mouse(canvas, QEvent.Type.MouseButtonRelease, points[-1])
    dock.controller.wait()
    dock.canvas.changed([], True)
    return shown, 1000 * (time.perf_counter() - start)


def main() -> None:
    """Print the table."""
    import napari

    from napari_isdnet.io.intensity import IntensityPolicy
    from napari_isdnet.io.samples import open_sample
    from napari_isdnet.widgets._image import image_layer
    from napari_isdnet.widgets.annotate import AnnotateWidget

    viewer = napari.Viewer(show=True)
    viewer.window.resize(1300, 900)
    source = open_sample("aerial-100k")
    data, keywords, _ = image_layer(source, IntensityPolicy.from_source(source, "auto"))
    viewer.add_image(data, **keywords)
    dock = AnnotateWidget(viewer)
    viewer.window.add_dock_widget(dock)
    dock.start(Path(tempfile.mkdtemp()) / "world.isdnet")
    dock.choose(size=SIZE)
    scale, rng = dock.canvas.layer.scale[0], np.random.default_rng(0)
    print("zoom (screen/image pixel), level, shown p50, p95, max (ms), stored and shown p50, max (ms)")
    for zoom in ZOOMS:
        viewer.camera.center = (50_000 * scale, 50_000 * scale)
        viewer.camera.zoom = zoom / scale
        QTest.qWait(1500)
        results = [stroke(viewer, dock, zoom, rng) for _ in range(STROKES)]
        shown, stored = np.concatenate([r[0] for r in results]), np.array([r[1] for r in results])
        p50, p95 = np.percentile(shown, (50, 95))
        print(
            f"{zoom:g}, {dock.canvas.layer.data_level}, {p50:.1f}, {p95:.1f}, {shown.max():.1f}, "
            f"{np.median(stored):.0f}, {stored.max():.0f}",
            flush=True,
        )
    viewer.close()


if __name__ == "__main__":
    main()
