"""Streamed evaluation against the whole image, its refusals in words, and its files."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_isdnet.classes import classes_from
from napari_isdnet.engine.boundary import BoundaryScore
from napari_isdnet.engine.classlist import read_classes
from napari_isdnet.engine.evaluate import evaluate
from napari_isdnet.engine.metrics import ConfusionMatrix
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.source import GeoReference, PixelSize, check_window
from napari_isdnet.progress import result_of
from napari_isdnet.window import Window

CLASSES = classes_from(["land", "road", "water"])


class Labels:
    """The smallest label source; notes the largest window that was read."""

    def __init__(self, array, name="map", georeference=None, pixel_size=None, nodata=None, origin=None):
        self.array = array[..., None] if array.ndim == 2 else array
        self.name, self.georeference, self.pixel_size, self.nodata = name, georeference, pixel_size, nodata
        self.shape = self.array.shape[:2]
        self.channels, self.dtype, self.levels, self.alpha = self.array.shape[2], array.dtype, (self.shape,), None
        self.largest = 0
        if origin is not None:
            self.origin = origin

    def read(self, window, level=0):
        check_window(self, window, level)
        self.largest = max(self.largest, window.area)
        return self.array[window.slices].copy()

    def identity(self):
        return {"name": self.name}

    def close(self):
        pass


def finish(steps):
    progress = []
    return result_of(steps, progress.append), progress


def maps(shape=(90, 70), seed=0, holes=0.03):
    rng = np.random.default_rng(seed)
    truth = np.kron(rng.integers(0, 3, (shape[0] // 9 + 1, shape[1] // 9 + 1)), np.ones((9, 9)))
    truth = truth[: shape[0], : shape[1]].astype(np.uint8)
    prediction = np.roll(truth, (1, 2), (0, 1))
    prediction[rng.random(shape) < 0.05] = 1
    truth[rng.random(shape) < holes] = 255
    prediction[:4, :7] = 255
    return prediction, truth


def boundary_counts(score):
    return np.stack([score.predicted, score.predicted_hit, score.true, score.true_hit])


@given(
    seed=st.integers(0, 20),
    rows=st.integers(9, 80),
    columns=st.integers(9, 80),
    block=st.integers(5, 90),
    size=st.integers(4, 40),
    workers=st.integers(1, 3),
    ignore=st.sets(st.integers(0, 2), max_size=2),
    holes=st.sampled_from([0.0, 0.005, 0.03]),
    tolerance=st.sampled_from([0.0, 1.5, 3.0, 5.0]),
)
@settings(max_examples=40, deadline=None)
def test_blocks_change_no_figure(seed, rows, columns, block, size, workers, ignore, holes, tolerance):
    prediction, truth = maps((rows, columns), seed, holes)
    sources, options = (Labels(prediction), Labels(truth)), {"block": block, "worst_size": size, "workers": workers}
    result, progress = finish(evaluate(*sources, CLASSES, ignore, tolerance=tolerance, **options))
    truth = np.where(np.isin(truth, list(ignore)), np.uint8(255), truth)
    whole, edge = ConfusionMatrix(3), BoundaryScore(3, tolerance)
    whole.update(prediction, truth)
    edge.update(prediction, truth)
    np.testing.assert_array_equal(result.confusion.counts, whole.counts)
    np.testing.assert_array_equal(boundary_counts(result.boundary), boundary_counts(edge))
    wrong = (prediction != truth) & (truth != 255) & (prediction != 255)
    by_hand = [
        (int(wrong[r : r + size, c : c + size].sum()), r, c)
        for r in range(0, rows, size)
        for c in range(0, columns, size)
    ]
    assert [w.wrong for w in result.worst] == sorted((n for n, _, _ in by_hand if n), reverse=True)[:20]
    assert {(w.wrong, w.window.row, w.window.column) for w in result.worst} <= set(by_hand)
    for index, windows in enumerate(result.worst_by_class):
        concerned = wrong & ((truth == index) | (prediction == index))
        sums = [
            int(concerned[r : r + size, c : c + size].sum())
            for r in range(0, rows, size)
            for c in range(0, columns, size)
        ]
        assert [w.wrong for w in windows] == sorted((n for n in sums if n), reverse=True)[:20]
        for w in windows:
            assert w.missed == (wrong & (truth == index))[w.window.slices].sum()
    assert progress[-1].fraction == 1.0
    assert [p.done for p in progress] == sorted(p.done for p in progress)


@pytest.mark.parametrize("left_out", [None, 0, 1, 2])
@pytest.mark.parametrize("as_nodata", [False, True])
def test_a_boundary_one_column_beside_stays_perfect_whatever_class_is_left_out(left_out, as_nodata):
    small = np.random.default_rng(5).integers(0, 3, (6, 7), dtype=np.uint8)
    truth = np.pad(np.kron(small, np.ones((24, 24), np.uint8)), 9)
    prediction = np.roll(truth, 1, 1)
    ignore = [] if left_out is None or as_nodata else [left_out]
    if as_nodata and left_out is not None:
        truth[truth == left_out] = 255
    result, _ = finish(evaluate(Labels(prediction), Labels(truth), CLASSES, ignore, block=32))
    assert result.mean_boundary_f1 == 1.0
    figures = [c for c in result.per_class if c.index != left_out]
    assert [(c.boundary_precision, c.boundary_recall, c.boundary_f1) for c in figures] == [(1, 1, 1)] * len(figures)


def test_a_class_whose_boundaries_are_all_left_out_has_no_boundary_figures():
    truth = np.zeros((40, 40), np.uint8)
    truth[:, 18:22], truth[:, 22:] = 1, 2
    prediction = np.roll(truth, 2, 1)
    prediction[:, :2] = 0
    result, _ = finish(evaluate(Labels(prediction), Labels(truth), CLASSES, ignore=[1]))
    assert np.isnan(result.mean_boundary_f1)
    told = result.to_dict()
    assert [c["boundary_f1"] for c in told["classes"]] == [None] * 3
    assert [c["boundary_precision"] for c in told["classes"]] == [None] * 3
    json.dumps(told, allow_nan=False)


def test_regions_add_up_to_the_whole():
    prediction, truth = (Labels(m) for m in maps())
    whole, _ = finish(evaluate(prediction, truth, CLASSES, block=32))
    parts = [finish(evaluate(prediction, truth, CLASSES, block=32, roi=Window(0, c, 90, 35)))[0] for c in (0, 35)]
    np.testing.assert_array_equal(sum(boundary_counts(p.boundary) for p in parts), boundary_counts(whole.boundary))
    np.testing.assert_array_equal(sum(p.confusion.counts for p in parts), whole.confusion.counts)


def test_memory_is_bounded_by_the_block():
    prediction, truth = (Labels(m) for m in maps((200, 150)))
    finish(evaluate(prediction, truth, CLASSES, block=32, worst_size=16))
    assert max(prediction.largest, truth.largest) <= (32 + 2 * 4) ** 2


def test_areas_names_and_json():
    prediction, truth = maps()
    source = Labels(prediction, pixel_size=PixelSize(0.5, 0.25, "m"))
    result, _ = finish(evaluate(source, Labels(truth), CLASSES, ignore=[1], block=40))
    land, road, _ = result.per_class
    assert land.truth_area == pytest.approx(land.truth_pixels * 0.125)
    assert road.ignored
    assert np.isnan([road.iou, road.boundary_f1]).all()
    assert result.ignored_names == ("road",)
    assert result.counted == ("land", "water")
    known = np.isin(truth, (0, 2)) & (prediction != 255)
    assert result.confusion.evaluated == known.sum()
    told = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert told == result.to_dict()
    for found, worst in zip(told["worst_windows"], result.worst, strict=True):
        said = (Window(**found["window"]), found["wrong"], found["evaluated"], found["confusions"])
        assert said == (worst.window, worst.wrong, worst.evaluated, [vars(c) for c in worst.confusions])
    for said, windows in zip(told["worst_windows_by_class"], result.worst_by_class, strict=True):
        found = [(Window(**w["window"]), w["missed"], w["false_alarm"], w["evaluated"]) for w in said]
        assert found == [(w.window, w.missed, w.false_alarm, w.evaluated) for w in windows]
    assert told["classes"][1]["iou"] is None


def test_worst_windows_say_what_was_taken_for_what():
    truth = np.zeros((64, 64), np.uint8)
    prediction = truth.copy()
    prediction[40:60, 3:20] = 2
    prediction[33, 33] = 1
    result, _ = finish(evaluate(Labels(prediction), Labels(truth), CLASSES, worst_size=32))
    first, second = result.worst
    assert first.window == Window(32, 0, 32, 32)
    assert (first.wrong, first.evaluated) == (20 * 17, 1024)
    assert [vars(c) for c in first.confusions] == [{"truth": 0, "predicted": 2, "pixels": 340}]
    assert second.window == Window(32, 32, 32, 32)
    part, _ = finish(evaluate(Labels(prediction), Labels(truth), CLASSES, worst_size=32, roi=Window(50, 0, 14, 10)))
    assert [w.wrong for w in part.worst] == [10 * 7]
    assert [c.pixels for c in part.worst[0].confusions] == [10 * 7], "what lies outside the region is not counted"


def test_classes_are_counted_where_no_list_is_given():
    result, _ = finish(evaluate(Labels(np.array([[0, 4]], np.uint8)), Labels(np.array([[0, 1]], np.uint8))))
    assert [c.name for c in result.classes] == ["class 0", "class 1", "class 2", "class 3", "class 4"]
    np.testing.assert_array_equal(result.confusion.iou, [1, 0, np.nan, np.nan, 0])


def test_missing_prediction_is_noted():
    prediction, truth = maps()
    result, _ = finish(evaluate(Labels(prediction), Labels(truth), CLASSES))
    missing = int(((prediction == 255) & (truth != 255)).sum())
    assert any(note.startswith(f"{missing} pixels") for note in result.notes)


@pytest.mark.parametrize("truth_is_white", [True, False])
def test_a_mask_of_black_and_white_is_suspected(truth_is_white):
    classes = np.array([[0, 0, 1, 1]], np.uint8)
    white = Labels(classes * 255)
    pair = (Labels(classes), white) if truth_is_white else (white, Labels(classes))
    assert any("save that as 1" in note for note in finish(evaluate(*pair))[0].notes)
    painted = Labels(classes * 255)
    painted.painted = True  # strokes of the first class alone
    for plain in (
        (Labels(classes), painted),
        (Labels(classes), Labels(classes)),
        (white, white),
        (Labels(classes), Labels(classes * 2)),
    ):
        assert not any("save that as 1" in note for note in finish(evaluate(*plain))[0].notes)


@pytest.mark.parametrize("where", ["prediction", "truth"])
def test_value_that_is_no_class_is_named_with_its_position(where):
    prediction, truth = maps()
    (prediction if where == "prediction" else truth)[71, 13] = 9
    sources = Labels(prediction, "prediction"), Labels(truth, "truth")
    with pytest.raises(InputError, match=f"{where} holds 9 at row 71, column 13"):
        finish(evaluate(*sources, CLASSES, block=32))


def test_sizes_that_differ_are_named():
    prediction, truth = maps()
    with pytest.raises(InputError, match="map is 90 x 70 and truth map 89 x 70"):
        finish(evaluate(Labels(prediction), Labels(truth[1:]), CLASSES))


def test_other_maps_are_refused():
    prediction, truth = maps()
    for bad in (np.zeros((90, 70, 3), np.uint8), truth.astype(np.float32)):
        with pytest.raises(InputError, match="a label map has one channel"):
            finish(evaluate(Labels(prediction), Labels(bad), CLASSES))
    wide = truth.astype(np.int32)
    wide[3, 5] = 70000
    with pytest.raises(InputError, match="holds 70000 at row 3, column 5"):
        finish(evaluate(Labels(prediction), Labels(wide), CLASSES))
    with pytest.raises(InputError, match="holds no pixel"):
        finish(evaluate(Labels(prediction), Labels(truth), CLASSES, roi=Window(500, 0, 9, 9)))


def test_declared_nodata_becomes_255():
    truth = np.array([[-9, 0, 1]], np.int16)
    result, _ = finish(evaluate(Labels(np.zeros((1, 3), np.uint8)), Labels(truth, nodata=-9.0), CLASSES))
    assert result.confusion.ignored == 1
    assert result.confusion.evaluated == 2


def test_a_whole_pixel_shift_on_the_earth_is_followed():
    prediction, truth = maps()
    large = np.full((120, 100), 255, np.uint8)
    large[11:101, 17:87] = truth
    ours = GeoReference("EPSG:32640", (0.5, 0, 1000 + 17 * 0.5, 0, -0.5, 2000 - 11 * 0.5))
    theirs = GeoReference("EPSG:32640", (0.5, 0, 1000, 0, -0.5, 2000))
    shifted, _ = finish(evaluate(Labels(prediction, georeference=ours), Labels(large, georeference=theirs), CLASSES))
    plain, _ = finish(evaluate(Labels(prediction), Labels(truth), CLASSES))
    np.testing.assert_array_equal(shifted.confusion.counts, plain.confusion.counts)
    np.testing.assert_array_equal(boundary_counts(shifted.boundary), boundary_counts(plain.boundary))
    assert "Truth reaches beyond" in shifted.notes[0]
    half, _ = finish(evaluate(Labels(large, georeference=theirs), Labels(prediction, georeference=ours), CLASSES))
    np.testing.assert_array_equal(half.confusion.counts[:, :].sum(), plain.confusion.evaluated)
    assert half.region == Window(11, 17, 90, 70)


@pytest.mark.parametrize(
    ("theirs", "words"),
    [
        (GeoReference("EPSG:32640", (0.5, 0, 1000.2, 0, -0.5, 2000)), r"shifted by 0.00 rows and 0.40 columns"),
        (
            GeoReference("EPSG:32640", (0.6, 0, 1000, 0, -0.6, 2000)),
            "another pixel grid .* .pixels of 0.6 x 0.6 instead of 0.5 x 0.5",
        ),
        (GeoReference("EPSG:32639", (0.5, 0, 1000, 0, -0.5, 2000)), "is in EPSG:32640 and truth map in EPSG:32639"),
        (GeoReference("EPSG:32640", (0.5, 0, 9000, 0, -0.5, 2000)), "do not overlap"),
    ],
)
def test_other_grids_are_refused(theirs, words):
    prediction, truth = maps()
    ours = GeoReference("EPSG:32640", (0.5, 0, 1000, 0, -0.5, 2000))
    with pytest.raises(InputError, match=words):
        finish(evaluate(Labels(prediction, georeference=ours), Labels(truth, georeference=theirs), CLASSES))


def test_the_result_of_a_region_is_compared_with_that_region_of_truth():
    prediction, truth = maps()
    part = Labels(prediction[20:60, 30:65], origin=(20, 30))
    result, _ = finish(evaluate(part, Labels(truth), CLASSES))
    expected = ConfusionMatrix(3)
    expected.update(prediction[20:60, 30:65], truth[20:60, 30:65])
    np.testing.assert_array_equal(result.confusion.counts, expected.counts)


def test_results_of_two_regions_are_compared_where_both_are():
    prediction, truth = maps()
    one, other = Labels(prediction[20:60, 30:65], origin=(20, 30)), Labels(truth[10:50, 40:70], origin=(10, 40))
    result, _ = finish(evaluate(one, other, CLASSES))
    expected = ConfusionMatrix(3)
    expected.update(prediction[20:50, 40:65], truth[20:50, 40:65])
    np.testing.assert_array_equal(result.confusion.counts, expected.counts)
    with pytest.raises(InputError, match="places that do not overlap"):
        finish(evaluate(one, Labels(truth[60:80, 40:70], origin=(60, 40)), CLASSES))


def test_stopping_early_leaves_no_thread():
    import threading

    prediction, truth = (Labels(m) for m in maps((200, 200)))
    before = set(threading.enumerate())  # others may end meanwhile
    steps = evaluate(prediction, truth, CLASSES, block=16)
    next(steps)
    assert set(threading.enumerate()) - before
    steps.close()
    assert not set(threading.enumerate()) - before


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("# my classes\nland\nsmall road #ff8800\n\nwater\n", ["land", "small road", "water"]),
        ('["land", ["road", "#ff8800"]]', ["land", "road"]),
        ('{"classes": [{"name": "land", "color": [1, 2, 3]}]}', ["land"]),
    ],
)
def test_lists_of_classes(tmp_path, text, names):
    path = tmp_path / "classes.txt"
    path.write_text(text)
    assert [c.name for c in read_classes(path)] == names


def test_bad_lists_of_classes_are_refused(tmp_path):
    for text, words in (("[1,", "not valid JSON"), ('{"a": 1}', "must hold a JSON list"), ("a\na\n", "must differ")):
        path = tmp_path / "classes.txt"
        path.write_text(text)
        with pytest.raises(InputError, match=words):
            read_classes(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_classes(tmp_path / "nothing.txt")
