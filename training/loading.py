"""Batches of crops on their way to the device, read here or by processes of their own."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from napari_isdnet_training.config import RunConfig
from napari_isdnet_training.crops import CropDataset, Failure, collate
from napari_isdnet_training.device_crops import DeviceCrops
from napari_isdnet_training.interrupts import leave_to_parent
from napari_isdnet_training.sampling import StepBatches
from torch.utils.data import DataLoader

from napari_isdnet.exceptions import InputError


class Batches(Iterator[tuple[torch.Tensor, torch.Tensor]]):
    """Images ``(B, 3, H, W)`` and targets ``(B, H, W)`` on ``device``, one batch per list of ``numbers``.

    Asking for the next raises :class:`InputError` for a crop that cannot be read, and where a process that reads them
    has died.
    """

    def __init__(self, crops: CropDataset, numbers: StepBatches, options: RunConfig, device: torch.device) -> None:
        self.device, workers = device, options.workers
        self.finisher = DeviceCrops(crops.data, crops.crop.size, device) if crops.raw else None
        loader = DataLoader(
            crops, batch_sampler=numbers, num_workers=workers, persistent_workers=workers > 0,
            pin_memory=device.type == "cuda", collate_fn=list if crops.raw else collate,
            worker_init_fn=leave_to_parent,
        )  # fmt: skip
        with _deaths_wait():
            self._crops: Iterator[Any] = iter(loader)

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor]:
        crops = self._read()
        for item in crops if isinstance(crops, list) else [crops]:
            if isinstance(item, Failure):
                raise InputError(item.reason)
        if self.finisher is not None:
            return self.finisher.finish(crops)
        image, target = (t.to(self.device, non_blocking=True) for t in crops)
        return image, target

    def _read(self) -> Any:
        try:
            return next(self._crops)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise InputError(
                "A process that reads crops was ended, as a rule because memory, or shared memory (/dev/shm), was"
                " short; lower run.workers, or give it more, and run the same command to go on."
            ) from error


@contextmanager
def _deaths_wait() -> Iterator[None]:
    """Within, torch may set its answer to a worker's death, which is undone.

    It would raise in the middle of a step, whose work, and that of all since the last checkpoint, would be lost; who
    asks a loader for the next batch is told as well.
    """
    number = getattr(signal, "SIGCHLD", None)  # Windows has none, and torch asks there
    before = None if number is None else signal.getsignal(number)
    yield
    if number is not None and before is not None and threading.current_thread() is threading.main_thread():
        signal.signal(number, before)
