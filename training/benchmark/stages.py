"""What bounds a whole-image job: the time its threads spend decoding, copying, computing and writing.

The job is the real one, with stopwatches around its parts. A part that calls another stops while that one runs, so
that seconds add up to what each thread was busy. On a graphics card every computation is waited for, or its time would
be found wherever the next copy is; the job itself does not wait, so that there the profile is slower than the job.
"""

from __future__ import annotations

import functools
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from napari_isdnet.engine import streaming
from napari_isdnet.engine.device import choose
from napari_isdnet.engine.local import LocalNetwork
from napari_isdnet.engine.maps import DeviceMap, LazyMap, MapStorage
from napari_isdnet.engine.patches import PatchReader
from napari_isdnet.engine.results import ResultStores
from napari_isdnet.engine.segment import _Job, segment
from napari_isdnet.engine.streaming import WholeImage
from napari_isdnet.engine.upload import Sent, Upload
from napari_isdnet.io import overlay
from napari_isdnet.io.open import open_source
from napari_isdnet.io.source import ImageSource
from napari_isdnet.io.store import LabelStore
from napari_isdnet.model.checkpoint import load_model
from napari_isdnet.progress import Progress

STAGE_COLUMNS = ("thread", "stage", "calls", "seconds", "share", "device", "note")
NETWORK, AHEAD, WRITING = "network", "reading and levels", "writing"
REST = "the rest"
NOTES = {
    "start": "the network brought into the form that infers fastest, and its halos probed",
    "decode": "tiles of the file to pixels",
    "normalise": "pixels to what the network is given",
    "copy": "to the device and back",
    "compute": "the network, and labels from logits",
    "maps": "feature maps summed, kept and fetched, in RAM, on the disk or on the device",
    "write": "shards encoded, written and forced to the disk",
    "count": "pixels of every class",
    "levels": "coarser levels of the result",
    "overlay": "the picture to look at",
    REST: "bookkeeping, and waiting for the other threads",
}


class Stopwatch:
    """Seconds and calls by (thread, stage); a stage inside another stops the outer one. Thread-safe."""

    def __init__(self, wait: Callable[[], None] = lambda: None) -> None:
        self.seconds: dict[tuple[str, str], float] = defaultdict(float)
        self.calls: dict[tuple[str, str], int] = defaultdict(int)
        self._wait, self._local, self._lock = wait, threading.local(), threading.Lock()

    @contextmanager
    def running(self, stage: str) -> Iterator[None]:
        """Time what happens inside."""
        stack: list[str] = self._local.__dict__.setdefault("stack", [])
        self._lap(stack)
        stack.append(stage)
        try:
            yield
            if stage == "compute":
                self._wait()
        finally:
            self._lap(stack)
            stack.pop()
            with self._lock:
                self.calls[_thread(), stage] += 1

    def _lap(self, stack: list[str]) -> None:
        """Give the time since the last change to the stage that is running, if any."""
        now = time.perf_counter()
        if stack:
            with self._lock:
                self.seconds[_thread(), stack[-1]] += now - self._local.since
        self._local.since = now

    def around(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, timed."""

        @functools.wraps(function)
        def timed(*args: Any, **named: Any) -> Any:
            with self.running(stage):
                return function(*args, **named)

        return timed


def _thread() -> str:
    name = threading.current_thread().name
    return AHEAD if name.startswith("isdnet-ahead") else WRITING if name.startswith("isdnet-write") else NETWORK


def _places(source: ImageSource) -> list[tuple[Any, str, str]]:
    """(where, name, stage) of the functions that are timed."""
    network = ("quarter", "shallow", "backbone", "project_deep", "fuse16", "classify", "context", "attention")
    return [
        (type(source), "read", "decode"),
        *((PatchReader, name, "normalise") for name in ("read", "stored")),
        *((Upload, name, "copy") for name in ("send", "tensor")),
        *((WholeImage, name, "copy") for name in ("_tensor", "_kept")),
        (Sent, "arrived", "copy"),
        *((LocalNetwork, name, "compute") for name in network),
        *((streaming, name, "compute") for name in ("as_values", "labels_of")),
        *((LazyMap, name, "maps") for name in ("put",)),
        *((kind, "read", "maps") for kind in (MapStorage, DeviceMap)),
        (LabelStore, "write_shard", "write"),
        (LabelStore, "build_level_block", "levels"),
        (_Job, "_predictor", "start"),
        (overlay, "write_overlay", "overlay"),
        (ResultStores, "class_pixels", "count"),
        (ResultStores, "write", "count"),
    ]


@contextmanager
def timed(watch: Stopwatch, source: ImageSource) -> Iterator[None]:
    """Stopwatches around every part of a job that reads ``source``, until the block ends."""
    with ExitStack() as stack:
        for owner, name, stage in _places(source):
            function = watch.around(stage, getattr(owner, name))
            stack.enter_context(mock.patch.object(owner, name, function))
        yield


def measure_stages(
    image: Path, model: str, *, window: int | None = None, memory: float | None = None, device: str = "auto",
    precision: str = "auto",
) -> Generator[Progress, None, list[dict[str, Any]]]:  # fmt: skip
    """Profile one job in ``whole`` context; passes on its progress, returns rows of :data:`STAGE_COLUMNS`.

    ``share`` is that of the job's wall time; of several threads of one kind, which are counted together, it can be more
    than 1.
    """
    placement, network = choose(device, precision), load_model(model)
    wait = torch.cuda.synchronize if placement.device.type == "cuda" else _nothing
    watch = Stopwatch(wait)
    with tempfile.TemporaryDirectory(prefix="isdnet-stages-") as folder, closing(open_source(image)) as source:
        options: dict[str, Any] = {
            "device": placement.device.type, "precision": placement.precision, "window": window, "memory": memory,
        }  # fmt: skip
        with timed(watch, source):
            began = time.perf_counter()
            yield from segment(source, network, output=Path(folder), **options)
            wall = time.perf_counter() - began
    return _rows(watch, wall, f"{placement.device}, {placement.precision}")


def _nothing() -> None:
    return


def _rows(watch: Stopwatch, wall: float, device: str) -> list[dict[str, Any]]:
    busy = dict(watch.seconds)
    busy[NETWORK, REST] = wall - sum(seconds for (thread, _), seconds in busy.items() if thread == NETWORK)
    return [
        {
            "thread": thread, "stage": stage, "calls": watch.calls.get((thread, stage), ""),
            "seconds": round(busy[thread, stage], 2), "share": round(busy[thread, stage] / wall, 3), "device": device,
            "note": NOTES[stage],
        }
        for thread in (NETWORK, AHEAD, WRITING)
        for stage in NOTES
        if (thread, stage) in busy
    ]  # fmt: skip
