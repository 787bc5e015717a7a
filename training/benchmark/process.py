"""Drives one worker process: hard limits of time per image and of memory, whatever the network does."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

START_SECONDS = 300.0


@dataclass(frozen=True)
class Job:
    """What one process measures; ``entry`` is a name of :func:`~.entries.find_entry`, which takes the ``options``.

    ``repeats`` images are timed after one that warms up; ``count``: count multiply-adds too.
    """

    entry: str
    mode: str = "whole"
    size: tuple[int, int] = (1024, 1024)
    device: str = "auto"
    precision: str = "auto"
    prepared: bool = True
    repeats: int = 5
    tile: int = 1024
    overlap: int = 0
    classes: int = 7
    threads: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    count: bool = False


@dataclass
class Outcome:
    """What one process measured. ``status`` is ``ok`` or says in words why there are no (or too few) figures."""

    status: str = "ok"
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    parameters: int | None = None
    macs: float | None = None
    device: str = ""

    def network_facts(self) -> dict[str, Any]:
        """The columns ``device``, ``parameters_m`` and ``gmacs`` of a table; None for what was not measured."""
        return {
            "device": self.device,
            "parameters_m": None if self.parameters is None else round(self.parameters / 1e6, 3),
            "gmacs": None if self.macs is None else round(self.macs / 1e9, 2),
        }


def run_worker(job: Job, seconds_per_image: float, memory_bytes: int, command: list[str] | None = None) -> Outcome:
    """Run a job of :mod:`~napari_isdnet_training.benchmark.worker` under limits.

    The process is ended as soon as one image takes longer than ``seconds_per_image`` (the one that warms up gets twice
    that) or its resident memory passes ``memory_bytes``. ``command`` replaces the worker in tests.
    """
    import psutil

    command = command or [sys.executable, "-m", "napari_isdnet_training.benchmark.worker"]
    process = subprocess.Popen(
        [*command, json.dumps(asdict(job))], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_pump, args=(process, lines), daemon=True).start()
    outcome, watched = Outcome(), psutil.Process(process.pid)
    limit, since, state = START_SECONDS, time.monotonic(), ""
    try:
        while True:
            try:
                line = lines.get(timeout=0.1)
            except queue.Empty:
                outcome.peak_bytes = max(outcome.peak_bytes, _resident(watched))
                if outcome.peak_bytes > memory_bytes:
                    outcome.status = f"did not fit: over {memory_bytes / 2**30:.0f} GiB"
                    return outcome
                if time.monotonic() - since > limit:
                    outcome.status = (
                        f"did not fit: over {seconds_per_image:.0f} s an image"
                        if state
                        else f"failed: the process was not ready after {START_SECONDS:.0f} s"
                    )
                    return outcome
                continue
            if line is None:
                if state != "done" and outcome.status == "ok":
                    outcome.status = f"failed: the process ended with code {process.wait()}"
                return outcome
            told = json.loads(line)
            state = str(told.get("state", "image"))
            limit = _take(outcome, told, seconds_per_image)
            since = time.monotonic()
            if outcome.seconds and outcome.seconds[-1] > seconds_per_image:
                outcome.status = f"did not fit: over {seconds_per_image:.0f} s an image"
                return outcome
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _take(outcome: Outcome, line: dict[str, Any], seconds_per_image: float) -> float:
    """Note a line; returns how long the next one may take."""
    state = line.get("state")
    if state == "ready":
        outcome.parameters, outcome.macs, outcome.device = line["parameters"], line["macs"], line["device"]
        return 2 * seconds_per_image
    if state == "done":
        outcome.peak_bytes = int(line["peak_bytes"])
    elif state == "failed":
        error = str(line["error"])
        memory = "out of memory" in error.lower() or "allocate memory" in error.lower()
        unavailable = "not available here" in error
        outcome.status = "did not fit: out of memory" if memory else error if unavailable else f"failed: {error}"
    elif line["warm"]:
        outcome.seconds.append(float(line["seconds"]))
    return seconds_per_image


def _pump(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.startswith("{"):
                lines.put(line)
    except ValueError:
        pass  # closed by the parent, which has what it wanted
    lines.put(None)


def _resident(process: Any) -> int:
    import psutil

    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0
