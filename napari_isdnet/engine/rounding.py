"""Weights rounded to bfloat16 so that what the layers compute changes least, not so that each weight changes least.

A convolution's weights, rounded each to the nearest of bfloat16's 8 bits, shift all its outputs the same way wherever
the inputs of neighbouring taps are alike, and depthwise layers have too few taps for the errors to cancel: most pixels
whose class changes in bfloat16 change for this. Choosing between the two neighbours of each weight by the error of the
output (as Nagel et al., 'Up or Down? Adaptive Rounding', ICML 2020, do for integers) costs no time in inference.
"""

from __future__ import annotations

import hashlib
from collections.abc import Set
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_isdnet.io.world import ProceduralWorld
from napari_isdnet.model.header import IMAGENET_MEAN, IMAGENET_STD
from napari_isdnet.model.isdnet import ISDNet
from napari_isdnet.window import Window

SIDE = 128
PLACES = tuple((row, column) for row in (600, 2000, 3400) for column in (500, 1900, 3300))
"""Corners of the pictures in the generated landscape on which inputs are measured."""
MOST_TAPS = 1200
"""Taps of an output channel up to which its weights are chosen; with more, nearest rounding averages out."""
MOST_POSITIONS = 2048
MOST_CHANGES = 24


def pictures(model: ISDNet) -> Tensor:
    """Normalised pictures (N, 3, SIDE, SIDE) that inputs of the layers are measured on: generated, always the same."""
    header = model.header
    mean, std = (header.mean, header.std) if header is not None else (IMAGENET_MEAN, IMAGENET_STD)
    return ((_generated() - torch.tensor(mean)) / torch.tensor(std)).permute(0, 3, 1, 2).contiguous()


@lru_cache(maxsize=1)
def _generated() -> Tensor:
    world = ProceduralWorld((4096, 4096))
    return torch.stack(
        [torch.from_numpy(world.read(Window(row, column, SIDE, SIDE), 0)) for row, column in PLACES]
    ).float()


@torch.inference_mode()
def round_weights(model: ISDNet, kept: set[nn.Module], floating: Set[nn.Module] = frozenset()) -> int:
    """Make the weights and biases of the convolutions of ``model`` (float32) bfloat16 numbers, in place.

    The biases of ``floating`` stay float32 numbers. They take in the mean of what the rounding of their layer's weights
    changes (as Nagel et al., ICCV 2019, correct biases), which leaves its scatter to the choice of the weights.

    Layers with more than :data:`MOST_TAPS` taps, and those of heads that only training needs, stay as they are, as do
    those of ``kept``. Returns how many convolutions were chosen for.
    """
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d) and layer not in kept and _taps(layer) <= MOST_TAPS
    }
    key = _fingerprint(model) + bytes([bool(floating)])
    known, rounded = _last.get("model", (b"", {}))
    if known != key:
        moments = _input_moments(model, layers, pictures(model))
        rounded = {}
        for name, found in moments.items():
            choose = _with_free_bias if layers[name] in floating else round_jointly
            rounded[name] = choose(_rows(layers[name]), found)
        _last["model"] = (key, rounded)
    for name, rows in rounded.items():
        layer = layers[name]
        layer.weight.copy_(rows[:, :-1].reshape(layer.weight.shape))
        if layer.bias is not None:
            layer.bias.copy_(rows[:, -1])
    return len(rounded)


_last: dict[str, tuple[bytes, dict[str, Tensor]]] = {}
"""The last model's outcome: a window asks for the same again whenever its settings change."""


def _fingerprint(model: ISDNet) -> bytes:
    digest = hashlib.sha256(repr(model.header).encode())
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.contiguous().numpy().data)
    return digest.digest()


