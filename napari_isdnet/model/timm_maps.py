"""Feature maps of timm's networks for images of any sides, and a sentence for those that take no such image."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_isdnet.exceptions import InputError

SIDE = 32
"""What a side is a multiple of when padded: the coarsest stride of most networks, and what windows are aligned to
(``ALIGN`` of :mod:`napari_isdnet.engine.halo`), so that a window is padded as the whole image is."""

ANY_SIDES = frozenset({"tf_efficientnet_lite0"})
"""Networks that the tests try (``tests/test_timm_maps.py``), so that no start has to wait for it."""

_padding: dict[tuple[str, tuple[int, ...]], bool] = {}
"""By network and strides, since a trial takes two forwards of a small image."""


def to_whole_sides(x: Tensor) -> Tensor:
    """(B, C, H, W) with its last row and column repeated until :data:`SIDE` divides the sides."""
    height, width = x.shape[2:]
    return F.pad(x, (0, -width % SIDE, 0, -height % SIDE), mode="replicate") if height % SIDE or width % SIDE else x


class TimmMaps(nn.Module):
    """Some feature maps of a timm network (made with ``features_only``), whose sizes are those of the image at their
    strides, rounded up.

    Some networks take sides that 32 divides only (HRNet, DLA, TResNet), or drop the pixels beyond (ConvNeXt, VGG): an
    image is padded for them, and the maps are cut. What takes any sides gets the image as it is. Raises
    :class:`InputError` for a network that takes pictures of its own size only (Swin, ViT).
    """

    def __init__(self, body: Any, name: str, strides: Sequence[int], in_channels: int = 3) -> None:
        super().__init__()
        self.body, self._strides, self._in_channels = body, tuple(strides), in_channels
        self._channels = tuple(body.feature_info.channels())[-len(self._strides) :]
        self._pads = False
        known = False if name in ANY_SIDES else _padding.get((name, self._strides))
        self._pads = self._needs_padding(name) if known is None else known

    def _needs_padding(self, name: str) -> bool:
        own = self.body
        # Of zeros: weights that are yet to be filled may be any, and numbers near to zero are a hundred times slower.
        self.body = copy.deepcopy(own).eval().requires_grad_(False)
        for weight in self.body.parameters():
            weight.zero_()
        like = next(own.parameters())
        as_it_is = self._tried(like)
        self._pads = True
        padded = as_it_is if as_it_is is True else self._tried(like)
        self.body = own
        if like.is_meta:  # a network that is only measured: torch knows less of what works there
            return as_it_is is not True
        if isinstance(as_it_is, Exception) and padded is not True:
            raise InputError(
                f"The backbone '{name}' takes pictures of its own size only, and images have any; choose another, such"
                " as tf_efficientnet_lite0 or resnet18."
            ) from as_it_is
        # Where neither gives those sizes (Inception), it stays what it is: to be run on whole images.
        return _padding.setdefault((name, self._strides), padded is True and as_it_is is not True)

    @torch.no_grad()
    def _tried(self, like: Tensor) -> bool | Exception:
        """Whether images of two sizes have the maps that they should, or the error that the network raises of them."""
        right = True
        for size in ((65, 91), (64, 160)):
            try:
                shapes = [m.shape[2:] for m in self.maps(like.new_zeros(1, self._in_channels, *size))]
            except Exception as error:  # timm's networks check their input with whatever they like
                return error
            right &= shapes == [tuple(-(-n // stride) for n in size) for stride in self._strides]
        return right

    def maps(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W) to the maps of all strides, (B, C', H / stride, W / stride)."""
        height, width = x.shape[2:]
        maps = self.body(to_whole_sides(x) if self._pads else x)[-len(self._strides) :]
        # Some networks have their channels last; a map may be as high as it has channels.
        last = getattr(self.body, "output_fmt", "NCHW") == "NHWC"
        maps = [
            m.permute(0, 3, 1, 2) if last or m.shape[1] != c else m for m, c in zip(maps, self._channels, strict=True)
        ]
        if not self._pads:
            return maps
        return [m[:, :, : -(-height // s), : -(-width // s)] for m, s in zip(maps, self._strides, strict=True)]
