"""Windows, grids and halos: pure integer arithmetic, no torch and no numpy.

A *window* is a pixel rectangle ``(row, column, height, width)``; which pyramid level it counts on is said by whoever
uses it. A grid is always anchored at the origin of the image, never at what is on the screen, so that a result does
not depend on where one looks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from napari_isdnet.exceptions import InputError


@dataclass(frozen=True, order=True)
class Window:
    """A rectangle of pixels, half open: rows ``row .. row + height - 1``."""

    row: int
    column: int
    height: int
    width: int

    def __post_init__(self) -> None:
        if self.height < 0 or self.width < 0:
            raise InputError(f"A window cannot have a negative size, got {self.height} x {self.width}.")

    @classmethod
    def whole(cls, shape: tuple[int, int]) -> Window:
        """The window that covers an image of ``shape`` (rows, columns)."""
        return cls(0, 0, shape[0], shape[1])

    @classmethod
    def from_bounds(cls, top: int, left: int, bottom: int, right: int) -> Window:
        """The window between two corners, empty (never negative) where they cross."""
        return cls(top, left, max(0, bottom - top), max(0, right - left))

    @property
    def bottom(self) -> int:
        """First row below the window."""
        return self.row + self.height

    @property
    def right(self) -> int:
        """First column right of the window."""
        return self.column + self.width

    @property
    def text(self) -> str:
        """``ROW,COL,HEIGHT,WIDTH``, as ``--roi`` takes it."""
        return f"{self.row},{self.column},{self.height},{self.width}"

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        return self.height, self.width

    @property
    def area(self) -> int:
        """Number of pixels."""
        return self.height * self.width

    @property
    def empty(self) -> bool:
        """True when the window holds no pixel."""
        return self.height == 0 or self.width == 0

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index of this window into an array whose first two axes are rows and columns."""
        return slice(self.row, self.bottom), slice(self.column, self.right)

    @property
    def spans(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(first, last + 1) of the rows and of the columns."""
        return (self.row, self.bottom), (self.column, self.right)

    @property
    def center(self) -> tuple[float, float]:
        """(row, column) of the middle."""
        return self.row + self.height / 2, self.column + self.width / 2

    def shifted(self, rows: int, columns: int) -> Window:
        """The same rectangle moved."""
        return Window(self.row + rows, self.column + columns, self.height, self.width)

    def relative_to(self, outer: Window) -> Window:
        """This window in the coordinates of ``outer``'s top left corner."""
        return self.shifted(-outer.row, -outer.column)

    def intersect(self, other: Window) -> Window:
        """The pixels in both; empty where they do not meet."""
        return Window.from_bounds(
            max(self.row, other.row),
            max(self.column, other.column),
            min(self.bottom, other.bottom),
            min(self.right, other.right),
        )

    def contains(self, other: Window) -> bool:
        """True when every pixel of ``other`` is in this window."""
        return (
            self.row <= other.row
            and self.column <= other.column
            and other.bottom <= self.bottom
            and other.right <= self.right
        )

    def expanded(self, halo: int) -> Window:
        """``halo`` pixels more on every side; may reach outside the image."""
        return Window(self.row - halo, self.column - halo, self.height + 2 * halo, self.width + 2 * halo)

    def clipped(self, shape: tuple[int, int]) -> Window:
        """The part inside an image of ``shape``."""
        return self.intersect(Window.whole(shape))

    def aligned(self, multiple: int) -> Window:
        """The smallest window around this one whose edges are multiples of ``multiple``."""
        top, left = self.row // multiple * multiple, self.column // multiple * multiple
        bottom, right = -(-self.bottom // multiple) * multiple, -(-self.right // multiple) * multiple
        return Window(top, left, bottom - top, right - left)

    def divided(self, factor: int) -> Window:
        """The pixels of a map at 1/``factor`` that cover this window (floor of the start, ceiling of the end)."""
        outer = self.aligned(factor)
        return Window(outer.row // factor, outer.column // factor, outer.height // factor, outer.width // factor)

    def multiplied(self, factor: int) -> Window:
        """The same rectangle on a grid ``factor`` times finer."""
        return Window(self.row * factor, self.column * factor, self.height * factor, self.width * factor)

    def distance(self, row: float, column: float) -> float:
        """Euclidean distance of a point from the middle of this window (for 'what you see first' orders)."""
        r, c = self.center
        return ((r - row) ** 2 + (c - column) ** 2) ** 0.5


def region_of(roi: Window | None, shape: tuple[int, int], of: str = "the image") -> Window:
    """``roi``, or all of an image of ``shape``; :class:`InputError` for one that is empty or reaches outside."""
    whole = Window.whole(shape)
    if roi is None:
        return whole
    if roi.empty or not whole.contains(roi):
        raise InputError(
            f"The region {roi.text} must lie inside {of} of {shape[0]} x {shape[1]} pixels and hold at least one."
        )
    return roi


@dataclass(frozen=True)
class Grid:
    """Cores that cover an image exactly once, in row-major order, anchored at the origin.

    ``core`` is (rows, columns) of a full core; the last row and column of cores may be smaller.
    """

    shape: tuple[int, int]
    core: tuple[int, int]

    def __post_init__(self) -> None:
        if min(self.core) < 1:
            raise InputError(f"A grid needs cores of at least 1 pixel, got {self.core[0]} x {self.core[1]}.")

    @cached_property
    def counts(self) -> tuple[int, int]:
        """Number of cores down and across."""
        return -(-self.shape[0] // self.core[0]), -(-self.shape[1] // self.core[1])

    def __len__(self) -> int:
        return self.counts[0] * self.counts[1]

    def __getitem__(self, index: int) -> Window:
        if not 0 <= index < len(self):
            raise IndexError(index)
        down, across = divmod(index, self.counts[1])
        window = Window(down * self.core[0], across * self.core[1], *self.core)
        return window.clipped(self.shape)

    def __iter__(self) -> Iterator[Window]:
        return (self[i] for i in range(len(self)))

    def touching(self, window: Window) -> list[int]:
        """Indices, ascending, of the cores that share a pixel with ``window``."""
        inside = window.clipped(self.shape)
        if inside.empty:
            return []
        rows = range(inside.row // self.core[0], (inside.bottom - 1) // self.core[0] + 1)
        columns = range(inside.column // self.core[1], (inside.right - 1) // self.core[1] + 1)
        return [r * self.counts[1] + c for r in rows for c in columns]


def pyramid_shapes(shape: tuple[int, int], smallest: int = 256) -> list[tuple[int, int]]:
    """Level shapes of an image pyramid, halved and rounded up until both sides fit in ``smallest`` pixels."""
    shapes = [shape]
    while max(shapes[-1]) > smallest:
        rows, columns = shapes[-1]
        shapes.append((-(-rows // 2), -(-columns // 2)))
    return shapes
