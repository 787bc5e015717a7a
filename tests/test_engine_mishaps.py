"""What must not be lost, or taken for something else, when files are in the way, go missing, or stay."""

from __future__ import annotations

import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile

from napari_isdnet.classes import classes_from
from napari_isdnet.engine import feature_tiles, ledger, results
from napari_isdnet.engine.ledger import Ledger
from napari_isdnet.engine.live import PredictionPyramid
from napari_isdnet.engine.results import ResultStores, Wanted
from napari_isdnet.engine.segment import segment
from napari_isdnet.engine.viewqueue import ViewQueue, close_later
from napari_isdnet.exceptions import AlreadyThere, InputError
from napari_isdnet.io import sampling, scaled
from napari_isdnet.io.disk import remove
from napari_isdnet.io.open import open_source
from napari_isdnet.io.source import PixelSize
from napari_isdnet.model.isdnet import ISDNet
from napari_isdnet.progress import result_of
from napari_isdnet.window import Window
from tests.label_source import LabelSource
from tests.segment_tools import PLAIN, four_classes, labels, run


@pytest.fixture(scope="module")
def model() -> ISDNet:
    return four_classes()


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


# ---------------------------------------------------------------------------------------------- what is overwritten


@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"resume": False}])
def test_the_image_is_never_replaced_by_its_map(model: ISDNet, tmp_path: Path, options: dict[str, bool]) -> None:
    path = tmp_path / "scan.tif"
    tifffile.imwrite(path, noise(96, 128, 3), photometric="rgb")
    before = path.read_bytes()
    run(path, model, tmp_path)  # as OME-Zarr: the job is there now
    with pytest.raises(InputError, match="would replace the image itself; choose another --output folder"):
        run(path, model, tmp_path, formats=("geotiff",), **options)
    assert path.read_bytes() == before


def test_a_job_replaces_its_own_results_and_nothing_else(model: ISDNet, tmp_path: Path) -> None:
    source = open_source(noise(96, 128, 3), name="scan")
    (tmp_path / "scan.png").write_bytes(b"somebody's")
    first = run(source, model, tmp_path)
    assert run(source, model, tmp_path).outputs == first.outputs  # its own, made again
    with pytest.raises(AlreadyThere, match=r"scan\.png exists"):
        run(source, model, tmp_path, formats=("png",))
    assert (tmp_path / "scan.png").read_bytes() == b"somebody's"
    other = run(source, model, tmp_path, formats=("png",), overwrite=True)
    assert run(source, model, tmp_path, formats=("png",)).outputs == other.outputs
    assert run(source, model, tmp_path, formats=("png",), resume=False).outputs == other.outputs


def test_a_file_that_comes_while_a_job_runs_is_not_replaced(model: ISDNet, tmp_path: Path) -> None:
    source = open_source(noise(96, 128, 3), name="scan")
    steps = segment(source, model, output=tmp_path, formats=("png",), **PLAIN)
    next(steps)
    (tmp_path / "scan.png").write_bytes(b"somebody's")
    with pytest.raises(AlreadyThere, match=r"scan\.png exists"):
        list(steps)
    assert (tmp_path / "scan.png").read_bytes() == b"somebody's"
    (tmp_path / "scan.png").rename(tmp_path / "other.png")
    seen = {step.stage for step in segment(source, model, output=tmp_path, formats=("png",), **PLAIN)}
    assert "write" not in seen  # all of the work was kept
    assert (tmp_path / "scan.png").stat().st_size > 100


def test_old_results_that_cannot_be_removed_do_not_pass_for_new_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Ledger.open(tmp_path / "a.job", {"model": "old"}):
        (tmp_path / "a.job" / "store").mkdir()
    # In use, or not ours to remove.
    monkeypatch.setattr(ledger, "remove", lambda path: None if path.name == "store" else remove(path))
    with pytest.raises(InputError, match=r"store cannot be removed; remove it"):
        Ledger.open(tmp_path / "a.job", {"model": "new"}, overwrite=True)
    monkeypatch.undo()
    assert ledger.read_header(tmp_path / "a.job") is None  # neither the old job nor the new one
    with Ledger.open(tmp_path / "a.job", {"model": "new"}):
        assert not (tmp_path / "a.job" / "store").exists()


@pytest.mark.long
@pytest.mark.parametrize("text", ['{"format": 2, "header": {}}', "{", '{"format": 1}'])
@pytest.mark.parametrize("options", [{"overwrite": True}, {"resume": False}])
def test_a_job_that_cannot_be_read_is_started_again_on_request(
    model: ISDNet, tmp_path: Path, text: str, options: dict[str, bool]
) -> None:
    source = open_source(noise(96, 128, 3), name="scan")
    expected = labels(run(source, model, tmp_path / "good"))
    (tmp_path / "scan.job").mkdir()
    (tmp_path / "scan.job" / ledger.HEADER).write_text(text)
    with pytest.raises(InputError, match="start"):
        run(source, model, tmp_path)
    np.testing.assert_array_equal(labels(run(source, model, tmp_path, **options)), expected)


