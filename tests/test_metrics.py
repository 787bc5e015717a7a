"""Confusion matrix and boundary F1 against torchmetrics, scipy and plain loops; streamed equals whole."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_dilation, distance_transform_edt
from torchmetrics.functional.classification import (
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_jaccard_index,
    multiclass_precision,
    multiclass_recall,
)

from napari_isdnet.engine.boundary import BoundaryScore, boundary, dilate, near_true_boundary
from napari_isdnet.engine.metrics import ConfusionMatrix, pair_counts
from napari_isdnet.exceptions import InputError
from napari_isdnet.window import Grid


def blobs(shape, classes, seed, nodata=0.0, cell=5):
    """A blocky label map with some noise, and 255 in a share of the pixels."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, classes, (-(-shape[0] // cell), -(-shape[1] // cell)), dtype=np.uint8)
    labels = np.kron(small, np.ones((cell, cell), np.uint8))[: shape[0], : shape[1]]
    noise = rng.random(shape) < 0.05
    labels[noise] = rng.integers(0, classes, int(noise.sum()), dtype=np.uint8)
    labels[rng.random(shape) < nodata] = 255
    return labels


def plain_boundary(labels):
    """The stated definition, pixel by pixel."""
    result = np.zeros(labels.shape, bool)
    for r, c in np.ndindex(*labels.shape):
        for dr, dc in ((0, 1), (0, -1), (1, 0), (-1, 0)):
            rr, cc = r + dr, c + dc
            if 0 <= rr < labels.shape[0] and 0 <= cc < labels.shape[1] and 255 not in (labels[r, c], labels[rr, cc]):
                result[r, c] |= labels[r, c] != labels[rr, cc]
    return result


def whole_boundary_counts(prediction, truth, classes, tolerance):
    """Boundary counts of the whole image at once, by Euclidean distance transforms."""
    out = (prediction == 255) | (truth == 255)
    maps = [np.where(out, 255, m).astype(np.uint8) for m in (prediction, truth)]
    edges = [plain_boundary(m) for m in maps]
    beside = binary_dilation(out)  # the default structure: the pixel and its 4-neighbours
    judged = distance_transform_edt(~beside) > tolerance + 1e-9 if out.any() else np.ones(out.shape, bool)
    counts = np.zeros((4, classes), np.int64)
    for k in range(classes):
        p, t = (e & (m == k) for e, m in zip(edges, maps))
        for row, mine, other in ((0, p, t), (2, t, p)):
            counts[row, k] = (mine & judged).sum()
            if other.any():
                counts[row + 1, k] = (mine & judged & (distance_transform_edt(~other) <= tolerance + 1e-9)).sum()
    return counts


def as_array(score):
    return np.stack([score.predicted, score.predicted_hit, score.true, score.true_hit])


@pytest.mark.parametrize("seed", range(3))
def test_figures_equal_torchmetrics(seed):
    k = 5
    truth, prediction = blobs((60, 47), k, seed, nodata=0.1), blobs((60, 47), k, seed + 50)
    matrix = ConfusionMatrix(k)
    matrix.update(prediction, truth)
    pair = torch.from_numpy(prediction.astype(np.int64)), torch.from_numpy(truth.astype(np.int64))
    options = {"num_classes": k, "ignore_index": 255}
    np.testing.assert_array_equal(matrix.counts, multiclass_confusion_matrix(*pair, **options).numpy())
    for ours, theirs in (
        (matrix.iou, multiclass_jaccard_index),
        (matrix.precision, multiclass_precision),
        (matrix.recall, multiclass_recall),
        (matrix.f1, multiclass_f1_score),
    ):
        np.testing.assert_allclose(ours, theirs(*pair, average="none", **options).numpy(), rtol=1e-6)
    assert matrix.mean_iou == pytest.approx(float(multiclass_jaccard_index(*pair, average="macro", **options)))
    assert matrix.ignored == (truth == 255).sum()


def test_ignored_class_leaves_its_truth_pixels_out_and_has_no_figures():
    truth = np.array([[0, 0, 1, 1, 2, 2]], np.uint8)
    prediction = np.array([[0, 2, 1, 1, 0, 2]], np.uint8)
    matrix = ConfusionMatrix(3, ignored_classes=[2])
    matrix.update(prediction, truth)
    assert matrix.ignored == 2
    assert matrix.counts.tolist() == [[1, 0, 1], [0, 2, 0], [0, 0, 0]]
    np.testing.assert_array_equal(matrix.iou, [0.5, 1.0, np.nan])
    assert matrix.mean_iou == 0.75
    assert matrix.accuracy == 0.75


def test_nodata_of_the_prediction_is_counted_apart():
    truth = np.array([[0, 0, 1, 255]], np.uint8)
    prediction = np.array([[0, 255, 1, 255]], np.uint8)
    matrix = ConfusionMatrix(2)
    matrix.update(prediction, truth)
    assert matrix.unpredicted.tolist() == [1, 0]
    assert (matrix.evaluated, matrix.ignored, matrix.accuracy) == (2, 1, 1.0)


