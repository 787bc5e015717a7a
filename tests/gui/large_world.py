"""The world of 100,000 x 100,000 pixels in a real window, in a process of its own that may use 3 GiB of memory.

A scenario is a function ``scenario(world, *words)`` of a test module; :func:`run_limited` runs it in a fresh process.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from napari_isdnet.window import Window

LIMIT = 3 * 2**30
SIDE = 100_000
PICTURE, TRUTH = "picture", "truth"


def large(test: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a test that runs a scenario."""
    on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the memory limit is Linux's")
    return pytest.mark.slow(on_linux(test))  # type: ignore[no-any-return]


def run_limited(scenario: Callable[..., None], *words: str) -> str:
    """Run ``scenario`` in a process of at most 3 GiB; what it printed. Fails the test where it does not end well."""
    name = f"{scenario.__module__}:{scenario.__name__}"
    call = [sys.executable, "-m", "tests.gui.large_world", name, *words]
    done = subprocess.run(call, capture_output=True, text=True, timeout=280, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert "peak MiB" in done.stdout
    print(done.stdout)
    return done.stdout


class LargeWorld:
    """A viewer, the world as its image once it is opened, and every window of it that was read."""

    def __init__(self) -> None:
        import napari

        from napari_isdnet.io.world import ProceduralWorld, WorldTruth

        self.reads: list[tuple[str, int, Window]] = []
        for kind in (ProceduralWorld, WorldTruth):
            self._record(kind)
        self.viewer: Any = napari.Viewer(show=True)
        self.viewer.window.resize(1300, 900)
        self.image: Any = None

    def _record(self, kind: Any) -> None:
        original, reads = kind._read, self.reads

        def read(source: Any, window: Window, level: int) -> Any:
            if max(source.shape) == SIDE:  # not the small one that the rounding of weights is measured on
                reads.append((source.kind, level, window))
            return original(source, window, level)

        kind._read = read

    def open(self) -> Any:
        """Add the world as the sample's layer."""
        from napari_isdnet.widgets._reader import read_sample

        data, keywords, _ = read_sample("aerial-100k")[0]
        self.image = self.viewer.add_image(data, **keywords)
        return self.image

    def dock(self, widget: Any) -> Any:
        """Show a dock."""
        self.viewer.window.add_dock_widget(widget)
        return widget

    def wait(self, until: Callable[[], Any], seconds: float = 200) -> None:
        """Let the window live until ``until()``."""
        from qtpy.QtTest import QTest

        end = time.monotonic() + seconds
        while not until():
            if time.monotonic() > end:
                raise SystemExit("not in time")
            QTest.qWait(25)

    def pause(self, milliseconds: int = 300) -> None:
        """Let the window live."""
        from qtpy.QtTest import QTest

        QTest.qWait(milliseconds)

    def look_at(self, row: int, column: int, zoom: float = 2) -> Window:
        """Put a pixel in the middle of the view, ``zoom`` screen pixels to one of the image; what is visible."""
        from napari_isdnet.widgets._segment_layers import visible_window

        self.viewer.camera.center = self.image.data_to_world((row, column))
        self.viewer.camera.zoom = zoom / self.image.scale[0]
        self.wait(lambda: self.image.data_level == 0 and visible_window(self.viewer, self.image).area < 4e6)
        return visible_window(self.viewer, self.image)

    def fine(self, kind: str = PICTURE) -> list[Window]:
        """The windows of full resolution that were read."""
        return [window for what, level, window in self.reads if (what, level) == (kind, 0)]

    def pixels_read(self, kind: str = PICTURE) -> int:
        """Pixels that were read, of all levels."""
        return sum(window.area for what, _, window in self.reads if what == kind)


def main() -> None:
    """Run one scenario under the limit."""
    import resource

    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))
    module, name = sys.argv[1].split(":")
    scenario = getattr(importlib.import_module(module), name)
    world = LargeWorld()
    scenario(world, *sys.argv[2:])
    world.viewer.close()
    read, truth = world.pixels_read(), world.pixels_read(TRUTH)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"pixels read {read:,}, of the truth {truth:,}, peak MiB {peak:,}")


if __name__ == "__main__":
    main()
