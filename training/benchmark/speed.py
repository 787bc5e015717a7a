"""The speed benchmark: every network and mode in interleaved rounds, each measurement in a process of its own."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from napari_isdnet_training.benchmark.entries import NOT_RUN, NOT_RUN_REASON, SpeedEntry
from napari_isdnet_training.benchmark.mmseg import MMSEG, missing
from napari_isdnet_training.benchmark.process import Outcome, run_worker

from napari_isdnet.exceptions import InputError
from napari_isdnet.progress import Clock, Progress

SIZES = ((1024, 2048), (2448, 2448), (5000, 5000))
COLUMNS = (
    "network", "mode", "height", "width", "status", "fps", "p50_ms", "p90_ms", "p99_ms", "ratio", "peak_mib",
    "parameters_m", "gmacs", "images", "device", "precision", "prepared",
)  # fmt: skip


@dataclass(frozen=True)
class SpeedOptions:
    """How it is measured. ``ratio`` is the time of the first entry of a size over that of a row, paired by round."""

    sizes: Sequence[tuple[int, int]] = SIZES
    device: str = "auto"
    precision: str = "auto"
    prepared: bool = True
    rounds: int = 3
    repeats: int = 3
    tile: int = 1024
    overlap: int = 0
    classes: int = 7
    threads: int | None = None
    seconds: float = 60.0
    memory: float = 20.0

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.repeats < 1:
            raise InputError(f"At least 1 round of 1 image, got {self.rounds} of {self.repeats}.")
        if self.tile < 64 or not 0 <= self.overlap < self.tile:
            raise InputError(f"A tile has at least 64 pixels and overlaps by less, got {self.tile} and {self.overlap}.")
        for size in self.sizes:
            if min(size) < 64:
                raise InputError(f"An image needs at least 64 pixels a side, got {size[0]}x{size[1]}.")


def parse_size(text: str) -> tuple[int, int]:
    """``HEIGHTxWIDTH`` as two numbers."""
    height, x, width = text.lower().partition("x")
    if not x or not height.strip().isdigit() or not width.strip().isdigit():
        raise InputError(f"A size is written HEIGHTxWIDTH, such as 1024x2048, got '{text}'.")
    return int(height), int(width)


@dataclass
class _Series:
    entry: SpeedEntry
    mode: str
    size: tuple[int, int]
    rounds: list[Outcome] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        return any(r.status != "ok" for r in self.rounds)


def speed(
    entries: Sequence[SpeedEntry], options: SpeedOptions, modes: Sequence[str] = ()
) -> Generator[Progress, None, list[dict[str, Any]]]:
    """Measure; yields after every process and returns one row (keys :data:`COLUMNS`) per network, mode and size.

    Rounds are interleaved: all of them once, then all again, so that a slow minute of the machine hits everyone. What
    failed or did not fit once is not tried again.
    """
    series = [
        _Series(entry, mode, size)
        for size in options.sizes
        for entry in entries
        for mode in entry.modes
        if not modes or mode in modes
    ]
    clock = Clock(len(series) * options.rounds)
    absent = missing()
    for number in range(options.rounds):
        for one in series:
            if absent is not None and one.entry.name in MMSEG:
                one.rounds = [Outcome(f"not available here: {absent}")]
            elif not one.failed:
                one.rounds.append(_measure(one, options, number == 0))
            yield clock.step(1, f"{one.entry.name} {one.mode}")
    rows = []
    for size in options.sizes:
        here = [s for s in series if s.size == size]
        rows += [_row(s, here[0], options) for s in here]
    return rows


def _measure(one: _Series, options: SpeedOptions, count: bool) -> Outcome:
    job = {
        "entry": one.entry.name, "mode": one.mode, "size": one.size, "device": options.device,
        "precision": options.precision, "prepared": options.prepared, "repeats": options.repeats,
        "tile": options.tile, "overlap": options.overlap, "classes": options.classes, "threads": options.threads,
        "count": count,
    }  # fmt: skip
    return run_worker(job, options.seconds, int(options.memory * 2**30))


def _row(one: _Series, base: _Series, options: SpeedOptions) -> dict[str, Any]:
    from napari_isdnet.engine.device import choose

    bad = [r for r in one.rounds if r.status != "ok"]
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    row |= {"network": one.entry.name, "mode": one.mode, "height": one.size[0], "width": one.size[1]}
    row |= {"status": bad[0].status if bad else "ok", "prepared": options.prepared}
    row["precision"] = choose(options.device, options.precision).precision
    first = one.rounds[0]
    row["device"] = first.device
    row["parameters_m"] = None if first.parameters is None else round(first.parameters / 1e6, 3)
    row["gmacs"] = None if first.macs is None else round(first.macs / 1e9, 2)
    if bad:
        return row
    times = np.array([s for r in one.rounds for s in r.seconds])
    p50, p90, p99 = np.percentile(times, (50, 90, 99)) * 1e3
    row |= {"fps": round(1e3 / p50, 3), "p50_ms": round(p50, 1), "p90_ms": round(p90, 1), "p99_ms": round(p99, 1)}
    row |= {"images": len(times), "peak_mib": round(max(r.peak_bytes for r in one.rounds) / 2**20)}
    if not base.failed:
        pairs = [np.median(b.seconds) / np.median(r.seconds) for b, r in zip(base.rounds, one.rounds)]
        row["ratio"] = round(float(np.median(pairs)), 3)
    return row


def not_run() -> list[tuple[str, str]]:
    """Systems that are named in the paper and are not measured, with the reason."""
    return [(name, NOT_RUN_REASON) for name in NOT_RUN]
