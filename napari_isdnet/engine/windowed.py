"""Windowed inference (``context="window"``): every window of a fixed grid is its own whole image, neighbours blend.

The grid is anchored at the origin of the image and its windows have the model's own size, never one fitted to memory or
to the screen, so that the result of a region equals the crop of the result of the whole image.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from napari_isdnet.engine.device import Placement, device_memory
from napari_isdnet.engine.patches import Patches, check_size
from napari_isdnet.engine.pieces import Enlarging, labels_by_strips
from napari_isdnet.engine.recent import Recent
from napari_isdnet.engine.upload import Upload
from napari_isdnet.exceptions import InputError
from napari_isdnet.model.isdnet import MIN_SIDE, Branch, ISDNet
from napari_isdnet.model.layers import Place, resize_bilinear
from napari_isdnet.progress import Progress
from napari_isdnet.window import Window

ALIGN = 32
CACHE_BYTES = 128 * 2**20
STRIP = 256


class WindowGrid:
    """Overlapping windows of ``size`` at multiples of ``size - overlap``; the last along an axis ends at the border.

    Along an axis shorter than ``size`` there is one window, as long as the image.
    """

    def __init__(self, shape: tuple[int, int], size: int, overlap: int) -> None:
        if size < ALIGN or size % ALIGN:
            raise InputError(f"The window must be a multiple of {ALIGN} pixels, got {size}.")
        if not 0 <= overlap <= size // 2:
            raise InputError(f"The overlap must be 0 to half the window ({size // 2}), got {overlap}.")
        self.shape, self.size, self.overlap = shape, size, overlap
        self.starts = tuple(self._starts(n) for n in shape)

    def _starts(self, length: int) -> list[int]:
        step, last = self.size - self.overlap, max(0, length - self.size)
        return [*range(0, last, step), last]

    def touching(self, window: Window) -> list[Window]:
        """Windows of the grid that share a pixel with ``window``, row-major."""
        rows, columns = (
            [s for s in starts if s < end and s + self.size > begin]
            for starts, (begin, end) in zip(self.starts, window.spans, strict=True)
        )
        return [Window(r, c, self.size, self.size).clipped(self.shape) for r in rows for c in columns]

    def ramp(self, start: int, count: int, axis: int) -> npt.NDArray[np.float32]:
        """Blending weights along one axis of the window that starts at ``start``: 1 inside, falling over the overlap.

        Strictly positive; sides at the image's border do not fall.
        """
        length = min(self.size, self.shape[axis])
        position = np.arange(count, dtype=np.float32)
        weight = np.ones(count, np.float32)
        if self.overlap:
            before = (position + 0.5) / self.overlap
            after = (length - position - 0.5) / self.overlap
            if start > 0:
                weight = np.minimum(weight, before)
            if start + length < self.shape[axis]:
                weight = np.minimum(weight, after)
        return np.maximum(weight, np.float32(1e-3))


def window_size(model: ISDNet, asked: int | None = None) -> int:
    """Side of the grid's windows in pixels: what was asked for, else the model's own; a multiple of 32."""
    size = asked or (model.header.window if model.header is not None else 512)
    return max(ALIGN, size // ALIGN * ALIGN)


class WindowPredictor(Enlarging):
    """One image under one network, window by window. Thread-safe; the network runs one window at a time.

    ``window`` is the side of a window (by default the model's), ``overlap`` by default a quarter of it, in pixels.
    ``branch`` asks what one branch alone would say (see :meth:`ISDNet.forward`); ``cache`` bounds the bytes of coarse
    logits that are kept.
    """

    def __init__(
        self,
        model: ISDNet,
        reader: Patches,
        placement: Placement,
        window: int | None = None,
        overlap: int | None = None,
        branch: Branch = "both",
        cache: int = CACHE_BYTES,
    ) -> None:
        check_size(reader.shape, MIN_SIDE)
        size = window_size(model, window)
        self.model, self.reader, self.placement, self.branch = model, reader, placement, branch
        self.grid = WindowGrid(reader.shape, size, size // 4 // ALIGN * ALIGN if overlap is None else overlap)
        self._upload = Upload(placement.device, reader.normal)
        self._coarse: Recent[Window, Tensor] = Recent(cache)
        self._lock = threading.Lock()

    @property
    def prepared(self) -> bool:
        """Windows need no preparation."""
        return True

    def prepare(self) -> Generator[Progress, None, None]:
        """Nothing to prepare (the same interface as :class:`~napari_isdnet.engine.streaming.WholeImage`)."""
        yield from ()

    def close(self) -> None:
        """Forget the cached logits."""
        with self._lock:
            self._coarse.clear()

    @torch.inference_mode()
    def coarse_logits(self, window: Window) -> Tensor:
        """Coarse logits (1, K, h, w) of one window of the grid, cached."""
        with self._lock:
            found = self._coarse.get(window)
            if found is None:
                with device_memory():
                    x = self._upload.tensor(self._upload.pixels(self.reader, window))
                    found = self.model.coarse_logits(x, self.branch).float()
                self._coarse.put(window, found)
            return found

    @torch.inference_mode()
    def logits(self, window: Window) -> Tensor:
        """Blended logits (1, K, h, w) of any level-0 window, float32, on the device."""
        total: Tensor | None = None
        device = self.placement.device
        weights = torch.zeros(window.shape, device=device)
        for tile in self.grid.touching(window):
            part = tile.intersect(window)
            coarse = self.coarse_logits(tile)
            fine = resize_bilinear(coarse, Place.whole(coarse), Place(part.relative_to(tile), tile.shape))
            if total is None:
                total = torch.zeros(1, fine.shape[1], *window.shape, device=device)
            rows, columns = part.relative_to(tile).slices
            ramp_rows = torch.from_numpy(self.grid.ramp(tile.row, tile.height, 0)[rows]).to(device)
            ramp_columns = torch.from_numpy(self.grid.ramp(tile.column, tile.width, 1)[columns]).to(device)
            weight = ramp_rows[:, None] * ramp_columns[None]
            into = part.relative_to(window).slices
            total[(..., *into)] += fine * weight
            weights[into] += weight
        assert total is not None, "the grid covers every pixel"
        return total.div_(weights)

    def fine(self, window: Window) -> Callable[[Window], Tensor]:  # noqa: ARG002 (windows are cached)
        """Blended logits (1, K, h, w), float32, of parts of a level-0 window."""
        return self.logits

    def labels_and_fine(self, window: Window) -> tuple[npt.NDArray[np.uint8], Callable[[Window], Tensor]]:
        """What ``labels`` and ``fine`` give, of windows that are cached."""
        return self.reader.mask(labels_by_strips(self.logits, window, STRIP), window), self.logits