def test_absent_classes_are_nan_and_left_out_of_the_mean():
    matrix = ConfusionMatrix(4)
    matrix.update(np.array([[0, 0, 1]], np.uint8), np.array([[0, 0, 2]], np.uint8))
    np.testing.assert_array_equal(matrix.iou, [1, 0, 0, np.nan])
    np.testing.assert_array_equal(matrix.precision, [1, 0, np.nan, np.nan])
    np.testing.assert_array_equal(matrix.recall, [1, np.nan, 0, np.nan])
    assert matrix.mean_iou == pytest.approx(1 / 3)
    assert np.isnan(ConfusionMatrix(2).mean_iou)


@given(seed=st.integers(0, 99), rows=st.integers(1, 40), columns=st.integers(1, 40), core=st.integers(1, 17))
@settings(max_examples=40, deadline=None)
def test_streamed_confusion_equals_whole(seed, rows, columns, core):
    truth, prediction = blobs((rows, columns), 4, seed, 0.2), blobs((rows, columns), 4, seed + 1, 0.1)
    whole, streamed = ConfusionMatrix(4), ConfusionMatrix(4)
    whole.update(prediction, truth)
    for window in Grid((rows, columns), (core, core)):
        streamed.update(prediction[window.slices], truth[window.slices])
    np.testing.assert_array_equal(whole.counts, streamed.counts)
    np.testing.assert_array_equal(whole.unpredicted, streamed.unpredicted)
    assert whole.ignored == streamed.ignored


def test_pair_counts_over_many_chunks():
    truth, prediction = blobs((700, 611), 7, 1, 0.1), blobs((700, 611), 7, 2, 0.1)
    pairs = pair_counts(prediction, truth)
    assert pairs.sum() == truth.size
    for t, p in ((0, 0), (3, 5), (255, 2), (6, 255)):
        assert pairs[t, p] == ((truth == t) & (prediction == p)).sum()


@pytest.mark.parametrize(
    ("prediction", "truth", "words"),
    [
        (np.array([[3]], np.uint8), np.array([[0]], np.uint8), "Value 3 in the prediction is no class"),
        (np.array([[0]], np.uint8), np.array([[200]], np.uint8), "Value 200 in truth is no class"),
        (np.array([[0]], np.uint8), np.array([[0, 1]], np.uint8), "same shape"),
        (np.array([[0]], np.int64), np.array([[0]], np.uint8), "must be uint8"),
    ],
)
def test_bad_blocks_are_refused(prediction, truth, words):
    with pytest.raises(InputError, match=words):
        ConfusionMatrix(3).update(prediction, truth)


def test_impossible_ignore_is_refused():
    with pytest.raises(InputError, match="Class 5 cannot be ignored"):
        ConfusionMatrix(3, [5])
    with pytest.raises(InputError, match="Every class"):
        ConfusionMatrix(2, [0, 1])


def test_boundary_is_the_stated_one():
    labels = blobs((30, 34), 3, 4, nodata=0.1)
    np.testing.assert_array_equal(boundary(labels), plain_boundary(labels))
    assert not boundary(np.full((5, 5), 2, np.uint8)).any()
    assert not boundary(np.array([[0, 255, 1]], np.uint8)).any()


@pytest.mark.parametrize("radius", [0, 1, 2**0.5, 2, 5**0.5, 3, 4.2, 30])
def test_dilate_is_a_euclidean_disc(radius):
    rng = np.random.default_rng(3)
    mask = rng.random((23, 31)) < 0.01
    mask[0, 0] = True
    expected = distance_transform_edt(~mask) <= radius + 1e-9
    np.testing.assert_array_equal(dilate(mask.astype(np.uint8), radius) > 0, expected)


@given(
    seed=st.integers(0, 99),
    rows=st.integers(1, 34),
    columns=st.integers(1, 34),
    core=st.integers(3, 19),
    tolerance=st.sampled_from([0.0, 1.0, 1.5, 3.0, 5.0]),
    classes=st.sampled_from([2, 3, 11, 20]),
    cell=st.sampled_from([5, 11]),
    nodata=st.sampled_from([0.0, 0.002, 0.02]),
    ignore=st.sets(st.integers(0, 3), max_size=2),
)
@settings(max_examples=80, deadline=None)
def test_streamed_boundary_equals_the_whole_image_by_distance_transform(
    seed, rows, columns, core, tolerance, classes, cell, nodata, ignore
):
    truth = blobs((rows, columns), classes, seed, nodata, cell)
    prediction = blobs((rows, columns), classes, seed + 7, nodata / 2, cell)
    truth[np.isin(truth, list(ignore))] = 255
    streamed = BoundaryScore(classes, tolerance)
    for window in Grid((rows, columns), (core, core)):
        outer = window.expanded(streamed.halo).clipped((rows, columns))
        part = BoundaryScore(classes, tolerance)
        part.update(prediction[outer.slices], truth[outer.slices], window.relative_to(outer))
        streamed.merge(part)
    np.testing.assert_array_equal(as_array(streamed), whole_boundary_counts(prediction, truth, classes, tolerance))


