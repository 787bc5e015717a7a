"""The inference modes of the speed benchmark: what turns a network into a function from an image to a label map."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from napari_isdnet_training.benchmark.refine import Refine
from napari_isdnet_training.registry import Network
from torch import Tensor

from napari_isdnet.engine.device import Placement, prepare
from napari_isdnet.engine.enlarge import classes_of
from napari_isdnet.exceptions import InputError
from napari_isdnet.model.isdnet import ISDNet
from napari_isdnet.model.layers import Place
from napari_isdnet.window import Window

Labelling = Callable[[Tensor], Tensor]

SCALES = {"whole": 1.0, "half": 0.5, "quarter": 0.25}


def best_class(coarse: Tensor, size: tuple[int, int]) -> Tensor:
    """Class indices (H, W) uint8 of logits (1, K, h, w) enlarged to ``size``; on a processor as the engine does it."""
    if coarse.device.type == "cpu":
        return classes_of(coarse, Place.whole(coarse), Place(Window.whole(size), size))
    fine = F.interpolate(coarse, size=size, mode="bilinear", align_corners=False)
    return fine[0].argmax(0).to(torch.uint8)


def place(network: Network, placement: Placement, prepared: bool) -> Network:
    """The network ready to run: as it is (eager), or in the form that infers fastest."""
    network = network.eval().requires_grad_(False)
    if isinstance(network.net, ISDNet) and prepared:
        network.net = prepare(network.net, placement)
        return network
    network = network.to(placement.device)
    if prepared:
        # The generic nets get what every user can give them: channels last and the same arithmetic.
        network = network.to(placement.dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def labelling(
    network: Network, placement: Placement, mode: str, prepared: bool, tile: int, overlap: int,
    refine: Refine | None = None,
) -> Labelling:  # fmt: skip
    """``image (1, 3, H, W) float32 -> labels (H, W) uint8`` for a placed network in a mode.

    ``refine`` makes the labels from the image and the enlarged probabilities, of baselines in any mode but tiles.
    """
    if isinstance(network.net, ISDNet):
        net = network.net

        def ours(x: Tensor) -> Tensor:
            if prepared:
                return best_class(net.coarse_logits(x), (x.shape[2], x.shape[3]))
            return net(x).logits[0].argmax(0).to(torch.uint8)

        return ours

    def logits(x: Tensor) -> Tensor:
        if prepared:
            x = x.to(placement.dtype).contiguous(memory_format=torch.channels_last)
        return network.logits(x)

    if mode == "local":
        return lambda x: _local(logits, x, tile, overlap)
    if mode == "global":
        return lambda x: _scaled(logits, x, min(1.0, tile / max(x.shape[2:])), refine)
    if mode not in SCALES:
        raise InputError(f"There is no mode '{mode}'; allowed are {', '.join(SCALES)}, local and global.")
    return lambda x: _scaled(logits, x, SCALES[mode], refine)


def _scaled(logits: Callable[[Tensor], Tensor], x: Tensor, scale: float, refine: Refine | None) -> Tensor:
    size = (x.shape[2], x.shape[3])
    if scale == 1.0:
        values = logits(x)
    else:
        small = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
        values = logits(F.interpolate(x, size=small, mode="bilinear", antialias=not x.is_cuda, align_corners=False))
        values = F.interpolate(values, size=size, mode="bilinear", align_corners=False)
    if refine is not None:
        return refine(x, values[0].float().softmax(0))
    return values[0].argmax(0).to(torch.uint8)


def tiles(shape: tuple[int, int], tile: int, overlap: int) -> list[tuple[int, int]]:
    """Top-left corners of the tiles that cover an image; the last of a row or column ends at the border."""
    starts = []
    for length in shape:
        last = max(0, length - tile)
        starts.append([*range(0, last, tile - overlap), last])
    return [(row, column) for row in starts[0] for column in starts[1]]


def _local(logits: Callable[[Tensor], Tensor], x: Tensor, tile: int, overlap: int) -> Tensor:
    result = torch.empty(x.shape[2:], dtype=torch.uint8, device=x.device)
    half = overlap // 2
    for row, column in tiles((x.shape[2], x.shape[3]), tile, overlap):
        part = x[:, :, row : row + tile, column : column + tile]
        labels = logits(part)[0].argmax(0).to(torch.uint8)
        top, left = (half if row else 0), (half if column else 0)
        result[row + top : row + labels.shape[0], column + left : column + labels.shape[1]] = labels[top:, left:]
    return result


def multiply_adds(network: Network, shape: tuple[int, int], mode: str, tile: int, overlap: int) -> float:
    """Multiply-adds of the convolutions and matrix products for one image, counted without computing.

    ``network`` is moved to the meta device and cannot be used afterwards.
    """
    from torch.utils.flop_counter import FlopCounterMode

    size, count = shape, 1
    if mode == "local":
        count = len(tiles(shape, tile, overlap))
        size = (min(tile, shape[0]), min(tile, shape[1]))
    else:
        scale = min(1.0, tile / max(shape)) if mode == "global" else SCALES[mode]
        size = (max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale)))
    network = network.eval().to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.logits(torch.empty(1, 3, *size, device="meta"))
    return counter.get_total_flops() / 2 * count
