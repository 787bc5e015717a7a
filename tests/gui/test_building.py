"""Large files without a pyramid, opened by napari's own menu: the window answers while the pyramid is built."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from qtpy.QtCore import QTimer

from napari_isdnet.io.overviews import OverviewSource, halve_mean
from napari_isdnet.widgets._image import source_of
from napari_isdnet.widgets._job import JobBar
from napari_isdnet.widgets._lazy import main_window, pyramid_of
from napari_isdnet.widgets._worker import Job


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NAPARI_ISDNET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pyramids"


def flat(path: Path, side: int) -> list[Any]:
    """Writes an image without a pyramid, of blocks of 64 pixels; returns the levels that it should get."""
    rows, columns = np.arange(side)[:, None] // 64, np.arange(side)[None] // 64
    pixels = np.stack(np.broadcast_arrays(rows % 200 + 50, columns % 200 + 50, 90), axis=-1).astype(np.uint8)
    tifffile.imwrite(path, pixels, photometric="rgb", tile=(512, 512), compression="zlib", compressionargs={"level": 1})
    levels = [pixels]
    while max(levels[-1].shape) > 256:
        levels.append(halve_mean(levels[-1]))
    return levels


def opened(viewer: Any, path: Path) -> Any:
    (layer,) = viewer.open(str(path), plugin="napari-isdnet")
    return layer


def bar_of(viewer: Any) -> Any:
    return main_window(viewer).statusBar().findChild(JobBar, "pyramid_bar")


def building(viewer: Any) -> bool:
    bar = bar_of(viewer)
    return bar is not None and bar.running


def sharp(layer: Any, levels: list[Any]) -> bool:
    """True where the whole image is on the screen, each part as it is."""
    return np.array_equal(layer._slice.image.raw, levels[layer.data_level])


@contextmanager
def holds() -> Iterator[list[float]]:
    """Seconds of work of the main thread between two looks at its events: of a busy machine, none that it waits."""
    found: list[float] = []
    gc.freeze()  # what was there before is nothing to be looked through in the middle of it
    last = [time.thread_time()]

    def tick() -> None:
        now = time.thread_time()
        found.append(now - last[0])
        last[0] = now

    timer = QTimer()
    timer.setInterval(5)
    timer.timeout.connect(tick)
    timer.start()
    yield found
    timer.stop()


def longest(viewer: Any, qtbot: Any, path: Path, levels: list[Any]) -> float:
    """Of the holds until all of an image is seen, built or not."""
    with holds() as found:
        layer = opened(viewer, path)
        qtbot.waitUntil(lambda: sharp(layer, levels), timeout=60_000)
        qtbot.waitUntil(lambda: not building(viewer), timeout=60_000)
        qtbot.wait(50)
    viewer.layers.clear()
    return max(found)


@pytest.mark.long
def test_a_large_file_without_a_pyramid_does_not_hold_the_window(viewer, qtbot, tmp_path, cache) -> None:
    levels = {name: flat(tmp_path / f"{name}.tif", side) for name, side in (("small", 1000), ("large", 6001))}
    longest(viewer, qtbot, tmp_path / "small.tif", levels["small"])  # libraries are loaded, a first layer is drawn
    usual = longest(viewer, qtbot, tmp_path / "small.tif", levels["small"])
    assert longest(viewer, qtbot, tmp_path / "large.tif", levels["large"]) < 1.5 * usual + 0.3
    (built,) = cache.iterdir()
    before = built.stat().st_mtime_ns
    layer = opened(viewer, tmp_path / "large.tif")
    source = source_of(layer)
    assert isinstance(source, OverviewSource)
    assert source.built
    assert "cache" in source.format
    qtbot.waitUntil(lambda: sharp(layer, levels["large"]), timeout=60_000)
    assert not building(viewer)
    assert built.stat().st_mtime_ns == before


@pytest.mark.long
def test_a_pyramid_can_be_cancelled_and_the_image_is_seen_without(viewer, qtbot, tmp_path, cache) -> None:
    from napari.utils.notifications import notification_manager

    levels = flat(tmp_path / "large.tif", 6001)
    layer = opened(viewer, tmp_path / "large.tif")
    qtbot.waitUntil(lambda: building(viewer), timeout=10_000)
    bar = bar_of(viewer)
    assert bar.isVisible()
    assert "Pyramid of large" in bar.label.text()
    assert all(child.toolTip() for child in (bar, bar.progress, bar.label, bar.pause_button, bar.cancel_button))
    bar.cancel_button.click()
    qtbot.waitUntil(lambda: not bar.running, timeout=10_000)
    assert notification_manager.records[-1].message.startswith("'large' has no pyramid now")
    assert not cache.exists() or not list(cache.iterdir())
    assert not source_of(layer).built
    qtbot.waitUntil(lambda: sharp(layer, levels), timeout=60_000)
    again = opened(viewer, tmp_path / "large.tif")
    qtbot.waitUntil(lambda: source_of(again).built, timeout=60_000)


@pytest.mark.long
def test_a_pyramid_that_is_cancelled_before_its_first_step_is_given_up(viewer, qtbot, tmp_path, monkeypatch) -> None:
    levels, start = flat(tmp_path / "large.tif", 5000), Job.start

    def cancelled(job: Job) -> Job:
        job.cancel()
        return start(job)

    monkeypatch.setattr(Job, "start", cancelled)
    layer = opened(viewer, tmp_path / "large.tif")
    qtbot.waitUntil(lambda: sharp(layer, levels))
    assert not source_of(layer).to_come


@pytest.mark.long
def test_images_that_leave_are_not_built_and_the_next_is(viewer, qtbot, tmp_path, cache) -> None:
    for name in "abc":
        flat(tmp_path / f"{name}.tif", 5000)
    one, two, three = (opened(viewer, tmp_path / f"{name}.tif") for name in "abc")
    qtbot.waitUntil(lambda: building(viewer), timeout=10_000)
    bar_of(viewer).pause_button.click()
    sources = [source_of(layer) for layer in (one, two, three)]
    viewer.layers.remove(two)
    assert building(viewer)
    viewer.layers.remove(one)  # which is the one that is being built
    qtbot.waitUntil(lambda: sources[2].built, timeout=30_000)
    assert [source.built for source in sources] == [False, False, True]
    assert len(list(cache.iterdir())) == 1
    assert pyramid_of(three).source is sources[2]


@pytest.mark.long
def test_a_window_that_is_closed_in_the_middle_leaves_nothing(viewer, qtbot, tmp_path, cache) -> None:
    flat(tmp_path / "large.tif", 6001)
    opened(viewer, tmp_path / "large.tif")
    qtbot.waitUntil(lambda: building(viewer), timeout=10_000)
    viewer.close()
    qtbot.waitUntil(lambda: not cache.exists() or not list(cache.iterdir()), timeout=10_000)
