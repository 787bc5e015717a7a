"""Painting on an image of 100,000 x 100,000 pixels, in a process whose memory is limited."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import resource, sys
limit = 3 * 2**30
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
from pathlib import Path
import napari, numpy as np
from qtpy.QtTest import QTest
from napari_isdnet.io.intensity import IntensityPolicy
from napari_isdnet.io.samples import open_sample
from napari_isdnet.widgets._image import image_layer
from napari_isdnet.widgets._lazy import watch
from napari_isdnet.widgets.annotate import AnnotateWidget
from gui.canvas_tools import drag
viewer = napari.Viewer(show=True)
viewer.window.resize(1300, 900)
watch(viewer)
source = open_sample("aerial-100k")
data, keywords, _ = image_layer(source, IntensityPolicy.from_source(source, "auto"))
viewer.add_image(data, **keywords)
dock = AnnotateWidget(viewer)
viewer.window.add_dock_widget(dock)
dock.start(Path(sys.argv[1]))
layer, store = dock.canvas.layer, dock.controller.store
scale = layer.scale[0]
for zoom in (1.0, 0.1, 0.006):
    viewer.camera.center = (50_000 * scale, 50_000 * scale)
    viewer.camera.zoom = zoom / scale
    QTest.qWait(300)
    reach = 100 / zoom
    drag(viewer, layer, [(50_000 - reach, 50_000 - reach + k * reach / 10) for k in range(20)])
    assert dock.controller.wait(120)
    QTest.qWait(50)
    assert store.read_labels(dock.canvas.preview.view()[1], layer.data_level).any()
    dock.choose(tool="superpixel")
    drag(viewer, layer, [(50_000, 50_000)])
    assert dock.controller.wait(120)
    dock.choose(tool="brush")
counts = sum(store.class_counts())
assert counts > 1e6, counts
viewer.close()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
print("painted", counts, "peak", peak)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the memory limit is Linux's")
def test_painting_the_100k_world_within_3_gib(tmp_path) -> None:
    script = [sys.executable, "-c", SCRIPT, str(tmp_path / "world.isdnet")]
    done = subprocess.run(script, capture_output=True, text=True, timeout=280, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr[-3000:]
    assert "painted" in done.stdout
    print(done.stdout)
