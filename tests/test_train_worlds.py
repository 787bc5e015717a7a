"""Generated landscapes as a supplement of a data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from napari_isdnet_training.config import DataConfig
from napari_isdnet_training.datasets import open_dataset
from napari_isdnet_training.layouts.world import FIRST_SEED, _world
from napari_isdnet_training.sources import open_mask, read_mask

from napari_isdnet.exceptions import InputError
from napari_isdnet.io.samples import open_sample, sample_names
from napari_isdnet.io.world import ProceduralWorld
from napari_isdnet.window import Window

NAMES = ["water", "building", "land", "road", "vegetation"]  # not the world's own order


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    monkeypatch.setenv("NAPARI_ISDNET_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "data"
    root.mkdir()
    for name in ("one", "two"):
        tifffile.imwrite(root / f"{name}.tif", np.zeros((64, 64, 3), np.uint8), photometric="rgb")
        tifffile.imwrite(root / f"{name}_classes.tif", np.zeros((64, 64), np.uint8))
    return DataConfig(
        layout="scenes", root=root, train=("one",), validation=("two",), classes=tuple({"name": n} for n in NAMES),
        worlds=2, world_size=256,
    )  # fmt: skip


def test_worlds_join_the_training_samples_with_the_classes_of_the_data(data: DataConfig) -> None:
    dataset = open_dataset(data)
    assert [s.name for s in dataset.split("validation")] == ["two"]
    one, *worlds = dataset.split("train")
    assert one.name == "one"
    assert len(worlds) == 2
    whole = Window(0, 0, 256, 256)
    for number, sample in enumerate(worlds):
        world = ProceduralWorld((256, 256), seed=FIRST_SEED + number)
        np.testing.assert_array_equal(tifffile.imread(sample.image), world.read(whole))
        truth = world.truth.read(whole)[..., 0]
        wanted = np.array([NAMES.index(c.name) for c in ProceduralWorld.classes], np.uint8)[truth]
        np.testing.assert_array_equal(tifffile.imread(sample.mask), wanted)


def test_they_are_written_once_and_whole(data: DataConfig) -> None:
    first = open_dataset(data).split("train")[1]
    written = first.image.stat().st_mtime_ns
    assert open_dataset(data).split("train")[1].image.stat().st_mtime_ns == written
    first.mask.unlink()  # as after a run that was killed between the two
    assert open_dataset(data).split("train")[1].mask.is_file()
    assert not [p for p in first.image.parent.iterdir() if p.name.startswith(".")]


def test_another_order_of_many_classes_is_another_file(tmp_path: Path) -> None:
    orders = ([1, 2, 3, 4, 12], [12, 3, 4, 1, 2], [1, 23, 4, 1, 2])
    assert len({_world(tmp_path, 0, 32, np.array(order, np.uint8)).name for order in orders}) == 3


def test_no_sample_of_the_package_was_trained_on() -> None:
    seeds = {getattr(open_sample(n), "seed", None) for n in sample_names() if n.startswith("aerial")}
    assert seeds
    assert not seeds & set(range(FIRST_SEED, FIRST_SEED + 1000))


def test_data_without_their_classes_is_refused(data: DataConfig) -> None:
    other = data.model_copy(update={"classes": data.classes[:4]})
    with pytest.raises(InputError, match="the data has no vegetation"):
        open_dataset(other)


def test_they_hold_the_values_that_own_masks_do(data: DataConfig) -> None:
    listed = tuple(10 * (n + 1) for n in range(len(data.classes)))
    plain, valued = (open_dataset(data.model_copy(update={"values": v})) for v in ("mask", listed))
    held = []
    for dataset in (plain, valued):
        sample = dataset.split("train")[-1]
        mask = open_mask(sample.mask, dataset.code)
        held.append(read_mask(mask, Window.whole(mask.shape), dataset.code, sample.mask.name))
        mask.close()
    np.testing.assert_array_equal(*held)
    assert len(np.unique(held[0])) > 1
