"""Which places are annotated, which of them teach and which only judge, and windows drawn from them.

The split rule: the image is cut into regions of ``size`` pixels, anchored at its origin, and every annotated region
either teaches or judges, for good. While there are few (:data:`FEW`), chance would be unfair: two of eight regions may
hold half of all strokes. So the newly annotated ones are dealt out by what is painted in them, in the order of a hash
of their position, until about ``fraction`` of every class judges, and each is *pinned* to its side; the pins go to the
journal, so that painting elsewhere never moves a region. Where there are many, a region without a pin judges when its
hash, as a number in 0..1, is below ``fraction``.

A class that is only judged is never learnt, so a region becomes a judge only while every class in it is painted in a
region that teaches, too: a lone region teaches, and so do all where each holds a class that no other holds. A pin of
before stays, also where painting has broken that rule since.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from napari_isdnet.annotation.chunks import CHUNK
from napari_isdnet.annotation.counts import Counts, Place
from napari_isdnet.exceptions import InputError
from napari_isdnet.window import Window

if TYPE_CHECKING:
    from napari_isdnet.annotation.store import AnnotationStore

TRAINING, VALIDATION = "training", "validation"
FEW = 64
"""Up to so many annotated regions are dealt out by what is painted in them; chance is fair to more."""


def region_hash(size: int, place: Place) -> float:
    """A number in 0..1 that depends on the region's size and position alone, the same on every machine."""
    digest = blake2b(f"{size}:{place[0]}:{place[1]}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _pin_key(size: int, place: Place) -> str:
    return f"{size}:{place[0]}:{place[1]}"


def _check_size(size: int) -> None:
    if size < CHUNK or size % CHUNK:
        raise InputError(f"A region must measure a multiple of {CHUNK} pixels, got {size}; round it up.")


@dataclass(frozen=True)
class Split:
    """Annotated regions (row, column, counted in regions) on either side; ``pins`` are those that are fixed."""

    size: int
    fraction: float
    training: tuple[Place, ...]
    validation: tuple[Place, ...]
    pins: Mapping[str, str] = field(default_factory=dict)

    def side(self, place: Place) -> str:
        """``'training'`` or ``'validation'``, also for a region without annotation."""
        return side_of(self.size, place, self.fraction, self.pins)

    def window(self, place: Place) -> Window:
        """The region's pixels at level 0 (it may reach outside the image)."""
        return Window(place[0] * self.size, place[1] * self.size, self.size, self.size)

    def mask(self, window: Window, side: str = TRAINING) -> npt.NDArray[np.bool_]:
        """The pixels of ``window`` (level 0) that lie in regions of ``side``; training must ignore the others."""
        mask = np.zeros(window.shape, dtype=np.bool_)
        if window.empty:
            return mask
        for row in range(window.row // self.size, (window.bottom - 1) // self.size + 1):
            for column in range(window.column // self.size, (window.right - 1) // self.size + 1):
                if self.side((row, column)) == side:
                    inside = window.intersect(self.window((row, column)))
                    mask[inside.relative_to(window).slices] = True
        return mask


def side_of(size: int, place: Place, fraction: float, pins: Mapping[str, str]) -> str:
    """The side of one region, by its pin or its hash; with a ``fraction`` of 0 everything teaches."""
    if fraction == 0:
        return TRAINING
    chance = VALIDATION if region_hash(size, place) < fraction else TRAINING
    return pins.get(_pin_key(size, place), chance)


def annotated_regions(store: AnnotationStore, size: int = CHUNK) -> dict[Place, Counts]:
    """Labelled pixels by annotation value of every region of ``size`` pixels that holds any, in row-major order."""
    _check_size(size)
    step = size // CHUNK
    regions: dict[Place, Counts] = {}
    for (row, column), counts in sorted(store.chunk_counts().items()):
        region = regions.setdefault((row // step, column // step), {})
        for value, number in counts.items():
            region[value] = region.get(value, 0) + number
    return dict(sorted(regions.items()))


def split_regions(
    painted: Mapping[Place, Counts], size: int, fraction: float = 0.2, pins: Mapping[str, str] | None = None
) -> Split:
    """Split annotated regions, given with their painted pixels by class; ``pins`` are those of earlier splits.

    The new ones are in the result; with them the same regions are split the same whatever is known of their classes.
    """
    if not 0 <= fraction < 1:
        raise InputError(f"The validation share must be at least 0 and below 1, got {fraction}.")
    pins = dict(pins or {})
    if fraction > 0:
        pins |= (_dealt if len(painted) <= FEW else _by_hash)(painted, size, fraction, pins)
        if len(painted) >= 2 and all(side_of(size, place, fraction, pins) == VALIDATION for place in painted):
            # Those that taught were erased. The extreme of the hash: it would change sides first with a lower fraction.
            pins[_pin_key(size, max(painted, key=lambda place: region_hash(size, place)))] = TRAINING
    training, validation = (
        tuple(place for place in sorted(painted) if side_of(size, place, fraction, pins) == side)
        for side in (TRAINING, VALIDATION)
    )
    return Split(size, fraction, training, validation, pins)


def _dealt(painted: Mapping[Place, Counts], size: int, fraction: float, pins: Mapping[str, str]) -> dict[str, str]:
    """Pins of the regions that have none: one judges if that brings what judges of every class nearer to its share.

    Where none does, the one judges that comes nearest. None does that is the last to teach one of its classes.
    """
    new = sorted((p for p in painted if _pin_key(size, p) not in pins), key=lambda place: region_hash(size, place))
    judging = {p for p in painted if pins.get(_pin_key(size, p)) == VALIDATION}
    totals, held = _sum(painted.values()), _sum(painted[p] for p in judging)
    teachers = Counter(value for place in painted if place not in judging for value in painted[place])

    def away(held: Counts) -> float:
        return sum(abs(held.get(value, 0) / number - fraction) for value, number in totals.items())

    for place in new:
        more = _sum((held, painted[place]))
        if _spared(painted[place], teachers) and away(more) < away(held):
            judging.add(place)
            teachers.subtract(painted[place].keys())
            held = more
    able = [place for place in new if _spared(painted[place], teachers)]
    if able and not judging:
        judging.add(min(able, key=lambda place: away(painted[place])))
    return {_pin_key(size, place): VALIDATION if place in judging else TRAINING for place in new}


def _by_hash(painted: Mapping[Place, Counts], size: int, fraction: float, pins: Mapping[str, str]) -> dict[str, str]:
    """The pins that the hash needs, so that every class is taught, and something judges if anything can."""
    free = sorted((p for p in painted if _pin_key(size, p) not in pins), key=lambda place: region_hash(size, place))
    judging = {p for p in painted if side_of(size, p, fraction, pins) == VALIDATION}
    teachers = Counter(value for place in painted if place not in judging for value in painted[place])
    new: dict[str, str] = {}
    # Extremes of the hash: the region that would change sides first if the fraction were a little different.
    for place in (p for p in reversed(free) if p in judging):
        if any(not teachers[value] for value in painted[place]):
            new[_pin_key(size, place)] = TRAINING
            judging.remove(place)
            teachers.update(painted[place].keys())
    if free and not judging:
        able = next((place for place in free if _spared(painted[place], teachers)), None)
        new |= {_pin_key(size, able): VALIDATION} if able else {_pin_key(size, p): TRAINING for p in free}
    return new


def _spared(counts: Counts, teachers: Mapping[int, int]) -> bool:
    """True when every class of a region that teaches is taught by another one, too."""
    return all(teachers[value] > 1 for value in counts)


def _sum(counts: Iterable[Counts]) -> Counts:
    total: Counter[int] = Counter()
    for one in counts:
        total.update(one)
    return total


def split_store(store: AnnotationStore, size: int = CHUNK, fraction: float = 0.2) -> Split:
    """The split of what is annotated now. Pins go to the journal unless the store is read-only."""
    split = split_regions(annotated_regions(store, size), size, fraction, store.pins)
    new = {key: side for key, side in split.pins.items() if key not in store.pins}
    if new and not store.read_only:
        store.pin(new)
    return split


def sample_windows(
    store: AnnotationStore, count: int, size: int, seed: int, split: Split | None = None, side: str = TRAINING
) -> list[Window]:
    """``count`` windows of ``size`` pixels (less where the image is smaller) that hold annotation of ``side``.

    The classes take turns, so that a rare one is seen as often as a common one; within a class a place is drawn by the
    square root of its pixels, so that one large fill does not outweigh many strokes; the drawn pixel lies anywhere in
    its window. The same store state, seed and arguments give the same windows. Windows may reach over the border of a
    region: use :meth:`Split.mask` to ignore the other side's pixels. No annotation on that side: an empty list.
    """
    if count < 0 or size < 1:
        raise InputError(f"Cannot draw {count} windows of {size} pixels; ask for 0 or more of at least 1 pixel.")
    by_class: dict[int, list[tuple[Place, int]]] = {}
    for place, counts in sorted(store.chunk_counts().items()):
        if split is not None and split.side((place[0] * CHUNK // split.size, place[1] * CHUNK // split.size)) != side:
            continue
        for value, number in sorted(counts.items()):
            by_class.setdefault(value, []).append((place, number))
    if not by_class:
        return []
    rng = np.random.default_rng(seed)
    order = rng.permutation(sorted(by_class))
    chances = {value: np.sqrt([number for _, number in items]) for value, items in by_class.items()}
    height, width = min(size, store.shape[0]), min(size, store.shape[1])
    windows = []
    for turn in range(count):
        value = int(order[turn % len(order)])
        weights = chances[value] / chances[value].sum()
        place = by_class[value][int(rng.choice(len(weights), p=weights))][0]
        chunk = Window(place[0] * CHUNK, place[1] * CHUNK, CHUNK, CHUNK).clipped(store.shape)
        pixels = np.flatnonzero(store.read_labels(chunk) == value)
        row, column = divmod(int(pixels[rng.integers(len(pixels))]), chunk.width)
        top = chunk.row + row - int(rng.integers(height))
        left = chunk.column + column - int(rng.integers(width))
        top = min(max(top, 0), store.shape[0] - height)
        left = min(max(left, 0), store.shape[1] - width)
        windows.append(Window(top, left, height, width))
    return windows
