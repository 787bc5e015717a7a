"""How long a fine-tuning will take: counted work over a speed that earlier runs (or one small convolution) measured."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import conv2d

from napari_isdnet.engine.device import Placement
from napari_isdnet.io.disk import write_atomic
from napari_isdnet.model.config import ISDNetConfig
from napari_isdnet.model.cost import count_cost
from napari_isdnet.paths import cache_folder

START_SECONDS = 6.0
"""Loading libraries and weights."""
PASSES = {"quick": 1.5, "thorough": 4.0}
"""A step costs so many forward passes. ``thorough``: one of each model, and two for the backward pass. ``quick``: one
that both models share but for the last fusion; with new classes it is more, which the first run here tells."""
_PROBE_SHARE = 0.3
"""A whole network's share of the speed of one large convolution: 0.28 to 0.44, measured on one CPU core."""


@dataclass(frozen=True)
class Work:
    """What a run has to compute, in multiply-accumulates of single forward passes."""

    training: float
    judging: float

    @property
    def total(self) -> float:
        """Both."""
        return self.training + self.judging


@dataclass(frozen=True)
class Forecast:
    """Seconds that a run will take at most; ``measured``: by an earlier run of this kind on this machine."""

    seconds: float
    measured: bool


def work(
    config: ISDNetConfig, preset: str, steps: int, batch: int, window: int, held_out: int, every: int
) -> Work:  # fmt: skip
    """The work of ``steps`` steps of ``batch`` windows, judged on ``held_out`` windows ``every`` so many steps."""
    one = float(count_cost(config, (window, window)).macs)
    validations = 1 + -(-steps // max(1, min(every, steps))) if held_out else 0
    return Work(one * batch * steps * PASSES[preset], one * held_out * validations)


def forecast(todo: Work, preset: str, placement: Placement) -> Forecast:
    """How long ``todo`` takes here; without an earlier run one convolution is timed, in a fraction of a second."""
    known = _speeds().get(_key(preset, placement))
    speed = known if known else _probe(placement) * _PROBE_SHARE
    return Forecast(START_SECONDS + todo.total / speed, known is not None)


def remember(done: Work, seconds: float, preset: str, placement: Placement) -> None:
    """Keep the speed of a run for the next forecast; a cache folder that cannot be written is no error."""
    if seconds <= 0 or done.total <= 0:
        return
    speeds = _speeds() | {_key(preset, placement): done.total / seconds}
    try:
        _path().parent.mkdir(parents=True, exist_ok=True)
        write_atomic(_path(), json.dumps(speeds, indent=1).encode())
    except (OSError, ValueError):
        return


def _key(preset: str, placement: Placement) -> str:
    device = placement.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{name} {placement.precision} {preset}"


def _path() -> Path:
    return cache_folder() / "speeds.json"


def _speeds() -> dict[str, float]:
    try:
        found = json.loads(_path().read_bytes())
        return {str(key): float(value) for key, value in found.items() if float(value) > 0}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


@torch.no_grad()
def _probe(placement: Placement) -> float:
    """Multiply-accumulates per second of a 3 x 3 convolution of 64 channels."""
    side, channels = 96, 64
    x = torch.ones(1, channels, side, side, device=placement.device, dtype=placement.dtype)
    weight = torch.ones(channels, channels, 3, 3, device=placement.device, dtype=placement.dtype)
    best = float("inf")
    for _ in range(4):  # the first one warms up
        began = time.perf_counter()
        float(conv2d(x, weight, padding=1).sum())  # the sum waits for a graphics card
        best = min(best, time.perf_counter() - began)
    return channels * channels * 9 * side * side / best
