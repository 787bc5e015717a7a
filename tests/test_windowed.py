"""Windowed inference: a region is the crop of the whole, and blending is the weighted mean that it says it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_isdnet.engine.device import Placement, prepare
from napari_isdnet.engine.patches import PatchReader
from napari_isdnet.engine.windowed import WindowGrid, WindowPredictor, window_size
from napari_isdnet.exceptions import InputError
from napari_isdnet.model.isdnet import ISDNet
from napari_isdnet.window import Window
from tests.network_tools import lively, picture, policy_of, small, source_of

CPU = Placement(torch.device("cpu"), torch.float32)
SHAPE = (150, 203)


@pytest.fixture(scope="module")
def model() -> ISDNet:
    return prepare(lively(small(channels=16, classes=3, auxiliary=False, super_resolution=False)), CPU)


def predictor(model: ISDNet, shape: tuple[int, int] = SHAPE, **options: int) -> WindowPredictor:
    image = picture(shape)
    return WindowPredictor(model, PatchReader(source_of(image), policy_of(image), model), CPU, **options)


@pytest.fixture(scope="module")
def whole(model: ISDNet) -> torch.Tensor:
    return predictor(model, window=64, overlap=32).logits(Window.whole(SHAPE))


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([32, 64, 96]), st.integers(0, 16))
def test_windows_cover_every_pixel_and_weights_are_positive(rows: int, columns: int, size: int, overlap: int) -> None:
    grid = WindowGrid((rows, columns), size, overlap)
    found = grid.touching(Window.whole((rows, columns)))
    total = np.zeros((rows, columns))
    for window in found:
        assert Window.whole((rows, columns)).contains(window)
        assert window.shape == (min(size, rows), min(size, columns))
        ramps = [grid.ramp(*args) for args in ((window.row, window.height, 0), (window.column, window.width, 1))]
        assert all((ramp > 0).all() and (ramp <= 1).all() for ramp in ramps)
        total[window.slices] += ramps[0][:, None] * ramps[1]
    assert (total > 0).all()
    assert len(set(found)) == len(found)


@given(st.integers(1, 300), st.integers(1, 300), st.data())
def test_touching_windows_are_those_that_share_a_pixel(rows: int, columns: int, data: st.DataObject) -> None:
    grid = WindowGrid((rows, columns), 64, 16)
    top, left = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    view = Window(top, left, data.draw(st.integers(1, 99)), data.draw(st.integers(1, 99))).clipped((rows, columns))
    everything = grid.touching(Window.whole((rows, columns)))
    assert grid.touching(view) == [w for w in everything if not w.intersect(view).empty]


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 149), st.integers(0, 202), st.integers(1, 150), st.integers(1, 203))
def test_any_region_is_the_crop_of_the_whole(
    model: ISDNet, whole: torch.Tensor, top: int, left: int, height: int, width: int
) -> None:
    region = Window(top, left, height, width).clipped(SHAPE)
    alone = predictor(model, window=64, overlap=32)
    torch.testing.assert_close(alone.logits(region), whole[(..., *region.slices)], atol=1e-5, rtol=1e-5)
    np.testing.assert_array_equal(alone.labels(region), whole[0].argmax(0).numpy()[region.slices])


def test_blending_is_the_weighted_mean_of_each_window_as_its_own_image(model: ISDNet, whole: torch.Tensor) -> None:
    image, grid = picture(SHAPE), WindowGrid(SHAPE, 64, 32)
    reader = PatchReader(source_of(image), policy_of(image), model)
    total, weights = np.zeros((3, *SHAPE)), np.zeros(SHAPE)
    for window in grid.touching(Window.whole(SHAPE)):
        with torch.no_grad():
            patch = torch.from_numpy(reader.read(window)[0]).permute(2, 0, 1)[None]
            logits = model(patch).logits[0].numpy()
        weight = np.outer(*(ramp_by_hand(*args) for args in zip((window.row, window.column), SHAPE)))
        total[(slice(None), *window.slices)] += logits * weight
        weights[window.slices] += weight
    np.testing.assert_allclose(whole[0], total / weights, rtol=1e-3, atol=1e-3 * float(whole.std()))


def ramp_by_hand(start: int, length: int, size: int = 64, overlap: int = 32) -> np.ndarray:
    ramp = np.ones(size)
    for i in range(size):
        if start > 0:
            ramp[i] = min(ramp[i], (i + 0.5) / overlap)
        if start + size < length:
            ramp[i] = min(ramp[i], (size - i - 0.5) / overlap)
    return ramp


def test_an_image_of_one_window_is_forwarded_as_it_is(model: ISDNet) -> None:
    image = picture((50, 60))
    small_image = predictor(model, (50, 60), window=64)
    patch = torch.from_numpy(PatchReader(source_of(image), policy_of(image), model).read(Window.whole((50, 60)))[0])
    with torch.no_grad():
        expected = model(patch.permute(2, 0, 1)[None]).logits
    torch.testing.assert_close(small_image.logits(Window.whole((50, 60))), expected)
    assert small_image.prepared
    assert list(small_image.prepare()) == []


def test_what_was_computed_is_kept_up_to_a_bound(
    model: ISDNet, whole: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    original = ISDNet.coarse_logits

    def counted(self: ISDNet, *args: object) -> torch.Tensor:
        calls.append(1)
        return original(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(ISDNet, "coarse_logits", counted)
    kept = predictor(model, window=64, overlap=32)
    for _ in range(2):
        kept.logits(Window.whole(SHAPE))
    assert len(calls) == len(kept.grid.touching(Window.whole(SHAPE)))
    kept = predictor(model, window=64, overlap=32, cache=1)  # nothing but the latest
    torch.testing.assert_close(kept.logits(Window.whole(SHAPE)), whole)
    assert kept._coarse.nbytes == kept.coarse_logits(kept.grid.touching(Window.whole(SHAPE))[-1]).nbytes
    kept.close()
    assert kept._coarse.nbytes == 0


def test_the_window_is_the_models_own_unless_asked(model: ISDNet) -> None:
    assert window_size(model) == 256
    assert window_size(model, 100) == 96
    assert window_size(model, 5) == 32
    bare = ISDNet(model.config)
    assert window_size(bare) == 512


def test_bad_grids_and_small_images_are_refused(model: ISDNet) -> None:
    with pytest.raises(InputError, match="multiple of 32 pixels, got 40"):
        WindowGrid(SHAPE, 40, 0)
    with pytest.raises(InputError, match=r"half the window \(32\), got 33"):
        WindowGrid(SHAPE, 64, 33)
    with pytest.raises(InputError, match="31 x 500 pixels; the network needs at least 32"):
        predictor(model, (31, 500))


# What MPS says: ATen/mps/MPSAllocator.mm, as people reported it.
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError(
            "MPS backend out of memory (MPS allocated: 15.72 GiB, other allocations: 2.41 MiB, max allowed: 18.13 GiB)."
            " Tried to allocate 5.81 GiB on private pool. Use PYTORCH_MPS_HIGH_WATERMARK_RATIO=0.0 to disable upper"
            " limit for memory allocations (may cause system failure)."
        ),
        RuntimeError("Invalid buffer size: 9.54 GiB"),
    ],
)
def test_a_device_that_is_too_small_is_said_in_one_sentence(
    error: Exception, model: ISDNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise error

    monkeypatch.setattr(ISDNet, "coarse_logits", full)
    with pytest.raises(InputError, match=r"too little memory for one window.*--window"):
        predictor(model, window=64).labels(Window(0, 0, 8, 8))
    monkeypatch.setattr(ISDNet, "coarse_logits", lambda *_: torch.empty(1 << 50))  # the machine's own memory
    with pytest.raises(InputError, match="too little memory for one window"):
        predictor(model, window=64).labels(Window(0, 0, 8, 8))
    monkeypatch.setattr(ISDNet, "coarse_logits", lambda *_: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="size"):  # a bug stays one
        predictor(model, window=64).labels(Window(0, 0, 8, 8))
