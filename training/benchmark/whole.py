"""Whole-image inference end to end, against the network alone on the same windows and against one forward."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from napari_isdnet.engine.device import Placement, choose, prepare, working_bytes
from napari_isdnet.engine.job import Predictor, core_for
from napari_isdnet.engine.oneshot import OneShot, bytes_per_pixel
from napari_isdnet.engine.patches import PatchReader
from napari_isdnet.engine.segment import segment
from napari_isdnet.engine.streaming import StreamOptions, WholeImage
from napari_isdnet.io.intensity import IntensityPolicy
from napari_isdnet.io.open import open_source
from napari_isdnet.io.source import ImageSource
from napari_isdnet.model.checkpoint import load_model
from napari_isdnet.model.isdnet import ISDNet
from napari_isdnet.progress import Clock, Progress
from napari_isdnet.window import Grid, Window

WHOLE_COLUMNS = ("variant", "height", "width", "core", "seconds", "megapixels_per_second", "ratio", "device", "note")
SHARD = 2048
ALONE, END_TO_END, ONE_FORWARD = "network alone", "end to end", "one forward"
NOTES = {
    ALONE: "the passes of whole-image inference on pixels that lie in memory, maps in RAM, labels thrown away",
    END_TO_END: "file to label pyramid on disk",
    ONE_FORWARD: "the image forwarded in one piece, labels thrown away",
}


class GivenPixels(PatchReader):
    """Hands out pixels that are there already: noise, since the time does not depend on what is seen."""

    def __init__(self, source: ImageSource, policy: IntensityPolicy, model: ISDNet) -> None:
        super().__init__(source, policy, model)
        self._known: dict[type, npt.NDArray[Any]] = {}

    def read(self, window: Window) -> tuple[npt.NDArray[np.float32], None]:
        """(h, w, 3) float32, the same for every window of one size."""
        return self._noise(window, np.float32), None

    def stored(self, window: Window) -> npt.NDArray[Any]:
        """(h, w, 3) in the type that the image's own pixels would be sent in."""
        return self._noise(window, np.uint8 if self.source.dtype == np.uint8 else np.float32)

    def _noise(self, window: Window, kind: type) -> npt.NDArray[Any]:
        known = self._known.get(kind)
        if known is None or known.shape[:2] != window.shape:
            noise = np.random.default_rng(0).standard_normal((256, 256, 3), dtype=np.float32)
            if kind == np.uint8:
                noise = np.clip(noise * 55 + 118, 0, 255)
            times = (-(-window.height // 256), -(-window.width // 256), 1)
            tiled: npt.NDArray[Any] = np.tile(noise.astype(kind), times)[: window.height, : window.width]
            known = self._known[kind] = np.ascontiguousarray(tiled)
        return known

    def mask(self, labels: npt.NDArray[np.uint8], window: Window) -> npt.NDArray[np.uint8]:  # noqa: ARG002
        """``labels``: every pixel is valid."""
        return labels


def measure_whole(
    image: Path, model: str, *, window: int | None = None, memory: float | None = None, rounds: int = 1,
    device: str = "auto", precision: str = "auto",
) -> Generator[Progress, None, list[dict[str, Any]]]:  # fmt: skip
    """Time the variants (:data:`NOTES`) in alternating rounds; yields after each, returns :data:`WHOLE_COLUMNS` rows.

    ``window`` is the side of the streaming cores, by default what ``memory`` GiB allow; ``ratio`` is the median over
    the rounds of the time of ``network alone`` over that of the row. ``one forward`` is left out where it would take
    more than three quarters of the machine's memory or most of what is free of it.
    """
    placement, network = choose(device, precision), load_model(model)
    with closing(open_source(image)) as source:
        core = core_for(working_bytes(memory), source.shape, window)
        found = _variants(source, network, placement, core, window, memory)
        seconds: dict[str, list[float]] = {name: [] for name in found}
        clock = Clock(len(found) * rounds)
        for _ in range(rounds):
            for name, run in found.items():
                began = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - began)
                yield clock.step(1, name)
        rows = []
        for name, times in seconds.items():
            middle = float(np.median(times))
            ratio = float(np.median([a / b for a, b in zip(seconds[ALONE], times, strict=True)]))
            rows.append({
                "variant": name, "height": source.shape[0], "width": source.shape[1],
                "core": "" if name == ONE_FORWARD else core, "seconds": round(middle, 2),
                "megapixels_per_second": round(source.shape[0] * source.shape[1] / middle / 1e6, 3),
                "ratio": round(ratio, 3), "device": f"{placement.device}, {placement.precision}", "note": NOTES[name],
            })  # fmt: skip
    return rows


def _variants(
    source: ImageSource, network: ISDNet, placement: Placement, core: int, window: int | None, memory: float | None
) -> dict[str, Callable[[], None]]:
    from napari_isdnet.engine.device import describe_device, machine_memory

    policy = IntensityPolicy.from_source(source)
    reader, ready = GivenPixels(source, policy, network), prepare(network, placement)

    def alone() -> None:
        _all_labels(WholeImage(ready, reader, placement, StreamOptions(core)), source.shape)

    def one_forward() -> None:
        _all_labels(OneShot(ready, reader, placement, machine_memory(), "It is measured"), source.shape)

    def end_to_end() -> None:
        with tempfile.TemporaryDirectory(prefix="isdnet-whole-") as folder:
            steps = segment(
                source, network, output=Path(folder), device=placement.device.type, precision=placement.precision,
                window=window, memory=memory,
            )  # fmt: skip
            for _ in steps:
                pass

    found = {ALONE: alone, END_TO_END: end_to_end}
    free = min(
        0.75 * machine_memory(), 0.8 * describe_device(torch.device("cpu"))["free"]
    )  # other programs want some, too
    if source.shape[0] * source.shape[1] * bytes_per_pixel(network.config) < free:
        found[ONE_FORWARD] = one_forward
    return found


def _all_labels(predictor: Predictor, shape: tuple[int, int]) -> None:
    with closing(predictor):
        for _ in predictor.prepare():
            pass
        for window in Grid(shape, (SHARD, SHARD)):
            predictor.labels(window)
