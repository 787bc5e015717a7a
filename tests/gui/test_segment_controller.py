"""The Segment dock's controller against a fake engine."""

from __future__ import annotations

import shlex
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from napari_isdnet.classes import classes_from
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.array import ArraySource
from napari_isdnet.io.source import PixelSize
from napari_isdnet.progress import Progress, result_of
from napari_isdnet.widgets._engine import LiveWork, ModelAbout
from napari_isdnet.widgets._segment_controller import (
    ClassAreas,
    SegmentController,
    Settings,
    area_text,
    color_table,
    command,
    region_window,
)
from napari_isdnet.window import Window


class FakeEngine:
    """Class of a pixel: its block of 64 modulo 3. Remembers what it was asked."""

    def __init__(self, broken: bool = False) -> None:
        self.broken = broken
        self.asked: list[Window] = []
        self.segmented: list[dict] = []
        self.closed: list[str] = []
        self.averaged: list[tuple[str, int]] = []

    def models(self):
        return ["fields"]

    def about(self, model):
        return ModelAbout(model, classes_from(["soil", "crop", "water"]), 0.5, 64, "3 classes", model)

    def devices(self):
        return [("auto", "Automatic"), ("cpu", "2 CPU cores, 3.0 GiB free")]

    def live(self, source, model, device, policy, orientations=1):
        self.averaged.append(("live", orientations))

        def compute(window):
            self.asked.append(window)
            if self.broken:
                raise RuntimeError("out of memory")
            return np.full(window.shape, (window.row // 64 + window.column // 64) % 3, np.uint8)

        return LiveWork((64, 64), compute, lambda: self.closed.append("live"))

    def exact(self, source, model, device, policy, memory, orientations=1):
        self.averaged.append(("exact", orientations))
        for done in range(3):
            yield Progress(done, 3, "shallow")
        return LiveWork((64, 64), lambda w: np.full(w.shape, 2, np.uint8), lambda: self.closed.append("exact"))

    def segment(self, source, model, output, settings):
        self.segmented.append({"model": model, "output": output, **settings})
        for done in range(1, 5):
            yield Progress(done, 4, "shallow")
        return None


@pytest.fixture
def source():
    return ArraySource([np.zeros((256, 320, 3), np.uint8)], "field")


def test_live_segments_the_region_only_and_counts_each_class(source) -> None:
    controller = SegmentController(FakeEngine())
    controller.choose_model(controller.engine.about("fields"))
    work = result_of(controller.prepare_live(source, Settings("fields"), None))
    pyramid = controller.start_live(source, work, Window(0, 0, 128, 320), everything=True)
    pyramid.answer(0, Window(0, 0, 10, 10))
    assert pyramid.wait(10)
    assert pyramid.progress == (10, 10)
    assert sum(controller.areas.pixels()) == 128 * 320
    labels = pyramid.answer(0, Window(0, 0, 128, 320))
    assert controller.areas.pixels() == np.bincount(labels.ravel(), minlength=3).tolist()
    engine = controller.engine
    controller.stop_live()
    assert controller.live is None
    while not engine.closed:
        time.sleep(0.01)
    assert engine.closed == ["live"]


def test_the_exact_answer_replaces_the_provisional_one_and_then_does_everything(source) -> None:
    engine = FakeEngine()
    controller = SegmentController(engine)
    controller.choose_model(engine.about("fields"))
    settings = Settings("fields")
    work = result_of(controller.prepare_live(source, settings, None))
    pyramid = controller.start_live(source, work, Window.whole(source.shape), everything=True, provisional=True)
    pyramid.answer(0, Window(0, 0, 64, 64))
    exact = result_of(controller.prepare_exact(source, settings, None))
    assert controller.provisional
    assert pyramid.progress == (1, 20)  # only what was looked at
    controller.better(exact)
    assert not controller.provisional
    assert pyramid.wait(10)
    assert pyramid.progress == (20, 20)
    assert (pyramid.read(0, Window.whole(source.shape)) == 2).all()
    assert controller.areas.pixels() == [0, 0, 256 * 320]
    controller.stop_live()
    while len(engine.closed) < 2:
        time.sleep(0.01)


def test_what_is_looked_at_comes_before_the_means_and_cancelling_closes_the_search(source) -> None:
    engine = FakeEngine()
    controller = SegmentController(engine)
    controller.choose_model(engine.about("fields"))
    gate = threading.Event()

    def slow(window):
        gate.wait(10)
        return np.zeros(window.shape, np.uint8)

    pyramid = controller.start_live(source, LiveWork((64, 64), slow), Window.whole(source.shape), False, True)
    pyramid.answer(0, Window(0, 0, 64, 64))
    steps = controller.prepare_exact(source, Settings("fields"), None)
    assert {next(steps).stage for _ in range(3)} == {"What you see comes first"}
    gate.set()
    assert pyramid.wait(10)
    assert next(steps).stage == "Whole image: shallow"
    steps.close()
    controller.stop_live()


def test_a_failing_engine_is_reported_once(source) -> None:
    errors: list[Exception] = []
    controller = SegmentController(FakeEngine(broken=True), on_error=errors.append)
    controller.choose_model(controller.engine.about("fields"))
    work = result_of(controller.prepare_live(source, Settings("fields"), None))
    pyramid = controller.start_live(source, work, Window.whole(source.shape), everything=False)
    pyramid.answer(0, Window.whole(source.shape))
    assert pyramid.wait(10)
    assert [str(e) for e in errors] == ["out of memory"]
    controller.stop_live()


def test_areas_count_a_recomputed_window_once() -> None:
    areas = ClassAreas(2)
    window = Window(0, 0, 2, 2)
    areas.add(window, np.array([[0, 1], [1, 255]], np.uint8))
    areas.add(window, np.array([[0, 1], [1, 255]], np.uint8))
    assert areas.pixels() == [1, 2]


def test_command_parses_to_what_was_chosen() -> None:
    settings = Settings("my model", "window", "drawn", "cpu", Path("out dir"), "geotiff", "0,4095", 2.5, polygons=True)
    words = shlex.split(command("/data/an image.tif", settings, Window(1, 2, 3, 4)))
    assert words[:3] == ["napari-isdnet", "segment", "/data/an image.tif"]
    assert words.pop() == "--polygons"
    options = dict(zip(words[3::2], words[4::2], strict=True))
    assert options == {
        "--output": "out dir", "--model": "my model", "--context": "window", "--roi": "1,2,3,4",
        "--format": "geotiff", "--device": "cpu", "--contrast": "0,4095", "--memory": "2.5",
    }  # fmt: skip


def test_the_command_is_one_the_command_line_takes() -> None:
    import typer

    from napari_isdnet.cli import app

    settings = Settings(
        "fields",
        "window",
        "visible",
        "cpu",
        Path("out"),
        "geotiff",
        "0,4095",
        2.5,
        True,
        True,
        True,
        True,
        True,
        4,
        (3, 1, 0),
        2.0,
        30,
    )
    words = shlex.split(command("image.tif", settings, Window(1, 2, 3, 4)))[1:]
    group = typer.main.get_command(app)
    parsed = group.commands[words[0]].make_context("segment", words[1:])
    assert parsed.params["roi"] == Window(1, 2, 3, 4)
    assert str(parsed.params["output"]) == "out"
    assert parsed.params["memory"] == 2.5
    chosen = settings.options(Window(1, 2, 3, 4))
    assert parsed.params["contrast"] == (0, 4095)
    assert [item.value for item in parsed.params["format"]] == list(chosen["formats"])
    flags = ("polygons", "geopackage", "probabilities", "uncertainty", "overwrite")
    for name in (*flags, "device", "orientations", "channels", "simplify", "min_area"):
        assert parsed.params[name] == chosen[name], name


def test_a_live_answer_is_averaged_where_it_is_the_last_one() -> None:
    engine = FakeEngine()
    controller, source = SegmentController(engine), ArraySource([np.zeros((256, 256), np.uint8)], "a", "yx")
    whole = Settings("fields", orientations=4)
    result_of(controller.prepare_live(source, whole, None))  # provisional: it should come soon
    result_of(controller.prepare_exact(source, whole, None))
    result_of(controller.prepare_live(source, Settings("fields", "window", orientations=2), None))
    assert engine.averaged == [("live", 1), ("exact", 4), ("live", 2)]
    assert "--orientations" not in command("a.tif", Settings("fields"))
    assert "--orientations 4" in command("a.tif", whole)


def test_regions_are_inside_the_image() -> None:
    view = Window(-50, 90, 100, 100)
    assert region_window("visible", (200, 100), view, None) == Window(0, 90, 50, 10)
    assert region_window("whole", (200, 100), view, None) == Window(0, 0, 200, 100)
    assert region_window("drawn", (200, 100), view, Window(5, 5, 10, 10)) == Window(5, 5, 10, 10)
    with pytest.raises(InputError, match="No region is drawn"):
        region_window("drawn", (200, 100), view, None)
    with pytest.raises(InputError, match="outside the image"):
        region_window("visible", (200, 100), Window(500, 0, 10, 10), None)
    with pytest.raises(InputError, match="Context is one of"):
        Settings(context="tile")


def test_colours_key_zero_is_a_class_and_nodata_is_clear() -> None:
    table = color_table(classes_from([("soil", "#ff0000"), ("crop", "#00ff00")]), frozenset({1}))
    assert table[0] == (1, 0, 0, 1)
    assert table[1][3] == table[255][3] == table[None][3] == 0


def test_areas_are_said_in_fitting_units() -> None:
    assert area_text(1234, None) == "1,234 px"
    assert area_text(100, PixelSize(1, 1, "m")) == "100 m²"
    assert area_text(10**6, PixelSize(0.5, 0.5, "m")) == "25 ha"
    assert area_text(10**9, PixelSize(0.5, 0.5, "m")) == "250 km²"
    assert area_text(10**6, PixelSize(0.25, 0.25, "µm")) == "0.0625 mm²"