# ------------------------------------------------------------------------------------------------- what goes missing


@pytest.mark.long
def test_maps_that_went_missing_stay_missing_through_a_second_interruption(
    model: ISDNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("napari_isdnet.engine.job.RAM_MAPS", 0)
    source = open_source(noise(256, 256, 3), name="scan")
    expected = labels(run(source, model, tmp_path / "unbroken"))

    def interrupted(stage: str) -> None:
        steps = segment(source, model, output=tmp_path, **PLAIN)
        while next(steps).stage != stage:
            pass
        steps.close()

    interrupted("fuse")
    shutil.rmtree(tmp_path / "scan.job" / "maps")
    interrupted("shallow")
    np.testing.assert_array_equal(labels(run(source, model, tmp_path)), expected)


def test_what_a_stage_forgets_is_forgotten_after_a_restart(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "a.job", {}) as log:
        for unit in range(3):
            log.record("a", unit)
            log.record("b", unit)
        log.forget("a")
        log.record("a", 1)
        assert (log.units("a"), log.units("b")) == ([1], [0, 1, 2])
    with Ledger.open(tmp_path / "a.job", {}) as log:
        assert (log.units("a"), log.units("b")) == ([1], [0, 1, 2])


# -------------------------------------------------------------------------------------------------------- what is held


def test_a_whole_image_keeps_no_unit_and_a_region_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "UNIT", 2048)
    monkeypatch.setattr(results, "KEPT_BYTES", 0)

    class Zeros:
        def labels(self, window: Window) -> np.ndarray:
            return np.zeros(window.shape, np.uint8)

    source = LabelSource(np.zeros((4096, 4096), np.uint8))
    for region, kept in ((Window(0, 0, 4096, 4096), 0), (Window(8, 8, 4000, 4000), 1)):
        folder = tmp_path / str(kept)
        with ResultStores.open(folder, source, region, classes_from(["a"]), Wanted()) as stores:
            for index in stores.missing():
                (block,) = stores.predict(index, Zeros())  # type: ignore[arg-type]
                assert block.last
                assert not block.values.any()
                assert len(stores._units) == kept


@pytest.mark.parametrize(("dtype", "nodata"), [("uint8", None), ("uint8", 7), ("float32", None)])
@pytest.mark.parametrize("factor", [0.13, 0.5, 1.7])
def test_a_resampled_image_is_the_same_read_in_strips(
    monkeypatch: pytest.MonkeyPatch, factor: float, dtype: str, nodata: float | None
) -> None:
    values = noise(300, 210).astype(dtype)
    if dtype == "float32":
        values[::7, ::5] = np.nan
    inner = LabelSource(values, nodata=nodata)
    source = scaled.resampled(inner, factor)
    whole = source.read(Window.whole(source.shape))
    inner.largest = 0
    monkeypatch.setattr(scaled, "READ_BYTES", 40_000)
    np.testing.assert_array_equal(source.read(Window.whole(source.shape)), whole)
    assert inner.largest < 300 * 210 / 2


