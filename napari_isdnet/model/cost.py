"""What a network costs: parameters, and multiply-accumulates for an image, counted without computing anything."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from napari_isdnet.model.config import ISDNetConfig
from napari_isdnet.model.isdnet import ISDNet, Unfilled

PAPER_SIZE = (2448, 2448)


@dataclass(frozen=True)
class Cost:
    """``parameters`` used at inference, ``training_parameters`` with the training-only heads, ``macs`` per image."""

    parameters: int
    training_parameters: int
    macs: int
    size: tuple[int, int]


@lru_cache(maxsize=64)
def count_cost(config: ISDNetConfig, size: tuple[int, int] = PAPER_SIZE) -> Cost:
    """Count one forward pass of the inference network on an image of ``size`` (rows, columns).

    Convolutions and matrix products are counted (one multiply-accumulate is two of torch's flops), as in the tables of
    the field; batch norm, activations and interpolation are left out. Runs on torch's meta device: no memory, no time.
    """
    with torch.device("meta"):
        with Unfilled():
            model = ISDNet(config.inference()).eval()
            full = ISDNet(config)
        image = torch.empty(1, 3, *size)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(image)
    return Cost(
        parameters=sum(p.numel() for p in model.parameters()),
        training_parameters=sum(p.numel() for p in full.parameters()),
        macs=counter.get_total_flops() // 2,
        size=size,
    )
