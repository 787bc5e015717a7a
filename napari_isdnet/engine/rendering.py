"""Feature maps as pictures: principal components, one channel, norm, similarity to a chosen cell. Numpy only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Picture = npt.NDArray[np.uint8]
Kind = Literal["pca", "color", "channel", "norm", "similarity"]
KINDS: dict[Kind, str] = {
    "pca": "PCA to RGB",
    "color": "Channels as RGB",
    "channel": "Single channel",
    "norm": "Norm",
    "similarity": "Similarity to a pixel",
}
# Nine stops each of matplotlib's perceptually uniform maps, linear between them.
_STOPS = {
    "viridis": "440154 472d7b 3b528b 2c728e 21918c 28ae80 5ec962 addc30 fde725",
    "magma": "000004 1d1147 51127c 822681 b63679 e65164 fb8861 fec287 fcfdbf",
}


@dataclass(frozen=True)
class Basis:
    """What a map looks like over the whole image: everything that fixes the colours of a region.

    ``mean`` (C,); ``axes`` (3, C), the first principal axes, rows of unit length; ``explained`` their shares of the
    variance; ``order`` the channels by falling variance; ``low`` and ``high`` the 1st and 99th percentiles of the
    three components; ``channel_low/high`` (C,) of the channels; ``norm_range`` of the L2 norm.
    """

    mean: Array
    axes: Array
    explained: tuple[float, float, float]
    low: Array
    high: Array
    order: npt.NDArray[np.intp]
    variance: Array
    channel_low: Array
    channel_high: Array
    norm_range: tuple[float, float]


@dataclass(frozen=True)
class Rendering:
    """How a map is shown: ``channel`` for 'channel', the ``reference`` vector (C,) and ``limits`` for 'similarity'."""

    kind: Kind = "pca"
    channel: int = 0
    reference: Array | None = field(default=None, compare=False)
    limits: tuple[float, float] = (-1.0, 1.0)


def fit_basis(sample: Array) -> Basis:
    """The basis of a sample (n, C) of cells; constant channels and maps of fewer than three channels are fine."""
    sample = np.asarray(sample, np.float32)
    channels = sample.shape[1]
    mean = sample.mean(0, dtype=np.float64)
    centred = sample - mean
    covariance = centred.T @ centred / max(1, len(sample) - 1)
    values, vectors = np.linalg.eigh(covariance)
    axes = np.zeros((3, channels))
    kept = min(3, channels)
    axes[:kept] = vectors[:, ::-1].T[:kept]
    for axis in axes[:kept]:  # the sign of an eigenvector is arbitrary: fix it, so that colours are the same each time
        axis *= np.sign(axis[np.argmax(np.abs(axis))]) or 1.0
    total = max(float(values.sum()), 1e-30)
    shares = [float(max(v, 0.0)) / total for v in values[::-1][:kept]] + [0.0] * (3 - kept)
    low, high = _range(centred @ axes.T)
    channel_low, channel_high = _range(sample)
    norm_low, norm_high = _range(_norm(sample)[:, None])
    variance = np.diag(covariance)
    return Basis(
        mean.astype(np.float32), axes.astype(np.float32), (shares[0], shares[1], shares[2]),
        low, high, np.argsort(-variance, kind="stable"), variance.astype(np.float32),
        channel_low, channel_high, (float(norm_low[0]), float(norm_high[0])),
    )  # fmt: skip


def _range(values: npt.NDArray[Any]) -> tuple[Array, Array]:
    low, high = np.percentile(values, (1, 99), axis=0)
    spread = np.maximum(high - low, 1e-12 + 1e-6 * np.abs(high))
    return low.astype(np.float32), (low + spread).astype(np.float32)


def _norm(values: Array) -> Array:
    norm: Array = np.sqrt(np.einsum("...c,...c->...", values, values))
    return norm


def similarity(values: Array, reference: Array) -> Array:
    """Cosine between every cell of (..., C) and ``reference`` (C,), -1 to 1; 0 where a vector is zero."""
    length = _norm(values) * float(np.linalg.norm(reference))
    return np.divide(values @ reference, length, out=np.zeros_like(length), where=length > 1e-12)


def similar_to(reference: Array, sample: Array) -> Rendering:
    """Similarity to ``reference``, its contrast from the median of the map's ``sample`` (n, C) to 1.

    Features after a ReLU resemble each other: of the cosines, which are then all large, the upper half tells something.
    """
    lowest = float(np.percentile(similarity(sample, reference), 50))
    return Rendering("similarity", reference=reference, limits=(min(lowest, 0.98), 1.0))


def paint(values: Array, basis: Basis, rendering: Rendering) -> Picture:
    """(h, w, C) to opaque RGBA (h, w, 4)."""
    if rendering.kind == "pca":
        components = (values - basis.mean) @ basis.axes.T
        return _opaque(_stretched(components, basis.low, basis.high))
    if rendering.kind == "color":
        # One stretch for all channels, so that grey stays grey.
        low, high = float(basis.channel_low.min()), float(basis.channel_high.max())
        return _opaque(_stretched(values[..., [min(c, values.shape[-1] - 1) for c in range(3)]], low, high))
    if rendering.kind == "channel":
        c = rendering.channel
        grey = _stretched(values[..., c], basis.channel_low[c], basis.channel_high[c])
    elif rendering.kind == "norm":
        grey = _stretched(_norm(values), *basis.norm_range)
    else:
        assert rendering.reference is not None, "a similarity needs a reference"
        grey = _stretched(similarity(values, rendering.reference), *rendering.limits)
    return _opaque(colormap("magma" if rendering.kind == "similarity" else "viridis")[grey])


def _stretched(values: npt.NDArray[Any], low: Any, high: Any) -> Picture:
    scaled: Picture = np.rint(np.clip((values - low) * (255.0 / (high - low)), 0, 255)).astype(np.uint8)
    return scaled


def _opaque(rgb: Picture) -> Picture:
    return np.concatenate([rgb, np.full((*rgb.shape[:-1], 1), 255, np.uint8)], axis=-1)


def colormap(name: str) -> Picture:
    """256 colours (256, 3) of 'viridis' or 'magma'."""
    stops = np.array([list(bytes.fromhex(stop)) for stop in _STOPS[name].split()], np.float64)
    at = np.linspace(0, len(stops) - 1, 256)
    table = [np.interp(at, np.arange(len(stops)), stops[:, channel]) for channel in range(3)]
    return np.rint(np.stack(table, axis=1)).astype(np.uint8)


def kinds_for(channels: int) -> tuple[Kind, ...]:
    """The renderings that make sense for a map, the usual one first."""
    if channels == 3:
        return ("color", "pca", "channel", "norm", "similarity")
    return ("pca", "channel", "norm", "similarity")
