"""Pictures of the docks for the README: ``python -m tests.gui.screenshots --output DIR --model FILE``.

A screen is needed (``xvfb-run -a`` gives one). The image is the procedural aerial world, so nothing is downloaded.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def wait(until: Callable[[], bool], seconds: float = 300) -> None:
    """Let the window live until ``until()``; an error after ``seconds``."""
    from qtpy.QtTest import QTest

    end = time.monotonic() + seconds
    while not until():
        if time.monotonic() > end:
            raise SystemExit("the picture is not ready in time")
        QTest.qWait(50)
    QTest.qWait(300)


def save(viewer: Any, path: Path) -> None:
    """The whole window as PNG."""
    viewer.screenshot(str(path), canvas_only=False, flash=False)
    print(path)


def segment_pictures(output: Path, model: str, theme: str, folder: Path) -> None:
    """The Segment dock: live, and with a finished result and its uncertainty."""
    import napari

    from napari_isdnet.widgets._reader import read_sample
    from napari_isdnet.widgets.segment import SegmentWidget

    viewer = napari.Viewer(title="napari-isdnet", show=True)
    viewer.theme = theme
    viewer.window.resize(1500, 950)
    data, keywords, _ = read_sample("aerial-4k")[0]
    image = viewer.add_image(data, **keywords)
    dock = SegmentWidget(viewer)
    viewer.window.add_dock_widget(dock, name="Segment", area="right")
    wait(lambda: dock.device.count() > 0)
    dock.choose_model(model)
    wait(lambda: dock.controller.about is not None and dock.model.currentData() == model)
    dock.output.setText(str(folder / theme))
    viewer.camera.zoom = 0.55 / image.scale[0]
    wait(lambda: bool(image._slice.image.raw.any()))
    dock.context.setCurrentIndex(dock.context.findData("window"))
    dock.live_button.click()
    wait(lambda: dock.controller.live is not None and dock.controller.live.progress[0] > 0)
    wait(lambda: dock.controller.live.pending == 0)
    wait(lambda: "segmented" in dock.live_status.text())
    save(viewer, output / f"segment-live-{theme}.png")
    dock.region.setCurrentIndex(dock.region.findData("visible"))
    dock.uncertainty.setChecked(True)
    viewer.camera.zoom = 2 / image.scale[0]
    wait(lambda: image.data_level == 0)
    dock.segment_button.click()
    wait(lambda: dock.finished is not None)
    wait(lambda: len(viewer.layers) == 3)
    wait(lambda: bool((dock.result_layer._slice.image.raw != 255).any()))
    save(viewer, output / f"segment-result-{theme}.png")
    viewer.close()


def main() -> None:
    """Make every picture in both themes."""
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", required=True, help="name or file of a model with the classes of the aerial world")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for theme in ("dark", "light"):
            segment_pictures(arguments.output, arguments.model, theme, Path(folder))


if __name__ == "__main__":
    main()
