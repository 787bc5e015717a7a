"""Deterministic noise on absolute coordinates, the raw material of the procedural world.

Only integer arithmetic and correctly rounded floating-point operations (``+ - * / floor min max``) are used: no sine,
no power, no matrix product, whose last bits depend on a vector unit or on where an array starts. So a pixel has the
same bits in every window, on every thread and on every machine.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float32]
Real = npt.NDArray[np.floating[Any]]
UInt = npt.NDArray[np.uint32]
Int = npt.NDArray[np.int64]

_MASK = 0xFFFFFFFF


def mix(*values: int) -> int:
    """One 32-bit number out of several integers."""
    state = 0x2545F491
    for value in values:
        state = (state ^ (value & _MASK)) * 0x9E3779B1 & _MASK
        state ^= state >> 15
        state = state * 0x85EBCA6B & _MASK
        state ^= state >> 13
    return state


def hash_grid(seed: int, rows: npt.NDArray[Any], columns: npt.NDArray[Any]) -> UInt:
    """Independent 32-bit numbers for integer coordinates; ``rows`` and ``columns`` broadcast against each other."""
    r = (rows.astype(np.int64) & _MASK).astype(np.uint32) * np.uint32(0x9E3779B1)
    c = (columns.astype(np.int64) & _MASK).astype(np.uint32) * np.uint32(0x85EBCA77)
    r ^= r >> np.uint32(15)
    return scramble((r + np.uint32(seed & _MASK)) ^ c)


def scramble(state: UInt) -> UInt:
    """Avalanche of a 32-bit number (every input bit reaches every output bit); works in place and returns it."""
    state ^= state >> np.uint32(16)
    state *= np.uint32(0x7FEB352D)
    state ^= state >> np.uint32(15)
    state *= np.uint32(0x846CA68B)
    state ^= state >> np.uint32(16)
    return state


def unit(state: UInt, part: int = 0) -> Float:
    """0 <= number < 1 from a hash. Parts 0..3 take different bytes (8 bits each beyond the first)."""
    if part == 0:
        return (state >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)
    return ((state >> np.uint32(8 * (3 - part))) & np.uint32(255)).astype(np.float32) * np.float32(1 / 256)


def _nodes(first: Int, taps: int) -> tuple[Int, npt.NDArray[np.intp]]:
    """Lattice nodes needed for ``taps`` taps from every ``first``, and where each one's first node is in that list."""
    low, high = int(first.min()), int(first.max())
    if high - low <= 4 * len(first) + 8:
        return np.arange(low, high + taps), (first - low).astype(np.intp)
    nodes = np.unique(np.concatenate([first + k for k in range(taps)]))
    return nodes, np.searchsorted(nodes, first)


def _weights(fraction: Float, smooth: bool) -> list[Float]:
    """Interpolation weights: quadratic B-spline (three taps, smooth slope) or cubic step (two taps)."""
    if smooth:
        rest = 1 - fraction
        return [rest * rest * np.float32(0.5), np.float32(0.5) + fraction * rest, fraction * fraction * np.float32(0.5)]
    step = fraction * fraction * (3 - 2 * fraction)
    return [1 - step, step]


def noise(
    rows: Real, columns: Real, wavelength: float, seed: int, smooth: bool = True, offset: tuple[float, float] = (0, 0)
) -> Float:
    """Value noise, roughly -1..1, at every crossing of 1-D ``rows`` and ``columns`` (metres), as (rows, columns)."""
    parts = []
    for axis, values in enumerate((rows, columns)):
        # Each seed has its own phase, so that the lattices of several octaves never line up.
        t = (values + offset[axis]) / wavelength + mix(seed, axis) / 2**32
        base = np.floor(t)
        weights = _weights((t - base).astype(np.float32), smooth)
        parts.append((*_nodes(base.astype(np.int64), len(weights)), weights))
    (row_nodes, row_at, row_weights), (col_nodes, col_at, col_weights) = parts
    grid = unit(hash_grid(seed, row_nodes[:, None], col_nodes[None, :])) - np.float32(0.5)
    lines = grid[row_at] * row_weights[0][:, None]
    for k in range(1, len(row_weights)):
        lines += grid[row_at + k] * row_weights[k][:, None]
    out = lines[:, col_at] * col_weights[0]
    for k in range(1, len(col_weights)):
        out += lines[:, col_at + k] * col_weights[k]
    out *= np.float32(4.0 if smooth else 2.0)
    return out


def octaves(
    rows: Real, columns: Real, seed: int, parts: tuple[tuple[float, float], ...], offset: tuple[float, float] = (0, 0)
) -> Float:
    """Sum of smooth noises; ``parts`` are (wavelength in metres, amplitude)."""
    total = noise(rows, columns, parts[0][0], seed, offset=offset) * np.float32(parts[0][1])
    for k, (wavelength, amplitude) in enumerate(parts[1:], 1):
        total += noise(rows, columns, wavelength, mix(seed, k), offset=offset) * np.float32(amplitude)
    return total


def scattered(rows: Real, columns: Real, seed: int, parts: tuple[tuple[float, float], ...]) -> Float:
    """:func:`octaves` at scattered points: ``rows`` and ``columns`` are 1-D, of one length."""
    total = np.zeros(len(rows), np.float32)
    for k, (wavelength, amplitude) in enumerate(parts):
        key = mix(seed, k) if k else seed
        t = [values / wavelength + mix(key, axis) / 2**32 for axis, values in enumerate((rows, columns))]
        base = [np.floor(v) for v in t]
        down, across = (_weights((v - b).astype(np.float32), True) for v, b in zip(t, base))
        value = np.zeros(len(rows), np.float32)
        for i in range(3):
            for j in range(3):
                node = unit(hash_grid(key, base[0] + i, base[1] + j)) - np.float32(0.5)
                value += node * down[i] * across[j]
        total += value * np.float32(4 * amplitude)
    return total


def fade(wavelength: float, pixel: float) -> float:
    """How much of a texture of ``wavelength`` is left in pixels of size ``pixel`` (same unit): 1 fine, 0 averaged."""
    return min(1.0, max(0.0, wavelength / pixel / 2 - 0.5))


def cover(distance: Float, pixel: float) -> Float:
    """Share of a pixel that lies inside an outline at signed ``distance`` (negative inside): its anti-aliased edge."""
    out = distance * np.float32(-1 / pixel)
    out += np.float32(0.5)
    return np.clip(out, 0, 1, out=out)
