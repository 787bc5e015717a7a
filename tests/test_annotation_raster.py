from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_isdnet.annotation.downsample import downsample
from napari_isdnet.annotation.raster import Runs, brush_runs, merged, polygon_runs
from napari_isdnet.annotation.strokes import Brush, Lasso, Patch, Polygon, Rectangle, Region, stroke_from_json
from napari_isdnet.exceptions import InputError
from napari_isdnet.window import Window

SHAPE = (40, 50)
coordinate = st.floats(-15, 60, allow_nan=False).map(lambda v: round(v, 2))
point = st.tuples(coordinate, coordinate)


def full(cover, shape=SHAPE) -> np.ndarray:
    mask = cover.mask(Window.whole(shape))
    return np.broadcast_to(mask, shape).copy() if isinstance(mask, bool) else mask


def distance_to_path(points: np.ndarray, shape) -> np.ndarray:
    """Independent oracle: distance of every pixel centre to every segment."""
    grid = np.stack(np.mgrid[: shape[0], : shape[1]], axis=-1).astype(float)
    best = np.full(shape, np.inf)
    for a, b in itertools.pairwise(points) if len(points) > 1 else [(points[0], points[0])]:
        ab = b - a
        t = np.clip(((grid - a) @ ab) / max(float(ab @ ab), 1e-12), 0, 1)
        best = np.minimum(best, np.linalg.norm(grid - (a + t[..., None] * ab), axis=-1))
    return best


@given(st.lists(point, min_size=1, max_size=6), st.floats(0.75, 25).map(lambda v: round(v, 2)))
@settings(max_examples=150, deadline=None)
def test_brush_equals_distance_to_the_path(points, radius):
    distance = distance_to_path(np.array(points), SHAPE)
    mask = full(brush_runs(np.array(points), (radius, radius), SHAPE))
    sure = np.abs(distance - radius) > 1e-4  # on the outline either answer is right
    assert np.array_equal(mask[sure], (distance <= radius)[sure])


@given(st.lists(point, min_size=1, max_size=6), st.floats(0.4, 25), st.sampled_from([0.25, 0.5, 2.0, 3.0]))
@settings(max_examples=100, deadline=None)
def test_a_brush_on_oblong_pixels_is_round_on_the_earth(points, radius, side):
    """``side``: the height of a pixel that is 1 wide."""
    grid = np.stack(np.mgrid[: SHAPE[0], : SHAPE[1]], axis=-1).astype(float) * (side, 1)
    best = np.full(SHAPE, np.inf)
    path = np.round(np.array(points), 3) * (side, 1)
    for a, b in itertools.pairwise(path) if len(path) > 1 else [(path[0], path[0])]:
        t = np.clip(((grid - a) @ (b - a)) / max(float((b - a) @ (b - a)), 1e-12), 0, 1)
        best = np.minimum(best, np.linalg.norm(grid - (a + t[..., None] * (b - a)), axis=-1))
    brush = Brush(points, (radius / side, radius))
    assert stroke_from_json("brush", *json.loads(json.dumps(brush.to_json()))) == brush
    across = brush.radii[1] * max(1.0, 0.75 * np.sqrt((brush.radii[0] ** -2 + brush.radii[1] ** -2) / 2))
    sure = np.abs(best - across) > 0.02  # radii are kept to a thousandth of a pixel
    assert np.array_equal(full(brush.cover(SHAPE))[sure], (best <= across)[sure])


@given(st.lists(point, min_size=3, max_size=8), st.lists(point, min_size=3, max_size=4))
@settings(max_examples=150, deadline=None)
def test_polygon_and_lasso_equal_an_independent_point_in_polygon_test(outer, hole):
    shapely = pytest.importorskip("shapely")
    mask = full(polygon_runs([np.array(outer), np.array(hole)], SHAPE))
    lasso = full(polygon_runs([np.array(outer)], SHAPE, nonzero=True))
    grid = np.stack(np.mgrid[: SHAPE[0], : SHAPE[1]], axis=-1).reshape(-1, 2).astype(float)
    rings = [np.array(ring + ring[:1]) for ring in (outer, hole)]
    expected = np.zeros(len(grid), dtype=int)
    winding = np.zeros(len(grid), dtype=int)
    for number, ring in enumerate(rings):
        for (y0, x0), (y1, x1) in itertools.pairwise(ring):
            # crossings of a ray to the left, half-open in rows
            hit = ((y0 <= grid[:, 0]) & (grid[:, 0] < y1)) | ((y1 <= grid[:, 0]) & (grid[:, 0] < y0))
            with np.errstate(divide="ignore", invalid="ignore"):
                x = x0 + (grid[:, 0] - y0) * (x1 - x0) / (y1 - y0)
            left = hit & (x <= grid[:, 1])
            expected += left
            if number == 0:
                winding += np.where(left, 1 if y0 < y1 else -1, 0)
    lines = shapely.MultiLineString([ring.tolist() for ring in rings])
    near = shapely.distance(shapely.points(grid), lines) < 1e-3
    sure = ~near.reshape(SHAPE)
    assert np.array_equal(mask[sure], (expected % 2 == 1).reshape(SHAPE)[sure])
    assert np.array_equal(lasso[sure], (winding != 0).reshape(SHAPE)[sure])


