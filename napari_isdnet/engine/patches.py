"""From pixels of a source to normalised patches of the network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from napari_isdnet.classes import IGNORE_INDEX
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.intensity import IntensityPolicy
from napari_isdnet.io.source import ImageSource, TileError, read_channels
from napari_isdnet.model.header import IMAGENET_MEAN, IMAGENET_STD
from napari_isdnet.window import Window

if TYPE_CHECKING:
    from napari_isdnet.model.isdnet import ISDNet

NORMALISED_AT_ONCE = 1 << 18  # bytes
SMALLEST_READ = 64
"""Side in pixels of the smallest window that is read around a tile which cannot be decoded."""


class Policy(Protocol):
    """What the intensity policy offers (see ``napari_isdnet.io.intensity``)."""

    def apply(self, raw: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_] | None]:
        """(h, w, C) samples to RGB on the 0..255 scale, and which pixels are valid (None: all)."""

    def keeps(self, raw: npt.NDArray[Any]) -> bool:
        """True when :meth:`apply` would change no value of (h, w, C) samples, and all are valid."""

    def valid(self, raw: npt.NDArray[Any]) -> npt.NDArray[np.bool_] | None:
        """Which pixels of (h, w, C) samples are valid (None: all), without the colours."""


class Patches(Protocol):
    """Where a predictor gets its patches from: a :class:`PatchReader`, or one that turns what it reads."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the image."""

    @property
    def normal(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Mean and deviation (3,) by which colours on the 0..255 scale are normalised."""

    def read(self, window: Window) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_] | None]:
        """Normalised (h, w, 3) of a window, and its valid mask (None: all valid)."""

    def stored(self, window: Window) -> npt.NDArray[Any]:
        """As :meth:`read` without the mask; 8-bit colours that need no more than normalising come as they are."""

    def mask(self, labels: npt.NDArray[np.uint8], window: Window) -> npt.NDArray[np.uint8]:
        """``labels`` of a window, set to 255 where the image has no valid pixel."""


class PatchReader:
    """Reads windows of an image as normalised float32 patches (h, w, 3).

    Invalid pixels (nodata, transparent, NaN, or tiles that cannot be read where ``skip_bad_tiles``) become the mean
    colour, zero after normalisation; ``valid`` says where they are. ``bad`` lists the parts of the windows given to
    :meth:`mask` that could not be read, for whoever records them to clear; the windows that a network reads overlap.
    """

    def __init__(self, source: ImageSource, policy: Policy, model: ISDNet, skip_bad_tiles: bool = False) -> None:
        header = model.header
        mean, std = (header.mean, header.std) if header is not None else (IMAGENET_MEAN, IMAGENET_STD)
        self.source, self.policy, self.skip_bad_tiles = source, policy, skip_bad_tiles
        self._channels: tuple[int, ...] = tuple(range(source.channels))
        if isinstance(policy, IntensityPolicy) and len(policy.needed) < source.channels:
            self._channels, self.policy = policy.needed, policy.of_needed()
        self.normal = (np.asarray(mean, np.float32), np.asarray(std, np.float32))
        self.shape = source.shape
        self.bad: list[Window] = []

    def read(self, window: Window) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_] | None]:
        """Normalised (h, w, 3) of a window inside the image, and its valid mask (None: all valid)."""
        raw = self._raw(window)
        if raw is None:
            return self._salvage(window)
        rgb, valid = self.policy.apply(raw)
        return self._normalise(rgb, valid), valid

    def stored(self, window: Window) -> npt.NDArray[Any]:
        """As :meth:`read` without the mask; 8-bit colours that need no more than normalising come as they are (uint8).

        For a device that normalises faster than this process, over a way on which a quarter of the bytes counts.
        """
        raw = self._raw(window)
        if raw is None:
            return self._salvage(window)[0]
        return raw if self.policy.keeps(raw) else self._normalise(*self.policy.apply(raw))

    @property
    def pixel_bytes(self) -> int:
        """Bytes that a pixel takes as it is read: of the channels that the policy needs."""
        return len(self._channels) * self.source.dtype.itemsize

    def _read(self, window: Window) -> npt.NDArray[Any]:
        return read_channels(self.source, window, self._channels)

    def _raw(self, window: Window) -> npt.NDArray[Any] | None:
        """Samples as stored; None where they cannot be read and that is to be put up with."""
        try:
            return self._read(window)
        except TileError:
            if not self.skip_bad_tiles:
                raise
            return None

    def _normalise(self, rgb: npt.NDArray[np.float32], valid: npt.NDArray[np.bool_] | None) -> npt.NDArray[np.float32]:
        """``rgb`` (h, w, 3), which the policy made for us, normalised in place."""
        # Whole rows at a time, which numpy does in one vector loop, and few of them, so that they stay in the cache.
        rgb = np.ascontiguousarray(rgb)
        rows = rgb.reshape(rgb.shape[0], rgb.shape[1] * 3)
        mean, std = (np.tile(v, rgb.shape[1]) for v in self.normal)
        step = max(1, NORMALISED_AT_ONCE // max(1, mean.nbytes))
        for top in range(0, len(rows), step):
            part = rows[top : top + step]
            part -= mean
            part /= std
        if valid is not None:
            rgb[~valid] = 0
        return rgb

    def _salvage(
        self, window: Window, bad: list[Window] | None = None
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Read what can be read around bad tiles, halving the window; what cannot be read is appended to ``bad``."""
        patch = np.zeros((*window.shape, 3), np.float32)
        mask = np.zeros(window.shape, np.bool_)
        if max(window.shape) <= SMALLEST_READ:
            if bad is not None:
                bad.append(window)
            return patch, mask
        rows, columns = -(-window.height // 2), -(-window.width // 2)
        for top in range(0, window.height, rows):
            for left in range(0, window.width, columns):
                part = Window(
                    window.row + top,
                    window.column + left,
                    min(rows, window.height - top),
                    min(columns, window.width - left),
                )
                try:
                    rgb, valid = self.policy.apply(self._read(part))
                    values, ok = self._normalise(rgb, valid), np.ones(part.shape, np.bool_) if valid is None else valid
                except TileError:
                    values, ok = self._salvage(part, bad)
                inside = part.relative_to(window).slices
                patch[inside], mask[inside] = values, ok
        return patch, mask

    def mask(self, labels: npt.NDArray[np.uint8], window: Window) -> npt.NDArray[np.uint8]:
        """``labels`` of a window, set to 255 where the image has no valid pixel."""
        if not self.may_mask:
            return labels
        raw = self._raw(window)
        valid = self._salvage(window, self.bad)[1] if raw is None else self.policy.valid(raw)
        if valid is not None:
            labels[~valid] = IGNORE_INDEX
        return labels

    @property
    def may_mask(self) -> bool:
        """False when every pixel is known to be valid without reading it."""
        source = self.source
        return (
            self.skip_bad_tiles
            or source.nodata is not None
            or source.alpha is not None
            or np.issubdtype(source.dtype, np.floating)
        )


def as_tensor(patch: npt.NDArray[Any] | Tensor, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """(h, w, C) to (1, C, h, w) in channels-last memory, without a copy on the CPU where the type allows."""
    if isinstance(patch, Tensor):
        tensor = patch.contiguous()
    else:
        tensor = torch.from_numpy(np.ascontiguousarray(patch))
        if device.type == "cuda":
            tensor = tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device, dtype).permute(2, 0, 1).unsqueeze(0)


def as_values(tensor: Tensor, dtype: np.dtype[Any]) -> Tensor:
    """(1, C, h, w) to (h, w, C) in the storage type, where it lies; float16 is clamped rather than made infinite."""
    values = tensor[0].permute(1, 2, 0).float()
    if dtype == np.float16:
        values = values.clamp(-65504, 65504).half()
    return values.contiguous()


def as_array(tensor: Tensor, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """As :func:`as_values`, for the CPU."""
    return as_values(tensor, dtype).cpu().numpy()


def check_size(shape: tuple[int, int], smallest: int) -> None:
    """Refuse images that are smaller than the network's strides."""
    if min(shape) < smallest:
        raise InputError(
            f"The image is {shape[0]} x {shape[1]} pixels; the network needs at least {smallest} on each side."
        )
