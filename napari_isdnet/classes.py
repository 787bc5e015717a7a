"""Classes of a segmentation: names, colours, and the two ways a pixel's class is written down.

*Class index*: 0..K-1, with 255 for nodata / ignore. *Annotation value*: 0 is unlabelled, ``k + 1`` is class ``k``. The
conversion between the two happens in this module only.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from napari_isdnet.exceptions import InputError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

IGNORE_INDEX = 255
MAX_CLASSES = 254


@dataclass(frozen=True)
class ClassInfo:
    """One class: a name and a colour (red, green, blue; 0..255)."""

    name: str
    color: tuple[int, int, int]

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise InputError("A class needs a name that is not blank.")
        if len(self.color) != 3 or any(not 0 <= int(v) <= 255 for v in self.color):
            raise InputError(f"The colour of class '{self.name}' must be three numbers 0..255, got {self.color}.")

    @property
    def hex(self) -> str:
        """Colour as ``#rrggbb``."""
        return "#{:02x}{:02x}{:02x}".format(*self.color)


def classes_from(items: Iterable[Any]) -> tuple[ClassInfo, ...]:
    """Classes from names, ``(name, color)`` pairs or ``{"name", "color"}`` mappings; names must differ."""
    result: list[ClassInfo] = []
    items = list(items)
    for index, item in enumerate(items):
        if isinstance(item, ClassInfo):
            result.append(item)
            continue
        name, color = item, None
        if isinstance(item, dict):
            name, color = item.get("name", ""), item.get("color")
        elif isinstance(item, tuple | list):
            if len(item) != 2:
                raise InputError(f"A class must be a name, or a name and a colour, got {list(item)}.")
            name, color = item
        result.append(ClassInfo(str(name), parse_color(color) if color is not None else distinct_color(index)))
    names = [c.name for c in result]
    if len(set(names)) != len(names):
        raise InputError(f"Class names must differ, got {', '.join(names)}.")
    if not 1 <= len(result) <= MAX_CLASSES:
        raise InputError(f"There must be 1 to {MAX_CLASSES} classes, got {len(result)}.")
    return tuple(result)


def index_of(name: str, names: Sequence[str]) -> int | None:
    """Which of ``names`` a class of another file means: the same text, or the only one that differs in case and spaces.

    Programs write classes as their users type them: ``Building`` in a GeoJSON is the model's ``building``.
    """
    if name in names:
        return names.index(name)
    wanted, others = folded(name), [folded(other) for other in names]
    return others.index(wanted) if others.count(wanted) == 1 else None


def known_as(names: Sequence[str], old: Sequence[str]) -> tuple[str, ...]:
    """Every name as ``old`` writes it, where that has it (:func:`index_of`); a name of ``old`` is one class at most."""
    found = [index_of(name, old) for name in names]
    return tuple(
        name if index is None or (name != old[index] and (found.count(index) > 1)) else old[index]
        for name, index in zip(names, found, strict=True)
    )


def folded(name: str) -> str:
    """A class name without what is typed now so, now so: case and spaces."""
    return " ".join(name.casefold().split())


def parse_color(color: str | Sequence[int]) -> tuple[int, int, int]:
    """``#rrggbb`` or three numbers 0..255."""
    if isinstance(color, str):
        text = color.lstrip("#")
        try:
            if len(text) != 6:
                raise ValueError
            value = int(text, 16)
        except ValueError:
            raise InputError(f"A colour must look like #rrggbb, got '{color}'.") from None
        return value >> 16, value >> 8 & 255, value & 255
    try:
        red, green, blue = (int(value) for value in color)
    except (TypeError, ValueError, OverflowError):  # no numbers, or not finite ones
        raise InputError(f"A colour must look like #rrggbb or be three numbers 0..255, got {color!r}.") from None
    return red, green, blue


def distinct_color(index: int) -> tuple[int, int, int]:
    """A colour for class ``index`` that differs well from its neighbours (golden-ratio steps of hue)."""
    hue = (0.08 + index * 0.618033988749895) % 1.0
    r, g, b = colorsys.hsv_to_rgb(hue, 0.65 if index % 2 else 0.8, 0.95 if index % 3 else 0.75)
    return round(r * 255), round(g * 255), round(b * 255)


ANNOTATIONS_ZARR = "annotations.zarr"
"""The label pyramid in the folder of an annotation."""
ANNOTATION = "napari_isdnet_annotation"
"""Member of a file's metadata that says: its values are those of an annotation, and these are its classes."""


def annotation_mark(classes: Sequence[ClassInfo]) -> dict[str, Any]:
    """What a file of annotation values (0 = unlabelled, k + 1 = class k) holds under :data:`ANNOTATION`, JSON-ready."""
    return {"values": "0 is unlabelled, k + 1 is class k", "classes": [[c.name, list(c.color)] for c in classes]}


def classes_marked(mark: Any) -> tuple[ClassInfo, ...] | None:
    """The classes of :func:`annotation_mark`; () where it names none, None for anything else."""
    if not isinstance(mark, Mapping) or not isinstance(mark.get("classes"), list):
        return None
    try:
        return classes_from(mark["classes"]) if mark["classes"] else ()
    except (InputError, TypeError, ValueError):
        return None


def to_annotation(indices: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Class indices (255 = ignore) to annotation values (0 = unlabelled)."""
    # uint8 arithmetic wraps: 255 + 1 == 0, which is exactly 'ignore' -> 'unlabelled'.
    return indices + indices.dtype.type(1)


def from_annotation(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Annotation values (0 = unlabelled) to class indices (255 = ignore)."""
    return values - values.dtype.type(1)