def test_adjacent_polygons_share_no_pixel_and_leave_none_out():
    left = full(polygon_runs([np.array([(0, 0), (0, 20), (30, 20), (30, 0)], float)], SHAPE))
    right = full(polygon_runs([np.array([(0, 20), (0, 40), (30, 40), (30, 20)], float)], SHAPE))
    assert not (left & right).any()
    assert (left | right).sum() == 30 * 40


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(-3, 14), st.integers(-3, 14)), max_size=30))
def test_merged_runs_are_disjoint_sorted_and_cover_the_union(runs):
    oracle = np.zeros((10, 12), dtype=bool)
    for row, a, b in runs:
        oracle[row, max(a, 0) : max(b, 0)] = True
    table = np.array(runs, dtype=np.int64).reshape(-1, 3)
    result = merged(table[:, 0], table[:, 1], table[:, 2], (10, 12))
    assert isinstance(result, Runs)
    assert np.array_equal(full(result, (10, 12)), oracle)
    assert result.area == oracle.sum()
    same_row = result.rows[1:] == result.rows[:-1]
    assert (result.starts[1:][same_row] > result.stops[:-1][same_row]).all()


@given(st.lists(point, min_size=1, max_size=5), st.floats(0.75, 12), st.integers(0, 30), st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_windows_of_a_mask_are_crops_of_the_whole(points, radius, row, column):
    runs = brush_runs(np.array(points), (radius, radius), SHAPE)
    window = Window(row, column, 9, 10)
    got = runs.mask(window)
    expected = full(runs)[window.slices]
    assert np.array_equal(np.broadcast_to(got, window.shape), expected)
    assert (got is True) == bool(expected.all())


def test_a_click_with_the_smallest_brush_paints_a_pixel_wherever_it_falls():
    for spot in [(4.5, 7.5), (4.0, 7.0), (4.3, 7.8)]:
        assert full(Brush([spot], 0.1).cover(SHAPE)).sum() >= 1
        assert full(Brush([spot], (0.1, 0.4)).cover(SHAPE)).sum() >= 1
    assert full(Brush([(4.0, 7.0)], 0.5).cover(SHAPE)).sum() == 1


def brute_coarse(values: np.ndarray) -> np.ndarray:
    out = np.zeros((values.shape[0] // 2, values.shape[1] // 2), dtype=np.uint8)
    for r, c in np.ndindex(out.shape):
        labelled = [int(v) for v in values[2 * r : 2 * r + 2, 2 * c : 2 * c + 2].ravel() if v]
        if labelled:
            out[r, c] = min(labelled, key=lambda v: (-labelled.count(v), v))
    return out


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 4, 254]))
@settings(max_examples=60, deadline=None)
def test_downsampling_follows_its_rule(seed, highest):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, highest + 1, (8, 12)).astype(np.uint8)
    values[rng.random(values.shape) < 0.5] = 0
    assert np.array_equal(downsample(values), brute_coarse(values))


def test_a_thin_line_stays_visible_down_to_one_pixel():
    values = np.zeros((512, 512), dtype=np.uint8)
    values[200, :] = 3
    while values.shape[0] > 1:
        values = downsample(values)
        assert (values == 3).any(axis=0).all()


STROKES = [
    Brush([(1.25, 2.5), (30.125, 40)], 3.5),
    Polygon([[(1, 1), (1, 30), (30, 30)], [(5, 8), (5, 12), (9, 12)]]),
    Lasso([(1, 1), (20, 40), (20, 1), (1, 40)]),
    Rectangle(Window(-3, 5, 20, 100)),
    Region(Window(3, 4, 7, 9), np.arange(63).reshape(7, 9) % 3 == 0, "prediction"),
    Patch(Window(2, 3, 5, 5), np.arange(25).reshape(5, 5) % 4),
    Patch(Window(2, 3, 5, 5), np.arange(25).reshape(5, 5) % 4, np.eye(5, dtype=bool)),
    Patch(Window(2, 3, 0, 0), np.zeros((0, 0), np.uint8)),
]


@pytest.mark.parametrize("stroke", STROKES, ids=lambda s: s.kind)
def test_strokes_survive_the_journal(stroke):
    import json

    about, data = stroke.to_json()
    back = stroke_from_json(stroke.kind, json.loads(json.dumps(about)), data)
    assert type(back) is type(stroke)
    assert np.array_equal(full(back.cover(SHAPE)), full(stroke.cover(SHAPE)))
    if isinstance(stroke, Patch):
        assert np.array_equal(back.values, stroke.values)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Brush([], 3), "at least 1 finite"),
        (lambda: Brush([(1, float("nan"))], 3), "finite"),
        (lambda: Brush([(1, 1)], 0), "radius must be above 0"),
        (lambda: Polygon([[(1, 1), (2, 2)]]), "at least 3"),
        (lambda: Polygon([]), "at least one ring"),
        (lambda: Region(Window(0, 0, 2, 2), np.ones((3, 3), bool)), "must fit its window"),
        (lambda: Patch(Window(0, 0, 1, 2), np.array([[255, 0]])), "values='mask'"),
        (lambda: Patch(Window(0, 0, 1, 1), np.array([[0.5]])), "whole numbers"),
        (lambda: stroke_from_json("hologram", {}, None), "does not know"),
    ],
)
def test_bad_strokes_are_named(make, message):
    with pytest.raises(InputError, match=message):
        make()
