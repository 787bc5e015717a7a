"""Pictures of the docks for the README: ``python -m tests.gui.screenshots --output DIR --model FILE``.

A screen is needed (``xvfb-run -a`` gives one). The image is the procedural aerial world, so nothing is downloaded.
"""

from __future__ import annotations

import argparse
import os
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


def stroke_the_truth(project: Any, truth: Any, count: int = 60) -> None:
    """Short strokes where the truth is one class, as a person would draw them."""
    import numpy as np

    from napari_isdnet.annotation.strokes import Brush
    from napari_isdnet.window import Window

    rng, names, side = np.random.default_rng(0), len(project.store.classes), 64
    while count:
        row, column = (int(rng.integers(0, n - side)) for n in truth.shape)
        values = np.unique(truth.read(Window(row, column, side, side)))
        if len(values) == 1 and values[0] < names:
            middle = row + side / 2
            project.store.paint(Brush([(middle, column + 8.0), (middle + 6, column + side - 8.0)], 7), int(values[0]))
            count -= 1


def finetune_pictures(output: Path, model: str, theme: str, steps: int) -> None:
    """The Fine-tune dock in the middle of a run and after it, with both maps."""
    import napari

    from napari_isdnet.io.samples import open_sample
    from napari_isdnet.model.checkpoint import read_header
    from napari_isdnet.widgets._projects import close_project, folder_of, open_project
    from napari_isdnet.widgets._reader import read_sample
    from napari_isdnet.widgets.finetune import FineTuneWidget

    source = open_sample("aerial-4k")
    project = open_project(source, read_header(model).classes, folder_of(source))
    stroke_the_truth(project, source.truth)  # type: ignore[attr-defined]
    viewer = napari.Viewer(title="napari-isdnet", show=True)
    viewer.theme = theme
    viewer.window.resize(1500, 1250)
    data, keywords, _ = read_sample("aerial-4k")[0]
    image = viewer.add_image(data, **keywords)
    dock = FineTuneWidget(viewer)
    viewer.window.add_dock_widget(dock, name="Fine-tune", area="right")
    viewer.camera.zoom = 1.0 / image.scale[0]
    wait(lambda: dock.controller.project is not None and dock.device.count() > 1)
    dock.choose_model(model)
    dock.steps.setValue(steps)
    dock.small = {"window": 256, "batch": 1}
    wait(lambda: bool(dock.estimate.text()))
    dock.train_button.click()
    wait(lambda: len(dock.controller.curves.losses) > steps // 2, 1800)
    save(viewer, output / f"finetune-running-{theme}.png")
    wait(lambda: dock.outcome is not None, 1800)
    wait(lambda: not any(s.controller.live.pending for s in dock.compare.sides.values() if s.controller.live), 1800)
    save(viewer, output / f"finetune-done-{theme}.png")
    viewer.close()
    close_project(project)


def main() -> None:
    """Make every picture in both themes."""
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", required=True, help="name or file of a model with the classes of the aerial world")
    parser.add_argument("--docks", nargs="*", choices=("segment", "finetune"), default=["segment", "finetune"])
    parser.add_argument("--steps", type=int, default=80, help="of fine-tuning")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for theme in ("dark", "light"):
            if "segment" in arguments.docks:
                segment_pictures(arguments.output, arguments.model, theme, Path(folder))
            if "finetune" in arguments.docks:
                os.environ["NAPARI_ISDNET_CACHE"] = str(Path(folder) / theme)  # the sample's project lies there
                finetune_pictures(arguments.output, arguments.model, theme, arguments.steps)


if __name__ == "__main__":
    main()
