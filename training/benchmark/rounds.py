"""Measurements one by one: kept in a CSV to go on from, and the ground for saying how long the rest takes."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from napari_isdnet_training.benchmark.entries import SpeedEntry
from napari_isdnet_training.benchmark.inference import SCALES
from napari_isdnet_training.benchmark.output import RunLog
from napari_isdnet_training.benchmark.process import Outcome

ROUND_COLUMNS = (
    "network", "mode", "height", "width", "round", "setting", "status", "seconds", "peak_bytes", "parameters", "macs",
    "device", "process_seconds",
)  # fmt: skip


@dataclass
class Series:
    """One network in one mode at one size: its rounds so far, and how long the process of each took."""

    entry: SpeedEntry
    mode: str
    size: tuple[int, int]
    rounds: list[Outcome] = field(default_factory=list)
    walls: list[float] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """True when it is not tried again."""
        return any(r.status != "ok" for r in self.rounds)

    def work(self, tile: int) -> float:
        """Megapixels the network sees, and a half for starting the process."""
        scale = min(1.0, tile / max(self.size)) if self.mode == "global" else SCALES.get(self.mode, 1.0)
        return 0.5 + self.size[0] * self.size[1] * scale**2 / 1e6


class RoundLog:
    """Finished measurements in a CSV; those taken otherwise, elsewhere or with another torch count as not taken."""

    def __init__(self, path: Path, setting: Mapping[str, Any], notes: Sequence[str] = ()) -> None:
        keys = ("network", "mode", "height", "width", "round", "setting")
        self._log = RunLog(path, ROUND_COLUMNS, keys, notes)
        place = {"machine": platform.machine(), "system": platform.system(), "torch": torch.__version__}
        self._setting = json.dumps({**setting, **place}, sort_keys=True)

    def _key(self, one: Series, number: int) -> dict[str, Any]:
        key = {"network": one.entry.name, "mode": one.mode, "height": one.size[0], "width": one.size[1]}
        return {**key, "round": number, "setting": self._setting}

    def find(self, one: Series, number: int) -> tuple[Outcome, float] | None:
        """The outcome of a round and the seconds of its process, if it is in the file."""
        row = self._log.find(**self._key(one, number))
        if row is None:
            return None
        outcome = Outcome(
            row["status"], json.loads(row["seconds"]), int(row["peak_bytes"]),
            int(row["parameters"]) if row["parameters"] else None, float(row["macs"]) if row["macs"] else None,
            row["device"],
        )  # fmt: skip
        return outcome, float(row["process_seconds"])

    def add(self, one: Series, number: int, outcome: Outcome, wall: float) -> None:
        """Append a round; the file is whole at any moment."""
        self._log.add(
            {
                **self._key(one, number),
                "status": outcome.status,
                "seconds": json.dumps([round(s, 6) for s in outcome.seconds]),
                "peak_bytes": outcome.peak_bytes,
                "parameters": outcome.parameters,
                "macs": outcome.macs,
                "device": outcome.device,
                "process_seconds": wall,
            }
        )


def seconds_left(series: Sequence[Series], rounds: int, tile: int, longest: float) -> float | None:
    """Seconds until every series has its rounds; None before there is anything to go by.

    A series that ran takes as long again; one that failed or is absent takes nothing; of the others a megapixel takes
    as long as the measured ones took on average, up to ``longest`` seconds, the limits of a process.
    """
    measured = [s for s in series if s.walls]
    if not measured:
        return None
    rate = sum(sum(s.walls) / len(s.walls) for s in measured) / sum(s.work(tile) for s in measured)
    left = 0.0
    for one in series:
        if not one.failed:
            each = sum(one.walls) / len(one.walls) if one.walls else min(longest, rate * one.work(tile))
            left += each * (rounds - len(one.rounds))
    return left
