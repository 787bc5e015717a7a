"""What held-out places say: the figures by an independent count, and the doubt by cases that leave none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from napari_isdnet_training.judging import Guard, Tally, class_iou, mean_iou, surely_worse

from napari_isdnet.classes import IGNORE_INDEX
from napari_isdnet.engine.metrics import ConfusionMatrix
from napari_isdnet.exceptions import InputError


def tally(labels: np.ndarray, target: np.ndarray, classes: int = 3) -> Tally:
    found = Tally(classes)
    found.add(labels, target)
    return found


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 150), st.integers(1, 150))
def test_figures_are_those_of_the_confusion_matrix(seed: int, classes: int, height: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    target = rng.integers(0, classes, (height, width)).astype(np.uint8)
    target[rng.random(target.shape) < 0.7] = IGNORE_INDEX
    labels = rng.integers(0, classes, target.shape).astype(np.uint8)
    matrix = ConfusionMatrix(classes)
    matrix.update(labels, target)
    there = matrix.counts.sum(axis=1) > 0
    total = tally(labels, target, classes).counts.sum(axis=0)
    assert np.allclose(class_iou(total)[there], matrix.iou[there])
    assert np.isnan(class_iou(total)[~there]).all()
    assert mean_iou(total) == pytest.approx(float(matrix.iou[there].mean()) if there.any() else 0.0)


def strokes(places: int) -> np.ndarray:
    """Truth of (64, 64 * places): a stroke of class 0 above one of class 1 in every block."""
    target = np.full((64, 64 * places), IGNORE_INDEX, np.uint8)
    target[10:14] = 0
    target[40:44] = 1
    return target


@pytest.mark.parametrize(
    ("wrong_before", "wrong_after", "sure"),
    [
        ((), (), False),
        ((), (3,), False),  # one place of ten: which ones were painted decides it
        ((0, 1, 2), (7, 8, 9), False),
        ((), (3, 5, 7), True),
        ((3,), tuple(range(10)), True),
        (tuple(range(10)), (), False),
    ],
)
def test_worse_is_said_where_chance_does_not_explain_it(
    wrong_before: tuple[int, ...], wrong_after: tuple[int, ...], sure: bool
) -> None:
    target = strokes(10)

    def labels(wrong: tuple[int, ...]) -> np.ndarray:
        values = np.where(np.arange(64)[:, None] < 30, 0, 1) * np.ones(target.shape[1], int)
        for place in wrong:
            values[:, 64 * place : 64 * place + 64] = 2
        return values.astype(np.uint8)

    assert surely_worse(tally(labels(wrong_before), target).counts, tally(labels(wrong_after), target).counts) is sure


def right_at(places: int, right: int) -> np.ndarray:
    """Counts where the first ``right`` of ``places`` blocks are labelled as the truth says, the others all wrong."""
    target = strokes(places)
    labels = np.where(np.arange(64)[:, None] < 30, 0, 1) * np.ones(target.shape[1], int)
    labels[:, 64 * right :] = 2
    return tally(labels.astype(np.uint8), target).counts


def test_the_latest_weights_are_kept_unless_they_are_surely_worse_than_at_first_or_at_best() -> None:
    guard = Guard(right_at(20, 10))
    taken = [guard.takes(right_at(20, right)) for right in (10, 14, 13, 11, 9, 20, 12, 20)]
    #          below the best by chance ^   ^ surely       ^ surely worse than the best, though not than before
    assert taken == [True, True, True, False, False, True, False, True]
    assert np.array_equal(guard.best, right_at(20, 20))
    assert np.array_equal(guard.before, right_at(20, 10))


def test_what_was_counted_is_kept_for_a_run_that_is_resumed(tmp_path: Path) -> None:
    guard, path = Guard(right_at(6, 3)), tmp_path / "judged.safetensors"
    guard.takes(right_at(6, 5))
    guard.save(path)
    again = Guard.load(path, 3)
    assert np.array_equal(again.before, right_at(6, 3))
    assert np.array_equal(again.best, right_at(6, 5))
    for wanted, spoil in ((4, b""), (3, b"damaged"), (3, None)):
        path.unlink() if spoil is None else path.write_bytes(spoil or path.read_bytes())
        with pytest.raises(InputError, match=r"judged\.safetensors.* is missing or damaged; .* --no-resume"):
            Guard.load(path, wanted)
