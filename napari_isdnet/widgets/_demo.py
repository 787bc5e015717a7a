"""The demo in napari: a landscape, its live segmentation, the errors against its truth, and the docks to go on with."""

from __future__ import annotations

from typing import Any

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QLabel, QVBoxLayout, QWidget

from napari_isdnet.engine.tiles import TilePyramid
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.intensity import IntensityPolicy
from napari_isdnet.io.samples import open_sample
from napari_isdnet.io.source import ImageSource
from napari_isdnet.landcover import LANDCOVER_CLASSES
from napari_isdnet.widgets import _segment_layers as layers
from napari_isdnet.widgets._image import image_layer, levels_to_show
from napari_isdnet.widgets._job import stop_with, timer
from napari_isdnet.widgets._lazy import layer_data, watch
from napari_isdnet.widgets._notify import notify_error

PLUGIN = "napari-isdnet"
DOCKS = ("Segment", "Errors", "Annotate", "Inspect")
POLL_MS = 200
ABOUT = (
    "A generated landscape with exact truth, not a photograph: the figures in the Errors dock show how the work is"
    " done, and are no measure of the model on photographs."
)
NEXT = (
    "<b>Try</b>: zoom in and see the map follow · Errors: choose one class, click a worst window · Annotate: press"
    " <i>Start</i> and paint where the map is wrong · Inspect: what each branch sees · Segment:"
    " <i>Segment to files</i>, or <i>Copy as command</i>."
)


def open_demo(viewer: Any = None, model: str | None = None, sample: str = "desert-4k") -> DemoGuide:
    """Fill ``viewer`` (default: the current one) with the demo and start it; returns its guide, a dock below.

    ``model`` is a name or file, by default the model that ships. Raises
    :class:`~napari_isdnet.exceptions.InputError` where there is none.
    """
    import napari

    from napari_isdnet.model.checkpoint import DEFAULT_MODEL, find_model

    viewer = viewer if viewer is not None else napari.current_viewer()
    if viewer is None:
        raise InputError("There is no napari window to show the demo in; run 'napari-isdnet demo'.")
    name = model if model is not None else DEFAULT_MODEL
    find_model(name)
    watch(viewer)
    source: Any = open_sample(sample)
    data, keywords, _ = image_layer(source, IntensityPolicy.from_source(source), sample=sample)
    image = viewer.add_image(data, **keywords)
    truth = _add_truth(viewer, image, source.truth)
    docks, missing = _open_docks(viewer)
    guide = DemoGuide(viewer, image, truth, docks, missing, name)
    viewer.window.add_dock_widget(guide, name="Demo", area="bottom")
    viewer.layers.selection.active = image
    return guide


def _add_truth(viewer: Any, image: Any, truth: ImageSource) -> Any:
    """The truth as a hidden layer of class indices."""
    pyramid = TilePyramid(levels_to_show(truth.levels), lambda level, window: truth.read(window, level)[..., 0])
    colors = {k: (*(v / 255 for v in info.color), 1.0) for k, info in enumerate(LANDCOVER_CLASSES)}
    data, multiscale = layer_data(pyramid)
    layer = viewer.add_labels(
        data, multiscale=multiscale, name="truth", visible=False, opacity=0.6,
        colormap=layers.colormap({None: (0.0,) * 4, 255: (0.0,) * 4, **colors}),  # type: ignore[dict-item]
        features=layers.class_features(LANDCOVER_CLASSES),
        metadata={layers.CLASSES: LANDCOVER_CLASSES, layers.RESULT: True}, **layers.placement(image),
    )  # fmt: skip
    layer.editable = False
    return layer


def _open_docks(viewer: Any) -> tuple[dict[str, Any], list[str]]:
    """The docks by name as tabs; and a sentence for each that cannot be opened."""
    found: dict[str, Any] = {}
    missing: list[str] = []
    for name in DOCKS:
        try:
            _, found[name] = viewer.window.add_plugin_dock_widget(PLUGIN, name, tabify=bool(found))
        except Exception as error:  # whatever is wrong with one dock, the others are of use
            missing.append(f"The {name} dock cannot be opened: {error}")
    return found, missing


