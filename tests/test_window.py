"""Windows and grids against sets of pixels, counted one by one."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_isdnet.exceptions import InputError
from napari_isdnet.window import Grid, Window, pyramid_shapes

windows = st.builds(Window, st.integers(-9, 20), st.integers(-9, 20), st.integers(0, 12), st.integers(0, 12))
shapes = st.tuples(st.integers(1, 30), st.integers(1, 30))


def pixels(window: Window) -> set[tuple[int, int]]:
    return {(r, c) for r in range(window.row, window.bottom) for c in range(window.column, window.right)}


@given(windows, windows, shapes)
def test_windows_are_sets_of_pixels(a: Window, b: Window, shape: tuple[int, int]) -> None:
    assert pixels(a.intersect(b)) == pixels(a) & pixels(b)
    assert pixels(a.clipped(shape)) == {(r, c) for r, c in pixels(a) if 0 <= r < shape[0] and 0 <= c < shape[1]}
    assert a.area == len(pixels(a))
    assert a.empty == (not pixels(a))
    if a.contains(b):
        assert pixels(b) <= pixels(a)
    elif not b.empty:
        assert not pixels(b) <= pixels(a)
    assert a.relative_to(b).shifted(b.row, b.column) == a
    assert a.expanded(2).contains(a)
    assert a.expanded(2).shape == (a.height + 4, a.width + 4)


@given(windows.filter(lambda w: not w.empty), st.integers(1, 7))
def test_alignment_is_the_smallest_that_covers(a: Window, multiple: int) -> None:
    outer = a.aligned(multiple)
    assert outer.contains(a)
    assert all(edge % multiple == 0 for edge in (outer.row, outer.column, outer.bottom, outer.right))
    assert outer.row > a.row - multiple
    assert outer.bottom < a.bottom + multiple
    assert a.divided(multiple) == Window(*(v // multiple for v in (outer.row, outer.column, *outer.shape)))
    # A coarse pixel covers this window exactly where it holds one of its pixels.
    assert pixels(a.divided(multiple)) == {(r // multiple, c // multiple) for r, c in pixels(a)}
    assert a.multiplied(multiple).divided(multiple) == a


@given(shapes, st.tuples(st.integers(1, 9), st.integers(1, 9)), windows)
def test_a_grid_covers_every_pixel_once_and_knows_what_it_touches(
    shape: tuple[int, int], core: tuple[int, int], window: Window
) -> None:
    grid = Grid(shape, core)
    counts = np.zeros(shape, int)
    for cell in grid:
        counts[cell.slices] += 1
        assert not cell.empty
    assert (counts == 1).all()
    assert len(list(grid)) == len(grid)
    assert grid.touching(window) == [i for i, cell in enumerate(grid) if not cell.intersect(window).empty]
    for index in (-1, len(grid)):
        with pytest.raises(IndexError):
            grid[index]


@settings(max_examples=30)
@given(st.integers(1, 200_000), st.integers(1, 200_000), st.integers(1, 600))
def test_pyramids_halve_upwards_until_they_fit(rows: int, columns: int, smallest: int) -> None:
    levels = pyramid_shapes((rows, columns), smallest)
    assert levels[0] == (rows, columns)
    assert max(levels[-1]) <= smallest
    assert all(max(level) > smallest for level in levels[:-1])
    assert all(b == ((a[0] + 1) // 2, (a[1] + 1) // 2) for a, b in pairwise(levels))


def test_middle_and_distance() -> None:
    assert Window(2, 4, 4, 8).center == (4, 8)
    assert Window(2, 4, 4, 8).distance(7, 12) == 5


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="cannot have a negative size, got -1 x 3"):
        Window(0, 0, -1, 3)
    with pytest.raises(InputError, match="at least 1 pixel, got 0 x 5"):
        Grid((10, 10), (0, 5))
    assert Window.from_bounds(5, 5, 3, 9).empty