def test_a_boundary_within_the_tolerance_is_perfect_and_beyond_it_is_none():
    truth, near, far = (np.zeros((40, 40), np.uint8) for _ in range(3))
    truth[:, 20:], near[:, 23:], far[:, 28:] = 1, 1, 1
    for prediction, expected in ((truth, 1.0), (near, 1.0), (far, 0.0)):
        score = BoundaryScore(2)
        score.update(prediction, truth)
        np.testing.assert_array_equal(score.f1, [expected, expected])


def test_boundary_in_one_map_only_scores_zero_and_in_none_is_nan():
    truth, prediction = np.zeros((9, 9), np.uint8), np.zeros((9, 9), np.uint8)
    prediction[:, 4:] = 1
    score = BoundaryScore(3)
    score.update(prediction, truth)
    np.testing.assert_array_equal(score.f1, [0, 0, np.nan])
    assert np.isnan(score.recall).all()


@given(
    seed=st.integers(0, 99),
    shift=st.tuples(st.integers(-3, 3), st.integers(-3, 3)),
    ignore=st.sets(st.integers(0, 4), max_size=3),
    nodata=st.sampled_from([0.0, 0.001, 0.01]),
    cell=st.sampled_from([3, 9, 20]),
)
@settings(max_examples=60, deadline=None)
def test_truth_moved_within_the_tolerance_is_perfect_whatever_is_ignored(seed, shift, ignore, nodata, cell):
    truth = np.pad(blobs((50, 60), 5, seed, 0.0, cell), 5)  # the frame keeps every boundary inside when moved
    prediction = np.roll(truth, shift, (0, 1))
    holes = np.random.default_rng(seed).random(truth.shape) < nodata
    truth[np.isin(truth, list(ignore)) | holes] = 255
    score = BoundaryScore(5, float(np.hypot(*shift)))
    score.update(prediction, truth)
    np.testing.assert_array_equal(score.predicted_hit, score.predicted)
    np.testing.assert_array_equal(score.true_hit, score.true)
    np.testing.assert_array_equal(score.f1, np.where(score.predicted + score.true > 0, 1.0, np.nan))


def test_boundaries_near_what_is_left_out_are_not_judged():
    truth = np.zeros((1, 30), np.uint8)
    truth[0, 15:] = 1
    # the pixels on both sides of the boundary are 14 and 15; a neighbour of the hole is one nearer than the hole
    for hole, judged in ((22, [1, 1]), (20, [1, 1]), (19, [1, 0]), (18, [0, 0]), (16, [0, 0]), (15, [0, 0])):
        truth_with_hole, prediction = truth.copy(), truth.copy()
        truth_with_hole[0, hole] = 255
        for maps in ((prediction, truth_with_hole), (truth_with_hole, prediction)):
            score = BoundaryScore(2)
            score.update(*maps)
            np.testing.assert_array_equal(as_array(score), [judged] * 4, str(hole))
            np.testing.assert_array_equal(score.f1, [1.0 if n else np.nan for n in judged])


def test_where_all_of_one_map_is_left_out_the_figure_of_the_other_stands():
    truth = np.zeros((1, 30), np.uint8)
    truth[0, 15:], truth[0, 19] = 1, 255
    prediction = np.zeros((1, 30), np.uint8)
    prediction[0, 13:] = 1
    score = BoundaryScore(2)
    score.update(prediction, truth)
    np.testing.assert_array_equal(as_array(score), [[1, 1], [1, 1], [1, 0], [1, 0]])
    np.testing.assert_array_equal(score.f1, [1, 1])
    false_alarm = np.zeros((1, 30), np.uint8)
    false_alarm[0, 6:] = 1
    score = BoundaryScore(2)
    score.update(false_alarm, truth)
    np.testing.assert_array_equal(score.f1, [0, 0])


def test_the_border_of_the_image_is_not_left_out():
    truth = np.zeros((3, 4), np.uint8)
    truth[:, 2:] = 1
    score = BoundaryScore(2)
    score.update(truth, truth)
    np.testing.assert_array_equal(as_array(score), np.full((4, 2), 3))


def test_near_true_boundary():
    truth = np.zeros((1, 12), np.uint8)
    truth[0, 6:] = 1
    assert np.flatnonzero(near_true_boundary(truth, 2)[0]).tolist() == [3, 4, 5, 6, 7, 8]


def test_bad_boundary_arguments_are_refused():
    with pytest.raises(InputError, match="tolerance must be 0 to 256"):
        BoundaryScore(2, -1)
    with pytest.raises(InputError, match="Value 2 is no class"):
        BoundaryScore(2).update(np.array([[2, 0]], np.uint8), np.array([[0, 1]], np.uint8))
