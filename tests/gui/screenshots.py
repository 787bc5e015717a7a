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
    """The whole window as PNG, once all that is read lazily has come."""
    from napari_isdnet.engine.tiles import TilePyramid
    from napari_isdnet.widgets._lazy import pyramid_of

    pyramids = [pyramid_of(layer) for layer in viewer.layers if layer.visible]
    wait(lambda: all(item.wait(0) for item in pyramids if isinstance(item, TilePyramid)))
    viewer.screenshot(str(path), canvas_only=False, flash=False)
    print(path)


def segment_pictures(output: Path, model: str, theme: str, folder: Path) -> None:
    """The Segment dock: live, and with a finished result and its uncertainty."""
    import napari

    from napari_isdnet.widgets._reader import read_sample
    from napari_isdnet.widgets._segment_layers import visible_window
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
    wait(lambda: image.data_level == 0 and visible_window(viewer, image).area < 10**6)
    dock.segment_button.click()
    wait(lambda: dock.finished is not None)
    wait(lambda: len(viewer.layers) == 3)
    wait(lambda: bool((dock.result_layer._slice.image.raw != 255).any()))
    save(viewer, output / f"segment-result-{theme}.png")
    viewer.close()


def stroke_the_truth(project: Any, truth: Any, count: int = 60) -> None:
    """Short strokes inside regions of the truth, of every class in turn, as a person would draw them."""
    import numpy as np

    from napari_isdnet.annotation.strokes import Brush
    from napari_isdnet.window import Window

    rng, names, side = np.random.default_rng(0), len(project.store.classes), 28
    while count:
        row, column = (int(rng.integers(0, n - side)) for n in truth.shape)
        values = np.unique(truth.read(Window(row, column, side, side)))
        if len(values) == 1 and values[0] == count % names:
            middle = row + side / 2
            project.store.paint(Brush([(middle, column + 6.0), (middle + 4, column + side - 6.0)], 6), int(values[0]))
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


def window(theme: str, height: int = 950) -> Any:
    """A viewer of the size of the pictures."""
    import napari

    viewer = napari.Viewer(title="napari-isdnet", show=True)
    viewer.theme = theme
    viewer.window.resize(1500, height)
    return viewer


def sample(viewer: Any, zoom: float = 1.0) -> Any:
    """The sample as a layer, ``zoom`` screen pixels to one of the image."""
    from napari_isdnet.widgets._reader import read_sample

    data, keywords, _ = read_sample("aerial-4k")[0]
    image = viewer.add_image(data, **keywords)
    viewer.camera.zoom = zoom / image.scale[0]
    wait(lambda: bool(image._slice.image.raw.any()))
    return image


def load_picture(output: Path, theme: str) -> None:
    """The Load dock: what is known of an image before it is loaded, and the image."""
    from napari_isdnet.widgets.load import LoadWidget

    viewer = window(theme)
    dock = LoadWidget(viewer)
    viewer.window.add_dock_widget(dock, name="Load", area="right")
    dock.open(sample="aerial-4k")
    wait(lambda: dock.load_button.isEnabled() and not dock.bar.running)
    dock.load()
    wait(lambda: bool(viewer.layers[0]._slice.image.raw.any()))
    dock.open(sample="aerial-100k")
    wait(lambda: dock.load_button.isEnabled() and not dock.bar.running)
    save(viewer, output / f"load-{theme}.png")
    viewer.close()


def annotate_picture(output: Path, model: str, theme: str, folder: Path) -> None:
    """The Annotate dock with strokes of several classes."""
    from napari_isdnet.io.samples import open_sample
    from napari_isdnet.model.checkpoint import read_header
    from napari_isdnet.widgets._projects import close_project, open_project
    from napari_isdnet.widgets.annotate import AnnotateWidget

    source, place = open_sample("aerial-4k"), folder / f"{theme}.isdnet"
    project = open_project(source, read_header(model).classes, place)
    stroke_the_truth(project, source.truth, 400)  # type: ignore[attr-defined]
    close_project(project)
    viewer = window(theme)
    sample(viewer)
    dock = AnnotateWidget(viewer)
    viewer.window.add_dock_widget(dock, name="Annotate", area="right")
    dock.start(place)
    wait(lambda: dock.canvas is not None and bool(dock.canvas.layer._slice.image.raw.any()))
    save(viewer, output / f"annotate-{theme}.png")
    dock.stop()
    viewer.close()


def inspect_picture(output: Path, model: str, theme: str, folder: Path) -> None:
    """The Inspect dock after a pixel was picked."""
    from napari_isdnet.widgets._lazy import pyramid_of
    from napari_isdnet.widgets.inspect import InspectWidget

    viewer = window(theme, 1100)
    sample(viewer, 1.5)
    dock = InspectWidget(viewer, folder=lambda: folder / "maps")
    viewer.window.add_dock_widget(dock, name="Inspect", area="right")
    dock.choose_model(model)
    dock.context.setCurrentIndex(dock.context.findData("window"))
    dock.look_inside()
    wait(lambda: dock.layer is not None, 900)

    def done() -> bool:
        progress: Any = pyramid_of(dock.layer)
        return progress is not None and progress.progress[0] == progress.progress[1]

    wait(done, 900)
    save(viewer, output / f"inspect-{theme}.png")
    dock.ask(*(int(v) for v in dock.roi().center))
    wait(lambda: dock.table.rowCount() > 0 and "Cosine" in dock.status.text(), 900)
    wait(done, 900)
    save(viewer, output / f"inspect-pixel-{theme}.png")
    viewer.close()