class DemoGuide(QWidget):
    """Says what happens and what to try, and takes the steps: model, live view, errors. ``state`` names the step."""

    def __init__(
        self, viewer: Any, image: Any, truth: Any, docks: dict[str, Any], missing: list[str], model: str
    ) -> None:
        super().__init__()
        self.setObjectName("isdnet_demo")
        self._viewer, self._image, self._truth = viewer, image, truth
        self.docks, self._model = docks, model
        self.state = "waiting"
        self.step = QLabel("Looking for the model…", self)
        self.step.setObjectName("demo_step")
        self.step.setToolTip("What the demo is doing now")
        about, tour = QLabel(ABOUT, self), QLabel(NEXT, self)
        column = QVBoxLayout(self)
        column.setContentsMargins(8, 2, 8, 2)
        column.setSpacing(2)
        self.setMaximumHeight(110 + 24 * len(missing))  # the image keeps the room
        for number, label in enumerate((self.step, about, tour, *(QLabel(text, self) for text in missing))):
            label.setWordWrap(True)
            label.setTextFormat(Qt.TextFormat.AutoText)
            label.setObjectName(label.objectName() or f"demo_text_{number}")
            column.addWidget(label)
        self._timer = timer(self, POLL_MS, self._go_on)
        stop_with(self, self._timer.stop)
        if "Segment" in docks:
            self._timer.start()
        else:
            self._say("over", "Without the Segment dock there is nothing to show.")

    def _say(self, state: str, text: str) -> None:
        self.state = state
        self.step.setText(text)

    def _show_dock(self, name: str) -> None:
        """Bring its tab to the front: at each step, since tabs cannot be ordered before the window is there."""
        self.docks[name].parentWidget().raise_()

    def _go_on(self) -> None:
        """One look at how far things are; each step is taken once, and the user may do anything meanwhile."""
        try:
            {"waiting": self._choose, "choosing": self._start, "live": self._compare, "comparing": self._finish}[
                self.state
            ]()
        except InputError as error:
            self._say("over", "The demo stopped; all docks work as usual.")
            notify_error(error)
        except RuntimeError:  # Qt's of a dock that was closed meanwhile
            self._say("over", "The demo stopped, since one of its docks was closed; the Plugins menu opens it again.")
        if self.state == "over":
            self._timer.stop()

    def _choose(self) -> None:
        segment = self.docks["Segment"]
        if segment.device.count():
            index = next((i for i in range(segment.image.count()) if segment.image.itemData(i) is self._image), -1)
            segment.image.setCurrentIndex(index)
            segment.choose_model(self._model)
            self._show_dock("Segment")
            self._say("choosing", "Loading the model…")

    def _start(self) -> None:
        segment = self.docks["Segment"]
        if segment.controller.about is not None and segment.model.currentData() == self._model:
            segment.live_button.click()
            self._say(
                "live", "Segmenting what you see; the exact answer follows when the whole image has been seen once."
            )

    def _compare(self) -> None:
        segment = self.docks["Segment"]
        live = segment.controller.live
        if not segment.live_button.isChecked():
            self._say("over", "The live segmentation was stopped. Press it again, or compare in the Errors dock.")
        elif live is not None and not segment.controller.provisional and not live.pending:
            errors = self.docks.get("Errors")
            if errors is None or not _comparable(segment.controller.about):
                self._say("over", "Segmented. This model's classes are not the landscape's, so nothing is compared.")
                return
            for box, layer in ((errors.prediction, segment.live.layer), (errors.truth, self._truth)):
                box.setCurrentIndex(next((i for i in range(box.count()) if box.itemData(i) is layer), -1))
            errors.compare()
            self._show_dock("Errors")
            self._say("comparing", "Comparing with the truth; errors show in colour.")

    def _finish(self) -> None:
        errors = self.docks["Errors"]
        if errors.result is not None:
            self._say("over", "Done: the map, and its errors in colour. All of it goes on as you move and zoom.")
        elif not (errors.looking.running or errors.bar.running):
            self._say("over", "The comparison did not end; press Show errors and compare in the Errors dock.")


def _comparable(about: Any) -> bool:
    return [c.name.lower() for c in about.classes] == [c.name for c in LANDCOVER_CLASSES]
