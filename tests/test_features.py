"""Feature maps, attention and one-branch answers against the one-shot forward of the same network."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from napari_isdnet.engine import feature_tiles
from napari_isdnet.engine.device import Placement
from napari_isdnet.engine.feature_files import write_features
from napari_isdnet.engine.feature_info import Extent
from napari_isdnet.engine.features import FeatureView
from napari_isdnet.engine.patches import PatchReader
from napari_isdnet.engine.rendering import Rendering, fit_basis, paint, similarity
from napari_isdnet.exceptions import AlreadyThere, InputError
from napari_isdnet.io.array import ArraySource
from napari_isdnet.io.source import PixelSize
from napari_isdnet.model.config import ISDNetConfig
from napari_isdnet.model.isdnet import ISDNet
from napari_isdnet.progress import Progress
from napari_isdnet.window import Grid, Window
from tests.network_tools import lively, picture, policy_of, small, source_of

CPU = Placement(torch.device("cpu"), torch.float32)
TINY = {"channels": 16}
NETWORKS = {
    "reference": small(**TINY),
    "paper": small("paper", **TINY),
    "lite": small(deep="tf_efficientnet_lite0", deep_filter="lowpass", **TINY),
    "cat": small(deep_head="pspnet", fusion="cat_ca", classes=2, **TINY),
    "cheap": small(fusion="add", deep_stride=16, shallow_input="rgb", downscale=2, **TINY),
}


def view_of(model: ISDNet, image: np.ndarray, context: str = "whole", **options: object) -> FeatureView:
    view = FeatureView(source_of(image), model, policy_of(image), CPU, context, exact=True, **options)  # type: ignore[arg-type]
    for _ in view.prepare():
        pass
    assert view.prepared
    return view


@torch.inference_mode()
def one_shot(model: ISDNet, image: np.ndarray) -> dict[str, np.ndarray]:
    """Every map of one forward pass, (h, w, C) each, attention as it is."""
    reader = PatchReader(source_of(image), policy_of(image), model)
    x = torch.from_numpy(reader.read(Window.whole(image.shape[:2]))[0]).permute(2, 0, 1)[None]
    maps = dict(model(x, features=True).features or {})
    residuals = maps.pop("residuals")
    if model.config.shallow_input != "rgb":
        maps |= {f"H{i}": residuals[:, 3 * i : 3 * i + 3] for i in range(residuals.shape[1] // 3)}
    maps["super_resolution"] = model.super_resolution(maps["deep"])[1]
    for name, branch in (("logits", "both"), ("logits_shallow", "shallow"), ("logits_deep", "deep")):
        maps[name] = model.coarse_logits(x, branch)
        maps["full_" + name] = model(x, branch=branch).logits
    return {
        name: value[0].permute(1, 2, 0).numpy() if value.ndim == 4 else value[0].numpy() for name, value in maps.items()
    }


def assert_equal(got: np.ndarray, expected: np.ndarray, what: str, tolerance: float = 1e-3) -> None:
    assert got.shape == expected.shape, what
    assert np.abs(got - expected).max() <= tolerance * expected.std() + 1e-6, what


def finished(steps: Generator[Progress, None, dict[str, Any]]) -> dict[str, Any]:
    """Run a job to its end; what it returned."""
    done = 0.0
    while True:
        try:
            step = next(steps)
        except StopIteration as stop:
            return stop.value
        assert done <= step.fraction <= 1
        done = step.fraction


@pytest.mark.long
@pytest.mark.parametrize("name", NETWORKS)
def test_whole_context_equals_one_forward(name: str) -> None:
    model, image = lively(NETWORKS[name]), picture((331, 485))
    expected = one_shot(model, image)
    view = view_of(model, image, window=192)
    assert set(view.names) == {n for n, v in expected.items() if v.ndim == 3 and not n.startswith("full_")}
    for layer in view.names:
        whole = expected[layer]
        info = view.info(layer)
        assert (*info.extent.shape, info.channels) == whole.shape, layer
        rows, columns = info.extent.shape
        for window in (Window.whole(info.extent.shape), Window(rows // 3, columns // 2, rows // 4, columns // 3)):
            assert_equal(view.read(layer, window), whole[window.slices], layer)
    attention = view.attention()
    assert set(attention) == {n for n in expected if n[:2] in ("M_", "R1", "R8")}
    for key, value in attention.items():
        assert_equal(value, expected[key], key)
    for branch, key in (("both", "full_logits"), ("shallow", "full_logits_shallow"), ("deep", "full_logits_deep")):
        window = Window(101, 203, 97, 111)
        got = view.logits(window, branch)[0].permute(1, 2, 0).numpy()  # type: ignore[arg-type]
        assert_equal(got, expected[key][window.slices], key)
    view.close()


@pytest.mark.parametrize("config", [small(**TINY), small(branches="shallow", **TINY), small(branches="deep", **TINY)])
def test_an_image_of_one_window_has_that_windows_maps(config: ISDNetConfig) -> None:
    model, image = lively(config), picture((131, 157))
    view = view_of(model, image, "window")
    for name in view.names:
        info = view.info(name)
        values = view._maps._map(name, Window.whole((131, 157)))  # type: ignore[union-attr,call-arg]
        assert values.shape == (*info.extent.shape, info.channels), name
        np.testing.assert_array_equal(view.read(name, Window.whole(info.extent.shape)), values)


@pytest.mark.long
def test_window_context_is_that_of_the_window_in_whose_middle_a_cell_lies() -> None:
    model, image = lively(NETWORKS["reference"]), picture((256, 288))
    left, right = one_shot(model, image[:, :256]), one_shot(model, image[:, 32:])
    view = view_of(model, image, "window", window=256)
    for name, stride in (("shallow8", 8), ("deep", 32), ("fused8", 8), ("logits_shallow", 8), ("H1", 1)):
        cells = view.info(name).extent.shape
        assert cells == (256 // stride, 288 // stride)
        got, cut = view.read(name, Window.whole(cells)), 144 // stride  # the middle of what both windows see
        assert_equal(got[:, :cut], left[name][:, :cut], name)
        assert_equal(got[:, cut + 1 :], right[name][:, cut + 1 - 32 // stride :], name)
    assert_equal(view.attention(10, 10)["R16"], left["R16"], "left")
    assert_equal(view.attention(10, 280)["R16"], right["R16"], "right")
    opinions = view.opinions(100, 10)
    expected = torch.softmax(torch.from_numpy(left["full_logits_deep"][100, 10]), 0).numpy()
    np.testing.assert_allclose(opinions["deep"], expected, atol=1e-4)


@given(st.integers(1, 5000), st.integers(1, 40), st.integers(0, 4999), st.integers(1, 5000))
def test_cells_that_cover_a_region_cover_it_and_no_more(side: int, stride: int, start: int, length: int) -> None:
    count = -(-side // stride)
    extent = Extent((count, count), (side / count, side / count))
    region = Window(min(start, side - 1), 0, max(1, min(length, side - start)), side)
    cells = extent.covering(region)
    assert cells.row * extent.scale[0] <= region.row + 1e-6
    assert cells.bottom * extent.scale[0] >= region.bottom - 1e-6
    assert (cells.row + 1) * extent.scale[0] > region.row
    assert (cells.bottom - 1) * extent.scale[0] < region.bottom
    row, _ = extent.cell(region.row, 0)
    assert row == cells.row or abs((region.row + 0.5) / extent.scale[0] - row) < 1
    centre = extent.translate(Window(row, 0, 1, 1))[0]
    assert abs(centre - region.row) <= extent.scale[0] / 2 + 0.5


def test_bad_questions_are_answered_in_one_sentence(tmp_path: Path) -> None:
    model, image = lively(NETWORKS["reference"]), picture((64, 64))
    view = view_of(model, image, "window")
    for ask in (
        lambda: view.info("H7"),
        lambda: view.read("deep", Window(0, 0, 9, 9)),
        lambda: view.opinions(64, 0),
        lambda: next(write_features(source_of(image), model, output=tmp_path, layers=["x"])),
        lambda: next(write_features(source_of(image), model, output=tmp_path, roi=Window(0, 0, 65, 1))),
    ):
        with pytest.raises(InputError):
            ask()
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_said_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(folder: Path) -> None:
        raise InputError(f"{folder} cannot be written.")

    monkeypatch.setattr("napari_isdnet.engine.feature_files.make_folder", refused)
    model, image = lively(NETWORKS["reference"]), picture((64, 64))
    with pytest.raises(InputError, match="cannot be written"):
        next(write_features(source_of(image), model, output=tmp_path, precision="float32", device="cpu"))


def test_two_that_write_features_of_two_images_of_one_name_to_one_folder_do_not_mix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("napari_isdnet.engine.job.RAM_MAPS", 0)  # all maps are spilled
    model, image = lively(NETWORKS["reference"]), picture((256, 320))

    def written(image: np.ndarray, output: Path, layer: str) -> Generator[Progress, None, Any]:
        return write_features(source_of(image), model, output=output, layers=[layer], precision="float32", device="cpu")

    logits = f"{source_of(image).name}_logits.ome.zarr/0"
    for _ in written(image, tmp_path / "alone", "logits"):
        pass
    first, second = written(image, tmp_path / "both", "logits"), written(255 - image, tmp_path / "both", "H0")
    for steps in (first, second):
        while next(steps).fraction < 0.45:  # then the maps of the whole image are there
            pass
    for _ in (*first, *second):
        pass
    same = [np.asarray(zarr.open_array(tmp_path / folder / logits)[:]) for folder in ("alone", "both")]
    np.testing.assert_array_equal(*same)
    assert not [path for path in (tmp_path / "both").iterdir() if path.name.startswith(".")]


def test_files_hold_the_region_in_place(tmp_path: Path) -> None:
    model, image = lively(NETWORKS["reference"]), picture((128, 160))
    size = PixelSize(0.5, 0.25, "µm", (100, -20))
    source = ArraySource([image], "picture", "yxc", pixel_size=size)
    steps = write_features(
        source, model, output=tmp_path, roi=Window(40, 64, 33, 64), layers=["deep", "residuals"],
        precision="float32", device="cpu",
    )  # fmt: skip
    with pytest.raises(StopIteration) as stop:  # noqa: PT012
        while True:
            assert 0 <= next(steps).fraction <= 1
    facts = stop.value.value
    assert [layer["name"] for layer in facts["layers"]] == ["deep", "H0", "H1"]
    with pytest.raises(AlreadyThere, match=r"attention\.json exists"):  # another image may have that name
        next(write_features(source_of(image), model, output=tmp_path, layers=["deep"]))
    expected = one_shot(model, image)
    group = zarr.open_group(facts["outputs"]["deep"], mode="r")
    transforms = group.attrs["ome"]["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    assert transforms[0]["scale"] == [1, 32 * 0.5, 32 * 0.25]
    assert transforms[1]["translation"] == [0, 100 + (32 + 15.5) * 0.5, -20 + (64 + 15.5) * 0.25]
    assert_equal(np.moveaxis(group["0"][:].astype(np.float32), 0, -1), expected["deep"][1:3, 2:4], "deep", 5e-3)
    residual = zarr.open_group(facts["outputs"]["H0"], mode="r")["0"]
    assert residual.dtype == np.float16
    assert_equal(np.moveaxis(residual[:].astype(np.float32), 0, -1), expected["H0"][40:73, 64:128], "H0", 5e-3)
    with Image.open(facts["outputs"]["H0 preview"]) as preview:
        assert preview.size == (64, 33)
    attention = json.loads(Path(facts["outputs"]["attention"]).read_text())
    assert_equal(np.array(attention["M_s16"]), expected["M_s16"], "M_s16")
    assert {path.name for path in tmp_path.iterdir()} == {Path(p).name for p in facts["outputs"].values()}


def test_pca_is_that_of_the_covariance_and_colours_are_fixed() -> None:
    generator = np.random.default_rng(0)
    sample = (generator.normal(size=(4000, 6)) * [1, 9, 3, 0, 5, 1]).astype(np.float32)
    basis = fit_basis(sample)
    assert list(basis.order[:3]) == [1, 4, 2]
    np.testing.assert_allclose(np.abs(basis.axes[0]), np.eye(6)[1], atol=0.05)
    assert basis.explained[0] == pytest.approx(81 / 117, abs=0.02)
    values = sample[:100].reshape(10, 10, 6)
    whole = paint(values, basis, Rendering("pca"))
    np.testing.assert_array_equal(paint(values[3:7, 2:5], basis, Rendering("pca")), whole[3:7, 2:5])
    cosine = similarity(values, values[4, 5])
    assert np.unravel_index(cosine.argmax(), cosine.shape) == (4, 5)
    assert cosine.max() == pytest.approx(1, abs=1e-5)
    flat = fit_basis(np.zeros((50, 2), np.float32))  # constant, and fewer than three channels
    assert paint(np.zeros((2, 2, 2), np.float32), flat, Rendering("pca")).shape == (2, 2, 4)


@pytest.mark.parametrize("dense", [2**24, 30_000])
def test_pyramid_of_a_part_equals_the_picture_at_every_level(dense: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_tiles, "DENSE_CELLS", dense)
    truth = np.random.default_rng(1).integers(0, 256, (900, 700, 4), dtype=np.uint8)
    part, closed = Window(100, 50, 611, 533), []
    pyramid = feature_tiles.RenderPyramid(part, lambda w: truth[w.slices], unit=128, on_close=lambda: closed.append(1))
    expected = truth[part.slices]
    for level, shape in enumerate(pyramid.shapes):
        pyramid.answer(level, Window.whole(shape))
        assert pyramid.wait(20)
        np.testing.assert_array_equal(pyramid.answer(level, Window.whole(shape)), expected)
        expected = feature_tiles.halve(expected)
    pyramid.close()
    pyramid.close()
    assert closed == [1]


def test_a_large_map_seen_whole_holds_nobody_who_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """150,000 units: they are put in order by arrays, once a view. Window by window that was two seconds a repaint."""
    painted, go_on, made = [], threading.Event(), [0]
    windows = Grid.__getitem__

    def paint(window: Window) -> np.ndarray:
        painted.append(window)
        go_on.wait(20)
        return np.zeros((*window.shape, 4), np.uint8)

    def counted(grid: Grid, index: int) -> Window:
        made[0] += 1
        return windows(grid, index)

    part = Window(0, 0, 100_000, 100_000)
    pyramid = feature_tiles.RenderPyramid(part, paint, unit=256)
    level = len(pyramid.shapes) - 1
    monkeypatch.setattr(Grid, "__getitem__", counted)
    for _ in range(3):
        pyramid.answer(level, Window.whole(pyramid.shapes[level]))
    assert pyramid._queue.pending == len(pyramid.grid)
    assert made[0] <= 1  # that of the unit at hand
    go_on.set()
    while len(painted) < 40:
        time.sleep(0.01)
    far = [window.distance(*part.center) for window in painted[:40]]
    assert far == sorted(far)  # nearest to the middle first
    pyramid.answer(0, Window(0, 0, 512, 512))
    assert pyramid._queue.pending <= 5  # another view has taken its place
    pyramid.answer(level, Window.whole(pyramid.shapes[level]))
    assert pyramid._queue.pending > 100_000  # and is looked away from
    pyramid.close()
