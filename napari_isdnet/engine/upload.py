"""Windows on their way to the device: the thread that reads them sends them, while the network computes on another."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from napari_isdnet.engine.patches import Patches, as_tensor
from napari_isdnet.window import Window

Array = npt.NDArray[Any]


class Upload:
    """Sends windows of an image to one device; on CUDA in a stream of its own, from pinned memory.

    ``normal`` are the mean and deviation (3,) by which 8-bit windows are normalised once they are there.
    """

    def __init__(self, device: torch.device, normal: tuple[Array, Array]) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._mean, self._std = (torch.from_numpy(v).to(device).view(1, -1, 1, 1) for v in normal)
        self._paced: deque[torch.cuda.Event] = deque()

    @property
    def takes_bytes(self) -> bool:
        """True where 8-bit windows are better sent as they are."""
        return self.stream is not None

    def pixels(self, reader: Patches, window: Window) -> Array:
        """A window in the form in which it is best sent."""
        return reader.stored(window) if self.takes_bytes else reader.read(window)[0]

    def tensor(self, patch: Array) -> Tensor:
        """(1, C, h, w) float32 on the device, normalised if it came as bytes; in the calling thread's stream."""
        sent = as_tensor(patch, self.device)
        # As the reader does, in the same order: the same float32 values on every device.
        return sent if patch.dtype != np.uint8 else sent.sub_(self._mean).div_(self._std)

    def pace(self) -> None:
        """Wait until all but what was launched since the last call is computed: reading must not run far ahead."""
        if self.stream is None:
            return
        self._paced.append(torch.cuda.current_stream(self.device).record_event())
        if len(self._paced) > 1:
            self._paced.popleft().synchronize()

    def send(self, patch: Array) -> Sent:
        """Start to send ``patch`` (h, w, C); returns at once. Any thread may call it."""
        return Sent(patch, self)


class Sent:
    """A window that was sent; :meth:`arrived` makes it an input of what the calling thread computes next."""

    def __init__(self, patch: Array, upload: Upload) -> None:
        self._patch, self._upload = patch, upload
        self._tensor: Tensor | None = None
        if upload.stream is None:
            return
        try:
            with torch.cuda.stream(upload.stream):
                self._tensor = upload.tensor(patch)
                self._event = upload.stream.record_event()
        except torch.OutOfMemoryError:
            self._tensor = None  # whoever computes sends it again, and knows what to do if that fails

    def arrived(self) -> Tensor:
        """(1, C, h, w) float32 on the device, in channels-last memory; what is computed next waits for the copy."""
        if self._tensor is None:
            return self._upload.tensor(self._patch)
        current = torch.cuda.current_stream(self._upload.device)
        current.wait_event(self._event)
        self._tensor.record_stream(current)  # its memory is not given to another before the network is done with it
        return self._tensor

    def drop(self) -> None:
        """Give the device's memory back; :meth:`arrived` would send the window again."""
        self._tensor = None