def errors_picture(output: Path, model: str, theme: str) -> None:
    """The Errors dock: a live map against the sample's truth, in what is visible."""
    from napari_isdnet.io.samples import open_sample
    from napari_isdnet.widgets._demo import _add_truth
    from napari_isdnet.widgets.errors import ErrorsWidget
    from napari_isdnet.widgets.segment import SegmentWidget

    viewer = window(theme)
    image = sample(viewer)
    segment, dock = SegmentWidget(viewer), ErrorsWidget(viewer)
    viewer.window.add_dock_widget(segment, name="Segment", area="right", tabify=True)
    viewer.window.add_dock_widget(dock, name="Errors", area="right", tabify=True).raise_()
    wait(lambda: segment.device.count() > 0)
    segment.choose_model(model)
    wait(lambda: segment.controller.about is not None and segment.model.currentData() == model)
    segment.context.setCurrentIndex(segment.context.findData("window"))
    segment.live_button.click()
    wait(lambda: segment.controller.live is not None and segment.controller.live.progress[0] > 0, 900)
    wait(lambda: segment.controller.live.pending == 0, 900)
    _add_truth(viewer, image, open_sample("aerial-4k").truth)  # type: ignore[attr-defined]
    dock.region.setCurrentIndex(dock.region.findData("visible"))
    dock.compare()
    wait(lambda: dock.result is not None, 900)
    segment.live.layer.visible = False  # the errors over the image itself
    save(viewer, output / f"errors-{theme}.png")
    dock.tabs.setCurrentWidget(dock.matrix)
    save(viewer, output / f"errors-confusion-{theme}.png")
    dock.classes.setCurrentIndex(dock.classes.findText("road"))
    dock.classes.activated.emit(dock.classes.currentIndex())
    dock.tabs.setCurrentWidget(dock.worst)
    save(viewer, output / f"errors-worst-{theme}.png")
    viewer.close()


def batch_picture(output: Path, model: str, theme: str, folder: Path) -> None:
    """The Batch dock after a run: two images done, one that cannot be read, one left out."""
    import tifffile

    from napari_isdnet.io.samples import open_sample
    from napari_isdnet.widgets.batch import BatchWidget
    from napari_isdnet.window import Window

    images = folder / f"images-{theme}"
    images.mkdir()
    source = open_sample("aerial-4k")
    for number, (row, column) in enumerate(((0, 0), (1500, 800), (2600, 2600)), 1):
        tifffile.imwrite(images / f"field {number}.tif", source.read(Window(row, column, 512, 512)), photometric="rgb")
    (images / "damaged.tif").write_bytes(b"II*\0 no picture")
    viewer = window(theme)
    dock = BatchWidget(viewer)
    viewer.window.add_dock_widget(dock, name="Batch", area="right")
    dock.add([str(images)])
    wait(lambda: dock.table.rowCount() == 4 and not dock.looking.running)
    dock.choose_model(model)
    dock.context.setCurrentIndex(dock.context.findData("window"))
    dock.output.setText(str(folder / f"batch-{theme}"))
    dock.table.selectRow(3)
    dock.skip_button.click()
    dock.run()
    wait(lambda: dock.bar.running)
    wait(lambda: not dock.bar.running, 900)
    dock.table.selectRow(1)
    dock.open_results()
    wait(lambda: len(viewer.layers) == 2)
    wait(lambda: bool((viewer.layers[1]._slice.image.raw != 255).any()))
    save(viewer, output / f"batch-{theme}.png")
    viewer.close()


def demo_pictures(output: Path, model: str, theme: str) -> None:
    """The demo: its map as a whole, and its errors close by."""
    from napari_isdnet.widgets._demo import open_demo

    viewer = window(theme)
    guide = open_demo(viewer, model)
    wait(lambda: guide.state == "over", 900)
    errors = [layer for layer in viewer.layers if layer.name.startswith("errors")]
    for layer in errors:
        layer.visible = False
    save(viewer, output / f"demo-{theme}.png")
    for layer in errors:
        layer.visible = True
    segment, dock = guide.docks["Segment"], guide.docks["Errors"]
    viewer.camera.zoom *= 3.5
    wait(lambda: segment.controller.live.pending == 0, 900)
    dock.region.setCurrentIndex(dock.region.findData("visible"))
    before = dock.result
    dock.compare()
    wait(lambda: dock.result is not None and dock.result is not before, 900)
    save(viewer, output / f"demo-errors-{theme}.png")
    viewer.close()


DOCKS = ("demo", "load", "segment", "inspect", "errors", "batch", "annotate", "finetune")


def main() -> None:
    """Make every picture in both themes."""
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", required=True, help="name or file of a model with the classes of the aerial world")
    parser.add_argument("--docks", nargs="*", choices=DOCKS, default=list(DOCKS))
    parser.add_argument("--themes", nargs="*", choices=("dark", "light"), default=["dark", "light"])
    parser.add_argument("--steps", type=int, default=80, help="of fine-tuning")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for theme in arguments.themes:
            take(arguments.output, arguments.model, theme, Path(folder), arguments.docks, arguments.steps)


def take(output: Path, model: str, theme: str, folder: Path, docks: list[str], steps: int) -> None:
    """The pictures of one theme; ``folder`` takes what the docks write."""
    if "demo" in docks:
        demo_pictures(output, model, theme)
    if "load" in docks:
        load_picture(output, theme)
    if "segment" in docks:
        segment_pictures(output, model, theme, folder)
    if "inspect" in docks:
        inspect_picture(output, model, theme, folder)
    if "errors" in docks:
        errors_picture(output, model, theme)
    if "batch" in docks:
        batch_picture(output, model, theme, folder)
    if "annotate" in docks:
        annotate_picture(output, model, theme, folder)
    if "finetune" in docks:
        os.environ["NAPARI_ISDNET_CACHE"] = str(folder / theme)  # the sample's project lies there
        finetune_pictures(output, model, theme, steps)


if __name__ == "__main__":
    main()
