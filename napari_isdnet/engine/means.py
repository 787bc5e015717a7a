"""The only things that cross the barriers of whole-image inference: means over whole maps, summed in float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from napari_isdnet.window import Window

Vector = npt.NDArray[np.float64]
NAMES = ("shallow16", "shallow8", "deep16", "fused")
WIDENED_BYTES = 64 * 2**20
"""Of values that are summed at once on a device: a card widens all of them to float64 first."""


@dataclass
class Means:
    """Global means of one image under one network.

    ``pools`` are the adaptive average pools (C, n, n) that the context head wants of the deep features, one for each of
    its bins; ``vectors`` the means (C,) of the projected maps ``shallow16``, ``shallow8``, ``deep16`` and ``fused``.
    """

    pools: list[Vector] | None = None
    vectors: dict[str, Vector] = field(default_factory=dict)

    def has(self, *names: str) -> bool:
        """True when all those vectors are known."""
        return all(name in self.vectors for name in names)

    @property
    def complete(self) -> bool:
        """True when a region can be inferred without preparing anything."""
        return self.pools is not None and self.has(*NAMES)

    def vector(self, name: str) -> Vector:
        """One mean (C,)."""
        return self.vectors[name]

    def to_arrays(self) -> dict[str, Vector]:
        """As named arrays, for a file."""
        # In the order of their axes: a file of safetensors holds the memory as it lies, whatever the strides say.
        pools = {f"pool{i}": np.ascontiguousarray(p) for i, p in enumerate(self.pools or [])}
        return {**pools, **self.vectors}

    @classmethod
    def from_arrays(cls, arrays: dict[str, Vector]) -> Means:
        """Inverse of :meth:`to_arrays`."""
        pools = [arrays[f"pool{i}"] for i in range(sum(k.startswith("pool") for k in arrays))]
        return cls(pools, {k: v for k, v in arrays.items() if not k.startswith("pool")})


class MeanSums:
    """Partial sums per unit of a map, reduced in unit order, so that a resumed job sums exactly as an unbroken one."""

    def __init__(self, bins: Sequence[int], deep: tuple[int, int]) -> None:
        self.bins, self.deep = tuple(bins), deep
        self._parts: dict[str, dict[int, Vector | Tensor]] = {}

    def add(self, name: str, unit: int, sums: Vector) -> None:
        """Take the sums of a unit that was done before."""
        self._parts.setdefault(name, {})[unit] = sums

    def measure(self, name: str, unit: int, values: npt.NDArray[np.generic] | Tensor, window: Window) -> None:
        """Sum a unit's stored values (height, width, channels), where they lie, and keep the sums.

        Those of a tensor stay on its device until a barrier wants them: nothing is waited for.
        """
        if name == "backbone":
            parts = [_sum(values[where]) for n in self.bins for where in self._bins(window, n)]
        elif name in NAMES:
            total = _sum(values)
            parts = [total, _number(total, window.area)]
        else:
            parts = []
        self._parts.setdefault(name, {})[unit] = _joined(parts)

    def of(self, name: str, unit: int) -> Vector:
        """The sums of a unit."""
        sums = self._parts[name][unit]
        return sums.cpu().numpy() if isinstance(sums, Tensor) else sums

    def _bounds(self, axis: int, n: int) -> list[tuple[int, int]]:
        size = self.deep[axis]
        return [(i * size // n, -(-(i + 1) * size // n)) for i in range(n)]

    def _bins(self, window: Window, n: int) -> Iterator[tuple[slice, slice]]:
        """Where in a window each bin of an adaptive pool of n x n lies, which may be nowhere."""
        for top, bottom in self._bounds(0, n):
            for left, right in self._bounds(1, n):
                part = window.intersect(Window.from_bounds(top, left, bottom, right))
                yield (slice(0), slice(0)) if part.empty else part.relative_to(window).slices

    def _total(self, name: str, units: int) -> Vector:
        parts = self._parts.get(name, {})
        if len(parts) != units:  # a mean over some of them would look like one over all
            raise RuntimeError(f"Only {len(parts)} of {units} units of '{name}' were summed.")
        first, *others = sorted(parts)
        total = self.of(name, first).copy()
        for unit in others:  # one by one: those of many pools are hundreds of megabytes for a large image
            total += self.of(name, unit)
        return total

    def mean(self, name: str, units: int) -> Vector:
        """Mean (C,) over a whole map of ``units``."""
        total = self._total(name, units)
        return total[:-1] / total[-1]

    def pools(self, name: str, units: int) -> list[Vector]:
        """Adaptive average pools (C, n, n) of a whole map of ``units``, one for each of the bins."""
        total, start, result = self._total(name, units), 0, []
        channels = len(total) // max(1, sum(n * n for n in self.bins))
        for n in self.bins:
            sums = total[start : start + n * n * channels].reshape(n, n, channels)
            heights = np.array([b - a for a, b in self._bounds(0, n)], dtype=np.float64)
            widths = np.array([b - a for a, b in self._bounds(1, n)], dtype=np.float64)
            result.append(np.moveaxis(sums / (heights[:, None] * widths[None])[..., None], -1, 0))
            start += n * n * channels
        return result


def _sum(values: Any) -> Any:
    """(h, w, C) to sums (C,) in float64, where the values lie."""
    if not isinstance(values, Tensor):
        return values.reshape(-1, values.shape[-1]).sum(0, dtype=np.float64)
    total = values.new_zeros(values.shape[-1], dtype=torch.float64)
    for strip in values.split(max(1, WIDENED_BYTES // (8 * values.shape[1] * values.shape[2] or 1))):
        total += strip.sum((0, 1), dtype=torch.float64)
    return total


def _number(like: Any, value: float) -> Any:
    """A vector of one, beside another; of a tensor without a copy from the host, which would be waited for."""
    return torch.full_like(like[:1], value) if isinstance(like, Tensor) else np.array([float(value)])


def _joined(parts: Sequence[Any]) -> Any:
    if not parts:
        return np.zeros(0)
    return torch.cat(list(parts)) if isinstance(parts[0], Tensor) else np.concatenate(parts)