@pytest.mark.parametrize("limit", [1, 4000, 60_000])
def test_the_overlay_is_the_same_from_narrow_strips(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    image = open_source(noise(333, 410, 3))
    expected = sampling.sampled(image, Window(3, 5, 300, 400), 100)
    largest: list[int] = []
    inner = image.read
    monkeypatch.setattr(image, "read", lambda w, level=0: largest.append(w.area * 3) or inner(w, level))
    monkeypatch.setattr(sampling, "STRIP_BYTES", limit)
    np.testing.assert_array_equal(sampling.sampled(image, Window(3, 5, 300, 400), 100), expected)
    assert max(largest) <= max(limit, 400 * 3)


# ------------------------------------------------------------------------------------------------------- what is told


@pytest.mark.parametrize(
    "scale", [pytest.param(1.0, marks=pytest.mark.long), pytest.param(2.0, marks=pytest.mark.long), 4.0]
)
def test_advice_on_resampling_counts_from_the_file(model: ISDNet, tmp_path: Path, scale: float) -> None:
    assert model.header is not None
    source = LabelSource(noise(64, 96))
    source.pixel_size = PixelSize(4.0, 4.0, "m")
    coarse = four_classes()
    assert coarse.header is not None
    coarse.header = replace(coarse.header, pixel_size=0.5)
    result = run(source, coarse, tmp_path, scale=scale)
    (said,) = result.warnings
    assert said.endswith("--scale 8 resamples it.")
    assert said.startswith("The image has pixels of 4 m")
    source.pixel_size = PixelSize(0.5, 0.5, "µm")  # a slide
    (said,) = run(source, coarse, tmp_path / "slide").warnings
    assert said == (
        "The image has pixels of 0.5 µm, the model was trained at 0.5 m: it has never seen anything like it, and"
        " resampling does not help."
    )


@pytest.mark.parametrize("kind", ["tif", "vrt"])
@pytest.mark.parametrize("how", ["in place", "replaced", "removed", "read"])
def test_an_image_that_is_written_while_it_is_segmented_is_said(
    model: ISDNet, tmp_path: Path, kind: str, how: str
) -> None:
    rasterio = pytest.importorskip("rasterio")
    path = other = tmp_path / "part.tif"
    profile = {"driver": "GTiff", "height": 160, "width": 96, "count": 3, "dtype": "uint8", "crs": "EPSG:32633"}
    with rasterio.open(path, "w", transform=rasterio.Affine(1, 0, 9, 0, -1, 9), **profile) as file:
        file.write(noise(3, 160, 96))
    if kind == "vrt":
        import rasterio.shutil

        path = tmp_path / "mosaic.vrt"
        with rasterio.open(other) as file:
            rasterio.shutil.copy(file, path, driver="VRT")
    steps = segment(path, model, output=tmp_path / "out", formats=("png",), scale=2.0, **PLAIN)
    next(steps)
    if how == "in place":
        with rasterio.open(other, "r+") as file:
            file.write(noise(3, 160, 96, seed=1))
    elif how == "replaced":
        shutil.copy(other, tmp_path / "new.tif")
        (tmp_path / "new.tif").replace(other)
    elif how == "removed":
        other.rename(tmp_path / "gone.tif")  # who has it open goes on reading
    else:
        other.read_bytes()
    said = result_of(steps).warnings
    assert [f"{path.stem} was written by another program while it was segmented" in text for text in said] == (
        [] if how == "read" else [True]
    )


# ------------------------------------------------------------------------------------------------------ what one sees


def test_zooming_out_again_shows_what_was_dropped_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_tiles, "DENSE_CELLS", 256**2)
    truth = noise(1024, 1024, 4)
    part = Window.whole((1024, 1024))
    pyramid = feature_tiles.RenderPyramid(part, lambda w: truth[w.slices], 256, memory=17 * 256**2 * 4)
    pictures = truth, feature_tiles.halve(truth)
    above, below = Window(0, 0, 512, 1024), Window(512, 0, 512, 1024)
    # What is looked at stays: of the upper half the fine tiles, and the coarse ones make room for the lower half.
    for level, view in ((1, above), (0, above), (0, below), (1, above)):
        window = view.divided(2**level)
        pyramid.answer(level, window)
        assert pyramid.wait(10)
        np.testing.assert_array_equal(pyramid.answer(level, window), pictures[level][window.slices])
    for level in (0, 1, 2):
        whole = Window.whole(pyramid.shapes[level])
        expected = pictures[level] if level < 2 else feature_tiles.halve(pictures[1])
        np.testing.assert_array_equal(pyramid.read(level, whole), expected)  # more than the memory holds
    pyramid.close()


def test_a_network_that_is_replaced_and_closed_fails_for_itself_only() -> None:
    entered, go_on = threading.Event(), threading.Event()
    failures: list[str] = []

    def old(window: Window) -> np.ndarray:
        entered.set()
        go_on.wait(10)
        raise RuntimeError("closed")

    pyramid = PredictionPyramid((64, 64), (32, 32), old, on_error=lambda _, error: failures.append(str(error)))
    pyramid.answer(0, Window(0, 0, 64, 64))
    assert entered.wait(10)
    pyramid.replace(lambda window: np.ones(window.shape, np.uint8))
    go_on.set()
    assert pyramid.wait(10)
    pyramid.answer(0, Window(0, 0, 64, 64))
    assert pyramid.wait(10)
    assert not failures
    assert (pyramid.answer(0, Window(0, 0, 64, 64)) == 1).all()
    pyramid.close()


def test_a_listener_that_is_gone_ends_no_thread() -> None:
    seen: list[int] = []

    def work(key: int) -> None:
        if key == 0:
            raise ValueError("no")
        seen.append(key)

    def listener(key: int, error: Exception) -> None:
        raise RuntimeError("wrapped C/C++ object has been deleted")

    queue: ViewQueue[int] = ViewQueue(work, 1, listener)
    queue.replace([0, 1, 2])
    assert queue.wait(10)
    assert seen == [1, 2]
    queue.close()


def test_the_log_is_plain_json_lines(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "a.job", {}) as log:
        log.record("output", "scan.tif")
    (line,) = (tmp_path / "a.job" / ledger.LOG).read_bytes().splitlines()
    assert json.loads(line[9:]) == ["output", "scan.tif", None]
    assert ledger.recorded_units(tmp_path / "a.job", "output") == {"scan.tif"}
    assert ledger.recorded_units(tmp_path / "none.job", "output") == set()


def test_what_is_to_be_closed_later_is_closed_though_something_before_it_fails(monkeypatch) -> None:
    closed: list[str] = []
    reported: list[BaseException | None] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: reported.append(args.exc_value))

    def broken() -> None:
        raise OSError("the disk is gone")

    close_later(lambda: closed.append("first"), broken, lambda: closed.append("last")).join(10)
    assert closed == ["first", "last"]
    assert [str(error) for error in reported] == ["the disk is gone"]
