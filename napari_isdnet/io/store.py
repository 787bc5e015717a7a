"""The working result store and default output: a pyramid of uint8 maps as sharded OME-Zarr 0.5.

Shards are the unit of writing. Each is written whole by one writer (two writers on one shard would lose data), forced
to the disk, and only then marked done by a file ``.done/<level>/<index>``. After ``kill -9`` a shard without a
marker is simply not done, whatever bytes lie there, and writing it again gives the same bytes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Generator, Mapping, Sequence
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_isdnet.classes import IGNORE_INDEX, ClassInfo, classes_from
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.disk import PARTIAL, disk_errors, replacing, write_atomic
from napari_isdnet.io.ome_zarr import MARKERS, attributes, read_own
from napari_isdnet.io.shards import ZSTD_LEVEL, Shards
from napari_isdnet.io.source import GeoReference, PixelSize, TileError, check_window
from napari_isdnet.prefetch import ahead
from napari_isdnet.progress import Clock, Progress
from napari_isdnet.window import Grid, Window, pyramid_shapes

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

CHUNK = 512
SHARD = 2048
SHARD_BYTES = 32 * 2**20
"""Of a shard's values: one of many channels is narrower, since it is made, held and written whole."""
BUILDING_BYTES = 128 * 2**20
"""Of levels that are built at once; measured, one takes five times what a shard holds."""
KINDS = ("labels", "probabilities", "uncertainty")


