"""Context heads on the deep features: DeepLabv3's ASPP, PSPNet's pyramid pooling, SegFormer's all-MLP decoder.

Each head is written in two halves so that a whole image can be streamed: what it pools over the *whole* map
(``bins``, ``context``) and what is local (``local``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_isdnet.model.config import ISDNetConfig
from napari_isdnet.model.layers import ConvBNReLU, Place, PooledBatchNorm2d, resize_bilinear


class PooledConv(nn.Module):
    """1x1 convolution, batch norm (optional) and ReLU (optional) of a pooled map."""

    def __init__(self, in_channels: int, out_channels: int, relu: bool = True, norm: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=not norm)
        self.bn = PooledBatchNorm2d(out_channels) if norm else nn.Identity()
        self.relu = nn.ReLU() if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, n, n) to (B, C', n, n)."""
        return self.relu(self.bn(self.conv(x.to(self.conv.weight.dtype))))


class ContextHead(nn.Module):
    """Base of all heads: (B, C, h, w) deep features to (B, channels, h, w).

    ``bins`` are the sizes of the adaptive average pools that the head takes over the whole map.
    """

    bins: tuple[int, ...] = ()

    def context(self, pooled: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, C', n, n) made of the pools (B, C, n, n), one for each of ``bins``."""
        return list(pooled)

    def local(self, x: Tensor, context: Sequence[Tensor], place: Place) -> Tensor:
        """The head on a patch that lies at ``place`` of the whole map."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """The head on a whole map."""
        pooled = [F.adaptive_avg_pool2d(x, n) for n in self.bins]
        return self.local(x, self.context(pooled), Place.whole(x))


class ASPPHead(ContextHead):
    """DeepLabv3 without its classifier: four dilated branches, image pooling, 3x3 bottleneck (Chen et al. 2017)."""

    bins = (1,)

    def __init__(self, in_channels: int, channels: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.pool = PooledConv(in_channels, channels)
        self.branches = nn.ModuleList(
            ConvBNReLU(in_channels, channels, 1 if d == 1 else 3, dilation=d) for d in dilations
        )
        self.bottleneck = ConvBNReLU((len(dilations) + 1) * channels, channels)

    def context(self, pooled: Sequence[Tensor]) -> list[Tensor]:
        """The projected image pool."""
        return [self.pool(pooled[0])]

    def local(self, x: Tensor, context: Sequence[Tensor], place: Place) -> Tensor:  # noqa: ARG002
        """See :class:`ContextHead`; the image pool is constant over the map."""
        parts = [context[0].to(x.dtype).expand(-1, -1, *x.shape[2:]), *(branch(x) for branch in self.branches)]
        return self.bottleneck(torch.cat(parts, dim=1))


class PSPHead(ContextHead):
    """PSPNet without its classifier: pools of 1, 2, 3 and 6 bins beside the features (Zhao et al. 2017)."""

    bins = (1, 2, 3, 6)

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.pools = nn.ModuleList(PooledConv(in_channels, channels) for _ in self.bins)
        self.bottleneck = ConvBNReLU(in_channels + len(self.bins) * channels, channels)

    def context(self, pooled: Sequence[Tensor]) -> list[Tensor]:
        """The projected pools."""
        return [conv(pool) for conv, pool in zip(self.pools, pooled)]

    def local(self, x: Tensor, context: Sequence[Tensor], place: Place) -> Tensor:
        """See :class:`ContextHead`; pools are enlarged in the coordinates of the whole map."""
        parts = [x, *(resize_bilinear(c.to(x.dtype), Place.whole(c), place) for c in context)]
        return self.bottleneck(torch.cat(parts, dim=1))


class MLPHead(ContextHead):
    """SegFormer's all-MLP decoder on concatenated stages.

    Its per-stage linear layers and the fusing layer are linear with nothing between them, so one 1x1 convolution on the
    enlarged and concatenated stages is the same function (Xie et al. 2021, Section 3.2).
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.fuse = ConvBNReLU(in_channels, channels, 1)

    def local(self, x: Tensor, context: Sequence[Tensor], place: Place) -> Tensor:  # noqa: ARG002
        """See :class:`ContextHead`."""
        return self.fuse(x)


def build_head(config: ISDNetConfig, in_channels: int) -> ContextHead:
    """The context head of a configuration."""
    if config.deep_head == "pspnet":
        return PSPHead(in_channels, config.channels)
    if config.deep_head == "segformer":
        return MLPHead(in_channels, config.channels)
    dilations = (1, 12, 24, 36) if config.deep_stride == 8 else (1, 6, 12, 18)
    return ASPPHead(in_channels, config.channels, dilations)
