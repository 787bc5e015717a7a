"""Our own writing and reading of zarr's shards, held against zarr in both directions."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.codecs import BytesCodec, GzipCodec, ZstdCodec

from napari_isdnet.exceptions import InputError
from napari_isdnet.io.shards import ZSTD_LEVEL, Shards, crc32c
from napari_isdnet.io.source import TileError
from napari_isdnet.io.store import BUILDING_BYTES, CHUNK, SHARD_BYTES, LabelStore
from napari_isdnet.window import Window


def array_in(folder: Path, shape: tuple[int, ...], shard: tuple[int, ...], chunk: tuple[int, ...], codec: Any) -> Any:
    return zarr.create_array(
        folder / "0", shape=shape, shards=shard, chunks=chunk, dtype="uint8", compressors=codec, fill_value=255,
        overwrite=True,
    )  # fmt: skip


def ours(folder: Path, shape: tuple[int, ...], shard: tuple[int, ...], chunk: tuple[int, ...]) -> tuple[Any, Shards]:
    array = array_in(folder, shape, shard, chunk, ZstdCodec(level=ZSTD_LEVEL, checksum=False))
    return array, Shards.of(array, folder / "0")


@st.composite
def layouts(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], np.ndarray, tuple[slice, ...]]:
    """Shape, shard, chunk, values with chunks and shards of nothing, and a box inside."""
    lead = draw(st.sampled_from([(), (1,), (3,)]))
    side, times = draw(st.sampled_from([3, 8])), draw(st.integers(1, 3))
    most = 5 * side  # five chunks: two shards of the largest
    shape = (*lead, draw(st.integers(1, most)), draw(st.integers(1, most)))
    shard, chunk = (*lead, side * times, side * times), (*(1 for _ in lead), side, side)
    values = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 4, shape, dtype=np.uint8)
    values[..., : draw(st.integers(0, most)), : draw(st.integers(0, most))] = 255
    box = []
    for length in shape:
        start = draw(st.integers(0, length - 1))
        box.append(slice(start, draw(st.integers(start + 1, length))))
    return shape, shard, chunk, values, tuple(box)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(layouts())
def test_zarr_reads_what_we_write_and_we_read_what_zarr_writes(tmp_path: Path, layout: Any) -> None:
    shape, shard, chunk, values, box = layout
    array, shards = ours(tmp_path / "a", shape, shard, chunk)
    for place in np.ndindex(*(-(-n // s) for n, s in zip(shape, shard, strict=True))):
        shards.write(place, values[tuple(slice(p * s, (p + 1) * s) for p, s in zip(place, shard, strict=True))])
    np.testing.assert_array_equal(array[:], values)
    np.testing.assert_array_equal(shards.read(box), values[box])
    theirs, read = ours(tmp_path / "b", shape, shard, chunk)
    theirs[:] = values
    np.testing.assert_array_equal(read.read(box), values[box])
    stored = [sorted(p.relative_to(tmp_path / n).as_posix() for p in (tmp_path / n).rglob("c/**/*")) for n in "ab"]
    assert stored[0] == stored[1], "shards of nothing are stored by neither"


def test_a_shard_that_becomes_empty_is_taken_away(tmp_path: Path) -> None:
    array, shards = ours(tmp_path, (16, 16), (8, 8), (4, 4))
    shards.write((0, 1), np.zeros((8, 8), np.uint8))
    assert shards.path((0, 1)).is_file()
    shards.write((0, 1), np.full((8, 8), 255, np.uint8))
    assert not shards.path((0, 1)).exists()
    assert (array[:] == 255).all()


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array, shards = ours(tmp_path, (8, 8), (8, 8), (4, 4))
    shards.write((0, 0), np.ones((8, 8), np.uint8))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("napari_isdnet.io.shards.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        shards.write((0, 0), np.zeros((8, 8), np.uint8))
    assert (array[:] == 1).all()
    assert [p.name for p in shards.path((0, 0)).parent.iterdir()] == ["0"]


def test_readers_see_a_shard_before_or_after_never_between(tmp_path: Path) -> None:
    _, shards = ours(tmp_path, (64, 64), (64, 64), (16, 16))
    shards.write((0, 0), np.zeros((64, 64), np.uint8))
    stop, seen = threading.Event(), set()

    def read() -> None:
        while not stop.is_set():
            seen.update(np.unique(shards.read((slice(0, 64), slice(0, 64)))).tolist())
            values = np.unique(shards.read((slice(0, 64), slice(0, 64))))
            assert len(values) == 1, values

    reader = threading.Thread(target=read)
    reader.start()
    for value in range(1, 60):
        shards.write((0, 0), np.full((64, 64), value, np.uint8))
    stop.set()
    reader.join()
    assert len(seen) > 1


@pytest.mark.parametrize("damage", ["short", "index", "chunk"])
def test_damage_is_a_tile_that_cannot_be_read(tmp_path: Path, damage: str) -> None:
    labels = np.random.default_rng(0).integers(0, 3, (100, 100), dtype=np.uint8)
    store = LabelStore.create(tmp_path / "a.ome.zarr", (100, 100), ["a", "b", "c"], shard=64, chunk=32)
    for index, window in enumerate(store.shards):
        store.write_shard(index, labels[window.slices])
    file = store.path / "0" / "c" / "0" / "0"
    data = bytearray(file.read_bytes())
    if damage == "short":
        data = data[:10]
    else:
        data[-12 if damage == "index" else 3] ^= 0x55
    file.write_bytes(bytes(data))
    with pytest.raises(TileError, match=r"^a: cannot read rows 0-39"):
        store.read(Window(0, 0, 40, 40))
    np.testing.assert_array_equal(store.read_labels(Window(64, 0, 36, 64)), labels[64:, :64])


def test_arrays_that_are_coded_in_another_way_are_refused(tmp_path: Path) -> None:
    for codec in (GzipCodec(), ZstdCodec(level=ZSTD_LEVEL + 1)):
        with pytest.raises(InputError, match="coded in another way"):
            Shards.of(array_in(tmp_path, (8, 8), (8, 8), (4, 4), codec), tmp_path / "0")


def test_the_order_of_the_bytes_of_a_single_byte_is_nothing(tmp_path: Path) -> None:
    """zarr 3.0 writes it down, later versions do not; stores of either are read and gone on with."""
    group = zarr.create_group(store=tmp_path, zarr_format=3)
    codec = ZstdCodec(level=ZSTD_LEVEL, checksum=False)
    array = group.create_array(
        "0", shape=(8, 8), shards=(8, 8), chunks=(4, 4), dtype="uint8", compressors=codec, fill_value=255,
        serializer=BytesCodec(endian="little"),
    )  # fmt: skip
    array[:] = 3
    shards = Shards.of(array, tmp_path / "0")
    assert (shards.read((slice(0, 8), slice(0, 8))) == 3).all()
    shards.write((0, 0), np.full((8, 8), 4, np.uint8))
    assert (array[:] == 4).all()


@pytest.mark.parametrize("channels", [1, 19, 200])
def test_what_is_built_at_once_is_bounded_by_bytes(tmp_path: Path, channels: int, monkeypatch: Any) -> None:
    monkeypatch.setattr("napari_isdnet.io.store.os.cpu_count", lambda: 64)
    kind = "labels" if channels == 1 else "probabilities"
    names = [f"class {n}" for n in range(channels)]
    store = LabelStore.create(tmp_path / "a.ome.zarr", (3000, 3000), names, kind=kind)
    assert store._builders == 1 or store._builders * 5 * store.shard_bytes <= BUILDING_BYTES
    assert store.shard_bytes <= max(SHARD_BYTES, channels * CHUNK * CHUNK)
    assert 1 <= store._builders <= 8


def test_the_checksum_is_castagnoli() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C (RFC 3720)
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4
