"""Which crop is the n-th one: a pure function of seed and n, so that nothing has to be saved to resume exactly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from napari_isdnet_training.census import MaskCensus
from napari_isdnet_training.config import CropConfig


@dataclass(frozen=True)
class Draw:
    """One drawn crop: the sample's index, and the pixel (row, column) it should be centred on, or None for anywhere."""

    sample: int
    center: tuple[int, int] | None


class CropSampler:
    """Draws the n-th crop from a random generator of its own, seeded by (seed, n).

    Args:
        census: what the masks hold, one per sample.
        config: how to draw.
        seed: the run's seed.
    """

    def __init__(self, census: Sequence[MaskCensus], config: CropConfig, seed: int) -> None:
        self.census, self.config, self.seed = list(census), config, seed
        areas = np.array([c.shape[0] * c.shape[1] for c in self.census], np.float64)
        self._area_share = areas / areas.sum()
        counts = np.array([c.counts for c in self.census], np.float64)
        self.frequency: npt.NDArray[np.float64] = counts.sum(axis=0) / max(1.0, counts.sum())
        self._class_share = self._rare_shares()
        self._holders = [np.flatnonzero(counts[:, k]) for k in range(counts.shape[1])]
        self._counts = counts

    def _rare_shares(self) -> npt.NDArray[np.float64]:
        rarity = np.where(self.frequency > 0, 1 - self.frequency, -np.inf)
        # The rarest class's share is exp(0) before it is normalised: a low temperature would overflow otherwise.
        weights: npt.NDArray[np.float64] = np.exp((rarity - rarity.max()) / self.config.rare_class_temperature)
        return weights / weights.sum()

    def rng(self, number: int) -> np.random.Generator:
        """The generator of crop ``number``; its whole augmentation is drawn from it too."""
        return np.random.default_rng([self.seed, 1, number])

    def draw(self, number: int, rng: np.random.Generator) -> Draw:
        """Sample and centre of crop ``number``."""
        if self.config.rare_class_probability and rng.random() < self.config.rare_class_probability:
            index = int(rng.choice(len(self._class_share), p=self._class_share))
            holders = self._holders[index]
            share = self._counts[holders, index]
            sample = int(rng.choice(holders, p=share / share.sum()))
            places = self.census[sample].places[index]
            row, column = places[rng.integers(len(places))]
            return Draw(sample, (int(row), int(column)))
        if self.config.images == "area":
            return Draw(int(rng.choice(len(self._area_share), p=self._area_share)), None)
        epoch, place = divmod(number, len(self.census))
        return Draw(int(_order(self.seed, epoch, len(self.census))[place]), None)


@lru_cache(maxsize=8)
def _order(seed: int, epoch: int, count: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng([seed, 2, epoch]).permutation(count)


class StepBatches:
    """Batch sampler: the crop numbers of every micro-batch from ``start`` to ``stop`` steps, for one process.

    A global batch is crops ``step * batch`` to ``(step + 1) * batch - 1``. It is cut into ``accumulate`` parts, each of
    which is dealt to ``world`` processes in turn (process r takes every world-th), so the union over processes is
    the batch that one process would see.
    """

    def __init__(self, start: int, stop: int, batch: int, accumulate: int = 1, rank: int = 0, world: int = 1) -> None:
        self.start, self.stop, self.batch = start, stop, batch
        self.accumulate, self.rank, self.world = accumulate, rank, world

    def __len__(self) -> int:
        return max(0, self.stop - self.start) * self.accumulate

    def __iter__(self) -> Iterator[list[int]]:
        part = self.batch // self.accumulate
        for step in range(self.start, self.stop):
            for piece in range(self.accumulate):
                first = step * self.batch + piece * part
                yield list(range(first + self.rank, first + part, self.world))
