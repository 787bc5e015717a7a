"""The result store: what is written is read, levels by mode, markers that survive kill -9, plain OME-Zarr."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from napari_isdnet.exceptions import InputError
from napari_isdnet.io.disk import disk_errors
from napari_isdnet.io.pyramid import QUANTA, halve_by_mean, halve_by_mode, quantise
from napari_isdnet.io.source import GeoReference, ImageSource, PixelSize, TileError
from napari_isdnet.io.store import LabelStore
from napari_isdnet.window import Window, pyramid_shapes

CLASSES = [("road", "#ff0000"), ("tree", "#00ff00"), ("wåter", "#0000ff")]
labels_2d = hnp.arrays(
    np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.sampled_from([0, 1, 2, 3, 254, 255])
)


def fill(store: LabelStore, labels: npt.NDArray[np.uint8]) -> LabelStore:
    for index, window in enumerate(store.shards):
        assert store.write_shard(index, labels[window.slices]) == window
    for _ in store.finish_pyramid():
        pass
    return store


def noise(shape: tuple[int, ...], seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).choice(np.array([0, 1, 2, 255], np.uint8), shape)


def small(path: Path, shape: tuple[int, int] = (700, 900), kind: str = "labels") -> LabelStore:
    return LabelStore.create(path / "a.ome.zarr", shape, CLASSES, kind=kind, shard=256, chunk=128)


def digest(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()
    }


def mode_by_hand(labels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    rows, columns = labels.shape
    result = np.full((-(-rows // 2), -(-columns // 2)), 255, np.uint8)
    for r, c in np.ndindex(result.shape):
        block = labels[2 * r : 2 * r + 2, 2 * c : 2 * c + 2].ravel()
        values, counts = np.unique(block[block != 255], return_counts=True)
        if len(values):
            result[r, c] = values[np.argmax(counts)]  # the first of the commonest is the smallest
    return result


@given(labels_2d)
def test_mode_against_counting(labels: npt.NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(halve_by_mode(labels), mode_by_hand(labels))


@given(labels_2d)
def test_mean_of_valid_pixels(values: npt.NDArray[np.uint8]) -> None:
    result = halve_by_mean(values)
    for r, c in np.ndindex(result.shape):
        block = values[2 * r : 2 * r + 2, 2 * c : 2 * c + 2].ravel().astype(int)
        valid = block[block != 255]
        assert result[r, c] == (int(np.floor(valid.mean() + 0.5)) if len(valid) else 255)


@given(hnp.arrays(np.float32, (5, 3), elements=st.floats(0, 1, width=32)))
def test_quantising_is_close_and_keeps_nan(values: npt.NDArray[np.float32]) -> None:
    values[0, 0] = np.nan
    stored = quantise(values)
    assert stored[0, 0] == 255
    assert (stored.ravel()[1:] <= 254).all()
    values[0, 0] = 255 / QUANTA
    assert np.abs(stored / np.float32(QUANTA) - values).max() <= 0.5 / 254 + 1e-6


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 700), st.integers(1, 700), st.integers(0, 99))
def test_every_level_is_the_mode_of_the_one_below(
    tmp_path_factory: pytest.TempPathFactory, rows: int, columns: int, seed: int
) -> None:
    labels = noise((rows, columns), seed)
    store = fill(small(tmp_path_factory.mktemp("store"), (rows, columns)), labels)
    assert store.finished
    assert list(store.levels) == pyramid_shapes((rows, columns))
    for level, shape in enumerate(store.levels):
        np.testing.assert_array_equal(store.read_labels(Window.whole(shape), level), labels)
        labels = halve_by_mode(labels)


def test_it_is_an_image_source(tmp_path: Path) -> None:
    reference = GeoReference("EPSG:32633", (0.5, 0, 5e5, 0, -0.5, 5e6))
    labels = noise((700, 900))
    path = tmp_path / "scene.1.ome.zarr"
    LabelStore.create(
        path, (700, 900), CLASSES, pixel_size=PixelSize(0.5, 0.5), georeference=reference, origin=(3, 4), shard=512,
        extra={"model": "abc"},
    )  # fmt: skip
    store = LabelStore.open(path)
    fill(store, labels)
    assert isinstance(store, ImageSource)
    assert (store.name, store.shape, store.channels, store.dtype) == ("scene.1", (700, 900), 1, np.uint8)
    assert (store.pixel_size, store.georeference, store.nodata) == (PixelSize(0.5, 0.5), reference, 255)
    assert (store.origin, store.extra) == ((3, 4), {"model": "abc"})
    assert [c.name for c in store.classes] == ["road", "tree", "wåter"]
    window = Window(100, 500, 33, 44)
    np.testing.assert_array_equal(store.read(window)[..., 0], labels[window.slices])
    with pytest.raises(InputError, match="outside"):
        store.read(Window(690, 0, 20, 20))
    with pytest.raises(InputError, match="levels 0 to 2"):
        store.read(window, 3)
    json.dumps(dict(store.identity()))


def test_metadata_and_pixels_for_a_plain_zarr_reader(tmp_path: Path) -> None:
    labels = noise((700, 900))
    path = tmp_path / "a.ome.zarr"
    store = LabelStore.create(path, (700, 900), CLASSES, pixel_size=PixelSize(0.25, 0.5, "µm"), origin=(2, 0))
    fill(store, labels)
    group = zarr.open_group(path, mode="r")
    ome = group.attrs["ome"]
    assert isinstance(ome, dict)
    assert ome["version"] == "0.5"
    (multiscale,) = ome["multiscales"]
    assert multiscale["axes"] == [{"name": n, "type": "space", "unit": "micrometer"} for n in "yx"]
    for level, dataset in enumerate(multiscale["datasets"]):
        array = group[dataset["path"]]
        assert isinstance(array, zarr.Array)
        np.testing.assert_array_equal(array[:], store.read_labels(Window.whole(store.levels[level]), level))
        scale, move = dataset["coordinateTransformations"]
        assert scale["scale"] == [0.25 * 2**level, 0.5 * 2**level]
        # The centre of the first pixel: half of its own size from the corner, less half a level-0 pixel.
        assert move["translation"] == [(2 + (2**level - 1) / 2) * 0.25, (2**level - 1) / 2 * 0.5]
    array = group["0"]
    assert isinstance(array, zarr.Array)
    assert (array.fill_value, array.chunks) == (255, (512, 512))
    assert array.shards == (1024, 1024)
    assert ome["image-label"]["colors"][2] == {"label-value": 2, "rgba": [0, 0, 255, 255]}
    assert ome["image-label"]["colors"][3] == {"label-value": 255, "rgba": [0, 0, 0, 0]}
    assert ome["image-label"]["properties"][2] == {"label-value": 2, "name": "wåter"}


@pytest.mark.parametrize(("kind", "channels"), [("probabilities", 3), ("uncertainty", 1)])
def test_quantised_maps(tmp_path: Path, kind: str, channels: int) -> None:
    values = quantise(np.random.default_rng(0).random((700, 900, channels)))
    values[:40, :50] = 255
    store = fill(small(tmp_path, kind=kind), values)
    assert store.channels == channels
    for level, shape in enumerate(store.levels):
        np.testing.assert_array_equal(store.read(Window.whole(shape), level), values)
        values = np.stack([halve_by_mean(values[..., c]) for c in range(channels)], axis=-1)
    assert zarr.open_group(store.path, mode="r").attrs["ome"]["omero"]["channels"][0]["window"]["max"] == 254  # type: ignore[index,call-overload]


def test_done_only_what_is_marked(tmp_path: Path) -> None:
    store = small(tmp_path)
    count = len(store.shards)
    assert store.missing() == list(range(count))
    store.write_shard(3, np.zeros(store.shards[3].shape, np.uint8))
    assert store.done(3)
    assert LabelStore.open(store.path).missing() == [i for i in range(count) if i != 3]
    with pytest.raises(InputError, match=f"{count - 1} of {count} shards are missing"):
        list(store.finish_pyramid())
    fill(store, np.ones((700, 900), np.uint8))
    assert store.finished
    assert (store.read_labels(Window.whole(store.levels[2]), 2) == 1).all()
    store.write_shard(0, np.zeros(store.shards[0].shape, np.uint8))  # what was built from it is stale now
    assert store.missing(1) == [0]
    assert store.missing(2) == [0]


@pytest.mark.parametrize("kind", ["labels", "uncertainty"])
def test_a_shard_that_was_lost_is_missing_and_an_empty_one_is_not(tmp_path: Path, kind: str) -> None:
    values = noise((700, 900) if kind == "labels" else (700, 900, 1))
    values[:256, :256] = 255  # no file holds the first shard
    store = fill(small(tmp_path, kind=kind), values)
    assert store.finished
    before = digest(store.path)
    lost = sorted(p for p in store.path.glob("0/c/**/*") if p.is_file())[-1]
    lost.unlink()
    last = len(store.shards) - 1
    assert store.missing() == [last]
    assert not store.done(last)
    store.write_shard(last, values[store.shards[last].slices])
    list(store.finish_pyramid())
    assert store.finished
    assert digest(store.path) == before


def test_a_damaged_shard_is_no_fault_of_the_image(tmp_path: Path) -> None:
    store = fill(small(tmp_path), noise((700, 900)))
    next(p for p in store.path.glob("0/c/**/*") if p.is_file()).write_bytes(b"cut")
    with pytest.raises(TileError, match=r"too short for a shard\); make this result again \(--no-resume\)\.$"):
        store.read_labels(Window.whole(store.shape))


def test_the_position_may_come_later(tmp_path: Path) -> None:
    labels = noise((700, 900))
    store = fill(small(tmp_path), labels)
    place = GeoReference("EPSG:32633", (2.0, 0.0, 5.0, 0.0, -2.0, 9.0))
    store.move(PixelSize(2.0, 2.0, "m"), place)
    again = LabelStore.open(store.path)
    assert (again.georeference, again.pixel_size) == (place, PixelSize(2.0, 2.0, "m"))
    assert again.classes == store.classes
    assert again.finished
    np.testing.assert_array_equal(again.read_labels(Window.whole(again.shape)), labels)
    attributes = zarr.open_group(store.path, mode="r").attrs["ome"]
    scale = attributes["multiscales"][0]["datasets"][1]["coordinateTransformations"][0]  # type: ignore[index,call-overload]
    assert scale["scale"] == [4.0, 4.0]  # type: ignore[index,call-overload]


def test_a_shard_of_a_level_that_is_built_again_is_built_into_all_above_it(tmp_path: Path) -> None:
    store = LabelStore.create(tmp_path / "a.ome.zarr", (300, 600), CLASSES, shard=64, chunk=64)
    fill(store, noise(store.shape))
    before = digest(store.path)
    (store.path / ".done" / "1" / "3").unlink()
    steps = list(store.finish_pyramid())
    assert store.finished
    assert digest(store.path) == before
    assert [step.window for step in steps] == [Window(0, 384, 128, 128), Window(0, 256, 256, 256)]
    assert steps[0].done < steps[0].total == steps[-1].done  # both were known from the start


def test_wrong_shards_are_refused(tmp_path: Path) -> None:
    store = small(tmp_path)
    with pytest.raises(InputError, match=r"\(256, 256\)"):
        store.write_shard(0, np.zeros((256, 255), np.uint8))
    with pytest.raises(InputError, match="uint8"):
        store.write_shard(0, np.zeros((256, 256), np.int64))
    with pytest.raises(InputError, match="--overwrite"):
        small(tmp_path)
    with pytest.raises(InputError, match="at least 1 x 1"):
        LabelStore.create(tmp_path / "b.ome.zarr", (0, 4), CLASSES)
    with pytest.raises(InputError, match="got 'masks'"):
        LabelStore.create(tmp_path / "b.ome.zarr", (4, 4), CLASSES, kind="masks")


@pytest.mark.parametrize("damage", ["nothing", "empty", "garbage", "foreign", "level", "classes"])
def test_what_is_no_store_is_refused(tmp_path: Path, damage: str) -> None:
    path = small(tmp_path).path
    metadata = json.loads((path / "zarr.json").read_text())
    if damage == "nothing":
        path = tmp_path
    elif damage == "empty":
        (path / "zarr.json").write_text("")
    elif damage == "garbage":
        (path / "zarr.json").write_bytes(os.urandom(99))
    elif damage == "foreign":
        (path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
    elif damage == "level":
        (path / "1" / "zarr.json").unlink()
    else:
        metadata["attributes"]["napari_isdnet"]["classes"] = [{"name": ""}]
        (path / "zarr.json").write_text(json.dumps(metadata))
    with pytest.raises(InputError):
        LabelStore.open(path)


def test_writing_in_any_order_and_from_threads_gives_the_same_bytes(tmp_path: Path) -> None:
    labels = noise((700, 900))
    first = fill(small(tmp_path / "1"), labels)
    second = small(tmp_path / "2")
    order = list(range(len(second.shards)))
    random.Random(1).shuffle(order)

    def write(part: list[int]) -> None:
        for index in part:
            second.write_shard(index, labels[second.shards[index].slices])

    threads = [threading.Thread(target=write, args=(order[i::3],)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    list(second.finish_pyramid())
    assert digest(first.path) == digest(second.path)


def test_disk_full_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="disk is full"), disk_errors(tmp_path / "x"):
        raise OSError(28, "No space left on device")
    with pytest.raises(InputError, match="choose another --output"), disk_errors(tmp_path / "x"):
        raise PermissionError(13, "Permission denied")
    with pytest.raises(OSError, match="other"), disk_errors(tmp_path / "x"):
        raise OSError(5, "other")


WRITER = textwrap.dedent(
    """
    import sys
    import numpy as np
    from napari_isdnet.io.store import LabelStore

    store = LabelStore.open(sys.argv[1])
    labels = np.random.default_rng(0).choice(np.array([0, 1, 2, 255], np.uint8), (700, 900))
    print("open", flush=True)
    for index in store.missing():
        store.write_shard(index, labels[store.shards[index].slices])
    for step in store.finish_pyramid():
        pass
    print("finished", flush=True)
    """
)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_killed_at_random_moments_then_resumed_gives_the_same_bytes(tmp_path: Path) -> None:
    labels = noise((700, 900))
    whole = fill(LabelStore.create(tmp_path / "whole" / "a.ome.zarr", (700, 900), CLASSES, shard=128, chunk=64), labels)
    store = LabelStore.create(tmp_path / "killed" / "a.ome.zarr", (700, 900), CLASSES, shard=128, chunk=64)
    delays, kills, finished = random.Random(3), 0, False
    for _ in range(3):
        child = subprocess.Popen([sys.executable, "-c", WRITER, str(store.path)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        assert child.stdout.readline() == "open\n"
        time.sleep(delays.uniform(0.0, 0.12))
        child.kill()
        finished = "finished" in child.stdout.read()
        child.wait()
        child.stdout.close()
        kills += not finished
        for index in range(len(store.shards)):  # whatever is marked is whole
            if store.done(index):
                np.testing.assert_array_equal(
                    store.read_labels(store.shards[index]), labels[store.shards[index].slices]
                )
        if finished:
            break
    for index in store.missing():
        store.write_shard(index, labels[store.shards[index].slices])
    list(store.finish_pyramid())
    assert kills >= 1
    assert digest(store.path) == digest(whole.path)
