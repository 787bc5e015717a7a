from __future__ import annotations

import hashlib
import itertools
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_isdnet.exceptions import InputError
from napari_isdnet.io.source import ImageSource
from napari_isdnet.io.world import MAX_SIDE, ProceduralWorld
from napari_isdnet.io.world_file import write_world_tiff
from napari_isdnet.io.world_noise import cover, hash_grid, mix, octaves, scattered, unit
from napari_isdnet.landcover import BUILDING, LAND, LANDCOVER_CLASSES, ROAD, VEGETATION, WATER
from napari_isdnet.window import Window

WORLD = ProceduralWorld((1500, 1500), seed=9)
HUGE = ProceduralWorld((MAX_SIDE, MAX_SIDE), seed=0)


@pytest.fixture(scope="module")
def large() -> dict[tuple[str, int], np.ndarray]:
    """One large read of every kind, at the level it is taken from."""
    reads = {}
    for level in (0, 1, 3):
        window = _area(level)
        reads["picture", level] = HUGE.read(window, level)
        reads["truth", level] = HUGE.truth.read(window, level)
    return reads


def _area(level: int) -> Window:
    return Window(34100 >> level, 34000 >> level, 400, 420)


@pytest.mark.parametrize("source", [WORLD, WORLD.truth])
def test_is_an_image_source(source: ImageSource) -> None:
    assert isinstance(source, ImageSource)
    assert source.levels == ((1500, 1500), (750, 750), (375, 375), (188, 188))
    assert source.dtype == np.uint8
    assert source.pixel_size is not None
    assert source.pixel_size.metres == pytest.approx(0.3)
    for level, shape in enumerate(source.levels):
        out = source.read(Window(shape[0] - 3, shape[1] - 5, 3, 5), level)
        assert out.shape == (3, 5, source.channels)
        assert out.dtype == np.uint8
    assert source.read(Window(5, 5, 0, 7)).shape == (0, 7, source.channels)
    with pytest.raises(InputError, match="lies outside"):
        source.read(Window(1499, 0, 2, 2))
    with pytest.raises(InputError, match="levels 0 to 3"):
        source.read(Window(0, 0, 1, 1), 4)


def test_classes_are_those_of_the_aerial_data_in_order() -> None:
    assert [c.name for c in LANDCOVER_CLASSES] == ["building", "land", "road", "vegetation", "water"]
    assert (BUILDING, LAND, ROAD, VEGETATION, WATER) == (0, 1, 2, 3, 4)
    assert len({c.color for c in LANDCOVER_CLASSES}) == 5


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(["picture", "truth"]),
    level=st.sampled_from([0, 1, 3]),
    row=st.integers(0, 399),
    column=st.integers(0, 419),
    height=st.integers(1, 150),
    width=st.integers(1, 150),
)
def test_a_window_equals_the_crop_of_a_larger_read(
    large: dict[tuple[str, int], np.ndarray], kind: str, level: int, row: int, column: int, height: int, width: int
) -> None:
    area = _area(level)
    inner = Window(row, column, height, width).clipped(area.shape)
    source = HUGE if kind == "picture" else HUGE.truth
    out = source.read(inner.shifted(area.row, area.column), level)
    np.testing.assert_array_equal(out, large[kind, level][inner.slices])


def test_the_size_only_cuts() -> None:
    small = ProceduralWorld((700, 300), seed=9)
    window = Window(400, 100, 300, 200)
    np.testing.assert_array_equal(small.read(window), WORLD.read(window))
    np.testing.assert_array_equal(small.truth.read(window), WORLD.truth.read(window))


def test_block_seams_of_the_reader_are_invisible() -> None:
    # 1024 is where a large read is split into blocks of the map.
    across = WORLD.read(Window(900, 1000, 260, 100))
    np.testing.assert_array_equal(WORLD.read(Window(0, 1000, 1500, 100))[900:1160], across)


def test_threads_in_any_order_give_the_same_pixels() -> None:
    windows = [Window(r, c, 200, 200) for r in range(0, 800, 200) for c in range(0, 400, 200)]
    alone = [WORLD.read(w) for w in windows]
    with ThreadPoolExecutor(4) as pool:
        backwards = list(pool.map(ProceduralWorld((1500, 1500), seed=9).read, windows[::-1]))[::-1]
    for a, b in zip(alone, backwards):
        np.testing.assert_array_equal(a, b)