class LabelStore:
    """A uint8 pyramid on disk; also an :class:`~napari_isdnet.io.source.ImageSource` of what it holds.

    ``kind`` 'labels' holds class indices (255 = nodata), levels by 2x2 mode. 'probabilities' (one channel per class)
    and 'uncertainty' (one channel) hold ``round(254 v)`` of values 0..1 (255 = nodata), levels by 2x2 mean.
    Arrays passed in and out are ``(height, width)`` for labels or ``(height, width, channels)``.
    """

    def __init__(self, path: Path, arrays: Sequence[Any], own: Mapping[str, Any]) -> None:
        self.path = path
        self._arrays = tuple(arrays)
        self.kind: str = own["kind"]
        self.classes: tuple[ClassInfo, ...] = own["classes"]
        self.origin: tuple[int, int] = own["origin"]
        self.extra: Mapping[str, Any] = own.get("extra", {})
        self._pixel_size: PixelSize | None = own["pixel_size"]
        self._georeference: GeoReference | None = own["georeference"]

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        shape: tuple[int, int],
        classes: Sequence[Any],
        *,
        kind: str = "labels",
        pixel_size: PixelSize | None = None,
        georeference: GeoReference | None = None,
        origin: tuple[int, int] = (0, 0),
        shard: int = SHARD,
        chunk: int = CHUNK,
        extra: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> LabelStore:
        """An empty store (everything nodata) for an image of ``shape`` pixels.

        ``georeference`` is that of *this* store's first pixel; ``origin`` says where that pixel lies in the image
        that was segmented (for a region), in pixels. ``extra`` is kept in the metadata (JSON). Raises
        :class:`InputError` where ``path`` exists and ``overwrite`` is false.
        """
        import zarr
        from zarr.codecs import ZstdCodec

        path = Path(path)
        if min(shape) < 1:
            raise InputError(f"A result needs at least 1 x 1 pixels, got {shape[0]} x {shape[1]}.")
        if kind not in KINDS:
            raise InputError(f"A store holds one of {', '.join(KINDS)}, got '{kind}'.")
        if chunk < 1 or shard % chunk:
            raise InputError(f"A shard must be a multiple of the chunk ({chunk}), got {shard}.")
        infos = classes_from(classes)
        channels = {"labels": None, "probabilities": len(infos), "uncertainty": 1}[kind]
        levels = pyramid_shapes(shape)
        attrs = attributes(
            _stem(path),
            len(levels),
            infos,
            kind=kind,
            channels=channels,
            pixel_size=pixel_size,
            georeference=georeference,
            origin=origin,
            extra=extra or {},
        )
        lead = () if channels is None else (channels,)
        with replacing(path, overwrite) as temporary:
            group = zarr.create_group(store=temporary, zarr_format=3, attributes=attrs)
            for level, (rows, columns) in enumerate(levels):
                side = shard_side(max(rows, columns), channels or 1, shard, chunk)
                group.create_array(
                    str(level),
                    shape=(*lead, rows, columns),
                    dtype="uint8",
                    chunks=(*(1 for _ in lead), chunk, chunk),
                    shards=(*lead, side, side),
                    compressors=ZstdCodec(level=ZSTD_LEVEL, checksum=False),
                    fill_value=IGNORE_INDEX,
                    dimension_names=["c", "y", "x"][1 - len(lead) :],
                )
                (temporary / MARKERS / str(level)).mkdir(parents=True)
        return cls.open(path)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> LabelStore:
        """Open what :meth:`create` or an OME-Zarr export wrote; :class:`InputError` for anything else."""
        import zarr

        path = Path(path)
        if not (path / "zarr.json").is_file():
            raise InputError(f"{path} is no OME-Zarr 0.5 store (it has no zarr.json); give the folder of a result.")
        try:
            group = zarr.open_group(path, mode="r+", zarr_format=3)
            own = read_own(dict(group.attrs), path)
            arrays = [group[name] for name in own["levels"]]
            shapes = [
                (int(a.shape[-2]), int(a.shape[-1])) for a in arrays if isinstance(a, zarr.Array) and a.dtype == "uint8"
            ]
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"{path} cannot be opened as an OME-Zarr result ({error}); make it again.") from error
        if not shapes or shapes != pyramid_shapes(shapes[0]):
            raise InputError(f"{path} has levels of unexpected shapes or types {shapes}; make it again.")
        return cls(path, arrays, own)

    def move(self, pixel_size: PixelSize | None, georeference: GeoReference | None) -> None:
        """Say where the pixels lie now, which stay as they are: a world file may come when the work is done."""
        if (pixel_size, georeference) == (self._pixel_size, self._georeference):
            return
        self._pixel_size, self._georeference = pixel_size, georeference
        path = self.path / "zarr.json"
        own = json.loads(path.read_text(encoding="utf-8"))
        own["attributes"] = attributes(
            self.name, len(self.levels), self.classes, kind=self.kind,
            channels=None if self.kind == "labels" else self.channels, pixel_size=pixel_size,
            georeference=georeference, origin=self.origin, extra=self.extra,
        )  # fmt: skip
        write_atomic(path, json.dumps(own, indent=2).encode())

    # --- ImageSource -------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """File name without ``.ome.zarr``."""
        return _stem(self.path)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns at level 0."""
        return self.levels[0]

    @cached_property
    def levels(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of every level."""
        return tuple((int(a.shape[-2]), int(a.shape[-1])) for a in self._arrays)

    @cached_property
    def _files(self) -> tuple[Shards, ...]:
        """The shards of every level, as files."""
        return tuple(Shards.of(array, self.path / array.basename) for array in self._arrays)

    @property
    def channels(self) -> int:
        """1 for labels and uncertainty, else the number of classes."""
        return int(self._arrays[0].shape[0]) if self._arrays[0].ndim == 3 else 1

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8."""
        import numpy as np

        return np.dtype(np.uint8)

    @property
    def pixel_size(self) -> PixelSize | None:
        """Size of a level-0 pixel, where known."""
        return self._pixel_size

    @property
    def georeference(self) -> GeoReference | None:
        """Position of this store's first pixel on the earth, where known."""
        return self._georeference

    @property
    def nodata(self) -> float | None:
        """255."""
        return float(IGNORE_INDEX)

    @property
    def alpha(self) -> int | None:
        """None: no alpha channel."""
        return None

    def read(self, window: Window, level: int = 0) -> npt.NDArray[np.uint8]:
        """``(height, width, channels)`` uint8; shards that were never written read as 255."""
        import numpy as np

        check_window(self, window, level)
        return np.ascontiguousarray(np.moveaxis(self.planes(window, level, slice(0, self.channels)), 0, -1))

    def planes(self, window: Window, level: int, channels: slice) -> npt.NDArray[np.uint8]:
        """Some channels of a window, (channels, height, width)."""
        array = self._files[level]
        try:
            if len(array.shape) == 2:
                return array.read(window.slices)[None]
            return array.read((channels, *window.slices))
        except Exception as error:
            raise TileError(self.name, window, level, str(error), "make this result again (--no-resume).") from error

    def read_labels(self, window: Window, level: int = 0) -> npt.NDArray[np.uint8]:
        """First channel of :meth:`read`, ``(height, width)``."""
        return self.read(window, level)[..., 0]

    def identity(self) -> Mapping[str, Any]:
        """Path, shape and time of the last finished shard."""
        newest = max((p.stat().st_mtime_ns for p in self._marker(0, 0).parent.glob("*")), default=0)
        metadata = (self.path / "zarr.json").stat().st_mtime_ns
        return {"path": str(self.path.resolve()), "shape": list(self.shape), "mtime_ns": max(newest, metadata)}

    def close(self) -> None:
        """Nothing is held open between calls."""

    @property
    def shard_bytes(self) -> int:
        """Of the values of a whole shard of level 0, all channels."""
        return math.prod(self._arrays[0].shards)

    # --- writing -----------------------------------------------------------------------------------------------

    @cached_property
    def shards(self) -> Grid:
        """The units of writing at level 0."""
        return self.shards_of(0)

    def shards_of(self, level: int) -> Grid:
        """The units of writing at ``level``."""
        return Grid(self.levels[level], tuple(self._arrays[level].shards[-2:]))

    def _marker(self, level: int, index: int) -> Path:
        return self.path / MARKERS / str(level) / str(index)

    def _place(self, level: int, index: int) -> tuple[int, ...]:
        """Where a shard lies in the array's grid of shards, which holds all channels in one."""
        place = divmod(index, self.shards_of(level).counts[1])
        return place if self._arrays[level].ndim == 2 else (0, *place)

    def done(self, index: int, level: int = 0) -> bool:
        """True when that shard was written whole (exports carry no markers: everything in them is done)."""
        if not (self.path / MARKERS).is_dir():
            return True
        return self._marker(level, index).exists() and self._kept(index, level)

    def _kept(self, index: int, level: int) -> bool:
        """True when a shard that is marked is there still, or never was a file since it is empty.

        Programs that clean up or synchronise folders lose files, and what is lost would read as nodata.
        """
        there = self._files[level].path(self._place(level, index)).is_file()
        return there or self._marker(level, index).stat().st_size > 0

    def missing(self, level: int = 0) -> list[int]:
        """Shards that are not done, ascending."""
        count = len(self.shards_of(level))
        if not (self.path / MARKERS).is_dir():
            return []
        there = {entry.name for entry in os.scandir(self.path / MARKERS / str(level))}
        return [i for i in range(count) if str(i) not in there or not self._kept(i, level)]

    @property
    def finished(self) -> bool:
        """True when every shard of every level is done."""
        return all(not self.missing(level) for level in reversed(range(len(self.levels))))

    def write_shard(self, index: int, array: npt.NDArray[np.uint8], level: int = 0) -> Window:
        """Write shard ``index`` whole: data, fsync, marker, in this order. Returns its window.

        The marker says ``empty`` of a shard that is no file, since all of it is nodata.

        ``array`` has exactly the shard's shape (smaller at the right and lower border). Different shards may be
        written at once from many threads or processes; one shard only by one writer.
        """
        import numpy as np

        window = self.shards_of(level)[index]
        expected = window.shape if self._arrays[level].ndim == 2 else (*window.shape, self.channels)
        if array.shape != expected or array.dtype != np.uint8:
            raise InputError(f"Shard {index} takes uint8 {expected}, got {array.dtype} {array.shape}.")
        marker = self._marker(level, index)
        with disk_errors(self.path):
            self._unmark(level, index)
            values = array if array.ndim == 2 else np.moveaxis(array, -1, 0)
            kept = self._files[level].write(self._place(level, index), values)
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.write_bytes(b"" if kept else b"empty")
        return window

    def _unmark(self, level: int, index: int) -> None:
        """This shard, and what was built from it at coarser levels, is not done."""
        window = self.shards_of(level)[index]
        for coarser in range(level, len(self.levels)):
            covering = window.divided(2 ** (coarser - level))
            for other in self.shards_of(coarser).touching(covering):
                self._marker(coarser, other).unlink(missing_ok=True)

    def build_level_block(self, level: int, index: int) -> Window:
        """Make shard ``index`` of ``level`` (at least 1) from the level below it, and mark it done."""
        import numpy as np

        from napari_isdnet.io.pyramid import halve_by_mean, halve_by_mode

        window = self.shards_of(level)[index]
        halve = halve_by_mode if self.kind == "labels" else halve_by_mean
        result = np.empty((self.channels, *window.shape), np.uint8)
        for top in range(0, window.height, CHUNK):  # strips of single channels bound the temporary arrays
            strip = Window(window.row + top, window.column, min(CHUNK, window.height - top), window.width)
            below = strip.multiplied(2).clipped(self.levels[level - 1])
            for channel, plane in enumerate(result):
                values = self.planes(below, level - 1, slice(channel, channel + 1))[0]
                plane[top : top + strip.height] = halve(values)
        self.write_shard(index, result[0] if self.kind == "labels" else np.moveaxis(result, 0, -1), level)
        return window

    def _unbuilt(self) -> list[list[int]]:
        """Shards of level 1 and of every coarser one that are to be built, ascending.

        Those that are not done, and all that is made from them: building a shard takes the marks of what lies above.
        """
        result, below = [], self.missing(0)
        for level in range(1, len(self.levels)):
            finer, grid = self.shards_of(level - 1), self.shards_of(level)
            above = chain.from_iterable(grid.touching(finer[index].divided(2)) for index in below)
            below = sorted({*self.missing(level), *above})
            result.append(below)
        return result

    @property
    def _builders(self) -> int:
        """How many shards of a level are built at once: as many as there are cores and ``BUILDING_BYTES`` allow."""
        return max(1, min(8, os.cpu_count() or 1, BUILDING_BYTES // (5 * self.shard_bytes)))

    def finish_pyramid(self) -> Generator[Progress, None, None]:
        """Build what is missing of the lower levels; resumable, few shards in memory, same bytes every time.

        Raises :class:`InputError` where level 0 is not complete.
        """
        missing = self.missing(0)
        if missing:
            raise InputError(
                f"{self.path} is not complete: {len(missing)} of {len(self.shards)} shards are missing;"
                " run the same command again to resume it."
            )
        todo = self._unbuilt()
        total = sum(len(self.shards_of(level)) for level in range(1, len(self.levels)))
        clock = Clock(total, total - sum(map(len, todo)))
        for level, shards in enumerate(todo, 1):  # one after the other: each is made from the one below
            build = partial(self.build_level_block, level)
            for _, window in ahead(shards, build, self._builders):
                yield clock.step(1, "pyramid", window.multiplied(2**level).clipped(self.shape))
        for leftover in self.path.rglob(f"*{PARTIAL}"):  # of writers that were killed
            leftover.unlink(missing_ok=True)


def shard_side(longest: int, channels: int, shard: int = SHARD, chunk: int = CHUNK) -> int:
    """Side of the shards of a level whose longer side is ``longest``, in pixels; a multiple of ``chunk``.

    No larger than the level needs, and of many channels a whole part of that, so that shards of one channel hold whole
    ones of many: as wide as ``SHARD_BYTES`` allow, but at least a chunk.
    """
    count = min(shard // chunk, -(-longest // chunk))
    fit = [n for n in range(1, count + 1) if count % n == 0 and channels * (n * chunk) ** 2 <= SHARD_BYTES]
    return chunk * (count if channels == 1 else max(fit, default=1))


def _stem(path: Path) -> str:
    return path.name.removesuffix(".zarr").removesuffix(".ome")
