"""``napari-isdnet demo``: the main job, really done, on a landscape that is made on the spot and so has an exact truth.

With a screen it opens napari (the manifest's command ``napari-isdnet.demo``); without one, or with ``--headless``, the
same work is done by the functions behind the command line and written down: pictures, figures, a report.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from napari_isdnet.exceptions import InputError
from napari_isdnet.progress import Progress

SAMPLE = "desert-4k"
HUGE = "aerial-100k"
"""A sample of hours, not of a demo."""
FOLDER = "napari-isdnet-demo"
COMMAND = "napari-isdnet.demo"
_BINDINGS = ("PyQt6", "PySide6", "PyQt5", "PySide2")


def demo(
    headless: bool = False, output: str | Path | None = None, model: str | None = None, sample: str = SAMPLE
) -> Generator[Progress, None, dict[str, Any]]:
    """Show the demo in napari, or do it without (``headless``, or where no window can open); yields progress.

    ``output`` is a new or empty folder, or one of an earlier demo (default: ``napari-isdnet-demo`` here, or in the
    cache folder where nothing can be written here). ``model`` is a name or file (default: the model that ships).
    Returns JSON-ready facts; ``mode`` says which of the two happened.

    Raises :class:`InputError` where there is no model, or where the folder cannot be used.
    """
    from napari_isdnet.io.samples import samples
    from napari_isdnet.model.checkpoint import DEFAULT_MODEL, read_header

    usable = [item.name for item in samples() if item.has_truth and item.name != HUGE]
    if sample not in usable:
        raise InputError(f"The demo has no landscape '{sample}'; choose one of {', '.join(usable)}.")
    name = model if model is not None else DEFAULT_MODEL
    read_header(name)  # a wrong model is said before anything is written or opened
    reason = None if headless else why_no_window()
    if headless or reason is not None:
        from napari_isdnet.demo_files import run_files

        folder, note = demo_folder(output)
        notes = [*([f"{reason}: written to files instead."] if reason else []), *([note] if note else [])]
        return (yield from run_files(folder, name, sample, notes))
    yield Progress(0, 1, "opening napari, close its window to end the demo")
    open_window(name, sample)
    return {"mode": "napari", "sample": sample, "model": name, "notes": []}


def why_no_window() -> str | None:
    """Why napari cannot open a window here, in a few words; None where it can."""
    if find_spec("napari") is None or find_spec("qtpy") is None:
        return 'napari is not installed (pip install ".[all]" does it)'
    if not any(find_spec(name) for name in _BINDINGS):
        return 'no Qt is installed (pip install ".[all]" does it)'
    if os.environ.get("QT_QPA_PLATFORM", "") in ("offscreen", "minimal"):
        return f"QT_QPA_PLATFORM={os.environ['QT_QPA_PLATFORM']} has no screen"
    if sys.platform.startswith("linux"):
        if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            return "there is no screen (DISPLAY is not set)"
        if not _qt_starts():
            return "the screen does not answer (DISPLAY or WAYLAND_DISPLAY is set, but Qt cannot open a window on it)"
    return None


def _qt_starts() -> bool:
    """Qt ends the whole process where it cannot reach the screen, so another process tries it first."""
    code = "from qtpy.QtWidgets import QApplication; QApplication([])"
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def open_window(model: str, sample: str) -> None:
    """Open napari with the demo in it and wait until it is closed."""
    import napari
    from npe2 import PluginManager
    from qtpy.QtGui import QGuiApplication

    viewer = napari.Viewer(title="napari-isdnet demo")
    screen = QGuiApplication.primaryScreen()
    if screen is not None:  # image, docks and guide side by side
        room = screen.availableGeometry()
        viewer.window.resize(min(1500, room.width()), min(950, room.height()))
    manager = PluginManager.instance()
    manager.discover()
    manager.commands.execute(COMMAND, kwargs={"viewer": viewer, "model": model, "sample": sample})
    napari.run()


def demo_folder(output: str | Path | None) -> tuple[Path, str | None]:
    """Where a demo writes, made if missing, and a sentence where that is not the usual place."""
    from napari_isdnet.demo_files import claim_folder
    from napari_isdnet.paths import cache_folder

    if output is not None:
        return claim_folder(Path(output)), None
    here = Path.cwd() / FOLDER
    if os.access(here if here.exists() else here.parent, os.W_OK):
        return claim_folder(here), None
    other = cache_folder() / FOLDER
    return claim_folder(other), f"{here.parent} cannot be written, so the results went to {other}."


def describe(facts: Mapping[str, Any]) -> str:
    """The facts of a demo as a person reads them."""
    if facts["mode"] == "napari":
        return "The demo's window was closed."
    from napari_isdnet.demo_text import text_of

    return text_of(facts)
