"""The Errors dock with layers that do not cover the same, and with comparisons that fail."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pytest
import tifffile

from napari_isdnet.classes import classes_from
from napari_isdnet.io.store import LabelStore
from napari_isdnet.widgets import _segment_layers as layers
from napari_isdnet.widgets._lazy import pyramid_of
from napari_isdnet.widgets._reader import read
from napari_isdnet.widgets.errors import ErrorsWidget
from napari_isdnet.window import Window

pytestmark = pytest.mark.long  # what a dock survives: a window each

PLACE: dict[str, Any] = {"scale": (0.5, 0.5), "translate": (100, -50)}
CLASSES = classes_from([("field", "#30a030"), ("house", "#d04020")])


def said() -> str:
    from napari.utils.notifications import notification_manager

    return str(notification_manager.records[-1].message)


def compare(qtbot: Any, errors: ErrorsWidget, prediction: Any, truth: Any) -> None:
    for box, item in ((errors.prediction, prediction), (errors.truth, truth)):
        box.setCurrentIndex(box.findData(item))
    errors.compare_button.click()
    qtbot.waitUntil(lambda: not errors.looking.running and not errors.bar.running, timeout=15_000)


def scene() -> np.ndarray:
    truth = np.zeros((400, 600), np.uint8)
    truth[150:250, 200:300] = 1
    return truth


def nothing_is_shown(errors: ErrorsWidget) -> bool:
    tables = errors.table, errors.matrix, errors.worst
    return (
        errors.result is None
        and not errors.summary.text()
        and not any(table.rowCount() for table in tables)
        and not errors.report_button.isEnabled()
    )


def test_a_failed_comparison_leaves_no_figures_and_no_layer(viewer, qtbot, errors) -> None:
    truth = scene()
    right = viewer.add_labels(truth, name="right")
    odd = viewer.add_labels(truth.astype(np.int32) * 1000, name="odd")
    far = viewer.add_labels(truth, name="far", translate=(0, 5000))
    compare(qtbot, errors, far, right)
    assert nothing_is_shown(errors)
    other = viewer.add_labels(np.roll(truth, 5), name="other")
    for failing in (far, odd):  # one is refused at once, the other only when its values are read
        compare(qtbot, errors, other, right)
        assert errors.result is not None
        assert errors.worst.rowCount() == 1
        assert errors.error_layer in viewer.layers
        compare(qtbot, errors, failing, right)
        assert nothing_is_shown(errors)
        assert errors.error_layer is None
        assert not [layer for layer in viewer.layers if layer.name.startswith("errors")]
    assert "class indices are 0 to 254" in said()


def test_figures_go_when_a_comparison_starts_and_bear_the_names_it_started_with(viewer, qtbot, errors) -> None:
    truth = scene()
    one, two = (viewer.add_labels(np.roll(truth, n), name=f"map {n}") for n in (0, 5))
    compare(qtbot, errors, one, two)
    assert errors.result is not None
    errors.compare_button.click()
    assert nothing_is_shown(errors)
    errors.prediction.setCurrentIndex(errors.prediction.findData(two))
    qtbot.waitUntil(lambda: errors.result is not None, timeout=15_000)
    assert (errors.result.prediction, errors.result.truth) == ("map 0", "map 5")


def test_the_result_of_a_region_is_compared_with_the_truth_of_the_scene(viewer, qtbot, errors) -> None:
    truth = scene()
    image = viewer.add_image(truth, name="scene", **PLACE)
    window = Window(120, 180, 100, 200)
    part = truth[window.slices].copy()
    part[30:40, 20:40] = 0  # 200 pixels of the house are missed
    region = viewer.add_labels(part, name="region", **layers.placement(image, (window.row, window.column)))
    whole = viewer.add_labels(truth, name="truth", **PLACE)
    compare(qtbot, errors, region, whole)
    assert errors.result.region == Window(0, 0, 100, 200)
    assert errors.result.accuracy == 1 - 200 / 20_000
    assert "100 x 200 pixels from row 0, column 0 of the prediction" in errors.summary.text()
    codes = pyramid_of(errors.error_layer).read(0, Window(0, 0, 100, 200))
    assert (codes > 0).sum() == 200
    assert errors.error_layer.data_to_world((0, 0)) == pytest.approx(image.data_to_world((120, 180)))
    compare(qtbot, errors, whole, region)  # the other way round: truth of a part
    assert errors.result.region == window
    assert errors.result.accuracy == 1 - 200 / 20_000
    assert "100 x 200 pixels from row 120, column 180" in errors.summary.text()
    compare(qtbot, errors, whole, whole)
    assert "need two class maps" in said()


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ({}, "are 1 x 1 in the viewer and those of 'truth' 0.5 x 0.5; give both layers the same scale"),
        ({**PLACE, "rotate": 10}, "0.5 x 0.5 and turned"),
        ({**PLACE, "translate": (100.125, -50)}, "lies 0.25 rows and 0.00 columns beside the pixels"),
    ],
)
def test_maps_whose_pixels_do_not_coincide_are_not_compared(viewer, qtbot, errors, place, words) -> None:
    truth = viewer.add_labels(scene(), name="truth", **PLACE)
    other = viewer.add_labels(scene(), name="other", **place)
    compare(qtbot, errors, other, truth)
    assert words in said()
    assert nothing_is_shown(errors)


def test_maps_of_one_size_are_compared_where_they_lie(viewer, qtbot, errors) -> None:
    truth = viewer.add_labels(scene(), name="truth", **PLACE)
    moved = viewer.add_labels(scene()[10:], name="moved", scale=(0.5, 0.5), translate=(105, -50))
    same = viewer.add_labels(scene(), name="same", scale=(0.5, 0.5), translate=(105, -50))
    compare(qtbot, errors, moved, truth)
    assert errors.result.accuracy == 1
    compare(qtbot, errors, same, truth)
    assert errors.result.accuracy == 1 - 2 * 10 * 100 / (390 * 600)
    assert "390 x 600 pixels" in errors.summary.text()


def test_a_region_that_both_maps_do_not_share_is_refused(viewer, qtbot, errors) -> None:
    whole = viewer.add_labels(scene(), name="whole")
    part = viewer.add_labels(scene()[:50, :50], name="part")
    viewer.add_shapes([[[300, 300], [300, 350], [350, 350], [350, 300]]], shape_type="rectangle")
    errors.region.setCurrentIndex(errors.region.findData("drawn"))
    compare(qtbot, errors, whole, part)
    assert "The chosen region holds nothing that both maps cover" in said()


def test_the_layer_of_a_region_is_compared_with_a_truth_file_of_the_whole(
    viewer, qtbot, errors, tmp_path: Path
) -> None:
    truth = scene()
    imageio.imwrite(tmp_path / "truth.png", truth)
    image = viewer.add_image(truth, name="scene", **PLACE)
    store = LabelStore.create(tmp_path / "r.ome.zarr", (100, 200), CLASSES, origin=(120, 180))
    for index, window in enumerate(store.shards):
        store.write_shard(index, truth[120:220, 180:380][window.slices])
    list(store.finish_pyramid())
    colors = {None: (0.0, 0.0, 0.0, 0.0)}
    pyramid = layers.store_pyramid(store)
    layer = layers.add_labels(viewer, image, pyramid, CLASSES, colors, "region", origin=(120, 180), store=store)
    errors.choose_file(errors.truth, str(tmp_path / "truth.png"))
    compare(qtbot, errors, layer, str(tmp_path / "truth.png"))
    assert errors.result.accuracy == 1
    assert errors.result.region.shape == (100, 200)


def test_the_report_shows_the_image_that_the_map_is_of(viewer, qtbot, errors, tmp_path: Path) -> None:
    images = []
    for name, channel, column in (("red", 0, 0), ("blue", 2, 1000), ("green", 1, 0)):
        pixels = np.zeros((400, 600, 3), np.uint8)
        pixels[..., channel] = 250
        tifffile.imwrite(tmp_path / f"{name}.tif", pixels, photometric="rgb", tile=(128, 128))
        data, keywords, _ = read(str(tmp_path / f"{name}.tif"))[0]
        images.append(viewer.add_image(data, translate=(0, column), **keywords))

    def color(folder: Path) -> str:
        errors.report(folder)
        qtbot.waitUntil(lambda: not errors.bar.running, timeout=15_000)
        found = re.search(r"data:image/jpeg;base64,([A-Za-z0-9+/=]+)", (folder / "report.html").read_text())
        if found is None:
            return "none"
        return ("red", "green", "blue")[int(imageio.imread(base64.b64decode(found[1])).mean((0, 1)).argmax())]

    maps = [viewer.add_labels(np.roll(scene(), n), name=f"map {n}", translate=(0, 1000)) for n in (0, 5)]
    compare(qtbot, errors, *maps)
    assert color(tmp_path / "by place") == "blue"
    (tmp_path / "out" / "x.job").mkdir(parents=True)
    store = LabelStore.create(tmp_path / "out" / "x.job" / "x.ome.zarr", (400, 600), CLASSES)
    for index, window in enumerate(store.shards):
        store.write_shard(index, scene()[window.slices])
    list(store.finish_pyramid())
    imageio.imwrite(tmp_path / "truth.png", scene())
    for box, path in ((errors.prediction, store.path), (errors.truth, tmp_path / "truth.png")):
        errors.choose_file(box, str(path))
    for made_of, shown in (("red", "red"), ("away", "none")):  # green lies at the same place, above
        header = {"image": {"path": str(tmp_path / f"{made_of}.tif")}}
        (store.path.parent / "ledger.json").write_text(json.dumps({"format": 1, "header": header, "about": {}}))
        compare(qtbot, errors, str(store.path), str(tmp_path / "truth.png"))
        assert color(tmp_path / made_of) == shown


def test_errors_of_a_live_truth_beside_the_prediction_follow_it() -> None:
    from napari_isdnet.engine.live import PredictionPyramid
    from napari_isdnet.widgets import _errors_controller as facts

    values = np.random.default_rng(0).integers(0, 2, (256, 256), dtype=np.uint8)
    live = PredictionPyramid((256, 256), (64, 64), lambda window: values[window.slices])
    place = facts.GeoReference(None, (1.0, 0.0, 100.0, 0.0, 1.0, 70.0))
    origin = facts.GeoReference(None, (1.0, 0.0, 0.0, 0.0, 1.0, 0.0))
    guess = facts.LabelMap(facts.ArraySource([np.zeros((90, 80), np.uint8)], "p", "yx", georeference=place))
    truth = facts.LabelMap(facts.PyramidLabels(live, "t", origin))
    errors = facts.error_pyramid(guess, truth, facts.Question(tolerance=0))
    try:
        part = Window(0, 0, 90, 80)
        errors.answer(0, part)
        assert live.wait(10)
        errors.answer(0, part)  # as napari paints again
        assert errors.wait(10)
        codes = errors.answer(0, part)
        np.testing.assert_array_equal(codes, np.where(values[70:160, 100:180] > 0, 3, 0))
    finally:
        errors.close()
        live.close()


def test_a_renamed_map_is_listed_by_its_new_name(viewer, errors) -> None:
    viewer.add_labels(scene(), name="one")
    truth = viewer.add_labels(scene(), name="two")
    truth.name = "the truth"
    assert [errors.truth.itemText(i) for i in range(2)] == ["one", "the truth"]
    assert errors.truth.currentText() == "the truth"


def test_the_dock_fits_a_small_window(errors) -> None:
    assert errors.minimumSizeHint().height() < 300


def test_the_regions_have_the_words_of_the_segment_dock(errors) -> None:
    from napari_isdnet.widgets._segment_form import SegmentForm

    other = SegmentForm()
    try:
        ours, theirs = (
            {str(b.itemData(i)): b.itemText(i) for i in range(b.count())} for b in (errors.region, other.region)
        )
        assert ours == theirs
    finally:
        other.deleteLater()
