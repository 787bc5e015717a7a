"""How tiled TIFFs are read: any window of any tiling, from many threads, around damage, through the shared cache."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from napari_isdnet.exceptions import InputError
from napari_isdnet.io.base import POOL_FROM_TILES, run
from napari_isdnet.io.cache import TileCache, cache_within, shared_cache
from napari_isdnet.io.files import PositionalFile
from napari_isdnet.io.open import open_source
from napari_isdnet.io.source import TileError
from napari_isdnet.window import Window
from tests.tiff_tools import RNG, picture, windows_of


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.data())
def test_any_window_of_any_tiling_is_the_crop(tmp_path, data):
    rows, columns = data.draw(st.integers(1, 90)), data.draw(st.integers(1, 90))
    tile = (16 * data.draw(st.integers(1, 4)), 16 * data.draw(st.integers(1, 4)))
    image = np.arange(rows * columns, dtype=np.uint16).reshape(rows, columns)
    path = tmp_path / f"{rows}-{columns}-{tile[0]}-{tile[1]}.tif"
    tifffile.imwrite(path, image, tile=tile, compression="zlib", photometric="minisblack")
    source = open_source(path)
    top, left = data.draw(st.integers(0, rows)), data.draw(st.integers(0, columns))
    window = Window(top, left, data.draw(st.integers(0, rows - top)), data.draw(st.integers(0, columns - left)))
    np.testing.assert_array_equal(source.read(window)[..., 0], image[window.slices])
    source.close()


def test_many_threads_read_what_one_reads(tmp_path):
    path = tmp_path / "a.tif"
    image = picture(600, 700)
    tifffile.imwrite(path, image, tile=(64, 64), compression="zlib", photometric="rgb")
    source = open_source(path, threads=2)
    jobs = list(windows_of(image.shape[:2], 60))
    with ThreadPoolExecutor(8) as pool:
        for window, crop in zip(jobs, pool.map(source.read, jobs)):
            np.testing.assert_array_equal(crop, image[window.slices])


def test_a_reader_gets_help_unless_as_many_read_already():
    def threads_of(jobs: int) -> set[str]:
        seen: set[str] = set()
        run(lambda _: seen.add(threading.current_thread().name), range(jobs), 2)
        return seen

    mine = {threading.current_thread().name}
    assert threads_of(POOL_FROM_TILES - 1) == mine
    assert all(name.startswith("isdnet-tiles") for name in threads_of(POOL_FROM_TILES))
    inside, leave = threading.Event(), threading.Event()

    def other(job: int) -> None:
        inside.set()
        leave.wait(10)

    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(run, other, [0], 2)
        inside.wait(10)
        assert threads_of(POOL_FROM_TILES) == mine
        leave.set()
        busy.result()
    assert all(name.startswith("isdnet-tiles") for name in threads_of(POOL_FROM_TILES))


def test_reads_are_the_callers_own(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, picture(64, 64), tile=(64, 64), photometric="rgb")
    source = open_source(path)
    first = source.read(Window(0, 0, 64, 64))
    kept = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(source.read(Window(0, 0, 64, 64)), kept)


def test_bad_tile_has_a_position_and_the_rest_is_readable(tmp_path):
    path = tmp_path / "a.tif"
    image = picture(128, 128)
    tifffile.imwrite(path, image, tile=(64, 64), compression="zlib", photometric="rgb")
    with tifffile.TiffFile(path) as tif:
        offset, count = tif.pages[0].dataoffsets[3], tif.pages[0].databytecounts[3]
    data = bytearray(path.read_bytes())
    data[offset : offset + count] = b"\0" * count
    path.write_bytes(data)
    source = open_source(path)
    np.testing.assert_array_equal(source.read(Window(0, 0, 64, 128)), image[:64])
    with pytest.raises(TileError, match="rows 64-127, columns 64-127 at level 0") as caught:
        source.read(Window(60, 60, 10, 10))
    assert caught.value.window == Window(64, 64, 64, 64)


def test_windows_outside_and_closed_sources_are_refused(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, picture(64, 64), photometric="rgb")
    source = open_source(path)
    for window, level in ((Window(0, 0, 65, 1), 0), (Window(-1, 0, 1, 1), 0), (Window(0, 0, 1, 1), 1)):
        with pytest.raises(InputError):
            source.read(window, level)
    identity = dict(source.identity())
    assert identity["size"] == path.stat().st_size
    source.close()
    with pytest.raises(InputError, match="closed"):
        source.read(Window(0, 0, 1, 1))


def test_seek_and_read_where_there_is_no_pread(tmp_path, monkeypatch):
    path = tmp_path / "bytes"
    data = RNG.integers(0, 256, 100_000, np.uint8).tobytes()
    path.write_bytes(data)
    monkeypatch.delattr("os.pread")
    file = PositionalFile(path)
    places = [(int(o), 977) for o in RNG.integers(0, 99_000, 200)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda p: file.read(*p), places)) == [data[o : o + n] for o, n in places]
    with pytest.raises(EOFError):
        file.read(99_999, 2)
    file.close()


def test_cache_decodes_once_and_stays_within_its_bytes():
    cache = TileCache(10_000)
    calls, gate = [], threading.Event()

    def load():
        calls.append(1)
        gate.wait(5)
        return np.zeros(4000, np.uint8)

    with ThreadPoolExecutor(6) as pool:
        futures = [pool.submit(cache.get, ("s", 1), load) for _ in range(6)]
        gate.set()
        tiles = [f.result() for f in futures]
    assert len(calls) == 1
    assert all(t is tiles[0] and not t.flags.writeable for t in tiles)
    for i in range(2, 5):
        cache.get(("s", i), lambda: np.zeros(4000, np.uint8))
    assert cache.nbytes <= 10_000
    assert len(cache) == 2

    def fail():
        raise RuntimeError("broken")

    for _ in range(2):
        with pytest.raises(RuntimeError):
            cache.get(("s", 99), fail)
    cache.drop("s")
    assert (len(cache), cache.nbytes) == (0, 0)
    assert shared_cache() is shared_cache()


def test_a_small_memory_budget_bounds_the_tiles_that_are_kept_for_its_time() -> None:
    cache = shared_cache()
    before = cache.max_bytes
    with cache_within(1 << 30):
        assert cache.max_bytes == 64 << 20
        for number in range(12):
            cache.get(("budget", number), lambda: np.zeros(10 << 20, np.uint8))
        assert cache.nbytes <= 64 << 20
        with cache_within(1 << 20):
            assert cache.max_bytes == 32 << 20
    with cache_within(1 << 40):
        assert cache.max_bytes == before
    with pytest.raises(ValueError, match="mine"), cache_within(1 << 30):
        raise ValueError("mine")
    assert cache.max_bytes == before
    cache.drop("budget")


def test_jobs_that_overlap_leave_the_cache_as_it_was() -> None:
    cache = shared_cache()
    before = cache.max_bytes
    first, second = cache_within(1 << 30), cache_within(1 << 20)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert cache.max_bytes == 32 << 20
    third = cache_within(1 << 30)
    third.__enter__()
    second.__exit__(None, None, None)
    assert cache.max_bytes == 64 << 20
    third.__exit__(None, None, None)
    assert cache.max_bytes == before
