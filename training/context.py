"""Means over the image, as a network will meet them on scenes much larger than the crops that it learns from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from napari_isdnet.model.heads import PooledConv


def mix_context(network: nn.Module) -> int:
    """From now on, mix what ``network`` pools over each crop with the batch's mean of it, while it trains.

    The share of the batch's mean is drawn anew for every crop and layer, from 0 to 1. The pooled features of a crop say
    what is near; those of a whole scene are the mean of many places, and a network that never met such means gives them
    too much weight. Returns how many layers pool; evaluation and inference are unchanged.
    """
    layers = [module for module in network.modules() if isinstance(module, PooledConv)]
    for layer in layers:
        layer.register_forward_pre_hook(_mixed)
    return len(layers)


def _mixed(layer: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor] | None:
    pooled: Tensor = args[0]
    if not layer.training or not torch.is_grad_enabled() or len(pooled) < 2:
        return None
    share = torch.rand(len(pooled), 1, 1, 1, device=pooled.device)
    common = pooled.float().mean(0, keepdim=True).expand_as(pooled)
    return (torch.lerp(pooled.float(), common, share).to(pooled.dtype),)
