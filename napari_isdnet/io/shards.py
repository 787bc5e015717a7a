"""Shards of the result store, written and read whole or in part by the thread that asks.

The format is zarr v3's ``sharding_indexed`` with zstd (https://zarr-specs.readthedocs.io, "Sharding codec"): encoded
chunks one after the other, then an index of (offset, size) by chunk in C order, then the index's CRC-32C. zarr makes
the store, its metadata, and everything that is not ours; it runs every chunk through one event loop, which is why
2048 x 2048 labels took it 32 ms on one thread and no less on four, of which zstd took 4.
"""

from __future__ import annotations

import itertools
import os
import uuid
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_isdnet.exceptions import InputError
from napari_isdnet.io.disk import PARTIAL
from napari_isdnet.system import move, opened, unlink

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[np.uint8]

ZSTD_LEVEL = 3
EMPTY = 2**64 - 1
"""Offset and size, in the index, of a chunk that holds nothing but the fill value and is not stored."""


class Shards:
    """The shards of one uint8 array of ``(rows, columns)`` or ``(channels, rows, columns)`` in a local folder.

    Different shards may be written at once from many threads or processes; one shard only by one writer.
    """

    def __init__(self, folder: Path, shape: tuple[int, ...], shard: tuple[int, ...], chunk: tuple[int, ...], fill: int):
        self.folder, self.shape, self.shard, self.chunk, self.fill = folder, shape, shard, chunk, fill
        self.counts = tuple(s // c for s, c in zip(shard, chunk, strict=True))
        self._index_bytes = 16 * int(np.prod(self.counts)) + 4

    @classmethod
    def of(cls, array: Any, folder: Path) -> Shards:
        """Those of a zarr array that lies in ``folder``; :class:`InputError` where it is coded in another way."""
        if [_plain(codec.to_dict()) for codec in array.metadata.codecs] != [_codec(tuple(array.chunks))]:
            raise InputError(f"{folder} is coded in another way than results are; make it again.")
        shards, chunks = tuple(map(int, array.shards)), tuple(map(int, array.chunks))
        return cls(folder, tuple(map(int, array.shape)), shards, chunks, int(array.fill_value))

    def path(self, place: tuple[int, ...]) -> Path:
        """The file of the shard at ``place`` of the grid of shards."""
        return self.folder.joinpath("c", *map(str, place))

    # --- writing -----------------------------------------------------------------------------------------------

    def write(self, place: tuple[int, ...], values: Array) -> bool:
        """Replace a shard by ``values``, which are cut off where the array ends; forced to the disk, all or nothing.

        False where they are nothing but the fill value, of which there is no file.
        """
        path, parts = self.path(place), self._encoded(values)
        if not parts:
            unlink(path)
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL}")
        try:
            with temporary.open("wb") as file:
                file.writelines(parts)
                file.flush()
                os.fsync(file.fileno())
            move(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return True

    def _encoded(self, values: Array) -> list[bytes]:
        """The bytes of a shard, in parts; none where it holds nothing but the fill value."""
        encode = _zstd().encode
        index = np.full((*self.counts, 2), EMPTY, "<u8")
        parts: list[bytes] = []
        offset = 0
        for number in itertools.product(*map(range, self.counts)):
            chunk = values[tuple(slice(n * c, (n + 1) * c) for n, c in zip(number, self.chunk, strict=True))]
            if (chunk == self.fill).all():
                continue
            if chunk.shape != self.chunk:
                whole = np.full(self.chunk, self.fill, np.uint8)
                whole[tuple(slice(0, n) for n in chunk.shape)] = chunk
                chunk = whole
            parts.append(encode(np.ascontiguousarray(chunk)))
            index[number] = offset, len(parts[-1])
            offset += len(parts[-1])
        if parts:
            table = index.tobytes()
            parts += [table, crc32c(table).to_bytes(4, "little")]
        return parts

    # --- reading -----------------------------------------------------------------------------------------------

    def read(self, where: tuple[slice, ...]) -> Array:
        """The values of a box (start and stop of every axis); raises ``ValueError`` for a damaged shard."""
        starts, stops = [s.start for s in where], [s.stop for s in where]
        result = np.full([b - a for a, b in zip(starts, stops, strict=True)], self.fill, np.uint8)
        for place in _touched(starts, stops, self.shard):
            origin = [p * s for p, s in zip(place, self.shard, strict=True)]
            self._paste(self.path(place), origin, starts, stops, result)
        return result

    def _paste(self, path: Path, origin: list[int], starts: list[int], stops: list[int], result: Array) -> None:
        try:
            file = opened(path)
        except FileNotFoundError:  # nothing but the fill value, or not written yet
            return
        with file:
            index = self._index(file)
            low = [max(0, a - o) for a, o in zip(starts, origin, strict=True)]
            high = [min(s, b - o) for s, b, o in zip(self.shard, stops, origin, strict=True)]
            for number in _touched(low, high, self.chunk):
                offset, size = (int(v) for v in index[number])
                if offset == EMPTY:
                    continue
                file.seek(offset)
                values = np.frombuffer(_zstd().decode(file.read(size)), np.uint8).reshape(self.chunk)
                inside, outside = [], []
                for axis, n in enumerate(number):
                    first = n * self.chunk[axis]
                    a, b = max(low[axis], first), min(high[axis], first + self.chunk[axis])
                    inside.append(slice(a - first, b - first))
                    outside.append(slice(a + origin[axis] - starts[axis], b + origin[axis] - starts[axis]))
                result[tuple(outside)] = values[tuple(inside)]

    def _index(self, file: Any) -> npt.NDArray[np.uint64]:
        size = file.seek(0, os.SEEK_END)
        if size < self._index_bytes:
            raise ValueError(f"{file.name} is too short for a shard")
        file.seek(size - self._index_bytes)
        table = file.read(self._index_bytes)
        if crc32c(table[:-4]) != int.from_bytes(table[-4:], "little"):
            raise ValueError(f"{file.name} is damaged (its index has another checksum)")
        return np.frombuffer(table[:-4], "<u8").reshape(*self.counts, 2)


def _touched(starts: list[int], stops: list[int], side: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Cells of a grid of ``side`` that a box reaches into."""
    return itertools.product(*(range(a // s, -(-b // s)) for a, b, s in zip(starts, stops, side, strict=True)))


@cache
def _zstd() -> Any:
    from numcodecs import Zstd

    return Zstd(level=ZSTD_LEVEL)


def _codec(chunk: tuple[int, ...]) -> dict[str, Any]:
    """How :meth:`~napari_isdnet.io.store.LabelStore.create` asks zarr to code an array."""
    from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, ZstdCodec

    codec = ShardingCodec(
        chunk_shape=chunk,
        codecs=(BytesCodec(endian=None), ZstdCodec(level=ZSTD_LEVEL, checksum=False)),
        index_codecs=(BytesCodec(), Crc32cCodec()),
    )
    return _plain(codec.to_dict())


def _plain(codec: dict[str, Any]) -> dict[str, Any]:
    """A sharding codec without the order of the bytes of a single byte, which zarr 3.0 writes down and 3.1 does not."""
    settings = dict(codec.get("configuration", {}))
    inner = settings.get("codecs", ())
    settings["codecs"] = [{"name": "bytes"} if part.get("name") == "bytes" else part for part in inner]
    return {**codec, "configuration": settings}


@cache
def _crc_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli) of a few kilobytes; zarr's versions bring different libraries for it."""
    table, value = _crc_table(), 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ table[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF
