"""The two maps of a comparison where networks are loaded in another order than they were asked for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from qtpy.QtCore import QObject

from napari_isdnet.widgets._engine import LiveWork
from napari_isdnet.widgets._finetune_compare import AFTER, Comparison
from napari_isdnet.window import Window
from tests.gui.test_segment_controller import FakeEngine

RUNNING, DONE = "tuning/tuned.safetensors", "models/m001.safetensors"


class Gated(FakeEngine):
    """The map of the n-th network asked for holds n everywhere; it is loaded once ``gates[n]`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.gates: list[threading.Event] = []
        self.shut: list[int] = []

    def live(self, *_: Any, **__: Any) -> LiveWork:
        number = len(self.gates)
        gate = threading.Event()
        self.gates.append(gate)
        gate.wait(20)
        return LiveWork((64, 64), lambda w: np.full(w.shape, number, np.uint8), lambda: self.shut.append(number))


@pytest.fixture
def engine() -> Gated:
    return Gated()


@pytest.fixture
def comparison(viewer: Any, engine: Gated) -> Iterator[Comparison]:
    parent = QObject()
    made = Comparison(viewer, engine, parent)
    made.look_at(viewer.add_image(np.zeros((64, 64, 3), np.uint8), name="field"))
    yield made
    for gate in engine.gates:
        gate.set()
    made.close()


def shown(comparison: Comparison) -> tuple[str, int]:
    """What the layer calls itself, and the number of the network behind it."""
    side = comparison.sides[AFTER]
    live = side.controller.live
    assert live is not None
    return side.layer.name, int(live.read(0, Window(0, 0, 1, 1))[0, 0])


def ask(qtbot: Any, comparison: Comparison, engine: Gated, name: str) -> None:
    before = len(engine.gates)
    comparison.show(AFTER, RUNNING, name, fresh=True)
    qtbot.waitUntil(lambda: len(engine.gates) > before, timeout=5000)


def test_a_map_goes_by_the_name_it_was_asked_for_and_older_ones_come_too_late(
    qtbot: Any, comparison: Comparison, engine: Gated
) -> None:
    side = comparison.sides[AFTER]
    for step in (20, 40, 60):
        ask(qtbot, comparison, engine, f"step {step}")
    for number, step in ((0, 20), (2, 60)):
        engine.gates[number].set()
        qtbot.waitUntil(lambda number=number: side.loaded == number + 1, timeout=5000)
        qtbot.waitUntil(lambda wanted=(f"field after (step {step})", number): shown(comparison) == wanted, timeout=5000)
    engine.gates[1].set()
    qtbot.waitUntil(lambda: 1 in engine.shut, timeout=5000)
    assert shown(comparison) == ("field after (step 60)", 2)


@pytest.mark.long
def test_a_run_that_ends_while_its_last_step_is_loaded_shows_its_best_under_its_name(
    qtbot: Any, comparison: Comparison, engine: Gated
) -> None:
    ask(qtbot, comparison, engine, "step 20")
    ask(qtbot, comparison, engine, "step 40")
    engine.gates[0].set()
    qtbot.waitUntil(lambda: comparison.sides[AFTER].layer is not None, timeout=5000)
    comparison.settle(DONE, "m001")  # step 40 is not there yet: what is shown is not the best
    qtbot.waitUntil(lambda: len(engine.gates) == 3, timeout=5000)
    engine.gates[2].set()
    qtbot.waitUntil(lambda: shown(comparison) == ("field after (m001)", 2), timeout=5000)
    engine.gates[1].set()
    qtbot.waitUntil(lambda: 1 in engine.shut, timeout=5000)
    assert shown(comparison) == ("field after (m001)", 2)
