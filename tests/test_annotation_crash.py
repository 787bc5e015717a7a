"""A real process is killed while it paints: nothing that was painted may be lost, whatever it was writing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from napari_isdnet.annotation.store import AnnotationStore
from napari_isdnet.annotation.strokes import Brush
from napari_isdnet.window import Window

SHAPE = (20_000, 30_000)
WINDOW = Window(0, 0, 4000, 4000)

PAINTER = """
import sys
import numpy as np
from napari_isdnet.annotation.store import AnnotationStore
from napari_isdnet.annotation.strokes import Brush

store = AnnotationStore.create(sys.argv[1], (20_000, 30_000), ["a", "b", "c"])
rng = np.random.default_rng(int(sys.argv[2]))
print("ready", flush=True)
for number in range(100_000):
    points = rng.uniform(0, 4000, (3, 2))
    store.paint(Brush(points, 5 + number % 40), number % 3)
    if number % 5 == 4:
        store.undo()
    print(number, flush=True)
"""


def expected(seed: int, strokes: int, undone_last: bool) -> np.ndarray:
    values = np.zeros(WINDOW.shape, np.uint8)
    rng = np.random.default_rng(seed)
    for number in range(strokes):
        points = rng.uniform(0, 4000, (3, 2))
        if number % 5 == 4 and (number < strokes - 1 or undone_last):
            continue
        mask = Brush(points, 5 + number % 40).cover(SHAPE).mask(WINDOW)
        values[mask] = number % 3 + 1
    return values


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.parametrize("seconds", [0.05, pytest.param(0.7, marks=pytest.mark.long)])
def test_kill_9_while_painting_loses_no_stroke(tmp_path: Path, seconds: float):
    folder = tmp_path / "image.isdnet"
    script = [sys.executable, "-c", PAINTER, str(folder), "7"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(script, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert process.stdout.readline() == "0\n"
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        reported = ["0", *process.stdout.read().split()]
    assert process.returncode == -signal.SIGKILL
    finished = int(reported[-1]) + 1
    with AnnotationStore.open(folder) as store:
        entries = list(store.journal.entries())
        painted = sum(e["kind"] == "brush" for e in entries)
        # Everything that was reported as painted is there; at most the stroke that was under way comes on top.
        assert finished <= painted <= finished + 1
        values = store.read_labels(WINDOW)
        assert np.array_equal(values, expected(7, painted, entries[-1]["kind"] == "undo"))
        store.undo()  # and it goes on: undo across the restart, paint, reopen
        store.paint(Brush([(3000, 3000)], 50), 1)
        after = store.read_labels(WINDOW)
    with AnnotationStore.open(folder, rebuild=True) as store:
        assert np.array_equal(store.read_labels(WINDOW), after)
