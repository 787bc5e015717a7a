"""Annotations among the maps of the Errors dock: what is painted as class indices, and classes brought to one order.

An annotation holds 0 where nothing is painted and k + 1 for class k, a class map holds k: read as each other, every
class is taken for its neighbour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_isdnet.annotation.naming import in_words, renamed
from napari_isdnet.classes import IGNORE_INDEX, ClassInfo, folded
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.array import ArraySource
from napari_isdnet.io.source import GeoReference
from napari_isdnet.widgets._image import ANNOTATION, METADATA
from napari_isdnet.widgets._projects import project_in
from napari_isdnet.window import Window

if TYPE_CHECKING:
    from napari_isdnet.annotation.naming import Naming
    from napari_isdnet.annotation.store import AnnotationStore
    from napari_isdnet.widgets._errors_controller import LabelMap


class PaintedLabels(ArraySource):
    """An annotation as a class map: 255 where nothing is painted, and each class by its number in ``numbers``."""

    painted = True

    def __init__(
        self, store: AnnotationStore, name: str, place: GeoReference | None = None, numbers: Sequence[int] | None = None
    ) -> None:
        super().__init__(store.arrays, name, "yx", georeference=place)
        self._store, self._place = store, place
        indices = range(len(store.classes)) if numbers is None else numbers
        self._table = np.full(256, IGNORE_INDEX, np.uint8)
        self._table[1 : 1 + len(indices)] = indices

    def _read(self, window: Window, level: int) -> npt.NDArray[Any]:
        return self._table[super()._read(window, level)]

    @property
    def strokes(self) -> tuple[int, int]:
        """How many strokes stand and which is the last: another pair once something else is painted, or undone."""
        done = self._store.journal.done
        return len(done), done[-1] if done else 0

    @property
    def naming(self) -> Naming:
        """What its classes were called before."""
        return self._store.naming()

    def numbered(self, numbers: Sequence[int]) -> PaintedLabels:
        """The same with other numbers of its classes."""
        return PaintedLabels(self._store, self.name, self._place, numbers)


def annotation_of(layer: Any) -> AnnotationStore | None:
    """The annotation that a layer shows, None for any other layer; :class:`InputError` for one that is closed."""
    known = layer.metadata.get(METADATA, {})
    folder = known.get(ANNOTATION)
    if folder is None:
        return None
    project = project_in(folder)
    if project is None:
        raise InputError(f"The annotation that '{layer.name}' shows is closed; open it in the Annotate dock first.")
    return project.store


def in_one_order(prediction: LabelMap, truth: LabelMap) -> tuple[LabelMap, LabelMap]:
    """Both maps with one list of classes, where an annotation is among them: its classes are found by their names.

    A class that was renamed in the annotation since the other map was made is found by its new name, with a note. One
    that was merged with another class of the map stays a class of its own, which a note says: the map's pixels keep it.
    Classes that only the annotation has come last. Raises :class:`InputError` where no name is known to both, and
    where two maps that are no annotations have the same classes in another order.
    """
    ours, theirs = prediction.classes, truth.classes
    if not ours or not theirs or _names(ours) == _names(theirs):
        return prediction, truth
    for painted, other in ((truth, prediction), (prediction, truth)):
        if isinstance(painted.source, PaintedLabels):
            assert painted.classes is not None
            assert other.classes is not None
            names, naming = [info.name for info in other.classes], painted.source.naming
            called = naming.followed(names)
            gone = {name: now for name, now in naming.followed(names, merged=True).items() if name not in called}
            numbers, classes = _by_name(painted.classes, renamed(other.classes, called))
            painted = replace(painted, source=painted.source.numbered(numbers), classes=classes)
            notes = [f"{text}." for text in in_words(called)]
            notes += [
                f"'{name}' was merged into '{now}', which the other map holds apart: it counts as an error there."
                for name, now in gone.items()
            ]
            other = replace(other, classes=classes, notes=tuple(notes))
            return (other, painted) if other.source is prediction.source else (painted, other)
    if sorted(_names(ours)) == sorted(_names(theirs)):
        raise InputError(
            f"The prediction numbers its classes {_listed(ours)} and truth {_listed(theirs)}; bring one of them into"
            " the other's order first."
        )
    return prediction, truth


def strokes_of(maps: Sequence[LabelMap]) -> list[tuple[int, int]]:
    """:attr:`PaintedLabels.strokes` of the annotations among ``maps``."""
    return [item.source.strokes for item in maps if isinstance(item.source, PaintedLabels)]


def _by_name(painted: Sequence[ClassInfo], other: Sequence[ClassInfo]) -> tuple[list[int], tuple[ClassInfo, ...]]:
    """The number of each painted class in the list that holds the other map's classes and then the new ones."""
    numbers, classes, known = [], list(other), _names(other)
    for item in painted:
        name = folded(item.name)
        if name not in known:
            known.append(name)
            classes.append(item)
        numbers.append(known.index(name))
    if len(classes) == len(painted) + len(other):
        raise InputError(
            f"The annotation has the classes {_listed(painted)} and the other map {_listed(other)}, none of which is"
            " the same; rename the classes of the annotation first."
        )
    return numbers, tuple(classes)


def _names(classes: Sequence[ClassInfo]) -> list[str]:
    return [folded(item.name) for item in classes]


def _listed(classes: Sequence[ClassInfo]) -> str:
    return ", ".join(item.name for item in classes)
