"""The mean over turns and mirrors of an image: geometry, an oracle of plain forwards, regions, resuming, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from napari_isdnet.engine import job
from napari_isdnet.engine.device import Placement, prepare
from napari_isdnet.engine.job import make_predictor
from napari_isdnet.engine.ledger import JobDiffersError, read_header
from napari_isdnet.engine.orientations import COUNTS, Orientation, Oriented, Part, TurnedReader, orientations
from napari_isdnet.engine.patches import PatchReader
from napari_isdnet.engine.segment import segment
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.store import LabelStore
from napari_isdnet.model.isdnet import ISDNet
from napari_isdnet.progress import result_of
from napari_isdnet.window import Window
from tests.network_tools import lively, picture, policy_of, small, source_of
from tests.segment_tools import PLAIN, labels, run

CPU = Placement(torch.device("cpu"), torch.float32)
ALL = orientations(8)


pytestmark = pytest.mark.usefixtures("own_cache")


def small_model(**changes: Any) -> ISDNet:
    return lively(small(classes=4, channels=16, **changes))


def predictor(model: ISDNet, image: np.ndarray, **options: Any) -> Any:
    made = make_predictor(model, source_of(image), policy_of(image), CPU, exact=True, **options)
    for _ in made.prepare():
        pass
    return made


def forward(model: ISDNet, image: np.ndarray) -> torch.Tensor:
    """Logits (1, K, H, W) of one plain forward."""
    reader = PatchReader(source_of(image), policy_of(image), model)
    x = torch.from_numpy(reader.read(Window.whole(image.shape[:2]))[0]).permute(2, 0, 1)[None]
    with torch.inference_mode():
        coarse = prepare(model, CPU).coarse_logits(x.contiguous())
        return F.interpolate(coarse, size=image.shape[:2], mode="bilinear", align_corners=False)


def averaged(model: ISDNet, image: np.ndarray, count: int) -> torch.Tensor:
    """The oracle: plain forwards of turned copies, turned back and averaged."""
    found = []
    for number in range(count):
        turned = np.ascontiguousarray(np.rot90(image[:, ::-1] if number >= 4 else image, number % 4))
        logits = torch.rot90(forward(model, turned), -(number % 4), (2, 3))
        found.append(logits.flip(3) if number >= 4 else logits)
    return torch.stack(found).mean(0)


# -- geometry ---------------------------------------------------------------------------------------------------------


@given(
    st.integers(1, 9), st.integers(1, 9), st.sampled_from(ALL),
    st.tuples(*[st.integers(0, 8)] * 2), st.tuples(*[st.integers(1, 9)] * 2),
)  # fmt: skip
def test_a_window_of_the_turned_image_holds_the_turned_pixels(
    rows: int, columns: int, turn: Orientation, corner: tuple[int, int], size: tuple[int, int]
) -> None:
    image = np.arange(rows * columns).reshape(rows, columns)
    window = Window(min(corner[0], rows - 1), min(corner[1], columns - 1), *size).clipped(image.shape)
    turned = turn.turn(image)
    assert turned.shape == turn.shape(image.shape)
    there = turn.window(window, image.shape)
    np.testing.assert_array_equal(turned[there.slices], turn.turn(image[window.slices]))
    assert turn.source_window(there, image.shape) == window
    np.testing.assert_array_equal(turn.back(torch.from_numpy(turned.copy())).numpy(), image)


def test_the_eight_orientations_are_all_different() -> None:
    image = np.arange(6).reshape(2, 3)
    assert len({turn.turn(image).tobytes() + bytes(turn.shape(image.shape)) for turn in ALL}) == 8
    assert [turn.number for turn in ALL] == list(range(8))
    np.testing.assert_array_equal(orientations(1)[0].turn(image), image)
    assert [len(orientations(n)) for n in COUNTS] == list(COUNTS)
    for wrong in (0, 3, 5, 16):
        with pytest.raises(InputError, match="must be 1, 2, 4 or 8, got"):
            orientations(wrong)


def test_patches_of_the_turned_image_and_what_is_valid_in_it() -> None:
    model, image = small_model(), picture((60, 90)).astype(np.float32)
    image[5:9, 70:80] = np.nan
    reader = PatchReader(source_of(image), policy_of(image), model)
    whole, valid = reader.read(Window(0, 0, 60, 90))
    assert valid is not None
    for turn in ALL:
        turned = TurnedReader(reader, turn)
        assert turned.shape == turn.shape((60, 90))
        patch, known = turned.read(Window(3, 4, 40, 30))
        assert known is not None
        np.testing.assert_array_equal(patch, turn.turn(whole)[3:43, 4:34])
        np.testing.assert_array_equal(known, turn.turn(valid)[3:43, 4:34])


# -- the mean ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.long), pytest.param(8, marks=pytest.mark.long)])
def test_streamed_orientations_are_the_mean_of_plain_forwards(count: int) -> None:
    model, image = small_model(), picture((203, 331))
    made = predictor(model, image, orientations=count, window=64)
    assert isinstance(made, Oriented)
    expected = averaged(model, image, count)
    logits = made.logits(Window.whole(image.shape[:2]))
    assert float((logits - expected).abs().max()) < 1e-3 * float(expected.std())
    np.testing.assert_array_equal(made.labels(Window(10, 20, 150, 300)), logits[0].argmax(0)[10:160, 20:320].numpy())
    one = forward(model, image)
    assert (one.argmax(1) != logits.argmax(1)).any()  # or the mean would be no other answer


def test_a_network_that_is_forwarded_at_once_is_averaged_too() -> None:
    model, image = small_model(branches="shallow"), picture((120, 200))
    made = predictor(model, image, orientations=4)
    expected = averaged(model, image, 4)
    assert float((made.logits(Window.whole(image.shape[:2])) - expected).abs().max()) < 1e-3 * float(expected.std())


@pytest.mark.long
def test_with_all_orientations_the_answer_turns_with_the_image() -> None:
    model, image = small_model(), picture((160, 224))
    for context in ("whole", "window"):
        plain = predictor(model, image, orientations=8, context=context, window=96)
        logits = plain.logits(Window.whole((160, 224)))
        for turn in (ALL[1], ALL[6]):
            other = predictor(model, np.ascontiguousarray(turn.turn(image)), orientations=8, context=context, window=96)
            turned = other.logits(Window.whole(turn.shape((160, 224))))
            assert float((turn.back(turned) - logits).abs().max()) < 1e-3 * float(logits.std()), (context, turn)


def test_pixels_without_data_stay_without() -> None:
    model, image = small_model(), picture((160, 128)).astype(np.float32)
    image[:30] = np.nan
    labels = predictor(model, image, orientations=4).labels(Window(0, 0, 160, 128))
    assert (labels[:30] == 255).all()
    assert (labels[30:] != 255).all()


# -- jobs -------------------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("context", ["whole", "window"])
def test_a_region_is_a_crop_of_the_whole_result(tmp_path: Path, context: str) -> None:
    model, image = small_model(), source_of(picture((300, 260)))
    options: dict[str, Any] = {"context": context, "window": 96, "orientations": 2}
    region = Window(40, 70, 130, 111)
    alone = run(image, model, tmp_path / "alone", roi=region, **options)
    whole = run(image, model, tmp_path / "whole", **options)
    after = run(image, model, tmp_path / "after", roi=region, **options)
    np.testing.assert_array_equal(labels(alone), labels(whole)[region.slices])
    np.testing.assert_array_equal(labels(after), labels(whole)[region.slices])


@pytest.mark.long
def test_the_means_of_every_orientation_are_kept_and_spare_a_region_the_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, image = small_model(), source_of(picture((260, 200)))
    run(image, model, tmp_path / "whole", orientations=2)
    seen: list[str] = []
    steps = segment(image, model, output=tmp_path / "region", orientations=2, roi=Window(0, 0, 40, 40), **PLAIN)
    while True:
        try:
            seen.append(next(steps).stage)
        except StopIteration:
            break
    assert not any("shallow" in stage for stage in seen)
    # The first orientation is the image itself: a job without averaging knows it already, one with four knows two.
    identity: dict[str, Any] = {}
    monkeypatch.setattr(job, "save_means", lambda key, means: identity.update({key: means}))
    run(image, model, tmp_path / "four", orientations=4, window=64)
    assert len(identity) == 8  # four orientations, with and without the size of the cores


@pytest.mark.long
def test_an_interrupted_job_goes_on_and_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "RAM_MAPS", 0)  # maps on disk
    model, image = small_model(), source_of(picture((300, 200)))
    options: dict[str, Any] = {"orientations": 2, "window": 64}
    unbroken = run(image, model, tmp_path / "unbroken", **options)
    for stop in (3, 30, 45):
        steps = segment(image, model, output=tmp_path / f"broken{stop}", **{**PLAIN, **options})
        stages = [next(steps).stage for _ in range(stop)]
        steps.close()
        assert stop < 30 or "orientation 2 of 2" in stages[-1] or stages[-1] == "write"
        again = segment(image, model, output=tmp_path / f"broken{stop}", **{**PLAIN, **options})
        first = next(again)
        assert first.fraction > 0.02 * (stop > 3)
        result = result_of(again)
        np.testing.assert_array_equal(labels(result), labels(unbroken))


def test_a_job_of_another_number_of_orientations_is_not_gone_on_with(tmp_path: Path) -> None:
    model, image = small_model(), source_of(picture((160, 128)))
    run(image, model, tmp_path)
    header = read_header(tmp_path / "picture.job")
    assert header is not None
    assert "orientations" not in header  # as in jobs that were begun before there were several
    with pytest.raises(JobDiffersError, match=r"1 orientation \(now 4\)"):
        run(image, model, tmp_path, orientations=4)
    run(image, model, tmp_path, orientations=4, overwrite=True)
    with pytest.raises(JobDiffersError, match=r"4 orientations \(now 1\)"):
        run(image, model, tmp_path)
    with pytest.raises(InputError, match="must be 1, 2, 4 or 8"):
        run(image, model, tmp_path / "new", orientations=3)
    assert not (tmp_path / "new").exists()


@pytest.mark.long
def test_probabilities_are_those_of_the_mean(tmp_path: Path) -> None:
    model, image = small_model(), picture((160, 128))
    result = run(source_of(image), model, tmp_path, orientations=4, probabilities=True)
    store = LabelStore.open(Path(result.outputs["probabilities"]))
    shares = store.read(Window.whole(store.shape)) / 254
    expected = averaged(model, image, 4).softmax(1)[0].permute(1, 2, 0).numpy()
    assert np.abs(shares - expected).max() < 0.02


@pytest.mark.long
def test_the_live_view_answers_as_the_job_does(tmp_path: Path) -> None:
    from napari_isdnet.model.checkpoint import save_model
    from napari_isdnet.widgets._engine import LocalEngine

    file = save_model(small_model(), tmp_path / "m.safetensors", half=False)
    image, engine = picture((160, 128)), LocalEngine(tmp_path / "live")
    source, policy = source_of(image), policy_of(image)
    written = labels(run(source, file, tmp_path / "out", orientations=2, precision="auto"))
    for _ in range(2):  # with the passes, and with the means that the first time found
        work = result_of(engine.exact(source, str(file), "cpu", policy, None, 2))
        shown = work.compute(Window(0, 0, 160, 128))
        work.close()
        assert (shown != written).mean() < 1e-2
        assert not list((tmp_path / "live").glob("*"))
    plain = result_of(engine.exact(source, str(file), "cpu", policy, None))
    assert (plain.compute(Window(0, 0, 160, 128)) != written).mean() > 1e-2
    plain.close()
    windows = engine.live(source, str(file), "cpu", policy, 2)
    job = labels(run(source, file, tmp_path / "w", orientations=2, context="window", window=None, precision="auto"))
    np.testing.assert_array_equal(windows.compute(Window(0, 0, 160, 128)), job)
    windows.close()


def test_all_orientations_are_closed_whatever_one_of_them_says() -> None:
    closed: list[int] = []

    class Failing:
        def __init__(self, number: int) -> None:
            self.number = number

        def close(self) -> None:
            closed.append(self.number)
            if self.number == 1:
                raise InputError("The disk is full")

    mean = Oriented([Part(o, Failing(o.number)) for o in orientations(4)], None, 3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="full"):
        mean.close()
    assert sorted(closed) == [0, 1, 2, 3]
