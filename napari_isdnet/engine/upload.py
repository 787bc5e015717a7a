"""Windows on their way to the device: the thread that reads them sends them, while the network computes on another."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from napari_isdnet.engine.patches import as_tensor


class Upload:
    """Sends windows of an image to one device; on CUDA in a stream of its own, from pinned memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def send(self, patch: npt.NDArray[Any]) -> Sent:
        """Start to send ``patch`` (h, w, C); returns at once. Any thread may call it."""
        return Sent(patch, self)


class Sent:
    """A window that was sent; :meth:`arrived` makes it an input of what the calling thread computes next."""

    def __init__(self, patch: npt.NDArray[Any], upload: Upload) -> None:
        self._patch, self._upload = patch, upload
        self._tensor: Tensor | None = None
        if upload.stream is None:
            return
        try:
            with torch.cuda.stream(upload.stream):
                self._tensor = as_tensor(patch, upload.device)
                self._event = upload.stream.record_event()
        except torch.OutOfMemoryError:
            self._tensor = None  # whoever computes sends it again, and knows what to do if that fails

    def arrived(self) -> Tensor:
        """(1, C, h, w) float32 on the device, in channels-last memory; what is computed next waits for the copy."""
        if self._tensor is None:
            return as_tensor(self._patch, self._upload.device)
        current = torch.cuda.current_stream(self._upload.device)
        current.wait_event(self._event)
        self._tensor.record_stream(current)  # its memory is not given to another before the network is done with it
        return self._tensor

    def drop(self) -> None:
        """Give the device's memory back; :meth:`arrived` would send the window again."""
        self._tensor = None