def round_jointly(values: Tensor, moments: Tensor) -> Tensor:
    """``values`` rounded to bfloat16 numbers, up or down, so that the mean squared error of the products is small.

    Starting from the nearest numbers, the change that helps most is made in every row until none helps, or
    :data:`MOST_CHANGES` times; so the error is never larger than that of the nearest.

    :param values: (O, T) float32, a row of taps (and a bias) for every output channel.
    :param moments: (G, T, T), mean products of what a group's taps are multiplied with; G divides O.
    :return: (O, T) float32.
    """
    count, groups = len(values), len(moments)
    group = torch.arange(count) // (count // groups)
    nearest = values.bfloat16()
    error = nearest.float() - values
    step = _other_neighbour(values, nearest).float() - nearest.float()
    power = torch.diagonal(moments, dim1=1, dim2=2)[group]
    slope = (error.view(groups, count // groups, -1) @ moments).view(count, -1)
    for _ in range(MOST_CHANGES):
        best, tap = (step * (2 * slope + step * power)).min(1)  # change of the squared error, were this tap changed
        rows = torch.nonzero(best < -1e-4 * (error * slope).sum(1).abs())[:, 0]
        if not len(rows):
            break
        tap = tap[rows]
        change = step[rows, tap]
        error[rows, tap] += change
        step[rows, tap] = -change
        slope[rows] += change[:, None] * moments[group[rows], tap]
    return (values + error).bfloat16().float()  # the sum is such a number but for float32's own rounding


def _with_free_bias(values: Tensor, moments: Tensor) -> Tensor:
    """As :func:`round_jointly` for rows whose last number, the bias, may be any: it makes up for the mean error."""
    mean = moments[:, -1, :-1]
    scatter = moments[:, :-1, :-1] - mean[:, :, None] * mean[:, None, :]
    weights = values[:, :-1].contiguous()
    rounded = round_jointly(weights, scatter)
    group = torch.arange(len(values)) // (len(values) // len(moments))
    shift = ((rounded - weights) * mean[group]).sum(1)
    return torch.cat([rounded, (values[:, -1] - shift)[:, None]], 1)


def _taps(layer: nn.Conv2d) -> int:
    return layer.weight[0].numel()


def _rows(layer: nn.Conv2d) -> Tensor:
    bias = torch.zeros(layer.out_channels) if layer.bias is None else layer.bias
    return torch.cat([layer.weight.flatten(1), bias[:, None]], 1)


def _other_neighbour(values: Tensor, nearest: Tensor) -> Tensor:
    """The bfloat16 number on the other side of each value; the same where the value is one, or beyond all of them."""
    toward_zero = nearest.float().abs() > values.abs()
    bits = nearest.view(torch.int16) + torch.where(toward_zero, -1, 1).to(torch.int16)
    other = bits.view(torch.bfloat16)
    return torch.where((nearest.float() == values) | ~other.isfinite(), nearest, other)


def _input_moments(model: ISDNet, layers: dict[str, nn.Conv2d], x: Tensor) -> dict[str, Tensor]:
    """Mean products (G, T + 1, T + 1) of the inputs that meet at an output, with a one for the bias, by layer."""
    names = {layer: name for name, layer in layers.items()}
    found: dict[str, Tensor] = {}

    def measure(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, nn.Conv2d)
        taps = _meeting(layer, args[0]).transpose(0, 1).reshape(layer.groups, _taps(layer), -1)
        taps = torch.cat([taps, torch.ones_like(taps[:, :1])], 1)
        found[names[layer]] = taps @ taps.transpose(1, 2) / taps.shape[2]

    hooks = [layer.register_forward_pre_hook(measure) for layer in names]
    try:
        model.coarse_logits(x)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _meeting(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """(B, C * kernel, positions): the inputs that meet at outputs, of which a regular grid is enough."""
    outputs = x.numel() / x.shape[1] / (layer.stride[0] * layer.stride[1])
    apart = max(1, round((outputs / MOST_POSITIONS) ** 0.5))
    rows, columns = (stride * apart for stride in layer.stride)
    if layer.kernel_size == (1, 1):
        return x[:, :, ::rows, ::columns].flatten(2)
    padding = (0, 0) if isinstance(layer.padding, str) else layer.padding  # the border is not worth more
    return F.unfold(x, layer.kernel_size, layer.dilation, padding, (rows, columns))  # type: ignore[arg-type]
