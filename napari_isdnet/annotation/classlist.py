"""The class list of an annotation: pure edits that say what happens to the pixels painted so far."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_isdnet.classes import ClassInfo, classes_from, distinct_color, parse_color
from napari_isdnet.exceptions import InputError

Table = npt.NDArray[np.uint8]
"""256 annotation values: what each one becomes."""

PLACEHOLDERS = ("object", "background")
"""What a new annotation calls its classes where nothing says what they are."""


@dataclass(frozen=True)
class AnnotationClass:
    """A class and the key that picks it."""

    info: ClassInfo
    shortcut: str | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"name": self.info.name, "color": list(self.info.color), "shortcut": self.shortcut}


Classes = tuple[AnnotationClass, ...]


def class_list(items: Iterable[Any]) -> Classes:
    """From names, ``ClassInfo``, or mappings with name, color and shortcut; keys 1 to 9 where no shortcut is given."""
    items = list(items)
    if not items:
        return ()
    infos = classes_from([item.info if isinstance(item, AnnotationClass) else item for item in items])
    result: Classes = ()
    for item, info in zip(items, infos, strict=True):
        given = item.shortcut if isinstance(item, AnnotationClass) else None
        asked = isinstance(item, Mapping) and "shortcut" in item
        if isinstance(item, Mapping) and asked:
            given = item["shortcut"]
        free = None if asked or isinstance(item, AnnotationClass) else _free_key(result)
        result = (*result, AnnotationClass(info, given or free))
    return result


def _free_key(classes: Classes) -> str | None:
    used = {c.shortcut for c in classes}
    return next((key for key in "123456789" if key not in used), None)


def _check(classes: Classes, index: int) -> None:
    if not 0 <= index < len(classes):
        raise InputError(f"There are classes 0 to {len(classes) - 1}, class {index} was asked for; pick one of those.")


def added(classes: Classes, name: str, color: str | Sequence[int] | None) -> Classes:
    """One class more, at the end."""
    info = ClassInfo(name, distinct_color(len(classes)) if color is None else parse_color(color))
    _unique([c.info for c in classes] + [info])
    return with_shortcut((*classes, AnnotationClass(info)), len(classes), _free_key(classes))


def renamed(classes: Classes, index: int, name: str) -> Classes:
    """Another name; raises :class:`InputError` when a class has it already (merging is another thing)."""
    _check(classes, index)
    changed = _with(classes, index, replace(classes[index], info=replace(classes[index].info, name=name)))
    _unique([c.info for c in changed])
    return changed


def recolored(classes: Classes, index: int, color: str | Sequence[int]) -> Classes:
    """Another colour."""
    _check(classes, index)
    return _with(classes, index, replace(classes[index], info=replace(classes[index].info, color=parse_color(color))))


def with_shortcut(classes: Classes, index: int, shortcut: str | None) -> Classes:
    """Another key; a class that had it loses it."""
    _check(classes, index)
    freed = tuple(replace(c, shortcut=None) if shortcut and c.shortcut == shortcut else c for c in classes)
    return _with(freed, index, replace(freed[index], shortcut=shortcut))


def removed(classes: Classes, index: int) -> tuple[Classes, Table]:
    """Without class ``index``: its pixels become unlabelled, the classes after it move down by one."""
    _check(classes, index)
    return classes[:index] + classes[index + 1 :], _closing_gap(index, 0)


def merged_into(classes: Classes, index: int, target: int) -> tuple[Classes, Table]:
    """Class ``index`` becomes part of class ``target``; the classes after it move down by one."""
    _check(classes, index)
    _check(classes, target)
    if index == target:
        raise InputError(f"A class cannot be merged into itself, got class {index} twice.")
    return classes[:index] + classes[index + 1 :], _closing_gap(index, target + 1)


def _closing_gap(index: int, value: int) -> Table:
    table = np.arange(256, dtype=np.uint8)
    table[index + 1] = value if value <= index else value - 1
    table[index + 2 :] -= 1
    return table


def _with(classes: Classes, index: int, changed: AnnotationClass) -> Classes:
    return (*classes[:index], changed, *classes[index + 1 :])


def _unique(infos: Sequence[ClassInfo]) -> None:
    classes_from(infos)
