"""Maps beside the labels: of logits that are computed once, in shards that stay small, the same in any region."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from napari_isdnet.classes import classes_from
from napari_isdnet.engine.results import ResultStores, Wanted
from napari_isdnet.engine.uncertainty import uncertainty_map
from napari_isdnet.io import store as store_module
from napari_isdnet.io.pyramid import quantise
from napari_isdnet.io.store import CHUNK, LabelStore, shard_side
from napari_isdnet.window import Grid, Window
from tests.label_source import LabelSource

SHAPE = (600, 2500)
CLASSES = classes_from(["a", "b", "c"])
EVERYTHING = Wanted(probabilities=True, uncertainty=True)


class Waves:
    """Logits that are known everywhere; counts what is asked."""

    def __init__(self) -> None:
        rows, columns = torch.meshgrid(*(torch.arange(n) for n in SHAPE), indexing="ij")
        planes = [torch.sin(rows / 40 + k) * 3 + torch.cos(columns / 70 - k) for k in range(len(CLASSES))]
        self.logits = torch.stack(planes)[None]
        self.found = self.logits[0].argmax(0).to(torch.uint8).numpy()
        self.found[100:300, 2000:2200] = 255
        self.units: list[Window] = []
        self.pixels = 0

    def labels_and_fine(self, window: Window) -> tuple[npt.NDArray[np.uint8], Callable[[Window], torch.Tensor]]:
        def fine(part: Window) -> torch.Tensor:
            assert window.contains(part)
            self.pixels += part.area
            return self.logits[(..., *part.slices)]

        self.units.append(window)
        return self.found[window.slices], fine

    def maps(self) -> dict[str, npt.NDArray[np.uint8]]:
        """What is expected, (h, w, channels)."""
        values = {
            "labels": self.found[..., None],
            "probabilities": quantise(self.logits[0].softmax(0).numpy()).transpose(1, 2, 0).copy(),
            "uncertainty": uncertainty_map(self.logits[0])[..., None],
        }
        for kind in ("probabilities", "uncertainty"):
            values[kind][self.found == 255] = 255
        return values


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three classes are as many as hundreds."""
    monkeypatch.setattr(store_module, "SHARD_BYTES", len(CLASSES) * CHUNK * CHUNK)


def opened(folder: Path, region: Window | None = None) -> Any:
    return ResultStores.open(
        folder, LabelSource(np.zeros(SHAPE, np.uint8)), region or Window.whole(SHAPE), CLASSES, EVERYTHING
    )


def contents(stores: ResultStores) -> dict[str, npt.NDArray[np.uint8]]:
    return {kind: store.read(Window.whole(store.shape)) for kind, store in stores.stores.items()}


def check(stores: ResultStores, expected: dict[str, npt.NDArray[np.uint8]]) -> None:
    for kind, values in contents(stores).items():
        apart = np.abs(values.astype(int) - expected[kind])  # vectors round as their place in memory has it
        assert apart.max() <= (0 if kind == "labels" else 1)
        assert (apart > 0).mean() < 1e-3


@pytest.mark.usefixtures("narrow")
def test_maps_of_many_classes_come_in_small_blocks_of_logits_computed_once(tmp_path: Path) -> None:
    predictor, largest = Waves(), 0
    with opened(tmp_path) as stores:
        assert stores.of("probabilities").shard_bytes == len(CLASSES) * CHUNK * CHUNK < stores.block_bytes
        for index in stores.missing():
            for block in stores.predict(index, predictor):
                stores.write(block)
                largest = max(largest, block.values.size if block.kind == "probabilities" else 0)
                assert block.last == (index not in stores.missing())
        assert stores.missing() == []
        assert largest == len(CLASSES) * CHUNK * CHUNK
        assert predictor.units == list(Grid(SHAPE, (2048, 2048)))
        assert predictor.pixels == SHAPE[0] * SHAPE[1]
        check(stores, predictor.maps())


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("region", [Window(37, 41, 530, 2400), Window(0, 1500, 600, 700)])
def test_maps_of_a_region_are_the_crop(tmp_path: Path, region: Window) -> None:
    predictor = Waves()
    for folder, part in (("whole", Window.whole(SHAPE)), ("part", region)):
        with opened(tmp_path / folder, part) as stores:
            for index in stores.missing():
                stores.fill(index, predictor)
            found = contents(stores)
        if folder == "whole":
            expected = {kind: values[region.slices] for kind, values in found.items()}
    for kind, values in found.items():
        np.testing.assert_array_equal(values, expected[kind], err_msg=kind)


def test_a_store_with_wide_shards_goes_on_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Waves()
    with opened(tmp_path) as stores:
        stores.fill(0, predictor)
    monkeypatch.setattr(store_module, "SHARD_BYTES", len(CLASSES) * CHUNK * CHUNK)
    with opened(tmp_path) as stores:
        assert len(stores.of("probabilities").shards) == 2
        assert stores.missing() == [1]
        blocks = list(stores.predict(1, predictor))
        stores.write(blocks[0])
        assert stores.missing() == [1], "its maps are not there"
        for block in blocks[1:]:
            stores.write(block)
        list(stores.finish())
        assert all(store.finished for store in stores.stores.values())
        check(stores, predictor.maps())


@pytest.mark.parametrize("channels", [1, 2, 3, 9, 19, 40, 150, 255])
def test_shards_of_many_channels_are_narrow_and_fill_those_of_one(channels: int) -> None:
    for longest in (1, 500, 700, 1400, 1600, 2049, 100_000):
        one, side = shard_side(longest, 1), shard_side(longest, channels)
        assert one % side == side % CHUNK == 0
        assert side == CHUNK or channels * side**2 <= store_module.SHARD_BYTES
    assert shard_side(100_000, 8) == 2048  # a usual number of classes has few files


def test_levels_of_narrow_shards_are_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).integers(0, 255, (600, 700, 3)).astype(np.uint8)
    made = []
    for name, size in (("narrow", CHUNK), ("wide", 2 * CHUNK)):
        monkeypatch.setattr(store_module, "SHARD_BYTES", len(CLASSES) * size**2)
        store = LabelStore.create(tmp_path / f"{name}.ome.zarr", (600, 700), CLASSES, kind="probabilities")
        for index, window in enumerate(store.shards):
            store.write_shard(index, values[window.slices])
        list(store.finish_pyramid())
        made.append([store.read(Window.whole(shape), level) for level, shape in enumerate(store.levels)])
        assert len(store.shards) == (4 if name == "narrow" else 1)
    for one, other in zip(*made, strict=True):
        np.testing.assert_array_equal(one, other)