def test_another_process_gives_the_same_pixels() -> None:
    code = (
        "import hashlib; from napari_isdnet.io.world import *;"
        "w = ProceduralWorld((1500, 1500), seed=9);"
        "print(hashlib.sha256(w.read(Window(300, 310, 90, 77)).tobytes()"
        " + w.truth.read(Window(300, 310, 90, 77)).tobytes()).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    window = Window(300, 310, 90, 77)
    here = hashlib.sha256(WORLD.read(window).tobytes() + WORLD.truth.read(window).tobytes()).hexdigest()
    assert other == here


def test_another_seed_is_another_world() -> None:
    window = Window(0, 0, 256, 256)
    seeds = [ProceduralWorld((256, 256), seed=s).read(window) for s in (0, 1, -5, 2**40)]
    for i, a in enumerate(seeds):
        for b in seeds[i + 1 :]:
            assert np.abs(a.astype(int) - b).mean() > 5


@pytest.mark.parametrize("level", [1, 2])
def test_truth_of_a_level_is_level_0_at_the_middle_of_its_square(level: int) -> None:
    # 701 x 500 is no multiple of any step: the last row and column are held inside the world.
    truth = ProceduralWorld((701, 500), seed=9).truth
    full = truth.read(Window(0, 0, 701, 500))[..., 0]
    rows = np.minimum(np.arange(truth.levels[level][0]) * 2**level + 2**level // 2, 700)
    columns = np.minimum(np.arange(truth.levels[level][1]) * 2**level + 2**level // 2, 499)
    coarse = truth.read(Window(0, 0, *truth.levels[level]), level)[..., 0]
    np.testing.assert_array_equal(coarse, full[rows[:, None], columns])


def test_truth_of_the_coarsest_level_of_a_huge_world_is_exact_too() -> None:
    level = len(HUGE.levels) - 1
    coarse = HUGE.truth.read(Window(0, 0, *HUGE.levels[level]), level)[..., 0]
    for row, column in [(0, 0), (17, 150), (100, 31), (194, 195)]:
        at = Window(row * 2**level + 2 ** (level - 1), column * 2**level + 2 ** (level - 1), 1, 1).clipped(HUGE.shape)
        if at.empty:
            continue
        assert HUGE.truth.read(at)[0, 0, 0] == coarse[row, column]


@pytest.mark.parametrize(("level", "mean", "pixel"), [(1, 4, 6), (2, 4, 9), (3, 5, 12), (4, 6, 15)])
def test_a_picture_level_is_close_to_the_average_of_level_0(level: int, mean: float, pixel: float) -> None:
    side = 768
    top = 34304
    fine = HUGE.read(Window(top, top, side, side)).astype(np.float64)
    n, step = side >> level, 2**level
    average = fine.reshape(n, step, n, step, 3).mean((1, 3))
    coarse = HUGE.read(Window(top >> level, top >> level, n, n), level).astype(np.float64)
    assert np.abs(average.mean((0, 1)) - coarse.mean((0, 1))).max() < mean
    assert np.abs(average - coarse).mean() < pixel


def test_all_classes_have_sensible_shares() -> None:
    level = 8
    truth = HUGE.truth.read(Window(0, 0, *HUGE.levels[level]), level)[..., 0]
    shares = np.bincount(truth.ravel(), minlength=5) / truth.size
    assert len(shares) == 5
    low, high = [0.02, 0.2, 0.05, 0.12, 0.08], [0.15, 0.6, 0.2, 0.45, 0.4]
    assert (shares > low).all(), shares
    assert (shares < high).all(), shares


def test_colours_follow_the_truth() -> None:
    world = ProceduralWorld((1500, 1500), seed=63)
    window = Window(0, 0, 1500, 1500)
    picture = world.read(window).astype(np.float64)
    truth = world.truth.read(window)[..., 0]
    means = {k: picture[truth == k].mean(0) for k in np.unique(truth).tolist()}
    assert set(means) == {BUILDING, LAND, ROAD, VEGETATION, WATER}
    brightness = {k: v.mean() for k, v in means.items()}
    assert brightness[WATER] < 0.8 * min(brightness[k] for k in (BUILDING, LAND, ROAD))
    assert np.ptp(means[ROAD]) < 14  # grey
    green = means[VEGETATION]
    assert green[1] == green.max()
    assert brightness[LAND] > brightness[ROAD] > brightness[WATER]
    assert means[WATER][0] < means[WATER][1:].min()  # blue-green
    # Water next to land: the edge of the truth is where the picture changes.
    shore = (truth[:, 1:] == WATER) != (truth[:, :-1] == WATER)
    jump = np.abs(np.diff(picture, axis=1)).sum(-1)
    assert jump[shore].mean() > 3 * jump[(truth[:, 1:] == WATER) & ~shore].mean()


def test_a_window_of_the_largest_world_needs_little_memory() -> None:
    tracemalloc.start()
    try:
        HUGE.read(Window(70_000, 3_000, 512, 512))
        HUGE.read(Window(0, 0, 196, 196), len(HUGE.levels) - 1)
        HUGE.truth.read(Window(0, 0, 196, 196), len(HUGE.levels) - 1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 80e6


def test_identity_tells_worlds_apart() -> None:
    sources = [WORLD, WORLD.truth, HUGE, ProceduralWorld((1500, 1500), seed=8), ProceduralWorld((1500, 1500), 9, 0.5)]
    assert len({str(dict(s.identity())) for s in sources}) == len(sources)


@pytest.mark.parametrize("size", [(0, 10), (10, MAX_SIDE + 1)])
def test_sizes_out_of_bounds_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="100000 pixels a side"):
        ProceduralWorld(size)


@pytest.mark.parametrize("pixel_size", [0.0, -1.0, 3.0, float("nan")])
def test_pixel_sizes_out_of_bounds_are_refused(pixel_size: float) -> None:
    with pytest.raises(InputError, match=r"0\.05 to 2 metres"):
        ProceduralWorld((10, 10), pixel_size=pixel_size)


def test_pixel_size_scales_the_world() -> None:
    fine = ProceduralWorld((900, 900), seed=9, pixel_size=0.3).truth.read(Window(0, 0, 900, 900))[1::3, 1::3]
    coarse = ProceduralWorld((300, 300), seed=9, pixel_size=0.9).truth.read(Window(0, 0, 300, 300))
    np.testing.assert_array_equal(fine, coarse)


def test_scattered_noise_equals_noise_on_a_grid() -> None:
    rows, columns = np.linspace(-500, 900, 23), np.linspace(100, 2000, 17)
    parts = ((700.0, 1.0), (90.0, 0.3))
    grid = octaves(rows, columns, 5, parts)
    r, c = np.meshgrid(rows, columns, indexing="ij")
    np.testing.assert_allclose(scattered(r.ravel(), c.ravel(), 5, parts), grid.ravel(), atol=1e-5)


def test_hashes_are_uniform_and_uncorrelated() -> None:
    draws = unit(hash_grid(mix(3), np.arange(-200, 200)[:, None], np.arange(300)[None]))
    assert abs(draws.mean() - 0.5) < 0.01
    assert abs(draws.std() - 12**-0.5) < 0.01
    for a, b in [(draws[1:], draws[:-1]), (draws[:, 1:], draws[:, :-1])]:
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.02


def test_cover_is_the_share_inside() -> None:
    np.testing.assert_allclose(cover(np.array([-9, -1, 0, 0.5, 1, 9], np.float32), 2), [1, 1, 0.5, 0.25, 0, 0])


def test_written_files_hold_the_world_at_every_level(tmp_path) -> None:
    import tifffile

    rasterio = pytest.importorskip("rasterio")
    world = ProceduralWorld((300, 700), seed=9)
    for source, name in ((world, "picture.tif"), (world.truth, "truth.tif")):
        path = tmp_path / name
        steps = list(write_world_tiff(source, path, tile=256))
        assert steps[-1].fraction == 1
        assert all(a.done <= b.done for a, b in itertools.pairwise(steps))
        covered = [s.window for s in steps if s.window is not None]
        assert sum(w.area for w in covered) == 300 * 700
        with tifffile.TiffFile(path) as file:
            assert file.is_bigtiff
            levels = [file.pages[0], *file.pages[0].pages]
            assert [page.shape[:2] for page in levels] == list(source.levels)
            for level, page in enumerate(levels):
                expected = source.read(Window(0, 0, *source.levels[level]), level).astype(int)
                stored = page.asarray().reshape(expected.shape)
                assert np.abs(stored - expected).mean() < (5 if source.channels == 3 else 1e-9)
        with pytest.warns(rasterio.errors.NotGeoreferencedWarning), rasterio.open(path) as data:
            other = np.moveaxis(data.read(), 0, -1).astype(int)
        assert np.abs(other - source.read(Window(0, 0, 300, 700))).mean() < (5 if source.channels == 3 else 1e-9)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["picture.tif", "truth.tif"]


def test_cancelling_leaves_nothing(tmp_path) -> None:
    steps = write_world_tiff(ProceduralWorld((6000, 600), seed=9), tmp_path / "a.tif", tile=256, threads=1)
    next(steps)
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".lock", ".tif"]  # what is written, and whose it is
    assert not (tmp_path / "a.tif").exists()
    steps.close()
    assert list(tmp_path.iterdir()) == []


def test_an_error_while_writing_reaches_the_caller_and_leaves_nothing(tmp_path) -> None:
    world = ProceduralWorld((600, 600), seed=9)
    world.close()
    with pytest.raises(InputError, match="was closed"):
        list(write_world_tiff(world, tmp_path / "a.tif"))
    assert list(tmp_path.iterdir()) == []


def test_writing_refuses_what_cannot_be(tmp_path) -> None:
    with pytest.raises(InputError, match="multiples of 16"):
        write_world_tiff(WORLD, tmp_path / "a.tif", tile=100)
    with pytest.raises(InputError, match="1 to 100"):
        write_world_tiff(WORLD, tmp_path / "a.tif", quality=0)
    (tmp_path / "a.tif").write_bytes(b"mine")
    with pytest.raises(InputError, match="exists"):
        list(write_world_tiff(WORLD, tmp_path / "a.tif"))
    assert (tmp_path / "a.tif").read_bytes() == b"mine"
