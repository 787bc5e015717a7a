"""Fixtures of the window tests: a real napari viewer, and a check that nothing outlives a test.

A screen is needed: ``xvfb-run -a python -m pytest tests/gui``.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from pytestqt.qtbot import QtBot

pytest.importorskip("napari")
pytest.importorskip("qtpy")


def has_screen() -> bool:
    if sys.platform.startswith("linux"):
        return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    return True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = os.path.dirname(__file__)
    for item in items:
        if str(item.path).startswith(here):
            # vispy, napari and Qt bindings warn about each other; our own warnings stay errors
            item.add_marker(pytest.mark.filterwarnings("ignore::DeprecationWarning"))
            item.add_marker(pytest.mark.filterwarnings("ignore::FutureWarning"))
            if not has_screen():
                item.add_marker(pytest.mark.skip(reason="no screen: run under xvfb-run"))


def our_threads() -> list[str]:
    """Threads of jobs and lazy layers; the readers' decoding pool is the process's, and idle."""
    prefixes = ("isdnet-view", "isdnet-job")
    return [t.name for t in threading.enumerate() if t.name.startswith(prefixes) and t.is_alive()]


def our_timers() -> list[str]:
    """Active timers of objects of this package that Python still knows of."""
    from qtpy.QtCore import QTimer

    found = []
    for item in gc.get_objects():
        try:
            if isinstance(item, QTimer) and item.isActive() and "napari_isdnet" in type(item.parent()).__module__:
                found.append(repr(item.parent()))
        except (RuntimeError, ReferenceError):  # the C++ side is gone already
            continue
    return found


def our_widgets() -> list[str]:
    from qtpy.QtWidgets import QApplication

    if QApplication.instance() is None:
        return []
    return [repr(w) for w in QApplication.allWidgets() if type(w).__module__.startswith("napari_isdnet")]


@pytest.fixture(autouse=True, scope="session")
def viewers_made_lightly() -> Iterator[None]:
    """What each viewer does anew though no test asks for it took half of its time.

    The manifests of all installed plugins are read (nobody installs any here), napari's preferences are written to
    their file with every one that is set (a user's file it would be), and a page of welcome that is never shown looks
    up its shortcuts with each of the hundreds that are bound.
    """
    from napari._qt.widgets.qt_welcome import QtWelcomeWidget
    from napari.settings import NapariSettings
    from npe2 import PluginManifest

    real, known = PluginManifest.discover, []

    def discover(paths: Sequence[str | Path] = ()) -> Iterator[Any]:
        if paths:
            yield from real(paths)
            return
        if not known:
            known.extend(real())
        for found in known:
            yield found._replace(manifest=found.manifest and found.manifest.model_copy(deep=True))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(PluginManifest, "discover", discover)
        patched.setattr(NapariSettings, "_maybe_save", lambda _settings: None)
        patched.setattr(QtWelcomeWidget, "refresh", lambda _page, _event=None: None)
        yield


PATIENCE_MS = 60_000


@pytest.fixture(autouse=True, scope="session")
def as_long_as_it_takes() -> Iterator[None]:
    """Waiting for a condition ends with it. A test that names less time than this would fail on a busy machine only."""
    until, signal = QtBot.waitUntil, QtBot.waitSignal

    def wait_until(bot: QtBot, callback: Callable[[], Any], *, timeout: int = 0) -> None:
        until(bot, callback, timeout=max(timeout, PATIENCE_MS))

    def wait_signal(bot: QtBot, found: Any, *, timeout: int = 0) -> Any:
        return signal(bot, found, timeout=max(timeout, PATIENCE_MS))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(QtBot, "waitUntil", wait_until)
        patched.setattr(QtBot, "waitSignal", wait_signal)
        yield


MOST_GROWTH = 500 << 20
_resident = [0]


def rest_of_the_libraries() -> None:
    """Collections in the tests to come need not look at what lives on: they took a third of the time of these tests.

    Where the process has grown by a lot, some of that is garbage that nobody looks for any more: pictures of viewers.
    """
    now = psutil.Process().memory_info().rss
    if now > _resident[0] + MOST_GROWTH:
        gc.unfreeze()
        gc.collect()
        _resident[0] = psutil.Process().memory_info().rss
    gc.freeze()


@pytest.fixture(autouse=True)
def nothing_left(qapp: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No thread, timer or widget of ours may outlive a test.

    This is set up first and so torn down last, after the viewer and the widgets of ``qtbot`` have been closed.
    """
    yield
    deadline = time.monotonic() + 120  # a step of a network takes seconds on a busy machine
    while True:
        qapp.sendPostedEvents(None, 52)  # QEvent::DeferredDelete
        qapp.processEvents()
        left = {"threads": our_threads()}
        if not left["threads"]:  # looking for the rest, and collecting, would keep their interpreter from them
            left |= {"timers": our_timers(), "widgets": our_widgets()}
            if not any(left.values()):
                rest_of_the_libraries()
                return
            gc.collect()
        if time.monotonic() > deadline:
            pytest.fail(f"left after the test: {left}")
        time.sleep(0.05)


@pytest.fixture
def viewer(nothing_left: None, make_napari_viewer: Callable[..., Any]) -> Any:
    """A napari viewer in a real, visible window."""
    return make_napari_viewer(show=True)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A tiled TIFF of noise, in colour."""
    import numpy as np
    import tifffile

    pixels = np.random.default_rng(0).integers(0, 256, (1500, 1100, 3), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "field.tif", pixels, photometric="rgb", tile=(256, 256))
    return tmp_path / "field.tif"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The file of a network that knows three classes."""
    from tests.gui.segment_tools import fields_network

    return fields_network(tmp_path_factory.mktemp("model"))


@pytest.fixture
def errors(viewer: Any) -> Any:
    """An Errors dock."""
    from napari_isdnet.widgets.errors import ErrorsWidget

    widget = ErrorsWidget(viewer)
    viewer.window.add_dock_widget(widget, name="Errors")
    return widget
