"""The speed benchmark: every network and mode in interleaved rounds, each measurement in a process of its own."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from napari_isdnet_training.benchmark.entries import SpeedEntry
from napari_isdnet_training.benchmark.output import alone_at
from napari_isdnet_training.benchmark.process import Job, Outcome, run_worker
from napari_isdnet_training.benchmark.rounds import RoundLog, Series, seconds_left

from napari_isdnet.exceptions import InputError
from napari_isdnet.progress import Progress

SIZES = ((1024, 2048), (2448, 2448), (5000, 5000))
COLUMNS = (
    "network", "mode", "height", "width", "status", "fps", "p50_ms", "p90_ms", "p99_ms", "ratio", "peak_mib",
    "parameters_m", "gmacs", "images", "device", "precision", "prepared", "published_fps", "published_miou",
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


@alone_at("log")
def speed(
    entries: Sequence[SpeedEntry], options: SpeedOptions, modes: Sequence[str] = (), log: Path | None = None,
    notes: Sequence[str] = (),
) -> Generator[Progress, None, list[dict[str, Any]]]:  # fmt: skip
    """Measure; yields after every process and returns one row (keys :data:`COLUMNS`) per network, mode and size.

    Rounds are interleaved: all of them once, then all again, so that a slow minute of the machine hits everyone. What
    failed or did not fit once is not tried again. Every measurement is appended to the CSV ``log``; those that are in
    it are not taken again, so a run that was stopped goes on (its ratios then compare different hours).
    """
    series = [
        Series(entry, mode, size)
        for size in options.sizes
        for entry in entries
        for mode in entry.modes
        if not modes or mode in modes
    ]
    if not series:
        raise InputError(
            f"None of these networks is measured in mode {' or '.join(modes)}; leave out --mode to see all."
        )
    kept = RoundLog(log, _setting(options), notes) if log is not None else None
    done, total = 0.0, sum(one.work(options.tile) for one in series) * options.rounds
    longest = options.seconds * (2 + options.repeats)
    for number in range(options.rounds):
        for one in series:
            absent = one.entry.absent()
            if absent is not None:
                one.rounds = [Outcome(f"not available here: {absent}")]
            elif not one.failed:
                _measure(one, options, number, kept)
            done += one.work(options.tile)
            left = seconds_left(series, options.rounds, options.tile, longest)
            yield Progress(done, total, f"round {number + 1}, {one.entry.name} {one.mode}", seconds_left=left)
    rows = []
    for size in options.sizes:
        here = [s for s in series if s.size == size]
        rows += [_row(s, here[0], options) for s in here]
    return rows


def _setting(options: SpeedOptions) -> dict[str, Any]:
    """What a measurement depends on, beside its network, mode and size."""
    facts = asdict(options)
    for name in ("sizes", "rounds"):
        facts.pop(name)
    return facts


def _measure(one: Series, options: SpeedOptions, number: int, log: RoundLog | None) -> None:
    found = log.find(one, number) if log is not None else None
    if found is None:
        shared = {k: v for k, v in _setting(options).items() if k not in ("seconds", "memory")}
        job = Job(one.entry.name, one.mode, one.size, count=number == 0, **shared)
        began = time.monotonic()
        outcome = run_worker(job, options.seconds, int(options.memory * 2**30))
        found = outcome, time.monotonic() - began
        if log is not None and not outcome.status.startswith("not available"):
            log.add(one, number, *found)
    one.rounds.append(found[0])
    one.walls.append(found[1])


def _row(one: Series, base: Series, options: SpeedOptions) -> dict[str, Any]:
    from napari_isdnet.engine.device import choose

    bad = [r for r in one.rounds if r.status != "ok"]
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    row |= {"network": one.entry.name, "mode": one.mode, "height": one.size[0], "width": one.size[1]}
    row |= {"status": bad[0].status if bad else "ok", "prepared": options.prepared}
    row["precision"] = choose(options.device, options.precision).precision
    row |= one.rounds[0].network_facts()
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
