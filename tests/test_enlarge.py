"""Classes from coarse logits: those of every enlarged logit, though few are enlarged."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_isdnet.engine import enlarge
from napari_isdnet.engine.enlarge import best_of, classes_of
from napari_isdnet.model.layers import Place, needed_for_resize, resize_bilinear
from napari_isdnet.window import Window


def coarse_map(classes: int, shape: tuple[int, int], seed: int, smooth: int) -> torch.Tensor:
    """Logits (1, K, h, w) in channels-last memory; the smoother, the larger the areas of one class."""
    x = torch.randn(1, classes, *shape, generator=torch.Generator().manual_seed(seed))
    if smooth:
        x = torch.nn.functional.avg_pool2d(x, 2 * smooth + 1, 1, smooth)
    return x.contiguous(memory_format=torch.channels_last)


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_it_is_the_best_class_of_the_enlarged_logits(data: st.DataObject) -> None:
    n_in = data.draw(st.tuples(st.integers(1, 30), st.integers(1, 30)))
    n_out = data.draw(st.tuples(*(st.integers(max(1, n // 2), 9 * n) for n in n_in)))
    top, left = (data.draw(st.integers(0, n - 1)) for n in n_out)
    window = Window(top, left, data.draw(st.integers(1, n_out[0] - top)), data.draw(st.integers(1, n_out[1] - left)))
    classes, smooth = data.draw(st.integers(1, 6)), data.draw(st.sampled_from([0, 2, 5]))
    whole = coarse_map(classes, n_in, data.draw(st.integers(0, 99)), smooth)
    needed = needed_for_resize(window, n_in, n_out)
    patch, place, out = whole[(..., *needed.slices)], Place(needed, n_in), Place(window, n_out)
    got, fine = classes_of(patch, place, out), resize_bilinear(patch, place, out)[0]
    assert got.dtype == torch.uint8
    assert got.shape == window.shape
    # Equal but for logits that rounding cannot tell apart.
    chosen = fine.gather(0, got.long()[None])[0]
    assert (fine.max(0).values - chosen <= 1e-5).all()


def test_a_region_has_the_very_classes_of_the_whole() -> None:
    whole, full = coarse_map(5, (41, 37), 0, 2), (41 * 8 - 3, 37 * 8 - 5)
    expected = classes_of(whole, Place.whole(whole), Place(Window.whole(full), full))
    for window in (Window(0, 0, 50, 60), Window(77, 101, 90, 120), Window(300, 250, 25, 41)):
        needed = needed_for_resize(window, (41, 37), full).expanded(2).clipped((41, 37))
        got = classes_of(whole[(..., *needed.slices)], Place(needed, (41, 37)), Place(window, full))
        assert torch.equal(got, expected[window.slices])


@pytest.mark.parametrize("limit", [1, 2**12, 2**30])
def test_how_much_is_computed_at_once_changes_nothing(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, full = coarse_map(4, (20, 30), 1, 1), (155, 237)
    expected = classes_of(whole, Place.whole(whole), Place(Window.whole(full), full))
    monkeypatch.setattr(enlarge, "BETWEEN_BYTES", limit)
    assert torch.equal(classes_of(whole, Place.whole(whole), Place(Window.whole(full), full)), expected)


def test_areas_of_one_class_are_not_enlarged(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = torch.zeros(1, 3, 50, 50)
    whole[:, 1] = 1
    whole[:, 2, 25:] = 2  # one border from left to right
    cells = 0
    original = enlarge._between

    def counted(x: torch.Tensor, rows: object, columns: object, part: torch.Tensor, flat: torch.Tensor) -> None:
        nonlocal cells
        cells += len(part)
        original(x, rows, columns, part, flat)  # type: ignore[arg-type]

    monkeypatch.setattr(enlarge, "_between", counted)
    found = classes_of(whole, Place.whole(whole), Place(Window.whole((400, 400)), (400, 400)))
    assert (found[:200] == 1).all()
    assert (found[200:] == 2).all()
    assert 0 < cells <= 51


@given(st.integers(1, 9), st.booleans(), st.integers(0, 99))
def test_the_best_is_argmax_and_the_first_of_equals(classes: int, turned: bool, seed: int) -> None:
    logits = torch.randint(0, 3, (classes, 5, 7), generator=torch.Generator().manual_seed(seed)).float()
    if turned:
        logits = logits.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    kept = logits.clone()
    expected = torch.tensor(
        [[logits[:, r, c].tolist().index(logits[:, r, c].max()) for c in range(7)] for r in range(5)]
    )
    assert torch.equal(best_of(logits).long(), expected)
    assert torch.equal(logits, kept)
