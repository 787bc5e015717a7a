"""What the first Start of the Annotate dock needs is imported before it, beside the window."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from napari_isdnet.widgets import annotate

FIRST_START = """
import sys
from pathlib import Path

import numpy as np
from napari.layers import Labels

from napari_isdnet.annotation.project import Project
from napari_isdnet.io.array import ArraySource
from napari_isdnet.widgets import annotate

before = set(sys.modules)
for _ in annotate._import_ahead():
    pass
ahead = set(sys.modules)
pixels = np.zeros((64, 64, 3), np.uint8)
with Project.open(ArraySource([pixels], "scene", rgb=True), ("a", "b"), Path(sys.argv[1])):
    Labels(np.zeros((64, 64), np.uint8))
heavy = {"pandas", "scipy", "skimage"}
assert heavy & {name.split(".")[0] for name in ahead - before}
late = sorted(name for name in set(sys.modules) - ahead if name.split(".")[0] in heavy)
assert not late, late
"""


@pytest.mark.long
def test_a_first_start_imports_nothing_heavy_any_more(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FIRST_START, str(tmp_path / "a.isdnet")], capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr


def test_a_dock_that_was_made_imports_beside_the_window(
    viewer: Any, qtbot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "needed_soon.py").write_text("import threading\n\nby = threading.current_thread()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(annotate, "NEEDED", (("not_there_at_all", "x"),))
    viewer.window.add_dock_widget(annotate.AnnotateWidget(viewer))
    monkeypatch.setattr(annotate, "NEEDED", (("needed_soon", "by"),))
    dock = annotate.AnnotateWidget(viewer)
    viewer.window.add_dock_widget(dock)
    qtbot.waitUntil(lambda: "needed_soon" in sys.modules and not dock._ahead.running, timeout=10_000)
    assert sys.modules.pop("needed_soon").by.name == "isdnet-job"
