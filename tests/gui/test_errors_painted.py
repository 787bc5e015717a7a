"""Annotations among the maps of the Errors dock, and maps that go while they are compared."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from napari.layers import Labels

from napari_isdnet.annotation.strokes import Polygon
from napari_isdnet.classes import classes_from
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.array import ArraySource
from napari_isdnet.progress import result_of as run
from napari_isdnet.widgets import _errors_controller as facts
from napari_isdnet.widgets import _segment_layers as layers
from napari_isdnet.widgets._annotate_layer import AnnotationLayer
from napari_isdnet.widgets._errors_form import CHANGED
from napari_isdnet.widgets._errors_painted import PaintedLabels, in_one_order
from napari_isdnet.widgets._image import ANNOTATION, EDITED, METADATA
from napari_isdnet.widgets._projects import close_project, open_project
from napari_isdnet.widgets.annotate import AnnotateWidget
from napari_isdnet.widgets.errors import ErrorsWidget

pytestmark = pytest.mark.long  # what a dock survives: a window each

SHAPE = (300, 400)
PREDICTED = classes_from([("field", "#30a030"), ("house", "#d04020"), ("water", "#2060d0")])
PAINTED = (("water", (0, 0, 255)), ("field", (0, 255, 0)), ("road", (90, 90, 90)))


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Any]:
    source = ArraySource([np.zeros((*SHAPE, 3), np.uint8)], "field", rgb=True)
    opened = open_project(source, PAINTED, tmp_path / "field.isdnet")
    for index, top in ((0, 0), (1, 100)):  # water above, field below; the rest is unpainted
        opened.store.paint(Polygon([((top, 0), (top, 399), (top + 49, 399), (top + 49, 0))]), index)
    yield opened
    close_project(opened)


def layer_of(project: Any) -> Any:
    levels = list(project.store.arrays)
    return Labels(
        levels if len(levels) > 1 else levels[0], multiscale=len(levels) > 1, name="annotation",
        metadata={METADATA: {ANNOTATION: str(project.folder)}},
    )  # fmt: skip


def predicted() -> np.ndarray:
    values = np.ones(SHAPE, np.uint8)
    values[:60], values[90:160] = 2, 0
    return values


def result_of(prediction: facts.LabelMap, truth: facts.LabelMap) -> Any:
    return run(facts.compare(*in_one_order(prediction, truth), facts.Question()))[0]


def test_what_is_painted_is_compared_by_class_and_what_is_not_counts_nowhere(project) -> None:
    prediction = Labels(predicted(), metadata={layers.CLASSES: PREDICTED})
    result = result_of(facts.from_layer(prediction), facts.from_layer(layer_of(project)))
    assert result.accuracy == 1.0
    assert result.confusion.evaluated == sum(project.store.class_counts()) < SHAPE[0] * SHAPE[1] / 2
    assert f"· {result.confusion.evaluated:,} of 120,000 pixels" in facts.summary(result)
    assert [item.name for item in result.classes] == ["field", "house", "water", "road"]
    assert [item.name for item in result.per_class if item.present] == ["field", "water"]
    turned = result_of(facts.from_layer(layer_of(project)), facts.from_layer(prediction))
    assert turned.accuracy == 1.0


def test_a_class_that_was_renamed_since_the_map_was_made_is_compared_under_its_new_name(project) -> None:
    prediction = Labels(predicted(), metadata={layers.CLASSES: PREDICTED})
    project.store.rename_class(1, "meadow")
    for turned in (False, True):
        maps = [facts.from_layer(prediction), facts.from_layer(layer_of(project))]
        result = result_of(*(maps[::-1] if turned else maps))
        assert result.accuracy == result.mean_iou == 1.0
        assert [item.name for item in result.classes] == ["meadow", "house", "water", "road"]
        assert result.notes[0] == "'field' is called 'meadow' now."
        assert "'field' is called 'meadow' now." in facts.summary(result)
    project.store.add_class("field")  # another one, which the map knows nothing of
    result = result_of(facts.from_layer(prediction), facts.from_layer(layer_of(project)))
    assert result.mean_iou < 0.5
    assert not any("called" in note for note in result.notes)


def test_a_class_of_the_map_that_was_merged_since_is_said_to_count_as_an_error(project) -> None:
    prediction = Labels(predicted(), metadata={layers.CLASSES: PREDICTED})
    names = [item.name for item in project.store.classes]
    project.store.merge_classes(names.index("field"), names.index("water"))
    result = result_of(facts.from_layer(prediction), facts.from_layer(layer_of(project)))
    assert result.accuracy < 1.0
    assert result.notes[0].startswith("'field' was merged into 'water', which the other map holds apart")


def test_a_map_without_names_takes_the_classes_of_the_annotation(project) -> None:
    prediction = Labels(np.where(predicted() == 2, 0, 1).astype(np.uint8))
    result = result_of(facts.from_layer(prediction), facts.from_layer(layer_of(project)))
    assert result.accuracy == 1.0
    assert [item.name for item in result.classes] == ["water", "field", "road"]


def test_classes_that_have_no_name_in_common_are_not_compared(project) -> None:
    other = facts.LabelMap(ArraySource([predicted()], "p", "yx"), classes_from([("cat", "#ffffff")]))
    with pytest.raises(InputError, match="none of which is the same"):
        in_one_order(other, facts.from_layer(layer_of(project)))


def test_two_class_maps_that_only_number_their_classes_otherwise_are_not_compared() -> None:
    maps = [facts.LabelMap(ArraySource([predicted()], "m", "yx"), list_) for list_ in (PREDICTED, PREDICTED[::-1])]
    with pytest.raises(InputError, match="bring one of them into the other's order"):
        in_one_order(*maps)


def test_a_closed_annotation_is_said_to_be_closed(tmp_path: Path) -> None:
    layer = Labels(np.zeros(SHAPE, np.uint8), name="old", metadata={METADATA: {ANNOTATION: str(tmp_path / "a.isdnet")}})
    with pytest.raises(InputError, match="'old' shows is closed"):
        facts.from_layer(layer)


def test_annotations_and_edit_windows_are_listed_where_they_are_of_use(viewer, qtbot, tmp_path) -> None:
    viewer.add_image(np.zeros((*SHAPE, 3), np.uint8), name="field")
    prediction = viewer.add_labels(predicted(), name="prediction", metadata={layers.CLASSES: PREDICTED})
    errors, annotate = ErrorsWidget(viewer), AnnotateWidget(viewer)
    for widget in (errors, annotate):
        viewer.window.add_dock_widget(widget)
    annotate.start(tmp_path / "field.isdnet")
    assert isinstance(annotate.canvas, AnnotationLayer)
    assert isinstance(facts.from_layer(annotate.canvas.layer).source, PaintedLabels)
    annotate.edit_button.click()
    assert annotate.editing is not None
    assert METADATA in annotate.editing.layer.metadata
    assert EDITED in annotate.editing.layer.metadata[METADATA]
    boxes = [[box.itemText(i) for i in range(box.count())] for box in (errors.prediction, annotate.prediction)]
    assert boxes == [["prediction", "field annotation"], ["prediction"]]
    assert annotate.prediction.currentData() is prediction
    annotate.stop()
    qtbot.wait(50)


def test_figures_of_strokes_that_have_changed_are_marked_until_they_are_compared_again(
    viewer, qtbot, errors, project
) -> None:
    viewer.add_labels(predicted(), name="mine", metadata={layers.CLASSES: PREDICTED})
    viewer.add_layer(layer_of(project))
    errors.compare_button.click()
    qtbot.waitUntil(lambda: errors.report_button.isEnabled(), timeout=15_000)
    summary = errors.summary.text()
    project.store.paint(Polygon([((200, 0), (200, 399), (249, 399), (249, 0))]), 0)
    qtbot.waitUntil(lambda: CHANGED in errors.summary.text(), timeout=5000)
    assert summary in errors.summary.text()
    assert not errors.tabs.isEnabled()
    assert not errors.report_button.isEnabled()
    assert errors.error_layer.name == "errors: any class (out of date)"
    project.store.undo()
    qtbot.waitUntil(lambda: errors.summary.text() == summary, timeout=5000)
    assert errors.tabs.isEnabled()
    assert errors.error_layer.name == "errors: any class"
    project.store.redo()
    qtbot.waitUntil(lambda: errors.stale, timeout=5000)
    errors.compare_button.click()
    qtbot.waitUntil(lambda: errors.report_button.isEnabled(), timeout=15_000)
    assert not errors.stale
    assert f"{sum(project.store.class_counts()):,} of 120,000 pixels" in errors.summary.text()
    assert errors.error_layer.name == "errors: any class"


def test_the_summary_names_the_maps_and_figures_go_with_either(viewer, qtbot, errors) -> None:
    viewer.add_labels(predicted(), name="mine")
    truth = viewer.add_labels(predicted(), name="right")
    errors.compare_button.click()
    qtbot.waitUntil(lambda: errors.result is not None, timeout=15_000)
    assert errors.summary.text().startswith("mine against right: mIoU 100.0 %")
    viewer.layers.select_all()  # the error layer is among what goes
    viewer.layers.selection.discard(viewer.layers["mine"])
    viewer.layers.remove_selected()
    qtbot.waitUntil(lambda: len(viewer.layers) == 1, timeout=5000)
    assert errors.result is None
    assert errors.table.rowCount() == 0
    assert not errors.report_button.isEnabled()
    assert errors.summary.text() == f"'{truth.name}', which was compared, was removed."


def test_one_file_is_not_its_own_truth(viewer, qtbot, errors, tmp_path) -> None:
    from napari.utils.notifications import notification_manager

    path = str(tmp_path / "map.png")
    for box in (errors.prediction, errors.truth):
        errors.choose_file(box, path)
    errors.compare_button.click()
    assert "one and the same file" in notification_manager.records[-1].message
    assert not errors.looking.running


def test_a_comparison_ends_with_the_map_that_is_being_segmented(viewer, qtbot, errors) -> None:
    from napari_isdnet.engine.live import PredictionPyramid

    image = viewer.add_image(np.zeros((2048, 2048), np.uint8), name="field")

    def compute(window: Any) -> np.ndarray:
        import time

        time.sleep(0.05)
        return np.zeros(window.shape, np.uint8)

    pyramid = PredictionPyramid((2048, 2048), (64, 64), compute)
    live = layers.add_labels(viewer, image, pyramid, PREDICTED, {None: (0, 0, 0, 0)}, "live")
    viewer.add_labels(np.zeros((2048, 2048), np.uint8), name="truth")
    errors.compare_button.click()
    qtbot.waitUntil(lambda: errors.bar.running, timeout=15_000)
    viewer.layers.remove(live)
    assert not errors.bar.running
    qtbot.waitUntil(lambda: not errors.bar.threads(), timeout=15_000)
